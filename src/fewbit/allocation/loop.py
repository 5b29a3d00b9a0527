"""Choose, quantize, measure, correct, choose again: until the limit holds, and what was chosen is measured.

Costs are added up as if layers did not interact. What a group of layers adds to the divergence while all others are
quantized, divided by the sum of its costs, corrects these; the corrected sum is what the whole model measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fewbit.allocation.costs import kind_of
from fewbit.allocation.selection import Selection, least
from fewbit.allocation.trial import Trial
from fewbit.allocation.units import Unit
from fewbit.errors import PlanError
from fewbit.report.allocation import AllocationRound

Tables = Sequence[Sequence[float]]
Solver = Callable[[Tables, Tables, float], Selection]
#: How far a correction may go in a round, and what power of it is taken.
_REACH, _DAMPING = 8.0, 0.75
#: Groups whose interactions are measured, at most.
_GROUPS = 16
#: A smaller model than one that holds has to save this share to be worth another round.
_WORTH = 0.005


@dataclass(slots=True, kw_only=True)
class Task:
    """What is chosen from and what is limited."""

    units: Sequence[Unit]
    #: By unit and choice: costs, bytes, and what is limited (bytes or seconds); `divergence`: the costs are.
    costs: list[list[float]]
    bytes: list[list[float]]
    weights: list[list[float]]
    limit: float
    limits_divergence: bool
    solver: Solver

    def selected(self, costs: Tables) -> Selection:
        """Return the best selection under the limit by these costs.

        Where no sum of costs is within a divergence that is the limit, it is the one of the least costs.
        """
        if not self.limits_divergence:
            return self.solver(costs, self.weights, self.limit)
        # Sums of floats in another order may be above their own least.
        return self.solver(self.bytes, costs, max(self.limit, least(costs) * (1.0 + 1e-9)))


@dataclass(slots=True, kw_only=True)
class Round:
    """A selection with what it was predicted to cost and what it measured."""

    selection: Selection
    predicted: float
    measured: float
    bytes: int
    holds: bool


@dataclass(slots=True)
class Loop:
    """Rounds of a task."""

    task: Task
    #: From a selection to the model that it makes.
    trial: Callable[[Selection], Trial]
    #: From a trial and groups of layers to what they add.
    marginals: Callable[[Trial, dict[str, list[str]]], dict[str, float]]
    rounds: list[Round] = field(default_factory=list)

    def run(self, count: int) -> Round:
        """Return the best of at most `count` rounds: the smallest that holds, or the one of the least divergence.

        Raises:
            PlanError: no selection is as close to the float model as the limit asks.

        """
        costs = self.task.costs
        for number in range(count):
            selection = self.task.selected(costs)
            if any(own.selection.choices == selection.choices for own in self.rounds):
                break
            trial = self._tried(selection)
            if number + 1 < count and not self._settled():
                costs = self._corrected(costs, trial)
        if self.task.limits_divergence and not any(own.holds for own in self.rounds):
            self._tried(self._closest())
        return self._best()

    def _tried(self, selection: Selection) -> Trial:
        trial = self.trial(selection)
        measured = trial.divergence()
        holds = measured <= self.task.limit or not self.task.limits_divergence
        predicted, taken = selection.sum(self.task.costs), round(selection.sum(self.task.bytes))
        self.rounds.append(Round(selection=selection, predicted=predicted, measured=measured, bytes=taken, holds=holds))
        return trial

    def _closest(self) -> Selection:
        return Selection(tuple(min(range(len(own)), key=own.__getitem__) for own in self.task.costs))

    def _settled(self) -> bool:
        """Whether the last round is as large as its limit allows: its divergence is just below that."""
        last = self.rounds[-1]
        return self.task.limits_divergence and last.holds and last.measured > (1 - 4 * _WORTH) * self.task.limit

    def _best(self) -> Round:
        if not self.task.limits_divergence:
            return min(self.rounds, key=lambda own: own.measured)
        holding = [own for own in self.rounds if own.holds]
        if not holding:
            least_measured = min(own.measured for own in self.rounds)
            raise PlanError(
                f"no choice of candidates comes as close as {self.task.limit:g}: the closest measures "
                f"{least_measured:.4g}; add candidates of more bits, or keep layers"
            )
        return min(holding, key=lambda own: (own.bytes, own.measured))

    def _corrected(self, costs: Tables, trial: Trial) -> list[list[float]]:
        """Return the costs with each group put to what it added, and their sum to what the model measured."""
        last = self.rounds[-1]
        groups = groups_of(self.task.units)
        added = self.marginals(
            trial, {name: [own.name for u in units for own in u.layers] for name, units in groups.items()}
        )
        places = {unit.name: place for place, unit in enumerate(self.task.units)}
        chosen = last.selection.choices
        predicted = {
            name: sum(costs[places[unit.name]][chosen[places[unit.name]]] for unit in units)
            for name, units in groups.items()
        }
        whole = sum(added.values()) / max(sum(predicted.values()), 1e-300)
        factors = {}
        for name, own in predicted.items():
            ratio = added[name] / own / whole if own > 0 and whole > 0 else 1.0
            factors[name] = min(max(ratio, 1 / _REACH), _REACH) ** _DAMPING
        group = {unit.name: name for name, units in groups.items() for unit in units}
        found = [
            [factors[group[unit.name]] * cost for cost in own] for unit, own in zip(self.task.units, costs, strict=True)
        ]
        level = last.measured / max(last.selection.sum(found), 1e-300)
        return [[level * cost for cost in own] for own in found]


def groups_of(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Return the units of each kind; where kinds are many, as in a network without repetition, runs of neighbours."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(kind_of(unit.name), []).append(unit)
    if len(groups) <= _GROUPS:
        return groups
    size = -(-len(units) // _GROUPS)
    return {units[start].name: list(units[start : start + size]) for start in range(0, len(units), size)}


def reported(rounds: Sequence[Round], fixed: int, bits: Callable[[int], float]) -> tuple[AllocationRound, ...]:
    """Return the rounds for the report; `fixed` are the bytes of what no unit holds."""
    found: list[AllocationRound] = []
    before: Sequence[int] | None = None
    for own in rounds:
        now = own.selection.choices
        moved = sum(a != b for a, b in zip(before, now, strict=True)) if before is not None else 0
        size = own.bytes + fixed
        found.append(
            AllocationRound(
                bytes=size,
                bits=bits(size),
                predicted=own.predicted,
                measured=own.measured,
                holds=own.holds,
                moved=moved,
            )
        )
        before = now
    return tuple(found)
