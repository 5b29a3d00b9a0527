"""Let a module put out some of its channels again: y[..., sources], by a hook, so that names and parameters stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.transforms.link import Channels

#: What the channels are called in the module; no file holds them.
_NAME = "split_channels"


def copy_channels(module: nn.Module, sources: Channels) -> Callable[[], None]:
    """Let channel j of what `module` puts out be its channel `sources[j]`; return what takes that back."""
    device = next(module.parameters()).device
    module.register_buffer(_NAME, torch.from_numpy(sources).to(device), persistent=False)
    handle = module.register_forward_hook(_copied)

    def undo() -> None:
        handle.remove()
        del module._buffers[_NAME]
        module._non_persistent_buffers_set.discard(_NAME)

    return undo


def _copied(module: nn.Module, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001
    return output.index_select(-1, module.get_buffer(_NAME))
