"""The ranges of a training on functions: what they begin with, and which of them are learned, or stay.

Those of weights begin with the weights, learned ones at the least squared error; those of static inputs with what
calibration has seen. Source of learning them: arXiv 1902.08153.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewbit.activation import calibrated_bounds
from fewbit.box_bounds import bounds_of
from fewbit.errors import CalibrationError, PlanError
from fewbit.frontends.jax.learned_parameter import LearnedParameter, is_learned
from fewbit.frontends.jax.observation import Seen
from fewbit.frontends.jax.packed_weight import INPUT, Description
from fewbit.frontends.jax.view import to_matrices
from fewbit.interfaces.gradient import Gradient
from fewbit.numerics.groups import counts
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.schemes.scheme import Scheme

#: Ranges by the place of the parameter among the leaves, and by name: `scale`, `input_scale`.
Ranges = Mapping[int, Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class TrainedRanges:
    """The ranges of a training."""

    gradient: Gradient
    #: What static inputs begin with, where they are learned.
    inputs: Ranges = field(default_factory=dict)
    #: What stays as it began.
    kept: Ranges = field(default_factory=dict)

    @classmethod
    def begun(
        cls, gradient: Gradient, leaves: Sequence[Any], about: Mapping[int, Description], seen: Seen, *, fixed: bool
    ) -> TrainedRanges:
        """Return them for parameters as they are, and what calibration has seen of their inputs.

        `fixed`: weights keep the range that they have now, where the gradient does not learn it.
        """
        inputs = {
            place: _of_input(own, gradient, seen) for place, own in about.items() if own.input and own.input.static
        }
        if gradient.learns:
            return cls(gradient, inputs=inputs)
        kept = {
            place: {**(_of_weight(leaves[place], own, gradient) if fixed else {}), **inputs.get(place, {})}
            for place, own in about.items()
        }
        return cls(gradient, kept=kept)

    def first(self, place: int, leaf: Array, about: Description) -> dict[str, Array]:
        """Return what is learned of a parameter as it is when training begins, float32."""
        if not self.gradient.learns:
            return {}
        found = {**_of_weight(leaf, about, self.gradient), **self.inputs.get(place, {})}
        return {name: jnp.asarray(own, jnp.float32) for name, own in found.items()}

    def of(self, place: int, leaf: Any, about: Description) -> Mapping[str, Array]:
        """Return the ranges of a leaf of the tree that is trained.

        Raises:
            PlanError: it comes without those that are learned.

        """
        if is_learned(leaf):
            own: LearnedParameter = leaf
            return own.ranges
        if self.gradient.learns and (about.scheme.has_range or place in self.inputs):
            raise PlanError(
                f"{about.name} comes without the range that {self.gradient.name} learns; train what "
                "`begin(parameters)` gives"
            )
        return self.kept.get(place, {})


def input_statistics(about: Mapping[int, Description], gradient: Gradient) -> dict[str, list[str]]:
    """Return the statistics that the ranges of static inputs begin with, by the name of the parameter."""
    static = {own.name: _searched(own.input, gradient) for own in about.values() if own.input and own.input.static}
    return {name: [own.ranging.statistic] for name, own in static.items() if own.ranging.statistic}


def _searched(scheme: Scheme, gradient: Gradient) -> Scheme:
    """Return the scheme by which the range of a static input begins: of least squared error where it is learned."""
    return scheme.searched() if gradient.learns else scheme


def _of_input(about: Description, gradient: Gradient, seen: Seen) -> dict[str, Array]:
    """Return the ranges of the input of a parameter, (stack...) or (stack..., channels)."""
    assert about.input is not None
    scheme, stack = _searched(about.input, gradient), about.layout.shape[:-2]
    each = []
    for place in range(int(np.prod(stack))):
        name = scheme.ranging.statistic
        own = seen.get((about.name, place), {}).get(name) if name else None
        if name and own is None:
            where = f"{about.name}[{place}]" if stack else about.name
            raise CalibrationError(f"{where}: no calibration input reached it, so it has no range; give other batches")
        low, high = calibrated_bounds(scheme, own)
        each.append(gradient.initial(np.asarray(low, np.float32), np.asarray(high, np.float32), scheme.grid))
    stacked = {name: np.stack([part[name] for part in each]) for name in each[0]}
    return {f"{INPUT}{name}": own.reshape((*stack, *own.shape[1:])) for name, own in stacked.items()}


def _of_weight(leaf: Any, about: Description, gradient: Gradient) -> dict[str, Array]:
    """Return the range of a weight, (stack..., groups of rows, groups of columns); none where its scheme has none.

    Numbers by NumPy, which compiles nothing; a tracer by JAX.
    """
    if not about.scheme.has_range:
        return {}
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise PlanError(f"{about.name} has no numbers to begin a range with; give parameters, not their shapes")
    leaf = leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)
    matrices = to_matrices(leaf.astype("float32"), about.layout)
    stack, shape = matrices.shape[:-2], about.layout.matrix
    box = about.scheme.granularity.box(shape)
    scheme = about.scheme.searched() if gradient.learns else about.scheme
    flat = matrices.reshape((-1, *shape))
    each = [gradient.initial(*bounds_of(matrix, box, scheme, None, None), scheme.grid) for matrix in flat]
    xp, number = array_namespace(matrices), counts(shape, box)
    return {name: xp.stack([part[name] for part in each]).reshape((*stack, *number)) for name in each[0]}
