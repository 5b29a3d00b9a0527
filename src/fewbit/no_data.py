"""Calibration without any data: what it makes of recipe and plan, and the static ranges that BatchNorms know.

Presets round to nearest in the place of algorithms that need data; what a recipe asks for by name is a problem of the
plan, as are transforms and corrections that run on data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewbit.algorithms.block import BlockAlgorithm
from fewbit.algorithms.nearest import Nearest
from fewbit.calibration import Calibration
from fewbit.errors import CalibrationError
from fewbit.interfaces import Frontend
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.ranges import OutputRange
from fewbit.recipe import Recipe
from fewbit.rescaling import Rescaling
from fewbit.rule import Rule
from fewbit.solved import Data
from fewbit.synthetic.options import Synthetic
from fewbit.transforms import on_links, on_models
from fewbit.transforms.batchnorm import FoldBatchNorm
from fewbit.transforms.relu6 import ReplaceRelu6

if TYPE_CHECKING:
    from fewbit.known_output import KnownOutput
    from fewbit.statistics.extremes import Extremes
    from fewbit.synthetic.request import Request

_REMEDY = "calibrate on data, or with calibration='synthetic'"
#: The only statistic that a BatchNorm has an answer to.
_STATISTIC = "extremes"


@dataclass(frozen=True, slots=True)
class NoData:
    """A calibration on nothing."""

    given: Synthetic

    @classmethod
    def of(cls, calibration: Any) -> NoData | None:
        """Return what `none` or a `Synthetic` of BatchNorm ranges asks for; `None`: there is data, or the usual."""
        own = calibration.data if isinstance(calibration, Calibration) else calibration
        if isinstance(own, str) and own == "none":
            return cls(Synthetic(method="batchnorm"))
        return cls(own) if isinstance(own, Synthetic) and own.method == "batchnorm" else None

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a preset with rounding to nearest in the place of what needs data; any other recipe as it is."""
        if not recipe.adapts:
            return recipe
        return replace(recipe, rules=tuple(_without_data(rule) for rule in recipe.rules))

    def plan(self, made: Plan, asked: Recipe) -> Plan:
        """Return the plan of that recipe with what `asked` for data and gives way, and with what cannot."""
        away = sorted({rule.algorithm.name for rule in asked.rules if rule.algorithm != _without_data(rule).algorithm})
        said = [f"no data: weights are rounded to nearest in the place of {', '.join(away)}"] if away else []
        said = said if asked.adapts else []
        return replace(
            made, adaptations=(*made.adaptations, *said), problems=(*made.problems, *_problems(made), *_changes(made))
        )

    def prepared(self, made: Plan, model: Any, frontend: Frontend, data: Data, rescaling: Rescaling) -> Data:
        """Return `data` with the ranges of inputs, once `rescaling` has done all that it does to the float model.

        Raises:
            CalibrationError: as `statistics`.

        """
        if rescaling:
            wanted: dict[str, tuple[str, ...]] = {row.layer.name: () for row in made.quantized}
            layers = [row.layer for row in made.rows]
            for part in frontend.calibrate(model, layers, wanted, data.shown, sequential=False, prepare=rescaling):
                for _ in part:
                    pass
            rescaling.finished = True
        inputs, outputs = self.statistics(made, model, rescaling.known_now())
        known = {name: {_STATISTIC: own} for name, own in inputs.items()}
        return replace(data, known=known, known_outputs=outputs)

    def statistics(
        self, made: Plan, model: Any, known: Mapping[str, KnownOutput] | None = None
    ) -> tuple[dict[str, Extremes], dict[str, Extremes]]:
        """Return what BatchNorms know of the inputs, and of the outputs, of layers where these ranges are to be fixed.

        `known` are the outputs of layers that norms were folded into, as they are now.

        Raises:
            CalibrationError: a layer whose input or output no BatchNorm tells of, or a model that is no torch module or
                does not say what shape of input it takes.

        """
        inputs, outputs = ([row.layer for row in made.rows if own in _fixed(row)] for own in ("input", "output"))
        if not inputs and not outputs:
            return {}, {}
        from fewbit.synthetic.batchnorm_ranges import batchnorm_ranges

        return batchnorm_ranges(model, inputs, self._request(model), outputs=outputs, known=known)

    def shown(self, made: Plan, model: Any) -> Sequence[Any]:
        """Return a batch of noise that shows what `model` computes, for transforms; none where nothing wants one.

        Raises:
            CalibrationError: links are to be found, and it is not known what shape of input the model takes.

        """
        known = self.given.shape is not None or self.given.preprocessing is not None
        wished = bool(on_links(made.recipe.transforms)) or (bool(made.recipe.transforms) and known)
        if not wished and not any(_fixed(row) for row in made.rows):
            return ()
        from fewbit.synthetic.batchnorm_ranges import shown

        request = self._request(model)
        return (shown(request).to(request.device, request.dtype),)

    def described(self, made: Plan) -> str:
        """What the report says that it was calibrated with."""
        if not any(_fixed(row) for row in made.rows):
            return "no data"
        from fewbit.synthetic.batchnorm_ranges import INPUT_REACH, REACH

        taken = "as given" if self.given.bounds else f"taken to be 0 +- {INPUT_REACH:g}"
        return f"no data; static ranges from BatchNorm, beta +- {REACH:g} |gamma|, the input of the model {taken}"

    def _request(self, model: Any) -> Request:
        from torch import nn

        from fewbit.interfaces import Silent
        from fewbit.synthetic.request import Request

        if not isinstance(model, nn.Module):
            raise CalibrationError(
                "static ranges without data are read from the BatchNorms of a torch module, and this is an ONNX model, "
                "in which they are folded, nor is noise made for one to find links by; quantize the module that it was "
                "exported from, or give data"
            )
        return Request.of(model, self.given, 1, 0, Silent())


def _without_data(rule: Rule) -> Rule:
    if rule.keep or not (rule.algorithm.statistics or isinstance(rule.algorithm, BlockAlgorithm)):
        return rule
    return replace(rule, algorithm=Nearest())


def _fixed(row: PlanRow) -> tuple[str, ...]:
    """Return whether the range of a layer's input, and that of its output, is to be fixed by what was seen."""
    both = {"input": row.input, "output": row.output} if row.scheme is not None else {}
    return tuple(name for name, own in both.items() if own and own.static and own.ranging.statistic is not None)


def _problems(made: Plan) -> list[str]:
    """Return a sentence for all layers that want the same, which there is no data for."""
    lacking: dict[str, list[str]] = {}
    for row in made.rows:
        for what in _wants(row):
            lacking.setdefault(what, []).append(row.layer.name)
    return [f"{several(names)}: {what}, or {_REMEDY}" for what, names in lacking.items()]


def _wants(row: PlanRow) -> list[str]:
    """Return what of a row needs data that BatchNorms cannot stand for."""
    own, found = row.algorithm, []
    if own is not None and (own.statistics or isinstance(own, BlockAlgorithm)):
        found.append(f"{own.name} needs data, and there is to be none; use nearest or hqq")
    if row.scheme and isinstance(row.scheme.ranging, OutputRange):
        found.append(f"range {row.scheme.ranging.name} looks at outputs on data; use minmax or mse")
    measured = [correction.name for correction in row.corrections if correction.statistic]
    found += [f"correction {name} needs data; leave it out, or take means = 'batchnorm'" for name in measured]
    if row.layer.kind == "attention" and row.input and row.input.static and row.input.ranging.statistic:
        return [*found, "static operands of products have their ranges from data; round them dynamically"]
    for name, scheme in (("input", row.input), ("output", row.output)):
        if scheme and scheme.static and scheme.ranging.statistic not in (None, _STATISTIC):
            found.append(f"range {scheme.ranging.name} of an {name} needs data; use minmax or absmax")
    return found


def _changes(made: Plan) -> list[str]:
    """Return a sentence for the transforms that cannot do without data."""
    blind = [own.name for own in on_links(made.recipe.transforms) if own.needs_data]
    fixed = any(_fixed(row) for row in made.rows)
    followed = FoldBatchNorm | ReplaceRelu6
    changing = [own.name for own in on_models(made.recipe.transforms) if fixed and not isinstance(own, followed)]
    found = [f"transform {' and '.join(blind)} needs data; leave it out, or {_REMEDY}"] if blind else []
    if changing:
        found.append(
            f"transform {' and '.join(changing)} changes what goes into layers, and the ranges of BatchNorms are those "
            f"from before; leave it out, or {_REMEDY}"
        )
    return found
