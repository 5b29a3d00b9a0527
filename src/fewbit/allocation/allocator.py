"""`fewbit.allocate`: sensitivities, a selection under a budget, and the loop that checks it, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from fewbit.allocation.allocation import Allocation
from fewbit.allocation.budget import Budget
from fewbit.allocation.candidates import Candidates
from fewbit.allocation.costs import PAIRS, Costs, costs_of
from fewbit.allocation.exact import allocate_exactly, require_solver
from fewbit.allocation.findings import Found, report_of
from fewbit.allocation.greedy import allocate_greedily
from fewbit.allocation.kernel_times import kernel_times
from fewbit.allocation.layer_recipe import recipe_of
from fewbit.allocation.loop import Loop, Round, Solver, Task
from fewbit.allocation.opening import Asked, Opened, opened
from fewbit.allocation.selection import Selection, least
from fewbit.allocation.trial import Trial
from fewbit.catalogue import unknown
from fewbit.errors import PlanError, RecipeError
from fewbit.options import Options
from fewbit.recipe import Recipe

#: Solvers by name.
SOLVERS: dict[str, Solver] = {"exact": allocate_exactly, "greedy": allocate_greedily}
#: Rounds of the loop: how many models are quantized and measured at most.
ROUNDS = 3


def allocate(  # noqa: PLR0913  # all that is said of a search
    model: Any,
    budget: Any,
    candidates: Any = None,
    *,
    to: str | None = None,
    dtype: str = "auto",
    calibration: Any = None,
    evaluation: Any = None,
    algorithm: Any = None,
    input: str | None = None,  # noqa: A002  # as in rules
    keep: Sequence[str] = (),
    equal: str = "auto",
    metric: str = "auto",
    pairs: int = PAIRS,
    solver: str = "exact",
    rounds: int = ROUNDS,
    cache: str | Path | None = None,
    options: Options | None = None,
) -> Allocation:
    """Choose a scheme for every layer of `model` under a budget; the model stays float and unchanged.

    Args:
        model: as for `quantize`.
        budget: `4.5` bits a weight (stored bits with scales, all layers counted), `300MB` of tensors, `kl 0.05`
            (divergence from the float model; of a model that is no language model noise to signal), or `20ms` of a run.
        candidates: notations or GGUF types that layers may become, a list or a text with commas; also `float`. Left
            out: int3 to int8 in groups of 64, for GGUF files its types.
        to: the checkpoint format it is for: bytes and what layers may become are those of its files.
        dtype: as for `plan`.
        calibration: as for `quantize`; left out, a language model writes its own text.
        evaluation: what the loop measures whole models on; left out: the calibration data.
        algorithm: how codes of linear layers are found; left out: GPTQ guided by gradients.
        input: what inputs are rounded to, with every candidate; single layers are scored without it.
        keep: regular expressions of layers that stay float.
        equal: which layers get the same: `inputs` (those that share one), `blocks`, `none`; `auto`: those that share an
            input where the runtimes of `to` fuse them.
        metric: what scores all pairs of layers and candidates, see `sensitivity`; `auto`: `fisher`, or `output_error`.
        pairs: about how many divergences of the whole model, with one layer changed, put the scores to scale; 0: none.
        solver: `exact`, or `greedy`.
        rounds: how many models are quantized and measured at most; 0: the selection is not checked.
        cache: a folder or .json file in which scores are kept.
        options: device, seed, progress.

    Raises:
        PlanError: no selection is within the budget, or the model cannot be scored so.
        RecipeError: a budget, candidate or option that makes no sense.

    >>> import torch
    >>> batches = [torch.randn(64, 32) for _ in range(2)]
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    >>> found = allocate(net, 6.0, "int3 g32,int4 g32,int8 g32", calibration=batches, algorithm="nearest")
    >>> found.report.bits <= 6.0, [row.name for row in found.rows]
    (True, ['0', '2'])

    """
    asked = Budget.parse(budget)
    if solver not in SOLVERS:
        raise RecipeError(unknown(str(solver), SOLVERS, what="solver"))
    if type(rounds) is not int or rounds < 0 or type(pairs) is not int or pairs < 0:
        raise RecipeError(f"rounds = {rounds!r:.40} and pairs = {pairs!r:.40} are numbers of times, 0 or more")
    gguf = to is not None and to.partition(":")[0] == "gguf"
    chosen = Candidates.parse(candidates, algorithm, input, gguf=gguf)
    wanted = Asked(
        candidates=chosen, to=to, dtype=dtype, calibration=calibration, evaluation=evaluation, keep=tuple(keep),
        equal=equal, cache=cache, options=options or Options(),
    )  # fmt: skip
    if solver == "exact":
        require_solver()
    with opened(model, wanted) as place:
        return _Search(place, asked, solver, rounds).found(partial(costs_of, place.subject, metric, pairs))


@dataclass(slots=True)
class _Search:
    """A search on an opened model."""

    place: Opened
    budget: Budget
    solver: str
    rounds: int
    _fixed: int = field(init=False)

    def found(self, scoring: Callable[[], Costs]) -> Allocation:
        """Return the allocation by the costs that `scoring` returns; what cannot be is refused before."""
        units = self.place.units
        sizes = [[float(own.bytes) for own in unit.choices] for unit in units]
        lightest = Selection(tuple(min(range(len(own)), key=own.__getitem__) for own in sizes))
        self._fixed = self.place.workplace.plan(self._recipe(lightest)).bytes_after - round(lightest.sum(sizes))
        weights, fixed_seconds = sizes, None
        if self.budget.what == "latency":
            weights, fixed_seconds = kernel_times(self.place.subject, units)
        limit = self._limit(fixed_seconds or 0.0, weights)
        costs = scoring()
        table = [
            [sum(costs.costs.get((layer.name, own.name), 0.0) for layer in unit.layers) for own in unit.choices]
            for unit in units
        ]
        task = Task(
            units=units, costs=table, bytes=sizes, weights=weights, limit=limit,
            limits_divergence=self.budget.what == "divergence", solver=SOLVERS[self.solver],
        )  # fmt: skip
        best, rounds = self._carried_out(task)
        return Allocation(
            recipe=self._recipe(best.selection),
            report=report_of(
                Found(
                    place=self.place, budget=str(self.budget), solver=self.solver, task=task, costs=costs, best=best,
                    rounds=rounds, fixed=self._fixed, bits=self._bits, measured=bool(rounds),
                    seconds=None if fixed_seconds is None else best.selection.sum(weights) + fixed_seconds,
                )
            ),
        )  # fmt: skip

    def _carried_out(self, task: Task) -> tuple[Round, list[Round]]:
        """Return the best selection, and every one that was measured."""
        if not self.rounds:
            chosen = task.selected(task.costs)
            predicted, taken = chosen.sum(task.costs), round(chosen.sum(task.bytes))
            holds = predicted <= task.limit or not task.limits_divergence
            if not holds:
                raise PlanError(
                    f"no choice of candidates is predicted to come as close as {task.limit:g}: the closest is "
                    f"{predicted:.4g}; add candidates of more bits"
                )
            return Round(selection=chosen, predicted=predicted, measured=float("nan"), bytes=taken, holds=holds), []
        loop = Loop(task, self._trial, self._marginals)
        return loop.run(self.rounds), loop.rounds

    def _marginals(self, trial: Trial, groups: dict[str, list[str]]) -> dict[str, float]:
        return trial.marginals(self.place.subject, groups)

    def _trial(self, selection: Selection) -> Trial:
        return self.place.workplace.trial(self._recipe(selection))

    def _recipe(self, selection: Selection) -> Recipe:
        return recipe_of(self.place.units, selection, self.place.setting, f"allocated: {self.budget}")

    def _limit(self, seconds: float, weights: Sequence[Sequence[float]]) -> float:
        """Return what is left for the units."""
        own = self.budget
        words: Callable[[float], str] = self._megabytes
        if own.what == "divergence":
            return own.limit
        if own.what == "latency":
            limit, words = own.limit - seconds, partial(_milliseconds, seconds)
        else:
            whole = own.limit if own.what == "size" else own.limit * self._numbers / 8 + self.place.rest_bytes
            limit = whole - self._fixed
        if least(weights) > limit:
            raise PlanError(
                f"{own} cannot be: with the smallest candidate for every layer it is {words(least(weights))}; add "
                "candidates of fewer bits, keep fewer layers, or raise the budget"
            )
        return limit

    def _megabytes(self, lowest: float) -> str:
        size = round(lowest) + self._fixed
        return f"{size / 1e6:.1f} MB, {self._bits(size):.3f} bits a weight"

    @property
    def _numbers(self) -> int:
        """Numbers of the weights of all layers, a weight that layers share once."""
        counted: set[str] = set()
        total = 0
        for layer in self.place.subject.layers:
            if not counted & set(layer.tied):
                total += prod(layer.shape)
            counted.add(layer.name)
        return total

    def _bits(self, size: int) -> float:
        """Return the bits of a weight in a model of `size` bytes, without what is no layer's weight."""
        return 8 * (size - self.place.rest_bytes) / max(self._numbers, 1)


def _milliseconds(fixed: float, lowest: float) -> str:
    return f"{(lowest + fixed) * 1e3:.3g} ms, {fixed * 1e3:.3g} ms of it outside of layers"
