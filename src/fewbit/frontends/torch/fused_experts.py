"""Find the experts that modules keep in one parameter, by a run, and keep them apart as linear layers.

A parameter with three axes whose matrices a run multiplies tokens with, always in one orientation and in no other way,
is such a stack of experts. No table of architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.expert_stack import FusedExperts, ProbedExperts
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.quantized import QuantizedLayer


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter with three axes, and where it hangs."""

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    #: The names of all parameters of the module, in order.
    order: tuple[str, ...]

    def replace(self, stack: nn.Module) -> None:
        """Put `stack` where the parameter is."""
        del self.module._parameters[self.attribute]
        self.module._modules[self.attribute] = stack

    def restore(self) -> None:
        """Put the parameter back, with what has been written into the layers."""
        stack = self.module._modules.pop(self.attribute)
        if isinstance(stack, FusedExperts):
            for number in range(stack.count):
                place, weight = stack.slice_of(self.parameter, number), stack.weight_of(number).detach()
                if weight.data_ptr() != place.data_ptr():
                    place.copy_(weight)
        own = self.module._parameters
        own[self.attribute] = self.parameter
        for name in [name for name in self.order if name in own]:
            own[name] = own.pop(name)


@contextmanager
def experts_apart(model: nn.Module, batch: Callable[[], Any | None]) -> Iterator[Sequence[str]]:
    """Keep fused experts as linear layers while the block runs, afterwards those with a quantized one among them.

    Yields what to say of the parameters that stay as they are. `batch` gives what to run the model on, if there is
    need; `None`: a language model of transformers makes it up.
    """
    found = list(_candidates(model))
    read = _uses(model, found, batch()) if found else {}
    apart = [own for own in found if isinstance(read[own.name], bool)]
    for own in apart:
        own.replace(FusedExperts(own.parameter, outputs_first=read[own.name] is True))
    said = [
        f"{own.name}: {'x'.join(map(str, own.parameter.shape))} stays float: {read[own.name]}"
        for own in found
        if own not in apart
    ]
    try:
        yield said
    except BaseException:
        for own in apart:
            own.restore()
        raise
    for own in apart:
        stack = own.module._modules[own.attribute]
        if stack is not None and not any(isinstance(part, QuantizedLayer) for part in stack.children()):
            own.restore()


def _candidates(model: nn.Module) -> Iterator[_Parameter]:
    owners = Counter(id(own) for module in model.modules() for own in module._parameters.values())
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.modules.conv._ConvNd):
            continue
        for attribute, own in list(module._parameters.items()) if module_class(module) is None else ():
            if own is not None and own.ndim == 3 and min(own.shape) > 1 and owners[id(own)] == 1:
                yield _Parameter(
                    f"{name}.{attribute}" if name else attribute, module, attribute, own, tuple(module._parameters)
                )


def _uses(model: nn.Module, found: Sequence[_Parameter], batch: Any | None) -> dict[str, bool | str]:
    """Return by name whether a run reads the matrices as (out, in), or why that cannot be said."""
    why = "its use shows in a run of the model only; give a batch, or calibration batches"
    call = Call.made_up(model) if batch is None else None
    if any(own.is_meta for own in model.parameters()):
        return dict.fromkeys([own.name for own in found], f"{why}, with the model loaded")
    if batch is None and call is None:
        return dict.fromkeys([own.name for own in found], why)
    probes = {own.name: ProbedExperts(own.parameter) for own in found}
    for own in found:
        own.replace(probes[own.name])
    try:
        if call is None:
            run_batch(model, batch)
        else:
            call.run(model)
    except Exception as error:  # code that takes nothing but a parameter; what is wrong else shows in later runs
        first = (str(error).splitlines() or [""])[0]
        return dict.fromkeys(probes, f"a run that watches it fails ({type(error).__name__}: {first:.120})")
    finally:
        for own in found:
            own.restore()
    return {name: _use(probe) for name, probe in probes.items()}


def _use(probe: ProbedExperts) -> bool | str:
    if probe.open or len(probe.read) > 1:
        return "it is used otherwise than as a matrix for each expert"
    if not probe.read:
        return "no product of a run of the model uses it"
    return next(iter(probe.read))
