"""A plan carried out from disk to disk: parts of the model are read, solved, written and let go of, a step each.

Layers that need data come with their block, in the order of the model's calls; then all that is left, as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fewbit.checkpoints.packed_folder import PackedFolder
from fewbit.evaluation.side_by_side import Measured
from fewbit.execution.journal import Journal
from fewbit.frontends.torch.residence import Residence
from fewbit.frontends.torch.resident_memory import map_large_blocks, trim
from fewbit.frontends.torch.streamed_calibration import (
    Position,
    StreamedCalibration,
    Streaming,
    Wiring,
    stored_weights,
    weights_of,
)
from fewbit.interfaces import Frontend, Layer, Progress
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.report.layer_report import LayerReport
from fewbit.report.reading import layer_report_of
from fewbit.report.strict_json import plain
from fewbit.reporting import report_of
from fewbit.shared_scales import SharedScales
from fewbit.solved import Solved
from fewbit.solving import Solver, statistics_of


@dataclass(kw_only=True)
class StreamedRun:
    """What a plan is carried out with, and what of it is done."""

    model: Any
    plan: Plan
    frontend: Frontend
    residence: Residence
    writer: PackedFolder
    journal: Journal
    progress: Progress
    batches: Sequence[Any] = ()
    seed: int = 0
    sequential: bool = True
    #: Whether the runs of a block wait at its layers.
    waiting: bool = True
    #: What became of each layer, by its name.
    reports: dict[str, LayerReport] = field(default_factory=dict)
    #: How many numbers that stay float were rounded.
    changed: int = 0
    #: Repeated parts of the model, whose modules are written down together.
    blocks: Sequence[str] = ()
    _done: set[str] = field(default_factory=set)
    #: By part what was solved, as long as it is in memory.
    _solved: dict[str, dict[str, Solved]] = field(default_factory=dict)
    #: What was written and not written down yet: reports of layers, and numbers that were rounded.
    _loose: list[LayerReport] = field(default_factory=list)
    _rounded: int = 0
    #: What the next block is called with, once it is known.
    _position: Position | None = None

    def __post_init__(self) -> None:
        map_large_blocks()
        rows = {row.layer.name: row for row in self.plan.rows if row.scheme}
        self._floats = {tensor.name: None for tensor in self.plan.manifest({}, {}).floats}
        self._measured = {name: names for name, row in rows.items() if (names := statistics_of(row))}
        self._free: dict[str, list[PlanRow]] = {}
        for name, row in rows.items():
            if name not in self._measured:
                self._free.setdefault(self.residence.part_of(name), []).append(row)
        shared = SharedScales(self.plan.rows, self._weight)
        self._solver = Solver.of(self.model, self.plan, self.frontend, shared, self.seed)
        self.residence.dressed = self._dress
        self.residence.dropped = self._forget

    def carry_out(self) -> None:
        """Do what is left to do; everything is written when this returns."""
        self._resume()
        with self.residence:
            if any(self.residence.part_of(name) not in self._done for name in self._measured):
                self._walk()
            for names in self.progress.track(list(self._rest()), "quantize and write"):
                for part in names:
                    with self.residence.held(part):
                        self._put(part)
                    self.residence.drop(part)
                self._commit(names, None)
        if not self.journal.of_kind("written"):
            self.journal.add({"kind": "written"})

    def _resume(self) -> None:
        """Take over what the journal tells of."""
        digests: dict[str, str] = {}
        held: dict[str, Any] = {}
        for step in self.journal.of_kind("part"):
            digests |= step["tensors"]
            self._done.update(step["names"])
            self.changed += step["changed"]
            self.reports |= {own["name"]: layer_report_of(own) for own in step["layers"]}
            if step["held"]:
                arrays = self.journal.arrays(step["held"]["arrays"])
                arrays.require_intact()
                held |= {name: arrays[number] for number, name in enumerate(step["held"]["layers"])}
            if step["position"]:
                self._position = Position(step["position"]["place"], self.journal.arrays(step["position"]["states"]))
        self.writer.go_on(digests, held)
        self.writer.settled(())

    def _walk(self) -> None:
        """Solve the layers that need data, block by block."""
        wanted = {name: own for name, own in self._measured.items() if self.residence.part_of(name) not in self._done}
        around = Streaming(self.residence, self.journal.new_file, self._finished, self.sequential, self.waiting)
        run = StreamedCalibration(self.model, [row.layer for row in self.plan.rows], wanted, self.batches, around)
        self._begin(run)
        stages: Any = run  # as good as a sequence: it has a length and is gone through once
        for stage in self.progress.track(stages, "calibrate and quantize"):
            for part in stage:
                for layer in part.layers:
                    self._solve(layer, part.statistics.get(layer.name, {}))
        # No one has asked for what the last block puts out.
        for last in {self.residence.part_of(name) for name in wanted} - self._done:
            self._finished(last, None)

    def _begin(self, stages: StreamedCalibration) -> None:
        """Find out how the blocks follow from each other, or read it."""
        gradients, wirings = self.journal.of_kind("gradients"), self.journal.of_kind("wiring")
        weights = None
        if gradients:
            arrays = self.journal.arrays(gradients[0]["arrays"])
            arrays.require_intact()
            weights = weights_of(gradients[0]["layers"], arrays)
        if wirings:
            wiring = Wiring.of_table(wirings[0]["wiring"], self.journal.arrays(wirings[0]["wiring"]["arrays"]))
            position = self._position or Position(0, self.journal.arrays(wirings[0]["states"]))
            wiring.arrays.require_intact()
            position.states.require_intact()
            self._position = position
            stages.go_on(weights, wiring, position)
            return
        stages.go_on(weights, None, None)
        steps: Any = stages.gradients
        if steps:
            for _ in self.progress.track(steps, "gradients"):
                pass
            with self.journal.new_file("gradients") as file:
                table, arrays = stored_weights(stages.token_weights(), file)
            self.journal.add({"kind": "gradients", "layers": table, "arrays": arrays.table()})
        with self.progress.phase("follow the blocks"):
            found, self._position = stages.begin()
        self.journal.add({"kind": "wiring", "wiring": found.table(), "states": self._position.states.table()})

    def _solve(self, layer: Layer, statistics: Mapping[str, Any]) -> None:
        trim()  # what runs and the layer before have left in the heap would add to what this one takes
        self._take(self._solver(layer.name, statistics))
        self.residence.empty_layer(layer.name)

    def _take(self, done: Solved) -> None:
        name = done.replacement.layer.name
        self._solved.setdefault(self.residence.part_of(name), {})[name] = done
        done.replacement.install()
        self.residence.installed(done.replacement)

    def _dress(self, part: str) -> None:
        """Quantize what needs no data in a part that was read: in memory that comes before all else."""
        for row in self._free.get(part, ()):
            self._take(self._solver(row.layer.name, {}))

    def _forget(self, part: str) -> None:
        self._solved.pop(part, None)

    def _weight(self, layer: Layer) -> Any:
        """Return the weight of a layer; one that shares a scale with it may be in a part of its own."""
        part = self.residence.part_of(layer.name)
        with self.residence.glimpsed(part):
            return self.frontend.weight(self.model, layer).clone()

    def _finished(self, part: str, position: Position | None) -> None:
        """Write a block that needs its numbers no more."""
        self._put(part)
        self._commit([part], position)

    def _put(self, part: str) -> None:
        for name, array, changed in self.residence.stored(part, self._floats, self.plan.storage_type):
            self._rounded += changed
            self.writer.put(name, array)
        for name, value in self.residence.codes(part):
            self.writer.put(name, value)
        solved = self._solved.get(part, {})
        rows = tuple(row for row in self.plan.rows if row.layer.name in solved)
        found = report_of(replace(self.plan, rows=rows), solved, Measured(), self.frontend, self.model, {})
        self._loose += found.layers

    def _commit(self, parts: Sequence[str], position: Position | None) -> None:
        """Write down that parts are done, and what comes next."""
        tensors, held = self.writer.settled([own.name for own in self._loose])
        kept = None
        if held:
            with self.journal.new_file(f"held-{len(self.journal.steps):05}") as file:
                for array in held.values():
                    file.add(array)
                kept = {"layers": list(held), "arrays": file.close().table()}
        self.journal.add(
            {
                "kind": "part",
                "names": list(parts),
                "tensors": tensors,
                "held": kept,
                "layers": [plain(own) for own in self._loose],
                "changed": self._rounded,
                "position": position and {"place": position.place, "states": position.states.table()},
            }
        )
        self._done.update(parts)
        self.reports |= {own.name: own for own in self._loose}
        self.changed += self._rounded
        self._loose, self._rounded = [], 0
        if position is not None:
            before, self._position = self._position, position
            if before is not None:
                self.journal.forget(before.states)

    def _rest(self) -> Iterator[list[str]]:
        """Yield the parts that are left, those of one block together."""
        left = [part for part in self.residence.parts if part not in self._done]
        for _, parts in groupby(left, self._block_of):
            yield list(parts)

    def _block_of(self, part: str) -> str:
        return next((block for block in self.blocks if f"{part}.".startswith(f"{block}.")), part)
