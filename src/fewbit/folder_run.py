"""A folder to be quantized from disk to disk, and how it comes to its plan: nothing is written yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.calibration import parse_calibration
from fewbit.checkpoints.folder import require_room
from fewbit.errors import PlanError
from fewbit.execution.budget import Tokens
from fewbit.execution.journal import Journal
from fewbit.hints import hints_of
from fewbit.instead import in_place_of_data
from fewbit.interfaces import BYTES, frontend_of
from fewbit.model_plan import model_plan
from fewbit.no_data import NoData
from fewbit.options import Options
from fewbit.overflow import without_large_activations, without_large_weights
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.recipe import Recipe
from fewbit.samples.batches import arrays_in
from fewbit.shared_scales import names_global_scales, with_shared_scales
from fewbit.solving import statistics_of
from fewbit.sources.huggingface import TransformersModel
from fewbit.streamed_plan import StreamedPlan, bytes_of_parts, require_streamable, streamed_plan
from fewbit.synthetic.options import Synthetic

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """A folder that is to be quantized from disk to disk."""

    model: str | Path
    output: Path
    recipe: Recipe
    to: str = "compressed-tensors"
    dtype: str = "auto"
    calibration: Any = None
    memory: int | None = None
    resume: bool = False
    overwrite: bool = False
    shard_bytes: int | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Planned:
    """What there is to do."""

    streamed: StreamedPlan
    #: The parts of the model, none of which has numbers.
    residence: Any
    #: What it is calibrated on; nothing where nothing needs it.
    batches: Sequence[Any]
    blocks: tuple[str, ...]
    #: What was not checked.
    unchecked: tuple[str, ...]


class Preparation:
    """A run on its way to its plan."""

    def __init__(self, asked: FolderRun, source: TransformersModel, journal: Journal) -> None:
        self.asked, self.source, self.journal = asked, source, journal
        opened = source.unloaded()
        self.model, self.tensors = opened.model, opened.tensors
        self.frontend = frontend_of(source.framework)
        self.nothing = in_place_of_data(asked.calibration, None, source)
        self.given = None if NoData.of(asked.calibration) else parse_calibration(asked.calibration)

    def made(self) -> Planned:
        """Return what there is to do; raises every problem of the plan."""
        from fewbit.frontends.torch.blocks import find_blocks
        from fewbit.frontends.torch.residence import Residence

        asked, recipe = self.asked, self.nothing.recipe(self.asked.recipe) if self.nothing else self.asked.recipe
        layers = self.frontend.layers(self.model)
        blocks = [own.name for own in find_blocks(self.model, layers).blocks]
        made = model_plan(self.source, self.model, recipe, to=asked.to, dtype=asked.dtype)
        made = self.nothing.plan(made, asked.recipe) if self.nothing else made
        made.require_sound()
        require_streamable(made, blocks)
        measured = any(statistics_of(row) for row in made.rows if row.scheme)
        batches = self._batches() if measured or names_global_scales(recipe) else ()
        if measured and not batches:
            raise PlanError(
                f"recipe {recipe.name} needs calibration data, and a model that is read block by block writes no text "
                "of its own; give a text file, samples or batches (--calibration), or none"
            )
        residence = Residence(self.model, self.tensors, blocks if measured else ())
        with residence:
            made = self._cast(made, residence)
            made = with_shared_scales(made, self.frontend, self.model, batches[0] if batches else None)
        made, unchecked = without_large_activations(made, self.frontend, self.model, ())
        made = replace(made, hints=(*made.hints, *hints_of(made, self.frontend, self.model)))
        width = BYTES[self.source.storage_type]
        planned = streamed_plan(
            made,
            bytes_of_parts(self.model, residence.parts, width),
            _tokens(batches if measured else ()),
            made.bytes_before,
            sequential=self.given.sequential if self.given else True,
            limit=asked.memory,
        )
        if not self.journal.there:
            require_room(asked.output, planned.budget.disk)
        return Planned(planned, residence, batches if measured else (), tuple(blocks), unchecked)

    def _batches(self) -> Sequence[Any]:
        from torch import nn

        if self.given is None or self.given.data == "self" or isinstance(self.given.data, Synthetic):
            return ()
        if self.given.written:
            raise PlanError(
                f"{self.given.written} sequences are to be written besides the calibration data, and a model that is "
                "read block by block writes no text; leave out written"
            )
        stand_in = nn.Linear(1, 1)  # the model is nowhere; its parts will be on the CPU, in float32
        opened = self.given.opened(stand_in, self.frontend)
        self.given = opened
        return list(opened.batches(self.model, self.source, seed=self.asked.options.seed))

    def _cast(self, made: Plan, residence: Any) -> Plan:
        """Return the plan with layers kept whose weights a cast would overflow; those are read for it."""
        rows, said = list[PlanRow](), list[str]()
        for row in made.rows:
            single = replace(made, rows=(row,), hints=(), adaptations=())
            unread = without_large_weights(single, self.frontend, self.model)
            if unread.hints:
                with residence.glimpsed(residence.part_of(row.layer.name)):
                    unread = without_large_weights(single, self.frontend, self.model)
            rows += unread.rows
            said += unread.adaptations
        return replace(made, rows=tuple(rows), adaptations=(*made.adaptations, *said))


def _tokens(batches: Sequence[Any]) -> Tokens:
    """Return how many tokens there are in batches of ids, by their first arrays."""
    from math import prod

    rows = [prod(next((array.shape for _, array in arrays_in(batch)), (0,))) for batch in batches]
    return Tokens(sum(rows), max(rows, default=0), len(rows))
