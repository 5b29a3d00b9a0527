"""Mixtures of experts in the tree of modules: which layers are parts of experts, and which route tokens to them.

Experts are a stack, or the entries of a list that are alike in their layers; the router is a linear layer beside them,
with an output for each and the inputs that they have. Beside the blocks of a model, such a list too, a head may have as
many outputs: outside of blocks the router must come before the list. No table of architectures, and no run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from fewbit.frontends.torch.expert_stack import stacks

#: Shapes (out, in) of layers by name.
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Mixtures:
    """The mixtures of a model, by the names of layers."""

    #: Layers that get only the tokens that are routed to them.
    experts: frozenset[str]
    #: Layers that say which tokens those are, or how much a shared expert counts.
    routers: frozenset[str]


def find_mixtures(model: nn.Module, shapes: Shapes) -> Mixtures:
    """Return the mixtures of `model`, whose quantizable layers have these `shapes`."""
    experts: set[str] = set()
    routers: set[str] = set()
    for name, stack in stacks(model).items():
        own = [layer for layer in stack.layer_names(name) if layer in shapes]
        experts.update(own)
        # In the module that keeps the experts, or beside it.
        above = name.rpartition(".")[0]
        for place in (name, above) if own and own[0].startswith(f"{name}.") else (above,):
            routers.update(_routers(place, stack.count, shapes) if place else ())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and name:
            inside = {layer: shape for layer, shape in shapes.items() if layer.startswith(f"{name}.")}
            found = set(_routers(name, len(module), shapes)) if _alike(name, inside, len(module)) else set()
            if found:
                experts |= inside.keys()
                routers |= found
    return Mixtures(frozenset(experts), frozenset(routers))


def _alike(name: str, inside: Shapes, count: int) -> bool:
    """Whether the entries of the list called `name` have layers of the same names and shapes."""
    entries: dict[str, dict[str, tuple[int, int]]] = {}
    for layer, shape in inside.items():
        entry, _, rest = layer.removeprefix(f"{name}.").partition(".")
        entries.setdefault(entry, {})[rest] = shape
    first = next(iter(entries.values()), {})
    return len(entries) == count and all(own == first for own in entries.values())


def _routers(name: str, count: int, shapes: Shapes) -> Iterator[str]:
    """Yield the layers that route to the `count` experts in the list called `name`, or weigh one beside it."""
    parent, _, _ = name.rpartition(".")
    prefix = f"{parent}." if parent else ""
    in_order = list(shapes)
    inside = [layer for layer in in_order if layer.startswith(f"{name}.")]
    first = shapes[inside[0]][1]
    before = set(in_order[: in_order.index(inside[0])])
    in_block = any(part.isdigit() for part in parent.split("."))
    # Beside the list, or in a module beside it.
    beside = {
        layer: outputs
        for layer, (outputs, inputs) in shapes.items()
        if layer.startswith(prefix)
        and not layer.startswith(f"{name}.")
        and layer.removeprefix(prefix).count(".") <= 1
        and inputs == first
        and (in_block or layer in before)
    }
    if count in beside.values():
        yield from (layer for layer, outputs in beside.items() if outputs in (count, 1))
