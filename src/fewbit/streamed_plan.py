"""The plan of a folder that is quantized from disk to disk: which recipes that can do, and what the run will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fewbit.algorithms.block import BlockAlgorithm
from fewbit.errors import NotYetError, PlanError
from fewbit.execution.budget import (
    Budget,
    Part,
    SolvedLayer,
    Tokens,
    Work,
    budget_of,
    products_per_second,
    resident_now,
)
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.solving import statistics_of
from fewbit.statistics import GUIDED, PAIRED

#: Layouts that are written tensor by tensor in any order, and gone on with.
TARGETS = ("compressed-tensors", "gptq", "awq")
_REMEDY = "leave that out, or quantize in memory, without --memory and --resume"


@dataclass(frozen=True, slots=True)
class StreamedPlan:
    """A plan, and what carrying it out from disk to disk takes; `str` says the latter."""

    plan: Plan
    budget: Budget
    #: Whether the runs of a block wait at its layers; otherwise they are made anew for each, in less memory.
    waiting: bool

    def __str__(self) -> str:
        return str(self.budget) + ("" if self.waiting else "; blocks are run anew for each of their layers")


def require_target(name: str) -> None:
    """Raise `NotYetError` for a layout that is not written in any order."""
    if name not in TARGETS:
        raise NotYetError(
            f"{name} is not written block by block; write {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, then fewbit "
            "convert"
        )


def require_streamable(made: Plan, blocks: Sequence[str]) -> None:
    """Raise `NotYetError` for what a run with one block in memory at a time does not do.

    Raises:
        PlanError: a layer outside of the blocks that needs data.

    """
    # Presets have `batchnorm`, and no model of transformers that writes text has one.
    wanted = [f"transform {own.name}" for own in made.recipe.transforms if own.name != "batchnorm"]
    wanted += [f"correction {own.name}" for own in made.recipe.corrections]
    rows = [row for row in made.rows if row.scheme]
    wanted += sorted({row.algorithm.name for row in rows if isinstance(row.algorithm, BlockAlgorithm)})
    wanted += sorted({name for row in rows for name in statistics_of(row) if name in PAIRED})
    wanted += ["static outputs"] if any(row.output and row.output.static for row in rows) else []
    wanted += ["products inside attention"] if made.rounded_products else []
    if wanted:
        raise NotYetError(f"recipe {made.recipe.name} has {', '.join(wanted)}, which is not streamed; {_REMEDY}")
    if not blocks and any(statistics_of(row) for row in rows):
        raise NotYetError(f"the model has no repeated blocks, and recipe {made.recipe.name} needs data; {_REMEDY}")
    outside = [
        row.layer.name
        for row in rows
        if statistics_of(row) and not any(row.layer.name.startswith(f"{block}.") for block in blocks)
    ]
    if outside:
        raise PlanError(
            f"{several(outside)}: outside of the blocks, it would take a run of the whole quantized model to measure "
            f"its input; keep it, or give it algorithm nearest; else {_REMEDY}"
        )


def streamed_plan(
    made: Plan, parts: dict[str, tuple[int, int]], tokens: Tokens, stored: int, *, sequential: bool, limit: int | None
) -> StreamedPlan:
    """Return the plan with what it takes; `parts` are the bytes in float32 of each, and of its largest tensor stored.

    Raises:
        PlanError: it takes more than `limit` bytes of memory.

    """
    own: dict[str, list[SolvedLayer]] = {name: [] for name in parts}
    width = 0
    for row in made.rows:
        home = next((part for part in parts if f"{row.layer.name}.".startswith(f"{part}.")), None)
        if home is None or row.layer.kind == "attention":
            continue
        names = statistics_of(row) if row.scheme else ()
        factored = any("moment" in name for name in names)
        quantized = row.scheme is not None
        own[home].append(SolvedLayer(*row.layer.shape, quantized=quantized, measured=bool(names), factored=factored))
        width = max(width, row.layer.shape[1]) if row.layer.kind in ("head", "embedding") else width
    guided = any(name in GUIDED for row in made.rows if row.scheme for name in statistics_of(row))
    measured = {name for name, layers in own.items() if any(layer.measured for layer in layers)}
    sized = [Part(*parts[name], tuple(layers), repeated=name in measured) for name, layers in own.items()]
    process, flops = resident_now(), products_per_second()

    def taken(*, waiting: bool) -> Budget:
        work = Work(sized, tokens, stored, made.bytes_after, width, sequential, guided, waiting)
        return budget_of(work, process, flops)

    waiting = taken(waiting=True)
    if limit is None or waiting.memory <= limit:
        return StreamedPlan(made, waiting, waiting=True)
    budget = taken(waiting=False)
    if budget.memory <= limit:
        return StreamedPlan(made, budget, waiting=False)
    largest = max(parts, key=lambda name: parts[name][0])
    raise PlanError(
        f"the run would take {budget.memory:,} bytes of memory, {process:,} of them this process, and --memory is "
        f"{limit:,}; its largest part, {largest}, has {parts[largest][0]:,} in float32: give more memory, or fewer or "
        "shorter calibration sequences"
    )


def bytes_of_parts(model: Any, parts: dict[str, list[str]], stored_width: int) -> dict[str, tuple[int, int]]:
    """Return of each part the bytes in float32, and those of its largest tensor as files hold it."""
    state = model.state_dict(keep_vars=True)
    sizes = {part: [prod(state[name].shape) for name in names] for part, names in parts.items()}
    return {part: (4 * sum(own), stored_width * max(own, default=0)) for part, own in sizes.items()}
