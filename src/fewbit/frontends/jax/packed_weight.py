"""A quantized parameter as a node of the tree of parameters: codes packed to the bit, scales, how its input is rounded.

A pytree whose leaves are arrays, each with the axes of the stack first, so that scan and vmap cut matrices off it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import numpy as np

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.formats.learned import Learned
from fewbit.frontends.jax.view import Layout
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.numerics.packing import pack, packed_length, unpack
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.scheme import Scheme

#: What the names of the numbers of a static input begin with.
INPUT = "input_"


@dataclass(frozen=True, slots=True)
class Description:
    """What a quantized parameter is, but for its numbers."""

    #: Its path in the tree of parameters.
    name: str
    #: Shape and type of the float parameter.
    shape: tuple[int, ...]
    dtype: str
    #: As matrices (..., out, in).
    layout: Layout
    scheme: Scheme
    #: How what is multiplied with it is rounded; `None`: not at all.
    input: Scheme | None = None


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized parameter, or what scan, vmap or an index has left of its stack.

    `arrays` are `codes`, uint8 (..., out, bytes) for fewer than 8 bits, `scale` and what else the scheme stores; those
    of a scale that is quantized itself are `scale.codes`, `scale.scale`; of static inputs `input_scale`.
    """

    arrays: Mapping[str, Array]
    about: Description

    @classmethod
    def of(
        cls,
        qtensors: Sequence[QTensor],
        about: Description,
        inputs: Sequence[Activation | None] = (),
        *,
        stack: tuple[int, ...] | None = None,
    ) -> PackedWeight:
        """Return the matrices of a stack, in order, as one node; `stack` is what is left of its axes."""
        given = [*inputs, *[None] * (len(qtensors) - len(inputs))]
        each = [cls.matrix_of(own, about, rounding).arrays for own, rounding in zip(qtensors, given, strict=True)]
        outer = about.layout.shape[:-2] if stack is None else stack
        xp = array_namespace(each[0]["codes"])
        stacked = {key: xp.stack([xp.asarray(arrays[key]) for arrays in each]) for key in each[0]}
        return cls({key: xp.reshape(own, (*outer, *own.shape[1:])) for key, own in stacked.items()}, about)

    @classmethod
    def matrix_of(cls, qtensor: QTensor, about: Description, given: Activation | None = None) -> PackedWeight:
        """Return one matrix of a stack, of which nothing is left."""
        arrays = _stored(qtensor)
        if given is not None and given.scale is not None:
            arrays[f"{INPUT}scale"] = given.scale
        if given is not None and given.zero_point is not None:
            arrays[f"{INPUT}zero_point"] = given.zero_point
        return cls({key: _narrowed(key, own, about.scheme) for key, own in arrays.items()}, about)

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""
        return tuple(self.arrays["codes"].shape[:-2])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(prod(own.shape) * np.dtype(own.dtype).itemsize for own in self.arrays.values())

    @property
    def float_form(self) -> Any:
        """Shape and type of the float parameter."""
        return abstract(self.about.shape, self.about.dtype)

    def map(self, function: Any) -> PackedWeight:
        """Return a copy with `function` applied to every array."""
        return replace(self, arrays={key: function(own) for key, own in self.arrays.items()})

    def qtensor(self) -> QTensor:
        """Return the matrix (out, in), nothing being left of the stack."""
        return rebuilt(dict(self.arrays), "", self.about.scheme, self.about.layout.matrix)

    def qtensors(self) -> list[QTensor]:
        """Return the matrices of the stack in order."""
        count = prod(self.stack)
        flat = self.map(lambda own: own.reshape((count, *own.shape[len(self.stack) :])))
        return [flat.map(lambda own, at=at: own[at]).qtensor() for at in range(count)]

    def matrices(self) -> Array:
        """Return the float32 matrices (..., out, in) that the codes stand for."""
        return _over_stack(lambda own: own.qtensor().dequantize(), self)

    def activation(self) -> Activation:
        """Return how the input of a matrix is rounded, nothing being left of the stack."""
        assert self.about.input is not None
        numbers = {name: self.arrays.get(f"{INPUT}{name}") for name in ("scale", "zero_point")}
        return Activation(scheme=self.about.input, **numbers)

    def input_rounded(self, values: Array) -> Array:
        """Return rows (tokens..., columns) of one matrix as float32 values of their codes."""
        return self.activation().rounded(values)

    def with_input(self, change: Callable[[Array], Array]) -> PackedWeight:
        """Return a copy with `change` applied to the numbers of a static input."""
        return replace(
            self, arrays={key: change(own) if key.startswith(INPUT) else own for key, own in self.arrays.items()}
        )

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Array]], Any]:
        """Return the arrays by name, and the rest."""
        keys = tuple(sorted(self.arrays))
        return [(jax.tree_util.DictKey(key), self.arrays[key]) for key in keys], (keys, self.about)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Sequence[Array]) -> PackedWeight:
        """Undo `tree_flatten_with_keys`."""
        keys, about = rest
        return cls(dict(zip(keys, arrays, strict=True)), about)


def abstract(shape: tuple[int, ...], dtype: str, sharding: Any = None) -> Any:
    """Return an array without numbers."""
    make: Any = jax.ShapeDtypeStruct
    return make(shape, np.dtype(dtype), sharding=sharding)


def is_packed(value: Any) -> bool:
    """Return whether a part of a tree is a quantized parameter."""
    return isinstance(value, PackedWeight)


def _over_stack(function: Any, packed: PackedWeight) -> Array:
    for _ in packed.stack:
        function = jax.vmap(function)
    return function(packed)


def _stored(qtensor: QTensor, prefix: str = "") -> dict[str, Array]:
    """Return the arrays of a QTensor by name, codes and whole zero points packed."""
    form = qtensor.scheme.format

    def packed(codes: Array) -> Array:
        return pack(form.to_unsigned(codes), form.bits) if form.bits < 8 else codes

    found = {f"{prefix}codes": packed(qtensor.codes)}
    if qtensor.zero_point is not None:
        own = qtensor.zero_point
        found[f"{prefix}zero_point"] = own if qtensor.scheme.float_zero else packed(own)
    if qtensor.codebook is not None:
        found[f"{prefix}codebook"] = qtensor.codebook
    for name, part in {"scale": qtensor.scale, "minimum": qtensor.minimum}.items():
        if isinstance(part, QTensor):
            found |= _stored(part, f"{prefix}{name}.")
        elif part is not None and qtensor.scheme.scaled:
            found[f"{prefix}{name}"] = part
    return found


def stored_shapes(scheme: Scheme, shape: tuple[int, ...], prefix: str = "") -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shapes and types, by name, of the arrays of a matrix of `shape` under `scheme`."""
    form, inner = scheme.format, scale_shape(shape, scheme)
    signed = "" if isinstance(form, Int) and form.signed and form.bits >= 8 else "u"
    codes = f"{signed}int{8 if form.bits <= 8 else 16}"
    numbers = "bfloat16" if scheme.scale_type == "bfloat16" and not prefix else "float32"

    def packed(own: tuple[int, ...]) -> tuple[int, ...]:
        return (*own[:-1], packed_length(own[-1], form.bits)) if form.bits < 8 else own

    found = {f"{prefix}codes": (packed(shape), codes)}
    if not scheme.symmetric and not scheme.minimum:
        found[f"{prefix}zero_point"] = (inner, numbers) if scheme.float_zero else (packed(inner), codes)
    if isinstance(form, Learned):
        found[f"{prefix}codebook"] = ((shape[0], form.count), numbers)
    for name in ("scale", *(["minimum"] if scheme.minimum else [])) if scheme.scaled else ():
        own = scheme.scale_scheme
        found |= stored_shapes(own, inner, f"{prefix}{name}.") if own else {f"{prefix}{name}": (inner, numbers)}
    return found


def rebuilt(arrays: dict[str, Array], prefix: str, scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
    """Return the QTensor of `shape` whose arrays have names that begin with `prefix`."""
    form = scheme.format
    numbers = {name.removeprefix(prefix): own for name, own in arrays.items() if name.startswith(prefix)}
    xp = array_namespace(numbers["codes"])
    inner = scale_shape(shape, scheme)

    def unpacked(codes: Array, length: int) -> Array:
        return form.from_unsigned(unpack(codes, form.bits, length)) if form.bits < 8 else codes

    def parameter(name: str) -> Any:
        if scheme.scale_scheme is not None and f"{name}.codes" in numbers:
            return rebuilt(arrays, f"{prefix}{name}.", scheme.scale_scheme, inner)
        own = numbers.get(name)
        return None if own is None else xp.astype(own, xp.float32, copy=False)

    zero = numbers.get("zero_point")
    if zero is not None:
        zero = xp.astype(zero, xp.float32) if scheme.float_zero else unpacked(zero, inner[-1])
    scale = parameter("scale")
    return QTensor(
        codes=unpacked(numbers["codes"], shape[-1]),
        scale=xp.ones((1,) * len(shape), dtype=xp.float32) if scale is None else scale,
        zero_point=zero,
        scheme=scheme,
        codebook=None if "codebook" not in numbers else xp.astype(numbers["codebook"], xp.float32),
        minimum=parameter("minimum"),
    )


def _narrowed(key: str, values: Array, scheme: Scheme) -> Array:
    """Return float32 parameters as bfloat16 where that is their type, which has all their numbers.

    A scale that would be subnormal in float16 keeps its float32 value, so that the type would depend on the numbers.
    """
    if scheme.scale_type != "bfloat16" or key not in ("scale", "minimum", "codebook", "zero_point"):
        return values
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16) if values.dtype == np.float32 else values
