"""What to do next, from the figures of a report: a table of rules, each with what it looks at and why it says so."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fewbit.errors import SchemeError
from fewbit.problems import several
from fewbit.report.damage import by_damage
from fewbit.report.drawing import error
from fewbit.schemes.notation import parse_scheme

if TYPE_CHECKING:
    from fewbit.report.data import Report
    from fewbit.report.layer_report import LayerReport

#: A model that is further than this from its float self has lost something: nats, share of predictions, dB.
_MUCH_KL, _LITTLE_AGREEMENT, _LOW_SQNR = 0.05, 0.9, 20.0
#: And one that is closer than this has lost hardly anything.
_HARDLY_KL, _HIGH_SQNR = 0.005, 40.0
#: Weights of fewer bits than these, scales included, gain much by an algorithm.
_FEW_BITS = 5.0


@dataclass(frozen=True, slots=True)
class Advice:
    """A step to take; the page shows the figures first, then what to do, and why."""

    figures: str
    do: str
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """When to advise what."""

    #: Returns the figures that speak for it, or `None`.
    when: Callable[[Report], str | None]
    do: str
    why: str


def advice(report: Report) -> list[Advice]:
    """Return the steps that the figures speak for, in the order of the table."""
    found = [(rule, rule.when(report)) for rule in RULES]
    return [Advice(figures, rule.do, rule.why) for rule, figures in found if figures]


def is_far(report: Report) -> bool:
    """Whether the model has lost so much that something should be done."""
    if report.after is not None and report.after.kl_divergence is not None:
        agreement = report.after.top1_agreement
        return report.after.kl_divergence > _MUCH_KL or (agreement is not None and agreement < _LITTLE_AGREEMENT)
    return report.output_sqnr is not None and report.output_sqnr < _LOW_SQNR


def _unmeasured(report: Report) -> str | None:
    measured = report.after is not None or report.output_sqnr is not None
    return None if measured else "Quality was not measured"


def _overlapping(report: Report) -> str | None:
    if report.overlap is None or report.overlap.share <= 0.01:
        return None
    return (
        f"{100 * report.overlap.share:.3g} % of the runs of {report.overlap.tokens} tokens that quality was measured "
        "on are in the calibration data, too"
    )


def _few_predictions(report: Report) -> str | None:
    few = report.after is not None and report.after.predictions < 1000
    return f"Quality is that of {report.after.predictions} predictions" if few and report.after else None


def _worst(report: Report) -> str | None:
    found = by_damage(report.layers).layers
    if not is_far(report) or len(found) < 4:
        return None
    errors = [error(own.sqnr) for own in found]
    usual = statistics.median(errors)
    worst = [own.layer.name for own, lost in zip(found, errors, strict=True) if lost > 2 * usual > 0]
    if not worst or len(worst) > max(1, len(found) // 5):
        return None
    several_layers = (
        f"{len(worst)} of {len(found)} layers lose" if len(worst) > 1 else f"1 of {len(found)} layers loses"
    )
    return f"{several_layers} more than twice the median, {100 * usual:.3g} %: {several(worst)}"


def _rounded_to_nearest(report: Report) -> str | None:
    near = [own for own in report.quantized if own.algorithm == "nearest" and _bits(own) < _FEW_BITS and own.shape[0]]
    near = [own for own in near if own.kind in ("linear", "conv")]
    if not near or not (is_far(report) or _unmeasured(report)):
        return None
    return f"{_layers(near)} of few bits {_are(near)} rounded to nearest"


def _lopsided(report: Report) -> str | None:
    found = [own for own in report.quantized if _unused(own) > 0.2 and "asym" not in own.becomes]
    if not found or not is_far(report):
        return None
    return f"{_layers(found)} {'leaves' if len(found) == 1 else 'leave'} more than a fifth of the levels unused"


def _clipped(report: Report) -> str | None:
    found = [own for own in report.layers if own.inputs and (own.inputs.clipped or 0.0) > 0.001]
    if not found:
        return None
    most = max(found, key=lambda own: (own.inputs.clipped or 0.0) if own.inputs else 0.0)
    assert most.inputs is not None
    return f"{_layers(found)} clip more than 0.1 % of the inputs, {most.name} {100 * (most.inputs.clipped or 0):.2g} %"


def _outliers(report: Report) -> str | None:
    rounded = [own for own in report.quantized if ", input" in own.becomes and own.inputs]
    found = [own for own in rounded if own.inputs and own.inputs.outliers[0][1] > 20.0]
    if not found or not is_far(report):
        return None
    most = max(found, key=lambda own: own.inputs.outliers[0][1] if own.inputs else 0.0)
    assert most.inputs is not None
    channel, multiple = most.inputs.outliers[0]
    return (
        f"Rounded inputs of {_layers(found)} have a channel above 20 times the median one; that of {most.name} "
        f"is channel {channel}, {multiple:.0f} times"
    )


def _solved_and_still_far(report: Report) -> str | None:
    solved = [own for own in report.quantized if own.algorithm not in (None, "nearest")]
    if not is_far(report) or not solved or len(solved) < len(report.quantized) / 2:
        return None
    return (
        f"{_layers(solved)} {_are(solved)} solved by {several(sorted({own.algorithm or '' for own in solved}))} already"
    )


def _slower(report: Report) -> str | None:
    if report.forward_seconds is None or report.forward_seconds[1] < 1.1 * report.forward_seconds[0]:
        return None
    slow = [own for own in report.quantized if not own.fast]
    if not slow:
        return None
    before, after = report.forward_seconds
    return (
        f"The forwards took {after / before:.2f} times as long; {_layers(slow)} {_are(slow)} not faster than float here"
    )


def _room(report: Report) -> str | None:
    if report.bits is None or report.bits < _FEW_BITS:
        return None
    if report.after is not None and report.after.kl_divergence is not None:
        divergence = report.after.kl_divergence
        return f"KL divergence is {divergence:.2g} nats at {report.bits:.2f} bits" if divergence < _HARDLY_KL else None
    high = report.output_sqnr is not None and report.output_sqnr > _HIGH_SQNR
    return f"The output has {report.output_sqnr:.1f} dB at {report.bits:.2f} bits a weight" if high else None


RULES = (
    Rule(
        _unmeasured,
        "Measure it: --text or --data on the command line, evaluation= from Python.",
        "A size alone does not say whether the model still works.",
    ),
    Rule(
        _overlapping,
        "Measure on other text: --text FILE, or evaluation=.",
        "Rounding is fitted to the calibration data, so that figures on the same text look too good.",
    ),
    Rule(
        _few_predictions,
        "Measure on more text before you decide: --sequences 8.",
        "A few hundred predictions scatter by more than what one scheme is better than another.",
    ),
    Rule(
        _worst,
        "Give these layers more bits in a recipe, or keep them: --keep NAME.",
        "A few layers that lose far more than the others decide what the model loses, and cost little to keep.",
    ),
    Rule(
        _rounded_to_nearest,
        "Solve them by GPTQ, guided by gradients: the presets w4a16, w3a16 and w2a16 do, or algorithm = \"gptq\".",
        "GPTQ moves the error of each column into the columns after it, where the inputs make it cancel.",
    ),
    Rule(
        _lopsided,
        "Try an asymmetric scheme, such as int4 g64 asym, or smaller groups.",
        "Levels that no weight uses are bits for nothing; a zero point moves them to where weights are.",
    ),
    Rule(
        _clipped,
        "Calibrate on more data, or on data like that it is used on; or round inputs by token, without static.",
        "A fixed range knows only what calibration has shown, and all that lies beyond becomes its end.",
    ),
    Rule(
        _outliers,
        "Put transforms = [\"smoothquant\"] or [\"rotation\"] into the recipe.",
        "A few large channels make the step coarse for all others; both move their size into the weights.",
    ),
    Rule(
        _solved_and_still_far,
        "Train it: fewbit finetune, or fewbit.prepare_qat in a loop of yours; or take more bits.",
        "Behind an algorithm that has done what rounding can do, only training moves the weights further.",
    ),
    Rule(
        _slower,
        "Write a file for a runtime with kernels of its own (--to gguf, --runtime), or a scheme of fewbit support.",
        "A layer without a fast kernel is dequantized at every call: it saves memory and not time.",
    ),
    Rule(
        _room,
        "Try fewer bits: w4a16 for weights, w4a8 with inputs.",
        "The model is as good as the float one on this data, so that it can bear more.",
    ),
)  # fmt: skip


def _bits(layer: LayerReport) -> float:
    """Return the bits of a weight under its scheme, scales included; a file may store codes in more."""
    try:
        return parse_scheme(layer.becomes.partition(",")[0]).bits_per_weight(layer.shape)
    except SchemeError:  # a notation that this version does not know
        return 8 * layer.bytes_after / max(prod(layer.shape), 1)


def _unused(layer: LayerReport) -> float:
    """Return the share of levels without a code, where they were counted."""
    own = layer.histogram
    return 1 - own.used / len(own.levels) if own and own.codes else 0.0


def _layers(found: Sequence[LayerReport]) -> str:
    return "1 layer" if len(found) == 1 else f"{len(found)} layers"


def _are(found: Sequence[LayerReport]) -> str:
    return "is" if len(found) == 1 else "are"
