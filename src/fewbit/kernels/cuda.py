"""What a kernel for CUDA asks of the machine at hand."""

from __future__ import annotations

import re

import torch

from fewbit.kernels.purpose import Purpose


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


def of_rounded_inputs(device: str, capability: tuple[int, int]) -> Purpose:
    """Return the purpose of a kernel for rounded inputs in any float type, on devices of a compute capability."""
    needs = f"compute capability {'.'.join(map(str, capability))}"
    kinds = ("float32", "bfloat16", "float16")
    return Purpose(device=device, dtypes=kinds, rounds=True, measured=False, needs=needs)


def uneven(shape: tuple[int, int], multiple: int) -> str | None:
    """Return why a kernel takes no weight of this `shape`, whose sides have to be multiples, or `None`."""
    if not any(size % multiple for size in shape):
        return None
    return f"its weights are multiples of {multiple} x {multiple}, not {shape[0]} x {shape[1]}"
