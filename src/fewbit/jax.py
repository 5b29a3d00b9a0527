"""fewbit for JAX: `quantize` rewrites any function of parameters and inputs; nothing is patched.

y = f(p, x) becomes y' = g(q, x): the same operations, those that multiply by a parameter which a rule names replaced.
Reachable as `fewbit.jax` after `import fewbit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fewbit.activation import Activation
from fewbit.algorithms.nearest import Nearest
from fewbit.checkpoints.array_file import read_arrays, write_arrays
from fewbit.errors import CalibrationError, FewbitError, NotYetError
from fewbit.frontends.jax.learned_parameter import LearnedParameter
from fewbit.frontends.jax.named_arrays import from_arrays, to_arrays
from fewbit.frontends.jax.observation import Observation, Seen
from fewbit.frontends.jax.operation import Operation
from fewbit.frontends.jax.packed_weight import Description, PackedWeight, is_packed
from fewbit.frontends.jax.quantized_function import QuantizedFunction
from fewbit.frontends.jax.quantized_leaf import abstract_leaf, quantized_leaf
from fewbit.frontends.jax.qwix_rules import rules_from_qwix
from fewbit.frontends.jax.resolved import Resolved
from fewbit.frontends.jax.trained_function import TrainedFunction, require_trainable
from fewbit.frontends.jax.trained_ranges import TrainedRanges, searched_input
from fewbit.frontends.jax.weight import Weight
from fewbit.plan_row import PlanRow
from fewbit.qtensor import QTensor
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.solving import statistics_of
from fewbit.training.options import Training

__all__ = [
    "LearnedParameter",
    "Operation",
    "PackedWeight",
    "QuantizedFunction",
    "TrainedFunction",
    "dequantize",
    "finish_qat",
    "load",
    "prepare_qat",
    "quantize",
    "rules_from_qwix",
    "save",
]


def quantize(
    function: Callable[..., Any],
    parameters: Any,
    rules: str | Path | Recipe | Sequence[Rule],
    *example_inputs: Any,
    calibration: Iterable[Any] | None = None,
) -> tuple[QuantizedFunction, Any]:
    """Return `function(parameters, *inputs)` with products by quantized parameters, and these parameters.

    The function is traced for `example_inputs`, arrays or their shapes (`jax.ShapeDtypeStruct`), and looked at: a
    parameter is a layer if a dot_general, convolution, ragged_dot or gather of rows reads it, behind no more than
    moves, casts between floats, slices of a stack and products with one number. Rules match its path in the tree
    (`layers.0.kernel`), or the scopes of these operations (`mlp.up`). As a matrix (out, in) its contracted axes are
    the columns, of a convolution (O, I x positions). `calibration` holds batches, each the inputs of a call as a tuple,
    or the one input; they go through the float function. Parameters that are `jax.ShapeDtypeStruct` become the shapes
    of quantized ones.

    Raises:
        PlanError: a rule quantizes what the function changes before it multiplies, or a scheme does not fit.
        RecipeError: no such preset, or a rule that matches nothing.
        CalibrationError: an algorithm or a static range needs data, and there is none.
        NotYetError: a recipe asks for what JAX functions do not have yet.
        NonFiniteError: a parameter or an input holds NaN or infinity.

    """
    work = Resolved.of(function, parameters, rules, example_inputs)
    rows, about = work.rows, work.about
    wanted = {name: names for name, row in rows.items() if (names := statistics_of(row))}
    leaves, tree = jax.tree.flatten(parameters)
    abstract = any(isinstance(leaves[place], jax.ShapeDtypeStruct) for place in about)
    seen = Observation(wanted)
    if wanted and not abstract:
        _calibrate(seen, function, parameters, calibration, about)
    remarks: dict[str, list[str]] = {}
    for place, own in about.items():
        if isinstance(leaves[place], jax.ShapeDtypeStruct):
            leaves[place] = abstract_leaf(leaves[place], own, work.found.width(place))
        else:
            leaves[place] = quantized_leaf(leaves[place], own, _solver(rows[own.name], seen, remarks))
    run = QuantizedFunction(function, work.table(remarks), work.notes)
    return run, jax.tree.unflatten(tree, leaves)


def prepare_qat(
    function: Callable[..., Any],
    parameters: Any,
    rules: str | Path | Recipe | Sequence[Rule],
    *example_inputs: Any,
    training: Training | None = None,
    calibration: Iterable[Any] | None = None,
    integers: bool = False,
) -> TrainedFunction:
    """Return `function` of float parameters that rounds them, and inputs, as `rules` say, for training.

    What it gives is what `finish_qat` gives for the same parameters, within float rounding. Optimizers, `jax.grad` and
    jit take it as any function.

    Args:
        function: as for `quantize`.
        parameters: as for `quantize`.
        rules: as for `quantize`, with algorithms left out.
        *example_inputs: as for `quantize`.
        training: its `gradient` is `lsq`, `pact`, `ewgs` or `straight-through`. What the first three learn stands
            beside the weights in the tree that `begin(parameters)` of the result returns, which is trained in their
            place. Under `straight-through` ranges are those of the weights at each step, or with `ranges="fixed"` those
            that they have now. `None`: straight-through.
        calibration: batches as for `quantize`, which static inputs begin with; their ranges are learned, or stay.
        integers: multiply codes by codes in int32 forwards, where the quantized function will; gradients are those of
            the values that the codes stand for. Else forwards are simulated in floats.

    Raises:
        NotYetError: schemes that are searched on the host, algorithms but rounding to nearest, a schedule that counts
            steps, of which a function has none.
        CalibrationError: a static range needs data, and there is none.
        PlanError, RecipeError: as `quantize`.

    """
    training = training or Training(gradient="straight-through")  # type: ignore[arg-type]  # parsed once, there
    _require_stateless(training)
    work = Resolved.of(function, parameters, rules, example_inputs)
    for row in work.rows.values():
        if row.algorithm != Nearest():
            raise NotYetError(f"{row.layer.name}: training rounds to nearest, leave out {row.algorithm}")
    gradient, about = training.gradient, work.about
    for own in about.values():
        require_trainable(own)
    wanted: dict[str, list[str]] = {}
    for own in about.values():
        name = searched_input(own.input, gradient).ranging.statistic if own.input and own.input.static else None
        wanted |= {own.name: [name]} if name else {}
    seen = Observation(wanted)
    if wanted:
        _calibrate(seen, function, parameters, calibration, about)
    fixed = training.ranges == "fixed"
    ranges = TrainedRanges.begun(gradient, jax.tree.leaves(parameters), about, seen.seen, fixed=fixed)
    said = (work.table({}), work.notes)
    return TrainedFunction(function, about, ranges, integers=integers, said=said)


def finish_qat(trained: TrainedFunction, parameters: Any) -> tuple[QuantizedFunction, Any]:
    """Return what `quantize` returns, for a function that was trained and the tree that training has come to.

    Codes, scales and ranges are those that the last call of `trained` with these parameters has rounded by.

    Raises:
        PlanError: parameters without the ranges that are learned.
        NonFiniteError: training has left NaN or infinity in a parameter.

    """
    return trained.finished(parameters)


def _require_stateless(training: Training) -> None:
    """Raise `NotYetError` for what counts steps."""
    asked = [
        f"{name}={own!r}" for name in ("delay", "freeze_ranges", "freeze_norms") if (own := getattr(training, name))
    ]
    asked += ["ranges='average'"] if training.ranges == "average" else []
    asked += ["freeze_ranges=0"] if training.freeze_ranges == 0 else []
    if asked:
        raise NotYetError(
            f"JAX functions count no steps, so training has no {asked[0]} here; leave it out, and mask gradients by "
            "path to keep ranges as they are"
        )


def save(parameters: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a tree of parameters, quantized ones among them, as a safetensors file, and return its path.

    Names are paths in the tree: `a.kernel.codes`, `a.kernel.scale`, `b.bias`.

    Raises:
        CheckpointError: a file is there already, or cannot be written.

    """
    return write_arrays(Path(path), to_arrays(parameters), overwrite=overwrite)


def load(path: str | Path, like: Any) -> Any:
    """Return the tree of `like`, quantized parameters or their shapes, with the numbers that `save` wrote.

    Raises:
        CheckpointError: no such file, or one that was written from other shapes or schemes.

    """
    return from_arrays(read_arrays(Path(path)), like)


def _calibrate(
    seen: Observation,
    function: Any,
    parameters: Any,
    calibration: Iterable[Any] | None,
    about: dict[int, Description],
) -> None:
    """Run the batches.

    Raises:
        CalibrationError: there are none.

    """
    batches = 0
    for batch in calibration or ():
        seen.run(function, parameters, batch if isinstance(batch, tuple) else (batch,), about)
        batches += 1
    if not batches:
        raise CalibrationError(
            "an algorithm or a static range of the rules needs data; give calibration=[batch, ...], each the inputs "
            "of a call as a tuple"
        )


def _solver(row: PlanRow, seen: Observation, remarks: dict[str, list[str]]) -> Any:
    """Return what quantizes the matrices of a parameter one by one, and notes what fell back."""
    statistics: Seen = seen.seen

    def solve(matrix: Any, place: int) -> tuple[QTensor, Activation | None]:
        own = statistics.get((row.layer.name, place), {})
        assert row.algorithm is not None
        assert row.scheme is not None
        where = row.layer.name if not place else f"{row.layer.name}[{place}]"
        try:
            solution = row.algorithm(matrix, own, row.scheme)
            given = _input(row, own)
        except FewbitError as error:
            raise type(error)(f"{where}: {error}") from error
        noted = remarks.setdefault(row.layer.name, [])
        noted += [remark for remark in solution.remarks if remark not in noted]
        return solution.qtensor, given

    return solve


def _input(row: PlanRow, statistics: dict[str, Any]) -> Activation | None:
    """Return how the input of a matrix is rounded; a static range comes from its statistic."""
    if row.input is None or not row.input.static:
        return Activation(scheme=row.input) if row.input else None
    name = row.input.ranging.statistic
    if name is not None and name not in statistics:
        raise CalibrationError("no calibration input reached it, so it has no range; give other batches, or keep it")
    given = Activation.calibrated(row.input, statistics.get(name) if name else None)
    scale, zero = (None if own is None else np.asarray(own) for own in (given.scale, given.zero_point))
    return replace(given, scale=scale, zero_point=zero)


def dequantize(parameters: Any) -> Any:
    """Return quantized parameters as the float parameters that they stand for, of the shapes and types they had."""
    return jax.tree.map(lambda own: _floats(own) if is_packed(own) else own, parameters, is_leaf=is_packed)


@jax.jit
def _floats(packed: PackedWeight) -> Any:
    return Weight.of(packed).values()
