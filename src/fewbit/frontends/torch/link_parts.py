"""The parts of a model in which links are looked for: each block with what runs it, then what lies outside of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from fewbit.frontends.torch.block_inputs import walk_blocks
from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.interfaces import Layer


def runnable_parts(
    model: nn.Module, layers: Sequence[Layer], batch: Any
) -> Iterator[tuple[str, list[Layer], list[Callable[[], Any]]]]:
    """Yield each block with what runs it, then the whole model as "", for what lies outside."""
    blocks = {block.name: list(block.layers) for block in find_blocks(model, layers).blocks}
    for step in walk_blocks(model, list(blocks), [batch]) if blocks else ():
        if step.link.replayable and step.calls:
            yield step.name, blocks[step.name], [partial(_run_copy, step.calls[0], step.module)]
    yield "", list(layers), [partial(run_batch, model, batch, every_score=True)]


def outside_blocks(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Return the names of the modules that are in no block."""
    blocks = find_blocks(model, layers).blocks
    return [
        name
        for name, _ in model.named_modules()
        if not any(name == block.name or name.startswith(f"{block.name}.") for block in blocks)
    ]


def _run_copy(call: Call, module: nn.Module) -> Any:
    return call.copy().run(module)
