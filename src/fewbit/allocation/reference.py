"""What the float model puts out, and how far another output is from it.

Of a language model KL(float || model) in nats, a prediction; of any other sum (y - q)^2 / sum y^2, noise to signal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.errors import NonFiniteError
from fewbit.evaluation.divergence import kl_divergence
from fewbit.evaluation.fidelity import power
from fewbit.evaluation.quality import log_probabilities
from fewbit.evaluation.side_by_side import is_language_model, main_output
from fewbit.numerics.namespace import Array, array_namespace

#: What costs are, by whether the model is a language model.
COSTS = {True: "KL divergence (nats)", False: "noise to signal"}


@dataclass(frozen=True, slots=True)
class Reference:
    """The outputs of the float model on some batches: log-probabilities (positions, tokens), or numbers as they are."""

    language: bool
    outputs: tuple[Array, ...]

    @classmethod
    def of(cls, batches: Sequence[Any], outputs: Sequence[Any]) -> Reference:
        """Return the reference of what the float model made of `batches`."""
        own = [main_output(output) for output in outputs]
        language = is_language_model(batches, own[0])
        return cls(language, tuple(_scores(output) if language else output for output in own))

    @property
    def cost(self) -> str:
        """What its divergences are."""
        return COSTS[self.language]

    def divergence(self, outputs: Iterable[Any]) -> float:
        """Return how far `outputs`, one for each batch, are from the reference, 0 for the same; raises as `sums`."""
        apart, signal = self.sums(outputs)
        return apart / signal if signal else 0.0

    def sums(self, outputs: Iterable[Any]) -> tuple[float, float]:
        """Return the sum of what they are apart, and what it is divided by.

        Raises:
            NonFiniteError: an output that is NaN or infinite.

        """
        apart = signal = 0.0
        for expected, output in zip(self.outputs, outputs, strict=True):
            actual = main_output(output)
            xp = array_namespace(actual)
            if not bool(xp.all(xp.isfinite(actual))):
                raise NonFiniteError("the output holds NaN or infinity once layers are quantized; look upstream")
            if self.language:
                apart += kl_divergence(expected, _scores(actual))
                signal += expected.shape[0]
            else:
                apart += power(xp.astype(expected, xp.float64) - xp.astype(actual, xp.float64))
                signal += power(expected)
        # Roundings of float32 may leave a divergence just below 0.
        return max(apart, 0.0), signal


def _scores(logits: Array) -> Array:
    """Return the log-probabilities of all predictions but those behind the last tokens, (positions, tokens)."""
    xp = array_namespace(logits)
    return log_probabilities(xp.reshape(logits[:, :-1], (-1, logits.shape[-1])))
