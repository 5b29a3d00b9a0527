"""The links of a function: paths by data flow, each accepted by an exact fold of random factors.

The operations from a producer to its readers run alone, on what the function gives them on a batch. Which channel an
input of a reader is shows in runs in which the rows of the producer are multiplied by powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from fewbit.frontends.jax.link_path import Part, Path, Paths, Reader
from fewbit.frontends.jax.rows import rows_of
from fewbit.frontends.jax.unrolled import Unrolled
from fewbit.frontends.jax.view import View, from_matrices, to_matrices
from fewbit.transforms.channel_digits import Numbers, read_channels
from fewbit.transforms.exact_fold import change_of, is_exact
from fewbit.transforms.link import Channels, Factors, Link, storable


class Leaves:
    """The parameters of a function as arrays that may be changed, matrix by matrix."""

    def __init__(self, leaves: Sequence[Any], names: Sequence[str]) -> None:
        self.names = names
        self._leaves = list(leaves)
        #: Those that have been changed, as NumPy has them.
        self.changed: dict[int, Numbers] = {}

    def name(self, part: Part) -> str:
        """Return the name of a matrix: the path of its parameter, and its place in the stack."""
        return matrix_name(self.names[part.parameter], part.layout.shape[:-2], part.index)

    def array(self, parameter: int) -> Numbers:
        """Return a parameter as it is now."""
        found = self.changed.get(parameter)
        return np.asarray(self._leaves[parameter]) if found is None else found

    def matrix(self, part: Part) -> Numbers:
        """Return a matrix (out, in) as it is now, float64."""
        found: Numbers = to_matrices(self.array(part.parameter), part.layout)[part.index].astype(np.float64)
        return found

    def put(self, part: Part, matrix: Numbers) -> None:
        """Give a matrix other numbers."""
        array = self.changed.setdefault(part.parameter, np.array(self._leaves[part.parameter]))
        whole = to_matrices(array, part.layout)
        whole[part.index] = matrix.astype(array.dtype)
        if not np.shares_memory(whole, array):
            self.changed[part.parameter] = from_matrices(whole, part.layout, View.of(array.shape))

    def laid(self, part: Part, matrix: Numbers) -> Any:
        """Return the value that begins at the root of a part, with the numbers of `matrix`."""
        return jnp.asarray(from_matrices(matrix, part.layout, part.lies).astype(self.array(part.parameter).dtype))


def matrix_name(name: str, stack: tuple[int, ...], index: tuple[int, ...]) -> str:
    """Return the name of a matrix of a parameter.

    >>> matrix_name("blocks.up", (3,), (1,)), matrix_name("head", (), ())
    ('blocks.up[1]', 'head')
    """
    return f"{name}[{int(np.ravel_multi_index(index, stack))}]" if stack else name


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A link of a function, and how numbers move along it."""

    link: Link
    path: Path

    def apply(self, leaves: Leaves, factors: Factors) -> Factors:
        """Divide the producer's channels by about `factors`, multiply the columns that read them; return by what.

        Of a gain these are such that what is stored has 8 bits.
        """
        first = self.path.parts[0]
        exact = factors if self.path.made else storable(leaves.matrix(first)[:, 0], factors)
        for part, matrix in self.changed(leaves, exact, exact):
            leaves.put(part, matrix)
        return exact

    def changed(self, leaves: Leaves, rows: Factors, columns: Factors) -> Iterator[tuple[Part, Numbers]]:
        """Yield the matrices with the producer's channels divided by `rows`, and columns multiplied by `columns`."""
        for part in self.path.parts:
            yield part, leaves.matrix(part) / rows[:, None]
        for reader in self.path.readers:
            yield reader.weight, leaves.matrix(reader.weight) * self.link.spread(columns)


def find_folds(function: Any, parameters: Any, inputs: tuple[Any, ...], names: Sequence[str]) -> tuple[Fold, ...]:
    """Return the links of a float function, in its order, as the inputs of a call show them."""
    closed = jax.make_jaxpr(function)(parameters, *inputs)
    given, graph = jax.tree.leaves(parameters), Unrolled.of(closed)
    leaves = Leaves(given, names)
    paths = list(Paths.of(graph, [tuple(own.shape) for own in given]))
    wanted = list(dict.fromkeys(value for path in paths for value in path.needs))
    start = dict(zip(graph.inputs, [*given, *jax.tree.leaves(inputs)], strict=True))
    values = dict(zip(wanted, graph.evaluate(wanted, start), strict=True))
    found = [_Local(graph, path, leaves, {own: values[own] for own in path.needs}).proven() for path in paths]
    return tuple(fold for fold in found if fold is not None)


@dataclass(frozen=True, slots=True)
class _Local:
    """The operations from a producer to its readers, which run alone."""

    graph: Unrolled
    path: Path
    leaves: Leaves
    #: What they take from elsewhere.
    values: Mapping[int, Any]

    def proven(self) -> Fold | None:
        """Return the fold along the path, if it is exact."""
        channels = self._channels()
        if channels is None:
            return None
        readers = tuple(self.leaves.name(own.weight) for own in self.path.readers)
        outputs = self.path.parts[0].layout.matrix[0]
        fold = Fold(Link(self.leaves.name(self.path.parts[0]), readers, channels, outputs), self.path)
        every = [*self.path.parts, *(own.weight for own in self.path.readers)]
        expected = self._outputs({part: self.leaves.matrix(part) for part in every})

        def change(rows: Factors, columns: Factors) -> float:
            found = self._outputs(dict(fold.changed(self.leaves, rows, columns)))
            return max(change_of(own, other) for own, other in zip(expected, found, strict=True))

        kind = self.path.readers[0].node.equation.outvars[0].aval.dtype
        finfo: Any = ml_dtypes.finfo  # NumPy's does not know bfloat16
        return fold if is_exact(fold.link, change, float(finfo(kind).eps)) else None

    def _outputs(self, matrices: Mapping[Part, Numbers]) -> list[Numbers]:
        """Return what the readers put out, with matrices in the place of those that there are."""
        given = {part.root: self.leaves.laid(part, matrix) for part, matrix in matrices.items()}
        targets = [reader.node.outputs[0] for reader in self.path.readers]
        return [np.asarray(own, np.float32) for own in self.graph.evaluate(targets, {**self.values, **given})]

    def _channels(self) -> Channels | None:
        """Return which channel each input of the readers is; `None`: that they do not agree on.

        Random positive numbers come from elsewhere, so that no ReLU hides a channel; what is added is 0.
        """
        draw = np.random.default_rng(0)
        first, *added = self.path.parts
        values = {number: _positive(own, draw) for number, own in self.values.items()}
        matrix = draw.uniform(1.0, 2.0, first.layout.matrix)
        zeros = {part.root: self.leaves.laid(part, np.zeros(part.layout.matrix)) for part in added}

        def run(exponents: Numbers) -> dict[int, Numbers]:
            marked = self.leaves.laid(first, matrix * np.exp2(exponents)[:, None])
            targets = [reader.data for reader in self.path.readers]
            seen = self.graph.evaluate(targets, {**values, **zeros, first.root: marked})
            return {
                at: _rows(reader, own) for at, (reader, own) in enumerate(zip(self.path.readers, seen, strict=True))
            }

        return read_channels(first.layout.matrix[0], run)


def _rows(reader: Reader, values: Any) -> Numbers:
    """Return what a reader gets as float32 (rows, columns)."""
    rows = np.asarray(rows_of(reader.node.equation, reader.product, values).values, np.float32)
    return rows.reshape((-1, rows.shape[-1]))


def _positive(values: Any, draw: np.random.Generator) -> Any:
    """Return numbers from 1 to 2 of the same shape; what is no float stays."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return jnp.asarray(draw.uniform(1.0, 2.0, values.shape), values.dtype)
