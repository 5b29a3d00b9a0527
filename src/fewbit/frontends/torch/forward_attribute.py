"""The `forward` that an instance of a module has in the place of its class's, while something listens or stands in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def get_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the forward that is the module's own; `None`: it has that of its class."""
    return module.__dict__.get("forward")


def set_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Put what `get_forward` returned back into a module."""
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = forward
