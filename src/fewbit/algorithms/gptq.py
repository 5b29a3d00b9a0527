"""GPTQ: round column by column, spread each error over the columns to come; then descend, and fit the scales.

w_k -= e U_jk for k > j with e = (w_j - q_j) / U_jj, H^-1 = U^T U. Source: GPTQ, arXiv 2210.17323; the descent is
coordinate descent on the same error (QuantEase, arXiv 2309.01885).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fewbit.algorithms.column_order import ORDERS
from fewbit.algorithms.importance import importance_of
from fewbit.algorithms.output_moment import output_moment
from fewbit.algorithms.solution import Solution, in_framework_of
from fewbit.errors import MissingExtraError, RecipeError
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.scheme import Scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import SecondMoment

#: Damping where every row counts alike, and where rows count by gradients: then fewer tokens decide.
_DAMPING, _GUIDED_DAMPING = 0.01, 0.15
_UNKNOWN = "since it is an expert, is called several times or the model cannot be differentiated"


@dataclass(frozen=True, slots=True)
class Gptq:
    """Rounding that minimizes the error of the layer's output on calibration data."""

    #: Order of the columns: `none`, `activation`, `group-aware`; `auto` is group-aware for up to 4 bits, else none.
    order: Literal["auto", "none", "activation", "group-aware"] = "auto"
    #: What is added to the diagonal of the second moment, as a share of its mean; raised while it is not enough.
    #: `None`: 0.15 where `guided`, which holds better on other texts; else 0.01.
    damping: float | None = None
    #: Let every token count alike, however large its activations; otherwise the plain second moment, as in the paper.
    relative: bool = True
    #: Let a token count as much more as an error of the layer's output there changes the loss, by its gradient in the
    #: float model; takes the place of `relative`.
    guided: bool = False
    #: Search scale and zero point of each group by the error they leave; otherwise the scheme's range method decides.
    search: bool = True
    #: Sweeps of coordinate descent after the column loop; 0: none.
    sweeps: int = 4
    #: Fit the scales to the codes in the end, where each row or group of a row has its own.
    fit: bool = True
    #: Round for the output that the layer has in the float model, on inputs that have drifted behind quantized layers;
    #: a layer where that measures no better on the calibration data is rounded for its own inputs. `None`: a plan does
    #: so where inputs are rounded to 4 bits or fewer and the float model can run beside.
    asymmetric: bool | None = None

    def __post_init__(self) -> None:
        if self.order not in ("auto", *ORDERS):
            raise RecipeError(f"gptq: order {self.order!r:.80} is none of auto, {', '.join(ORDERS)}")
        given = self.damping
        if given is not None and (isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1):
            raise RecipeError(f"gptq: damping {self.damping!r:.80} is outside (0, 1); leave it out for the usual")
        if type(self.sweeps) is not int or self.sweeps < 0:
            raise RecipeError(
                f"gptq: sweeps {self.sweeps!r:.80} is no number of times; 4 is usual, 0 leaves descent out"
            )
        for flag in ("relative", "guided", "search", "fit", *([] if self.asymmetric is None else ["asymmetric"])):
            if not isinstance(getattr(self, flag), bool):
                raise RecipeError(f"gptq: {flag} = {getattr(self, flag)!r:.80} is not true or false")
        if self.guided and not self.relative:
            raise RecipeError("gptq: guided says what a token counts, and relative = false does too; leave that out")
        if self.guided and self.asymmetric:
            raise RecipeError("gptq: guided and asymmetric weigh errors by different outputs; use one of them")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "gptq"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layer's input, and how far it has drifted."""
        if self.guided:
            return ("guided_second_moment",)
        names = ("second_moment", *(["input_drift"] if self.asymmetric else []))
        return tuple(f"relative_{name}" for name in names) if self.relative else names

    def least_damping(self, moment: Any) -> float:
        """Return the damping that a layer with this second moment begins with."""
        if self.damping is not None:
            return self.damping
        return _GUIDED_DAMPING if getattr(moment, "guided", False) else _DAMPING

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) rounded for the inputs that the second moment in `statistics` has seen.

        Raises:
            NonFiniteError: the second moment is not finite, or cannot be factored.
            MissingExtraError: torch or numba is not installed.

        """
        moment = (statistics or {}).get(self.statistics[0])
        if moment is None:
            unclipped = output_moment(statistics, scheme)[1]
            found = quantize(weight, scheme.searched() if self.search else scheme)
            unknown = "there is no statistic of its input: rounded without data"
            return Solution(replace(found, scheme=scheme), remarks=(unknown, *unclipped))
        try:
            import torch

            from fewbit.algorithms.column_loop import as_torch, rounded
        except ImportError as error:
            raise MissingExtraError(f"gptq needs {error.name}; pip install 'fewbit[torch]'") from error

        values = as_torch(weight).to(torch.float32)
        if few := moment.too_few:
            qtensor, _ = rounded(values, SecondMoment.identity(weight.shape[1], values), scheme, self)
            return Solution(in_framework_of(weight, qtensor), remarks=(f"{few}: rounded without data",))
        seen = moment.result()
        if float(seen.max()) == 0.0:  # as that of a second moment is on its diagonal
            return Solution(quantize(weight, scheme), remarks=("its calibration inputs are all 0: rounded to nearest",))
        if isinstance(moment, GroupedMoment) and scheme.learned:
            found = quantize(weight, scheme, importance_of(seen, weight))
            return Solution(
                found, remarks=("its inputs are in groups: levels are learned, weights rounded to nearest",)
            )
        qtensor, used, remarks = self._rounded(values, statistics, scheme)
        if self.guided and not getattr(moment, "guided", False):
            remarks += (f"no gradient at its output is known, {_UNKNOWN}: every row of its input counts alike",)
        if used != (least := self.least_damping(moment)):
            remarks = (f"damping raised from {least:g} to {used:g}: its inputs are dependent", *remarks)
        return Solution(in_framework_of(weight, qtensor), used, remarks=remarks)

    def _rounded(self, values: Any, statistics: Any, scheme: Scheme) -> tuple[QTensor, float, tuple[str, ...]]:
        """Return float32 `values` (out, in) rounded, the damping that was used, and what there is to say of it."""
        from fewbit.algorithms.column_groups import rounded_groups
        from fewbit.algorithms.column_loop import as_torch, rounded
        from fewbit.algorithms.drifted_inputs import DRIFT_UNKNOWN, rounded_behind_drift

        moment = statistics[self.statistics[0]]
        drift = statistics.get(self.statistics[-1]) if self.asymmetric else None
        if drift is not None and drift.count and not isinstance(moment, GroupedMoment):
            return rounded_behind_drift(values, moment, drift, scheme, self)
        remarks = (DRIFT_UNKNOWN,) if self.asymmetric else ()
        if isinstance(moment, GroupedMoment):
            seen = as_torch(moment.result()).to(values.device)
            return *rounded_groups(values, seen, scheme, self), (*remarks, *output_moment(statistics, scheme)[1])
        return *rounded(values, moment, scheme, self), remarks
