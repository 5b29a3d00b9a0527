"""Parameters solved in the order of the function, each on what the quantized ones before it give.

The batches run side by side: each waits at a product whose weight is not solved, and when all wait there it is solved
and they go on. So a batch costs one forward, and what is in memory is what a forward holds there, for every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from greenlet import getcurrent, greenlet

from fewbit.activation import Activation
from fewbit.errors import CalibrationError
from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.interpreter import Interpreter
from fewbit.frontends.jax.observation import Observation, watched
from fewbit.frontends.jax.packed_weight import PackedWeight, is_packed
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.rewriting import multiply
from fewbit.frontends.jax.solver import Solver
from fewbit.frontends.jax.weight import FloatWeight, Weight, concrete
from fewbit.qtensor import QTensor

#: A matrix by the name of its parameter and its place in the stack.
Matrix = tuple[str, int]


class SequentialRuns:
    """Forwards that wait at the weights that are not solved."""

    def __init__(self, wanted: Mapping[str, Sequence[str]], solver: Solver) -> None:
        self._seen, self._solver = Observation(wanted), solver
        #: What is solved, and what waits to be, float32 (out, in).
        self.solved: dict[Matrix, tuple[QTensor, Activation | None]] = {}
        self._waiting: dict[Matrix, Any] = {}

    def run(self, function: Any, leaves: Sequence[Any], tree: Any, batches: Sequence[tuple[Any, ...]]) -> None:
        """Solve what batches reach; of the leaves those that need no data are packed, others are descriptions too.

        `leaves` holds arrays, packed parameters, and pairs of an array and the description that it is solved under.

        Raises:
            CalibrationError: batches take different ways through the function.

        """
        floats = [own[0] if isinstance(own, tuple) else own.float_form if is_packed(own) else own for own in leaves]
        given = [_operand(own) for own in leaves]
        runs = []
        for batch in batches:
            closed = jax.make_jaxpr(function)(jax.tree.unflatten(tree, floats), *batch)
            run = Interpreter(self._multiply, eager=True)
            operands = [*given, *jax.tree.leaves(batch)]
            runs.append((greenlet(run), (closed.jaxpr, closed.consts, operands)))
        try:
            reached = [run.switch(*arguments) for run, arguments in runs]
            while alive := [at for at, (run, _) in enumerate(runs) if not run.dead]:
                self._solve({reached[at] for at in alive})
                for at in alive:
                    reached[at] = runs[at][0].switch()
        finally:
            for run, _ in runs:
                if run:
                    run.throw()

    def _solve(self, reached: set[tuple[Matrix, ...]]) -> None:
        """Solve the matrices that all runs wait at."""
        if len(reached) > 1:
            names = sorted({name for own in reached for name, _ in own})
            raise CalibrationError(
                f"calibration batches take different ways through the function: {' and '.join(names)} come next; leave "
                "out sequential"
            )
        for matrix in next(iter(reached)):
            about, values = self._waiting.pop(matrix)
            self.solved[matrix] = self._solver(about, values, matrix[1], self._seen.seen.pop(matrix))

    def _multiply(self, equation: Any, product: Product, operands: list[Any], weight: Weight) -> Any:
        held, about = weight.held, weight.about
        if not isinstance(held, FloatWeight):
            return multiply(equation, product, operands, weight)
        matrices = [(about.name, int(place)) for place in np.asarray(held.places).reshape(-1)]
        missing = tuple(own for own in matrices if own not in self.solved)
        if missing:
            if product.kind == "embedding" or product.layout != about.layout:
                self._solver.remark(about.name, _AHEAD)
                return bind(equation, [concrete(own) for own in operands])[0]
            self._seen.watch(equation, product, operands, weight)
            values = np.asarray(held.values, np.float32).reshape((-1, *held.values.shape[-2:]))
            for matrix, own in zip(matrices, values, strict=True):
                self._waiting.setdefault(matrix, (about, np.ascontiguousarray(own)))
            getcurrent().parent.switch(missing)
        solved = [self.solved[own] for own in matrices]
        packed = PackedWeight.of([own for own, _ in solved], about, [own for _, own in solved], stack=held.stack)
        return multiply(equation, product, operands, replace(weight, held=packed.map(jnp.asarray)))


#: What is said of a parameter that is read in another way before it is solved.
_AHEAD = "read along other axes before it was solved, as floats"


def _operand(leaf: Any) -> Any:
    if isinstance(leaf, tuple):
        return watched(*leaf)
    return Weight.of(leaf) if is_packed(leaf) else leaf
