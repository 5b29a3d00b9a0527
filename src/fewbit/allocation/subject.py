"""What metrics score: a float model, its layers with what each may become, and a few batches to see it on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from fewbit.allocation.reference import Reference
from fewbit.allocation.score_cache import ScoreCache, digest, digest_of_batches, digest_of_model
from fewbit.catalogue import lookup
from fewbit.interfaces import Frontend, Layer, Progress, Silent
from fewbit.numerics.namespace import Array, to_float32
from fewbit.plan_row import PlanRow
from fewbit.qtensor import quantize

#: A layer and a candidate, by name.
Pair = tuple[str, str]
Scores = dict[Pair, float]

#: What runs a model with some layers changed, by framework.
RUNS = {
    "torch": "fewbit.frontends.torch.runs_behind:RunsBehind",
    "onnx": "fewbit.frontends.onnx.whole_runs:WholeRuns",
}


class Runs(Protocol):
    """Float runs of a model on some batches, and runs with a change."""

    @property
    def reuses(self) -> bool:
        """Whether what comes before a change is not run again."""

    @property
    def floats(self) -> Sequence[Any]:
        """The outputs of the float model, by batch."""

    def outputs(self, names: Collection[str]) -> Iterator[Any]:
        """Yield the outputs of the model as it now is, where nothing but the layers `names` changed."""


@dataclass(kw_only=True)
class Subject:
    """A float model and what its layers may become."""

    model: Any
    #: A key of `RUNS`.
    framework: str
    frontend: Frontend
    #: Every layer, those that are kept too.
    layers: Sequence[Layer]
    #: By layer and candidate, what it becomes.
    rows: Mapping[str, Mapping[str, PlanRow]]
    batches: Sequence[Any]
    #: Everything that calibrates what is solved, `batches` among it or not.
    calibration: Sequence[Any] = ()
    progress: Progress = field(default_factory=Silent)
    cache: ScoreCache = field(default_factory=ScoreCache)

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def runs(self) -> Runs:
        """Runs of the model on the batches."""
        made: Runs = lookup(RUNS, self.framework, what="framework")(self.model, self.layers, self.batches)
        return made

    @cached_property
    def reference(self) -> Reference:
        """What the float model puts out."""
        return Reference.of(self.batches, self.runs.floats)

    @property
    def pairs(self) -> list[Pair]:
        """Every layer and candidate that rounds something."""
        return [(layer, name) for layer, own in self.rows.items() for name, row in own.items() if row.scheme]

    def error(self, pair: Pair) -> tuple[Array, Array]:
        """Return the weight of a layer and what rounding it to nearest adds to it, both (out, in)."""
        name, candidate = pair
        weight = to_float32(self.frontend.weight(self.model, self.by_name[name]))
        scheme = self.rows[name][candidate].scheme
        assert scheme is not None
        return weight, quantize(weight, scheme).dequantize() - weight

    def errors(self, name: str, candidates: Iterable[str]) -> Iterator[tuple[str, Array, Array]]:
        """Yield candidates of a layer with its weight and what each adds to it."""
        for candidate in candidates:
            yield candidate, *self.error((name, candidate))

    @cached_property
    def _digest(self) -> str:
        return digest(digest_of_model(self.frontend, self.model), digest_of_batches(self.batches))

    @cached_property
    def _solved_digest(self) -> str:
        return digest(self._digest, digest_of_batches(self.calibration))

    def key(self, metric: str, pair: Pair, *, solved: bool = False) -> str:
        """Return the key of a score; `solved`: it depends on the algorithm and its calibration."""
        row = self.rows[pair[0]][pair[1]]
        further = (repr(row.algorithm), self._solved_digest) if solved else (self._digest,)
        return digest(metric, pair[0], row.becomes, str(row.scheme and row.scheme.scale_type), *further)


def by_layer(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Return the candidates of each layer among `pairs`."""
    found: dict[str, list[str]] = {}
    for name, candidate in pairs:
        found.setdefault(name, []).append(candidate)
    return found
