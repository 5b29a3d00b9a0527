"""What a kernel for CUDA asks of the machine at hand."""

from __future__ import annotations

import re

import torch


def missing(capability: tuple[int, int], release: tuple[int, int] = (2, 4)) -> str | None:
    """Return what there is not of a device of this compute capability and this release of torch, or `None`."""
    numbers = re.findall(r"\d+", torch.__version__)
    if (int(numbers[0]), int(numbers[1])) < release:
        return f"it needs torch {'.'.join(map(str, release))}, this is {torch.__version__}"
    wanted = ".".join(map(str, capability))
    if not torch.cuda.is_available():
        return f"it needs a CUDA device of compute capability {wanted}, and torch sees none"
    found = torch.cuda.get_device_capability()
    if found < capability:
        return f"it needs compute capability {wanted}, this device has {'.'.join(map(str, found))}"
    return None
