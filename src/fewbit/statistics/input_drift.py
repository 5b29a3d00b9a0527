"""How far the inputs of a layer have drifted behind quantized layers: D = (1 / N) sum over rows of (x - x') x'^T.

x' is what the layer gets, x what it gets in the float model. Source: GPTAQ, arXiv 2504.02692, section 3. Relative: of
rows divided by rms(x'), as in the relative second moment.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.statistics.row_sum import RowSum


@dataclass(slots=True)
class InputDrift(RowSum):
    """Sum of outer products of differences and rows, float32 (width, width), and how many there were."""

    @classmethod
    def init(cls, width: int, like: Array) -> InputDrift:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((width, width), dtype=xp.float32, device=device(like)))

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.total.shape[0])

    def update(self, rows: Array, floats: Array) -> None:
        """Add the rows of an array (..., width), beside those of the float model, in the same order."""
        xp = array_namespace(rows)
        rows, floats = (
            xp.astype(xp.reshape(given, (-1, self.width)), xp.float32, copy=False) for given in (rows, floats)
        )
        self.total += xp.matmul((floats - rows).T, rows * self._weights(rows))
        self.count += int(rows.shape[0])

    def result(self) -> Array:
        """Return D, float32 (width, width); zeros when nothing was seen.

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        xp = array_namespace(self.total)
        if not bool(xp.all(xp.isfinite(self.total))):
            raise NonFiniteError("its inputs hold NaN or infinity, or numbers whose products overflow; look upstream")
        return self.total / max(self.count, 1)

    @staticmethod
    def _weights(rows: Array) -> Array:
        return array_namespace(rows).ones_like(rows[:, :1])


@dataclass(slots=True)
class RelativeInputDrift(InputDrift):
    """The drift of rows that count by 1 / rms(x')^2; rows of zeros count for nothing."""

    @staticmethod
    def _weights(rows: Array) -> Array:
        xp = array_namespace(rows)
        power = xp.vecdot(rows, rows)[:, None] / rows.shape[1]
        some = power > 0
        return xp.where(some, 1.0 / xp.where(some, power, xp.ones_like(power)), xp.zeros_like(power))
