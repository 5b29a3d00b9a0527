"""Quantize a folder from disk to disk: one block in memory at a time, and a journal to go on from after any end.

The bytes are those of the run in memory: same plan, same statistics, same solutions; `streamed_run` has the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.byte_size import byte_size
from fewbit.calibration import Calibration, first_batch, parse_calibration
from fewbit.checkpoints.folder import require_free, require_room
from fewbit.checkpoints.packed_folder import PackedFolder
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.clock import Clock
from fewbit.errors import CheckpointError, NotYetError, PlanError
from fewbit.evaluation.side_by_side import Measured
from fewbit.execution.budget import Tokens
from fewbit.execution.identity import identity_of, require_same
from fewbit.execution.journal import Journal, told
from fewbit.hints import hints_of
from fewbit.instead import in_place_of_data
from fewbit.interfaces import BYTES, Frontend, Manifest, frontend_of, target_of
from fewbit.model_plan import model_plan
from fewbit.no_data import NoData
from fewbit.numerics.namespace import to_numpy
from fewbit.overflow import without_large_activations, without_large_weights
from fewbit.pipeline import Options, float_source
from fewbit.planning import Plan
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.report.data import Report
from fewbit.reporting import remarks_of, report_of
from fewbit.samples.batches import arrays_in
from fewbit.shared_scales import names_global_scales, with_shared_scales
from fewbit.solving import statistics_of
from fewbit.sources.huggingface import TransformersModel
from fewbit.streamed_plan import StreamedPlan, bytes_of_parts, require_streamable, streamed_plan

if TYPE_CHECKING:
    from fewbit.streamed_run import StreamedRun


def quantize_folder(  # noqa: PLR0913  # all that is said of a run
    model: str | Path,
    output: str | Path,
    recipe: str | Path | Recipe,
    *,
    to: str = "compressed-tensors",
    dtype: str = "auto",
    calibration: Any = None,
    memory: str | int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    shard_size: str | int | None = None,
    options: Options | None = None,
) -> Report:
    """Quantize a Hugging Face folder that need not fit into memory, and write it to `output`; return the report.

    The tensors are those that `quantize` and `Result.save` would write. Until it is done everything is in
    `OUTPUT.partial`, with a journal of the blocks that are finished.

    Args:
        model: a folder with `config.json` and safetensors files.
        output: the folder to write.
        recipe: as for `quantize`; without corrections, block reconstruction, and transforms other than `batchnorm`.
        to: `compressed-tensors`, `gptq` or `awq`.
        dtype: type of floats and scales in files, as for `plan`.
        calibration: batches, samples or a text, where the recipe needs data; a model that is read block by block writes
            no text of its own. `none`: presets round to nearest instead.
        memory: the most bytes that the process may hold, a number or `3GB`; a run that would take more is refused.
        resume: go on with the run in `OUTPUT.partial`, if there is one, and end in the same bytes.
        overwrite: replace a model folder, and begin anew in spite of such a run.
        shard_size: the most bytes of tensors in a file, as for `Result.save`.
        options: seed, progress; the device is the CPU.

    Raises:
        PlanError: the recipe cannot be carried out, or not within `memory`.
        NotYetError: a model or a recipe that cannot be streamed.
        CheckpointError: files that cannot be written, or the journal of a run of something else.

    """
    asked = FolderRun(
        model=model, output=Path(output), recipe=parse_recipe(recipe), to=to, dtype=dtype, calibration=calibration,
        memory=None if memory is None else byte_size(memory), resume=resume, overwrite=overwrite,
        shard_bytes=None if shard_size is None else byte_size(shard_size), options=options or Options(),
    )  # fmt: skip
    return asked.prepared().carry_out()


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

    def prepared(self) -> Prepared:
        """Return the run with its plan, every problem of which was raised; nothing is written yet."""
        source = float_source(self.model)
        if not isinstance(source, TransformersModel):
            raise NotYetError(f"{source.name} is no folder of safetensors files, which alone is streamed; leave out --memory")
        if self.options.device not in ("auto", "cpu"):
            raise NotYetError(f"device {self.options.device!r}: a streamed run takes the CPU; leave out --device")
        journal = Journal(self.output)
        if not self.resume or not journal.there:
            require_free(self.output, overwrite=self.overwrite)
        if journal.there and not (self.resume or self.overwrite):
            raise CheckpointError(
                f"{journal.folder} holds the journal of a run that has not ended; --resume goes on with it, --overwrite "
                "begins anew"
            )
        return _Preparation(self, source, journal).made()


class _Preparation:
    """A run on its way to its plan."""

    def __init__(self, asked: FolderRun, source: TransformersModel, journal: Journal) -> None:
        self.asked, self.source, self.journal = asked, source, journal
        opened = source.unloaded()
        self.model, self.tensors = opened.model, opened.tensors
        self.frontend = frontend_of(source.framework)
        self.nothing = in_place_of_data(asked.calibration, None, source)
        self.given = None if NoData.of(asked.calibration) else parse_calibration(asked.calibration)

    def made(self) -> Prepared:
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
                f"recipe {recipe.name} needs calibration data, and a model that is read block by block writes no text of "
                "its own; give a text file, samples or batches (--calibration), or none"
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
        return Prepared(self, planned, residence, batches if measured else (), blocks, unchecked)

    def _batches(self) -> Sequence[Any]:
        from torch import nn

        if self.given is None or (isinstance(self.given.data, str) and self.given.data == "self"):
            return ()
        stand_in = nn.Linear(1, 1)  # the model is nowhere; its parts will be on the CPU, in float32
        opened = self.given.opened(stand_in, self.frontend)
        self.given = opened
        return list(opened.batches(self.model, self.source, seed=self.asked.options.seed))

    def _cast(self, made: Plan, residence: Any) -> Plan:
        """Return the plan with layers kept whose weights a cast would overflow; those are read for it."""
        rows, said = [], list[str]()
        for row in made.rows:
            single = replace(made, rows=(row,), hints=(), adaptations=())
            unread = without_large_weights(single, self.frontend, self.model)
            if unread.hints:
                with residence.glimpsed(residence.part_of(row.layer.name)):
                    unread = without_large_weights(single, self.frontend, self.model)
            rows += unread.rows
            said += unread.adaptations
        return replace(made, rows=tuple(rows), adaptations=(*made.adaptations, *said))


@dataclass(frozen=True)
class Prepared:
    """A run whose plan is known."""

    preparation: _Preparation
    planned: StreamedPlan
    residence: Any
    batches: Sequence[Any]
    blocks: Sequence[str]
    unchecked: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """What becomes of the layers."""
        return self.planned.plan

    def carry_out(self) -> Report:
        """Do it, or what is left of it; return the report."""
        asked, journal = self.preparation.asked, self.preparation.journal
        clock = Clock()
        try:
            with asked.options.progress.phase("read the model"), clock.phase("read"):
                self._open_journal()
            with clock.phase("quantize"), told(journal.folder), self._brought_back():
                run = self._run()
                run.carry_out()
            with clock.phase("close"), told(journal.folder):
                report = self._report(run, clock)
                run.writer.add(report.files())
                run.writer.close()
                journal.end()
            return report
        finally:
            journal.close()

    def _open_journal(self) -> None:
        asked, journal = self.preparation.asked, self.preparation.journal
        identity = self._identity()
        if asked.resume and journal.there:
            require_same(journal.open(), identity, journal.folder)
        else:
            journal.begin(identity)

    def _run(self) -> StreamedRun:
        own, asked = self.preparation, self.preparation.asked
        from fewbit.streamed_run import StreamedRun

        writer = target_of(asked.to).open(asked.output, self._manifest(), overwrite=asked.overwrite)  # type: ignore[attr-defined]
        assert isinstance(writer, PackedFolder)
        return StreamedRun(
            model=own.model, plan=self.plan, frontend=own.frontend, residence=self.residence, writer=writer,
            journal=own.journal, progress=asked.options.progress, batches=self.batches, seed=asked.options.seed,
            sequential=own.given.sequential if own.given else True, waiting=self.planned.waiting, blocks=self.blocks,
        )  # fmt: skip

    @contextmanager
    def _brought_back(self) -> Iterator[None]:
        """Take back an output that got its name just before the run ended: its end is to be repeated."""
        journal, output = self.preparation.journal, self.preparation.asked.output
        named = bool(journal.of_kind("written")) and not journal.model.exists() and output.is_dir()
        if named:
            output.rename(journal.model)
        try:
            yield
        except CheckpointError:
            if named:  # it is something else
                journal.model.rename(output)
            raise

    def _manifest(self) -> Manifest:
        own = self.preparation
        manifest = self.plan.manifest(own.source.configuration(), own.source.companions())
        return replace(manifest, shard_bytes=own.asked.shard_bytes, place=own.journal.model)

    def _identity(self) -> dict[str, dict[str, Any]]:
        import torch

        own, asked = self.preparation, self.preparation.asked
        recipe: dict[str, Any] = {"name": self.plan.recipe.name, "rules": len(self.plan.recipe.rules)}
        for number, rule in enumerate(self.plan.recipe.rules, 1):
            recipe |= {f"rule {number}, {key.name}": _text(getattr(rule, key.name)) for key in fields(rule)}
        files = [own.source.folder / "config.json", *files_of(own.source.folder)]
        output = {"layout": asked.to, "dtype": self.plan.storage_type, "shard size": asked.shard_bytes}
        digest = hashlib.sha256()
        for array in (to_numpy(array) for batch in self.batches for _, array in arrays_in(batch) if array is not None):
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        data = {
            "batches": len(self.batches), "content": digest.hexdigest(), "seed": asked.options.seed,
            "sequential": own.given.sequential if own.given else True,
        }  # fmt: skip
        found = identity_of(files, recipe, output, data)
        found["versions"] |= {"threads": torch.get_num_threads(), "processor": torch.backends.cpu.get_cpu_capability()}
        return found

    def _report(self, run: StreamedRun, clock: Clock) -> Report:
        own, made = self.preparation, self.plan
        report = report_of(made, {}, Measured(), own.frontend, own.model, {})
        layers = tuple(run.reports.get(layer.name, layer) for layer in report.layers)
        fallen = [f"{layer.name}: {text}" for layer in layers for text in layer.remarks]
        remarks = (
            *self.unchecked, *remarks_of(run.changed, {}, made, idle=False), *fallen,
            f"quantized from disk to disk; {self.planned}",
            "quality was not measured: the model was in memory a part at a time; fewbit evaluate does that",
        )  # fmt: skip
        described = own.given.described(self.batches) if own.given and self.batches else None
        return replace(
            report,
            layers=layers,
            remarks=remarks,
            calibration=described or (own.nothing.described(made) if own.nothing else None),
            seed=own.asked.options.seed,
            command=own.asked.options.command,
            seconds=clock.seconds,
            peak_memory=clock.peak_memory,
        )


def _tokens(batches: Sequence[Any]) -> Tokens:
    """Return how many tokens there are in batches of ids, by their first arrays."""
    from math import prod

    rows = [prod(next((array.shape for _, array in arrays_in(batch)), (0,))) for batch in batches]
    return Tokens(sum(rows), max(rows, default=0), len(rows))


def _text(value: Any) -> str | None:
    return None if value is None else str(value) if isinstance(value, str | bool) else repr(value)
