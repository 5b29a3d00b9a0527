"""Quantize a folder from disk to disk: one block in memory at a time, and a journal to go on from after any end.

The bytes are those of the run in memory: same plan, same statistics, same solutions; `streamed_run` has the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.byte_size import byte_size
from fewbit.checkpoints.folder import require_free
from fewbit.checkpoints.packed_folder import PackedFolder
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.clock import Clock
from fewbit.errors import CheckpointError, NotYetError
from fewbit.evaluation.side_by_side import Measured
from fewbit.execution.identity import identity_of, require_same
from fewbit.execution.journal import Journal, told
from fewbit.folder_run import FolderRun, Planned, Preparation
from fewbit.interfaces import Manifest, target_of
from fewbit.numerics.namespace import to_numpy
from fewbit.options import Options
from fewbit.planning import Plan
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.report.data import Report
from fewbit.reporting import remarks_of, report_of
from fewbit.samples.batches import arrays_in
from fewbit.sources.floats import float_source
from fewbit.sources.huggingface import TransformersModel
from fewbit.streamed_plan import require_target

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
    return prepared(asked).carry_out()


def prepared(asked: FolderRun) -> Prepared:
    """Return the run with its plan, every problem of which was raised; nothing is written yet."""
    source = float_source(asked.model)
    if type(source) is not TransformersModel:
        raise NotYetError(
            f"{source.name} is no folder of safetensors files; only such are streamed, leave out --memory"
        )
    if asked.options.device not in ("auto", "cpu"):
        raise NotYetError(f"device {asked.options.device!r}: a streamed run takes the CPU; leave out --device")
    require_target(asked.to)
    journal = Journal(asked.output)
    if not asked.resume or not journal.there:
        require_free(asked.output, overwrite=asked.overwrite)
    if journal.there and not (asked.resume or asked.overwrite):
        raise CheckpointError(
            f"{journal.folder} holds the journal of a run that has not ended; --resume goes on with it, "
            "--overwrite begins anew"
        )
    preparation = Preparation(asked, source, journal)
    return Prepared(preparation, preparation.made())


@dataclass(frozen=True)
class Prepared:
    """A run whose plan is known."""

    preparation: Preparation
    work: Planned

    @property
    def plan(self) -> Plan:
        """What becomes of the layers."""
        return self.work.streamed.plan

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
            model=own.model, plan=self.plan, frontend=own.frontend, residence=self.work.residence, writer=writer,
            journal=own.journal, progress=asked.options.progress, batches=self.work.batches, seed=asked.options.seed,
            sequential=own.given.sequential if own.given else True, waiting=self.work.streamed.waiting,
            blocks=self.work.blocks,
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
        for array in (
            to_numpy(array) for batch in self.work.batches for _, array in arrays_in(batch) if array is not None
        ):
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        data = {
            "batches": len(self.work.batches), "content": digest.hexdigest(), "seed": asked.options.seed,
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
            *self.work.unchecked, *remarks_of(run.changed, {}, made, idle=False), *fallen,
            f"quantized from disk to disk; {self.work.streamed}",
            "quality was not measured: the model was in memory a part at a time; fewbit evaluate does that",
        )  # fmt: skip
        described = own.given.described(self.work.batches) if own.given and self.work.batches else None
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


def _text(value: Any) -> str | None:
    return None if value is None else str(value) if isinstance(value, str | bool) else repr(value)
