"""Find the experts that modules keep in one parameter, by a run, and keep them apart as linear layers.

A parameter with three axes whose matrices a run multiplies tokens with, always in one orientation and in no other way,
is such a stack of experts. No table of architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.expert_stack import Expert, FusedExperts, ProbedExperts
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.stored_experts import StoredExperts, stored_experts, undoing


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter with three axes, and where it hangs."""

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    #: The names of all parameters of the module, in order.
    order: tuple[str, ...]

    def stack(self, *, outputs_first: bool, stored: StoredExperts | None) -> FusedExperts:
        """Return the layers that are to stand in its place, under the names that checkpoints have for them, if any."""
        kept = stored.projections if stored and stored.outputs_first == outputs_first else ()
        taken = [own for name, own in self.module.named_children() if name.isdigit() and not isinstance(own, Expert)]
        return FusedExperts(self.parameter, outputs_first=outputs_first, kept=() if taken else kept, owner=self.module)

    def replace(self, stack: nn.Module) -> None:
        """Put `stack` where the parameter is."""
        del self.module._parameters[self.attribute]
        self.module._modules[self.attribute] = stack

    def restore(self) -> None:
        """Put the parameter back, with what has been written into the layers."""
        stack = self.module._modules.pop(self.attribute)
        if isinstance(stack, FusedExperts):
            stack.give_back(self.parameter)
            stack.discard()
        own = self.module._parameters
        own[self.attribute] = self.parameter
        for name in [name for name in self.order if name in own]:
            own[name] = own.pop(name)


@contextmanager
def experts_apart(
    model: nn.Module, batch: Callable[[], Any | None], among: Container[str] | None = None
) -> Iterator[Sequence[str]]:
    """Keep fused experts as linear layers while the block runs, afterwards those with a quantized one among them.

    Yields what to say of the parameters that stay as they are. `batch` gives what to run the model on, if there is
    need; `None`: a language model of transformers makes it up. `among`: names of layers, without one of which a
    parameter is no concern of the block and stays as it is.
    """
    found, stored = _found(model)
    read = _uses(model, found, stored, batch) if found else {}
    said = [
        f"{own.name}: {'x'.join(map(str, own.parameter.shape))} stays float: {read[own.name]}"
        for own in found
        if not isinstance(read[own.name], bool)
    ]
    apart = []
    for own in (own for own in found if isinstance(read[own.name], bool)):
        stack = own.stack(outputs_first=read[own.name] is True, stored=stored.get(own.name))
        if among is None or any(name in among for name in stack.layer_names(own.name)):
            own.replace(stack)
            apart.append(own)
        else:
            stack.discard()
    try:
        yield said
    except BaseException:
        for own in apart:
            own.restore()
        raise
    for own in apart:
        put: Any = own.module._modules[own.attribute]
        layers = [layer for number in range(put.count) for layer in put.layers(number)]
        if not any(isinstance(layer, QuantizedLayer) for layer in layers):
            own.restore()


def as_stored(model: nn.Module) -> dict[str, str] | None:
    """Keep the experts of a model without numbers apart for good, as its files do.

    Returns the name in files of each tensor by its name in the model; `None`, and the model as it was, where
    transformers merges or reshapes what it reads in other ways.
    """
    undo = undoing(model)
    found, stored = _found(model)
    # Each a tensor of its own, so that what comes back unchanged can be told.
    others = {
        name: torch.empty(tensor.shape, device="meta")
        for name, tensor in model.state_dict().items()
        if name not in stored
    }
    kept = others if undo is None else undo(dict(others))
    files = {id(tensor): name for name, tensor in kept.items()}
    if any(id(tensor) not in files for tensor in others.values()):
        return None
    names = {name: files[id(tensor)] for name, tensor in others.items()}
    for own in found:
        if own.name not in stored:
            continue
        stack = own.stack(outputs_first=stored[own.name].outputs_first, stored=stored[own.name])
        stack.for_good = True
        own.replace(stack)
        at = own.name.rpartition(".")[0]
        names |= {f"{at}.{name}.weight": f"{file}.weight" for name, file in stored[own.name].names.items()}
    return names


def _found(model: nn.Module) -> tuple[list[_Parameter], dict[str, StoredExperts]]:
    """Return what may be a stack of experts, and by name what checkpoints keep of it."""
    found = list(_candidates(model))
    stored = stored_experts(model, {own.name: tuple(own.parameter.shape) for own in found}) if found else {}
    return found, stored


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


def _uses(
    model: nn.Module,
    found: Sequence[_Parameter],
    stored: Mapping[str, StoredExperts],
    batch: Callable[[], Any | None],
) -> dict[str, bool | str]:
    """Return by name whether the matrices are (out, in), as a run reads them, or why that cannot be said.

    A model without numbers cannot run; there those count that checkpoints keep as layers.
    """
    why = "its use shows in a run of the model only; give a batch, or calibration batches"
    if any(own.is_meta for own in model.parameters()):
        unknown = f"{why}, with the model loaded"
        return {own.name: stored[own.name].outputs_first if own.name in stored else unknown for own in found}
    given = batch()
    call = Call.made_up(model) if given is None else None
    if given is None and call is None:
        return dict.fromkeys([own.name for own in found], why)
    probes = {own.name: ProbedExperts(own.parameter) for own in found}
    for own in found:
        own.replace(probes[own.name])
    try:
        if call is None:
            run_batch(model, given)
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
