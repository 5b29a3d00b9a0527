"""fewbit for JAX: `quantize` rewrites any function of parameters and inputs; nothing is patched.

y = f(p, x) becomes y' = g(q, x): the same operations, those that multiply by a parameter which a rule names replaced.
Reachable as `fewbit.jax` after `import fewbit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from fewbit.algorithms.nearest import Nearest
from fewbit.checkpoints.array_file import read_arrays, write_arrays
from fewbit.errors import CalibrationError, NotYetError
from fewbit.frontends.jax.dequantized import dequantize
from fewbit.frontends.jax.learned_parameter import LearnedParameter
from fewbit.frontends.jax.link_scope import LinkScope, layer_names
from fewbit.frontends.jax.named_arrays import from_arrays, to_arrays
from fewbit.frontends.jax.observation import Observation
from fewbit.frontends.jax.operation import Operation
from fewbit.frontends.jax.packed_weight import Description, PackedWeight
from fewbit.frontends.jax.quantized_function import QuantizedFunction
from fewbit.frontends.jax.quantized_leaf import Solve, abstract_leaf, quantized_leaf, require_finite
from fewbit.frontends.jax.qwix_rules import rules_from_qwix
from fewbit.frontends.jax.resolved import Resolved
from fewbit.frontends.jax.sequential import SequentialRuns
from fewbit.frontends.jax.solver import Solver
from fewbit.frontends.jax.trained_function import TrainedFunction, require_trainable
from fewbit.frontends.jax.trained_ranges import TrainedRanges, input_statistics
from fewbit.recipe import Recipe
from fewbit.rescaling import Rescaling
from fewbit.rule import Rule
from fewbit.solving import statistics_of
from fewbit.training.options import Training
from fewbit.transforms import on_links
from fewbit.transforms.scope import Rounded

_NEEDS_DATA = (
    "an algorithm, a transform or a static range of the rules needs data; give calibration=[batch, ...], each the "
    "inputs of a call as a tuple"
)

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
    sequential: bool = False,
) -> tuple[QuantizedFunction, Any]:
    """Return `function(parameters, *inputs)` with products by quantized parameters, and these parameters.

    The function is traced for `example_inputs`, arrays or their shapes (`jax.ShapeDtypeStruct`), and looked at: a
    parameter is a layer if a dot_general, convolution, ragged_dot or gather of rows reads it, behind no more than
    moves, casts between floats, slices of a stack and products with one number. Rules match its path in the tree
    (`layers.0.kernel`), or the scopes of these operations (`mlp.up`). As a matrix (out, in) its contracted axes are
    the columns, of a convolution (O, I x positions). `calibration` holds batches, each the inputs of a call as a tuple,
    or the one input; they go through the float function, or if `sequential` each parameter is solved on what the
    quantized ones before it give: all batches then run side by side, and are in memory at once. Parameters that are
    `jax.ShapeDtypeStruct` become the shapes of quantized ones.

    Raises:
        PlanError: a rule quantizes what the function changes before it multiplies, or a scheme does not fit.
        RecipeError: no such preset, or a rule that matches nothing.
        CalibrationError: an algorithm, a transform or a static range needs data, and there is none; batches take
            different ways through the function under `sequential`.
        NotYetError: a recipe asks for what JAX functions do not have yet.
        NonFiniteError: a parameter or an input holds NaN or infinity.

    """
    work = Resolved.of(function, parameters, rules, example_inputs)
    leaves, tree = jax.tree.flatten(parameters)
    solver = Solver(work.rows)
    if any(isinstance(leaves[place], jax.ShapeDtypeStruct) for place in work.about):
        for place, own in work.about.items():
            leaf = leaves[place]
            shapes = isinstance(leaf, jax.ShapeDtypeStruct)
            width = work.found.width(place)
            leaves[place] = abstract_leaf(leaf, own, width) if shapes else quantized_leaf(leaf, own, solver.of(own, {}))
        said: tuple[str, ...] = ()
    else:
        if sequential or on_links(work.recipe.transforms):
            calibration = list(calibration or ())  # it is gone through more than once
            for place, own in work.about.items():
                require_finite(leaves[place], own)
        parameters, said = _rescaled(function, parameters, work, calibration, solver)
        leaves = jax.tree.leaves(parameters)
        work = work.fused(leaves)
        solver = replace(solver, rows=work.rows, matrix=partial(work.matrix, leaves))
        solve = _in_order if sequential else _on_floats
        for place, made in solve(function, parameters, work, calibration, solver).items():
            leaves[place] = quantized_leaf(leaves[place], work.about[place], made)
    run = QuantizedFunction(function, work.table(solver.remarks), (*work.notes, *said))
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
    if training.counted:
        raise NotYetError(
            f"JAX functions count no steps, so training has no {training.counted[0]} here; leave it out, and mask "
            "gradients by path to keep ranges as they are"
        )
    work = Resolved.of(function, parameters, rules, example_inputs)
    for transform in on_links(work.recipe.transforms):
        raise NotYetError(
            f"transform {transform.name} works before rounding; apply it by fewbit.jax.quantize, or leave it out"
        )
    for row in work.rows.values():
        if row.algorithm != Nearest():
            raise NotYetError(f"{row.layer.name}: training rounds to nearest, leave out {row.algorithm}")
    gradient, about = training.gradient, work.about
    for own in about.values():
        require_trainable(own)
    wanted = input_statistics(about, gradient)
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
        seen.run(function, parameters, _call(batch), about)
        batches += 1
    if not batches:
        raise CalibrationError(_NEEDS_DATA)


def _call(batch: Any) -> tuple[Any, ...]:
    """Return the inputs of a call."""
    return batch if isinstance(batch, tuple) else (batch,)


def _rescaled(
    function: Any, parameters: Any, work: Resolved, calibration: Iterable[Any] | None, solver: Solver
) -> tuple[Any, tuple[str, ...]]:
    """Return the parameters with numbers moved along links as the recipe asks, and what to say of it.

    Raises:
        CalibrationError: there is no batch.

    """
    rows = work.rows
    layers = {name: own.name for own in work.found.parameters if own.name in rows for name in layer_names(own)}
    schemes = {name: Rounded(row.scheme, row.input) for name, own in layers.items() if (row := rows[own]).scheme}
    rescaling = Rescaling(on_links(work.recipe.transforms), schemes)
    if not rescaling:
        return parameters, ()
    batches = [_call(batch) for batch in calibration or ()]
    if not batches:
        raise CalibrationError(_NEEDS_DATA)
    scope = LinkScope(function, parameters, batches, work.found, work.about)
    rescaling(scope)
    for layer, notes in rescaling.notes.items():
        for note in notes if layer in layers else ():
            solver.remark(layers[layer], note if layer == layers[layer] else f"{layer}: {note}")
    return scope.parameters(), rescaling.sentences


def _on_floats(
    function: Any, parameters: Any, work: Resolved, calibration: Iterable[Any] | None, solver: Solver
) -> dict[int, Solve]:
    """Return what quantizes each parameter, on what the float function gives it."""
    seen = Observation(_wanted(work))
    if _wanted(work):
        _calibrate(seen, function, parameters, calibration, work.about)
    return {place: solver.of(own, seen.seen) for place, own in work.about.items()}


def _in_order(
    function: Any, parameters: Any, work: Resolved, calibration: Iterable[Any] | None, solver: Solver
) -> dict[int, Solve]:
    """Return the same on what the quantized parameters before it give."""
    wanted, batches = _wanted(work), [_call(batch) for batch in calibration or ()]
    if wanted and not batches:
        raise CalibrationError(_NEEDS_DATA)
    leaves, tree = jax.tree.flatten(parameters)
    for place, own in work.about.items():
        free = own.name not in wanted
        leaves[place] = quantized_leaf(leaves[place], own, solver.of(own, {})) if free else (leaves[place], own)
    runs = SequentialRuns(wanted, solver)
    runs.run(function, leaves, tree, batches)
    return {place: solver.of(own, {}, runs.solved) for place, own in work.about.items()}


def _wanted(work: Resolved) -> dict[str, tuple[str, ...]]:
    """Return the statistics that parameters are solved on, by name."""
    return {name: names for name, row in work.rows.items() if (names := statistics_of(row))}
