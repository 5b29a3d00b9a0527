"""What a search for bits found, as data: a scheme for each layer, the costs by which it was chosen, what it measured.

Costs of single layers are divergences of the whole model with that layer changed alone; their sum is the prediction for
the model, and rounds say how far the measured one was from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedLayer:
    """What one layer was given, and what each candidate would cost it."""

    name: str
    kind: str
    #: How many numbers its weight has.
    numbers: int
    #: Notation of what was chosen, or `float`.
    scheme: str
    #: Bytes that it takes in the file, scales included; 0 where it shares those of a layer that it is tied to.
    bytes: int
    #: Its first layer, where several had to be given the same (tied, fused, of one block); else its own name.
    unit: str
    #: Why it stayed float, or which candidates it cannot have.
    note: str | None = None
    #: What its choice was predicted to cost, its share of the whole; 0 of a float layer.
    predicted: float = 0.0
    #: By candidate: what it was predicted to cost.
    costs: dict[str, float]
    #: By candidate: what was measured with only this layer changed; a few layers, a few candidates.
    measured: dict[str, float]

    @property
    def bits(self) -> float:
        """Stored bits of a number, scales included."""
        return 8 * self.bytes / max(self.numbers, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationPoint:
    """A model that could have been: how large it is, and what it would cost."""

    #: `allocation`, or the notation that every layer would be given.
    label: str
    #: Bytes of all tensors of the model.
    bytes: int
    #: Stored bits of a weight on average, embedding, head and float layers counted.
    bits: float
    predicted: float
    #: `None` where it was not measured.
    measured: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRound:
    """One turn of the loop: what was chosen, what was predicted, what the whole model measured."""

    bytes: int
    bits: float
    #: The sum of the costs of its layers, as if they did not interact.
    predicted: float
    measured: float
    #: Whether it holds the limit.
    holds: bool
    #: Layers that got another scheme than in the round before.
    moved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReport:
    """What was asked, what was found, and how far prediction and measurement are apart."""

    #: What was asked for, in words: `4.5 bits a weight`, `300 MB`, `KL divergence 0.05`, `20 ms`.
    budget: str
    #: What costs are: `KL divergence (nats)`, or `noise to signal` of a model that is no language model.
    cost: str
    candidates: tuple[str, ...]
    #: Which layers had to be equal, which were kept.
    constraints: tuple[str, ...]
    #: How cheap scores came about: `fisher`, `output_error`, and what refined them.
    metric: str
    #: Scores that were computed, and divergences of the whole model with one layer changed that were measured.
    scored: int
    refined: int
    #: Tokens, or samples, that it was measured on, and what they are.
    measured_on: str
    #: `exact` or `greedy`, and how far from the optimum of the predictions it may be, as a share; `None`: not known.
    solver: str
    gap: float | None
    #: Bytes of all tensors, stored bits of a weight, seconds of a run where those were the limit.
    bytes: int
    bits: float
    seconds: float | None
    #: Of the whole model: the sum of its layers' costs, and what was measured; `None` where the loop was left out.
    predicted: float
    measured: float | None
    layers: tuple[AllocatedLayer, ...]
    #: From the smallest to the largest; the chosen one and uniform ones are among them.
    pareto: tuple[AllocationPoint, ...]
    rounds: tuple[AllocationRound, ...]
    #: What fell back, what was left out.
    notes: tuple[str, ...] = ()

    @property
    def interaction(self) -> float | None:
        """How many times the measured divergence is the predicted one; `None` where either is not there."""
        return self.measured / self.predicted if self.measured is not None and self.predicted > 0 else None

    def summary(self) -> list[tuple[str, str]]:
        """Return what a person wants to know first, as (name, value) pairs."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.scheme] = counts.get(layer.scheme, 0) + 1
        chosen = ", ".join(f"{count} x {scheme}" for scheme, count in sorted(counts.items(), key=lambda own: -own[1]))
        measured = "not measured" if self.measured is None else f"measured {self.measured:.4g}"
        return [
            ("bits", f"{self.bits:.3f} a weight, for {self.budget}: {chosen}"),
            ("allocated by", f"{self.metric}; {self.cost}: predicted {self.predicted:.4g}, {measured}"),
        ]
