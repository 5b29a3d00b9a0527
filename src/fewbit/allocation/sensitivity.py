"""`fewbit.sensitivity`: how much each layer suffers under each candidate, by one metric or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fewbit.allocation.candidates import Candidates
from fewbit.allocation.metrics import METRICS, scored
from fewbit.allocation.opening import Asked, opened
from fewbit.allocation.subject import Scores
from fewbit.catalogue import unknown
from fewbit.errors import RecipeError
from fewbit.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Scores by metric, layer and candidate; greater is worse."""

    metrics: tuple[str, ...]
    candidates: tuple[str, ...]
    #: By metric; a pair that a metric has no answer for is missing.
    scores: dict[str, Scores]
    #: What was measured on.
    measured_on: str
    #: What `kl_divergence` is of this model.
    cost: str

    def records(self) -> list[dict[str, Any]]:
        """Return a plain dict for each layer and candidate, as `pandas.DataFrame` takes them, a column a metric."""
        pairs = dict.fromkeys(pair for own in self.scores.values() for pair in own)
        return [
            {"layer": name, "candidate": candidate, **{m: self.scores[m].get((name, candidate)) for m in self.metrics}}
            for name, candidate in pairs
        ]

    def ranked(self, metric: str | None = None, candidate: str | None = None) -> list[str]:
        """Return the layers, those that suffer most first; left out: by the first metric, under the first candidate.

        Raises:
            RecipeError: a metric or a candidate that was not scored.

        """
        by, under = metric or self.metrics[0], candidate or self.candidates[0]
        if by not in self.metrics:
            raise RecipeError(unknown(by, self.metrics, what="metric"))
        if under not in self.candidates:
            raise RecipeError(unknown(under, self.candidates, what="candidate"))
        own = {name: score for (name, of), score in self.scores[by].items() if of == under}
        return sorted(own, key=lambda name: -own[name])

    def __str__(self) -> str:
        names = dict.fromkeys(name for own in self.scores.values() for name, _ in own)
        width = max([len(name) for name in names] + [5])
        columns = [(metric, candidate) for metric in self.metrics for candidate in self.candidates]
        wide = [max(len(candidate), 10) for _, candidate in columns]
        lines = [f"measured on {self.measured_on}"]
        for metric in self.metrics:
            lines += ["", f"{metric}" + (f", {self.cost}" if metric == "kl_divergence" else "")]
            own = [(of, size) for (by, of), size in zip(columns, wide, strict=True) if by == metric]
            lines.append(f"{'layer':{width}}  " + "  ".join(f"{of:>{size}}" for of, size in own))
            for name in self._order(metric, names):
                cells = [self._cell(metric, name, of).rjust(size) for of, size in own]
                lines.append(f"{name:{width}}  {'  '.join(cells)}".rstrip())
        return "\n".join(lines)

    def _order(self, metric: str, names: dict[str, None]) -> list[str]:
        own = self.scores[metric]
        return sorted(names, key=lambda name: -max((own.get((name, of), 0.0) for of in self.candidates), default=0.0))

    def _cell(self, metric: str, name: str, candidate: str) -> str:
        score = self.scores[metric].get((name, candidate))
        return "-" if score is None else f"{score:.3e}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table of layers and candidates."""
        head = "".join(f"<th scope='col'>{escape(own)}</th>" for own in ("layer", "candidate", *self.metrics))
        rows = "".join(
            f"<tr><th scope='row'>{escape(own['layer'])}</th><td>{escape(own['candidate'])}</td>"
            + "".join(f"<td>{'-' if own[m] is None else format(own[m], '.3e')}</td>" for m in self.metrics)
            + "</tr>"
            for own in self.records()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def sensitivity(  # noqa: PLR0913  # all that is said of a measurement
    model: Any,
    candidates: Any = None,
    *,
    metrics: str | Sequence[str] = "fisher",
    to: str | None = None,
    dtype: str = "auto",
    calibration: Any = None,
    algorithm: Any = None,
    keep: Sequence[str] = (),
    cache: str | Path | None = None,
    options: Options | None = None,
) -> Sensitivity:
    """Return how much each layer of `model` suffers under each candidate; the model stays float and unchanged.

    Args:
        model: as for `quantize`.
        candidates: as for `allocate`.
        metrics: one or several of `weight_error` (needs no data), `output_error`, `fisher`, `hessian_trace`,
            `kl_divergence`; with `kl_divergence` the model runs once for every layer and candidate.
        to: the checkpoint format it is for: its files say what layers may become.
        dtype: as for `plan`.
        calibration: as for `quantize`; a part of it is enough.
        algorithm: how codes are found for `kl_divergence`; the others score rounding to nearest.
        keep: regular expressions of layers to leave out.
        cache: a folder or .json file in which scores are kept.
        options: device, seed, progress.

    Raises:
        RecipeError: no such metric.
        PlanError: the model cannot be scored so.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    >>> found = sensitivity(net, "int4 g32", metrics="weight_error", calibration=[torch.randn(64, 32)])
    >>> sorted(found.ranked())
    ['0', '2']

    """
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name not in METRICS:
            raise RecipeError(unknown(str(name), METRICS, what="metric"))
    if not names:
        raise RecipeError(f"no metric; give some of {', '.join(METRICS)}")
    gguf = to is not None and to.partition(":")[0] == "gguf"
    chosen = Candidates.parse(candidates, algorithm, gguf=gguf)
    wanted = Asked(
        candidates=chosen, to=to, dtype=dtype, calibration=calibration, keep=tuple(keep), cache=cache,
        options=options or Options(),
    )  # fmt: skip
    with opened(model, wanted) as place:
        subject = place.subject
        return Sensitivity(
            metrics=names,
            candidates=chosen.names,
            scores={name: scored(name, subject, subject.pairs) for name in names},
            measured_on=place.described,
            cost=subject.reference.cost,
        )
