"""The forward of a module under a `ProductMode`, put upon the module: its class, its name and its hooks stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewbit.frontends.torch.product_mode import ProductMode, Takes


class ModeForward:
    """What stands for `module.forward`; a copy of the module has a copy of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        #: What was put upon the module before; `None`: nothing, it is the forward of its class.
        self.before: Callable[..., Any] | None = module.__dict__.get("forward")

    @property
    def takes(self) -> Takes:
        """What computes the products."""
        return {}

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The forward without the mode; who asks for a signature gets that of this."""
        own: Callable[..., Any] = self.before or type(self.module).forward.__get__(self.module)
        return own

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiler would break its graph at every function
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        with ProductMode(self.module, self.takes):
            return self.__wrapped__(*args, **kwargs)

    def put(self) -> None:
        """Put it upon the module."""
        self.module.forward = self

    def take_off(self) -> None:
        """Give the module back what it had."""
        if self.before is None:
            del self.module.forward
        else:
            self.module.forward = self.before


class _Watched(ModeForward):
    """A forward whose products go to whoever watches."""

    def __init__(self, module: nn.Module, takes: Takes) -> None:
        super().__init__(module)
        self._takes = takes

    @property
    def takes(self) -> Takes:
        return self._takes


@contextmanager
def watched(takes: Mapping[nn.Module, Takes]) -> Iterator[None]:
    """Run modules under modes while the block runs."""
    forwards = [_Watched(module, own) for module, own in takes.items()]
    for forward in forwards:
        forward.put()
    try:
        yield
    finally:
        for forward in forwards:
            forward.take_off()


def guards(model: nn.Module, makers: Collection[nn.Module]) -> list[nn.Module]:
    """Return torch's own modules around `makers` that would go around their forward, in one fused operator.

    They do not while a mode is on.
    """
    inside = set(makers)
    fused = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
    return [own for own in model.modules() if isinstance(own, fused) and not inside.isdisjoint(own.modules())]
