"""One quantizable operation as a front end sees it, and the schemes that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewbit.integer_bias import BiasType
from fewbit.schemes.scheme import Scheme

#: What a quantizable operation does; rules select by it.
LayerKind = Literal["linear", "conv", "embedding", "head", "router", "attention"]
LAYER_KINDS: tuple[LayerKind, ...] = ("linear", "conv", "embedding", "head", "router", "attention")


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantizable operation as a front end sees it; its weight is (out, in) however the framework stores it."""

    #: Dotted path inside the model, without `.weight`.
    name: str
    #: What it does.
    kind: LayerKind
    #: Shape of the weight as (out, in); of an embedding (rows, width), of a convolution (out, in / groups * positions);
    #: (0, 0) of a product inside attention, which has none.
    shape: tuple[int, int]
    #: Class in the framework, for people and for checkpoint formats that match by class.
    module_class: str
    #: Shape that the framework stores it in, where that is another: (in, out) of GPT-2's Conv1D, a convolution's.
    stored: tuple[int, ...] | None = None
    #: Whether its output is its input, taken apart into rows, times the weight: what statistics of rows are about.
    multiplies_rows: bool = True
    #: Groups of a convolution: how many parts of its input have outputs of their own, one after the other.
    groups: int = 1
    #: Names of the other layers that own the very same weight.
    tied: tuple[str, ...] = ()
    #: Whether a number is added to each output.
    bias: bool = False
    #: Whether it is part of an expert, which gets only the tokens that are routed to it.
    expert: bool = False
    #: Name and shape of the parameter that it is cut from while experts are kept apart, where they share one.
    part_of: tuple[str, tuple[int, ...]] | None = None
    #: Of a product inside attention the names of what it multiplies.
    operands: tuple[str, ...] = ()
    #: The ONNX operator that it becomes in a graph; `None`: its class is one.
    exported_as: str | None = None

    @property
    def operator(self) -> str:
        """The ONNX operator that it is in a graph."""
        return self.exported_as or self.module_class


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer and the schemes that it gets, as a checkpoint format needs to know them."""

    layer: Layer
    #: Of its weight.
    scheme: Scheme
    #: Of what goes in and what comes out; `None`: it stays float.
    input: Scheme | None = None
    output: Scheme | None = None
    #: Of its bias; `float` where there is none.
    bias: BiasType = "float"
