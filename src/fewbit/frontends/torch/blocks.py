"""Find the repeated blocks of any `nn.Module` by looking at its tree: no table of architectures.

A block is a module that can run, is no bare layer, holds quantizable layers and has a sibling of its own class:
another entry of the same list, whatever its content, or an attribute whose layers have the same names and shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fewbit.interfaces import Layer


@dataclass(frozen=True, slots=True)
class Block:
    """One repeated part of a model."""

    #: Dotted path inside the model.
    name: str
    #: The quantizable layers in it, in the model's order; never empty.
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """Every quantizable layer of a model, inside a block or outside of all."""

    #: In the order of the module tree; the order of the calls is `trace_blocks`' to tell. Empty: do the model whole.
    blocks: tuple[Block, ...]
    #: Head, embeddings, pooler; all layers of a model without blocks.
    outside: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A candidate: a module below some parent, lists between them looked through."""

    name: str
    module: nn.Module
    #: Whether it is an entry of a list, not an attribute.
    listed: bool
    #: Names, relative to it, and shapes of the layers inside.
    structure: tuple[tuple[str, tuple[int, int]], ...]


def find_blocks(model: nn.Module, layers: Sequence[Layer]) -> Partition:
    """Return the outermost repeated blocks of `model` and the layers outside of them.

    Experts and heads inside a block lose against the block. Layers that are bare siblings, as in
    `Sequential(Linear, ReLU, Linear)` or the projections of an attention, are no blocks: done one by one they would
    run in an order that only a block around them knows, and share no input. Two towers of one shape are two blocks.
    """
    shapes = {layer.name: layer.shape for layer in layers}
    blocks = tuple(
        Block(name, tuple(layer for layer in layers if layer.name.startswith(f"{name}.")))
        for name in _outermost("", model, shapes)
    )
    inside = {layer.name for block in blocks for layer in block.layers}
    return Partition(blocks, tuple(layer for layer in layers if layer.name not in inside))


def _outermost(name: str, module: nn.Module, shapes: dict[str, tuple[int, int]]) -> Iterator[str]:
    parts = list(_parts(name, module, shapes))
    entries = Counter(type(part.module) for part in parts if part.listed)
    alike = Counter((type(part.module), part.structure) for part in parts)
    for part in parts:
        kind = type(part.module)
        if (part.listed and entries[kind] > 1) or alike[kind, part.structure] > 1:
            yield part.name
        else:
            yield from _outermost(part.name, part.module, shapes)


def _parts(name: str, module: nn.Module, shapes: dict[str, tuple[int, int]]) -> Iterator[_Part]:
    """Yield the modules with layers inside that hang below `module`, or in lists below it."""
    listed = _cannot_run(module) or type(module) is nn.Sequential
    for attribute, child in module.named_children():
        path = f"{name}.{attribute}" if name else attribute
        inside = [layer for layer in shapes if layer.startswith(f"{path}.")]
        if path in shapes or not inside:
            continue
        if _cannot_run(child) or _is_stage(child, path, shapes):
            yield from _parts(path, child, shapes)
        else:
            structure = tuple((layer.removeprefix(path), shapes[layer]) for layer in inside)
            yield _Part(path, child, listed, structure)


def _cannot_run(module: nn.Module) -> bool:
    """Whether it is a holder, as `ModuleList` and `ModuleDict` are: it has no forward of its own."""
    return type(module).forward is nn.Module.forward


def _is_stage(module: nn.Module, path: str, shapes: dict[str, tuple[int, int]]) -> bool:
    """Whether it is a `Sequential` of parts only: with a bare layer in it, it may be a block itself."""
    return type(module) is nn.Sequential and not any(
        f"{path}.{child}" in shapes for child, _ in module.named_children()
    )
