"""A runtime as a table of rules: which number formats it takes where, and where Q/DQ pairs have to stand for it.

Descriptions only; the writer and the placement of roundings act on them. What each says was measured, or is in the
vendor's documents; `docs/decisions.md` names the versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fewbit.formats.cast import BF16, FP16, Cast
from fewbit.formats.integer import INT8, UINT8, Int
from fewbit.formats.minifloat import Float
from fewbit.formats.number_format import NumberFormat
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.ranges.minmax import MinMax
from fewbit.runtimes.saturation import Saturation, saturates
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme

#: Operators that multiply by a weight.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a runtime makes of an ONNX file."""

    #: The word for it in `runtime=`.
    name: str
    #: Number formats of inputs and outputs with static ranges.
    inputs: tuple[NumberFormat, ...]
    #: Floats that weights may be stored in; integers of up to 8 bits always may.
    weight_floats: tuple[Float, ...] = ()
    #: Whether 0 may be another code than the middle one.
    zero_points: bool
    #: Whether 8-bit codes of inputs are stored as uint8 rather than int8; the numbers are the same.
    unsigned_inputs: bool
    #: What the bias of a layer with 8-bit inputs is: int32 by the scales of input and weight, or float as it was.
    bias: Literal["int32", "float"]
    #: Whether the outputs of layers may be rounded at all.
    takes_outputs: bool
    #: Layers that run in integers where input and weight have 8 bits, by operator.
    products: frozenset[str]
    #: Of these, those that stay float unless their output is rounded.
    products_with_output: frozenset[str] = frozenset()
    #: Of these, those that stay float if a Relu or Clip behind them is not rounded.
    products_with_activation: frozenset[str] = frozenset()
    #: Activation functions that vanish in a rounding behind them whose lowest code is what they let through least.
    absorbed: frozenset[str] = frozenset()
    #: Further operators that take and give integers, each value by a scale of its own.
    carriers: frozenset[str] = frozenset()
    #: Operators that move integers about: what goes in and what comes out share scale and zero point.
    movers: frozenset[str] = frozenset()
    #: Whether the shorter way into an Add is rounded so that it becomes part of the layer before it.
    skip_inputs: bool = False
    #: Whether ranges may be those of each input.
    dynamic: bool = False
    #: Bits of weights alone that are stored for com.microsoft's MatMulNBits and GatherBlockQuantized.
    packed_bits: frozenset[int] = frozenset()
    #: Bits at which MatMulNBits computes with float inputs about as fast as a float product.
    exact_bits: frozenset[int] = frozenset()
    #: 1: MatMulNBits computes in float32. 4: it rounds its input to int8 by blocks. `None`: 1 at `exact_bits`, else 4.
    accuracy_level: Literal[1, 4] | None = None
    #: Whether products with a float8 input and weight load with Q/DQ around both.
    float8_products: bool = True
    #: Whether 8-bit weights may have scales by block beside a rounded input.
    blocks_of_bytes: bool = True
    #: Floats of 16 bits that it computes with.
    casts: tuple[Cast, ...] = (FP16, BF16)
    #: How sums of products of uint8 and int8 are cut off on x86 without VNNI; `None`: it does not run there.
    without_vnni: Saturation | None = None
    #: The same on the processor at hand, from `on_processor`; `None`: they are not cut off.
    saturation: Saturation | None = None

    def on_processor(self, flags: frozenset[str]) -> Runtime:
        """Return the table for a processor with these `flags`, named as Linux names them in /proc/cpuinfo."""
        return replace(self, saturation=self.without_vnni if saturates(flags) else None)

    def level(self, bits: int) -> int:
        """Return the accuracy level that MatMulNBits is given for weights of `bits`."""
        return self.accuracy_level or (1 if bits in self.exact_bits else 4)

    def computes_in_integers(self, quantized: QuantizedLayer) -> bool:
        """Whether a layer runs in integers, if Q/DQ pairs stand where they have to."""
        given, weight = quantized.input, quantized.scheme
        return (
            given is not None
            and given.format in (INT8, UINT8)
            and isinstance(weight.format, Int)
            and not isinstance(weight.granularity, PerGroup)
            and quantized.layer.operator in self.products
        )

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return a layer with the nearest inputs that there is a form for: by tensor, and symmetric where it must be.

        8-bit weights beside fixed ranges leave out the code -128.

        >>> from fewbit.runtimes.tensorrt import TENSORRT
        >>> from fewbit.schemes.notation import parse_input_scheme, parse_scheme
        >>> layer = Layer("fc", "linear", (8, 64), "MatMul")
        >>> given = parse_input_scheme("int8 tensor asym static")
        >>> TENSORRT.fitted(QuantizedLayer(layer, parse_scheme("int8"), given)).input.symmetric
        True
        """
        given = quantized.input
        if given is None or given.format not in (INT8, UINT8):
            return quantized
        weight = quantized.scheme
        if given.static and weight.symmetric and weight.format == INT8 and weight.scale_scheme is None:
            # The largest weight of a channel then has a code of its own: depthwise filters have few others.
            quantized = replace(quantized, scheme=replace(weight, format=Int(8, narrow=True)))
        if not given.static:
            fits = not self.dynamic or (given.granularity == PerTensor() and not given.symmetric)
            usual = Scheme(format=INT8, symmetric=False, scale_type=given.scale_type)
            return quantized if fits else replace(quantized, input=usual)
        if given.symmetric or self.zero_points:
            return quantized
        ranging = None if given.ranging == MinMax() else given.ranging
        return replace(quantized, input=replace(given, symmetric=True, range_method=ranging))

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why the runtime cannot have a layer under its schemes, with the remedy, or `None`."""
        return next(self._problems(quantized), None)

    def multiplies_in_integers(self, scheme: Scheme) -> bool:
        """Whether a product of two activations that are rounded by `scheme` runs in integers."""
        return scheme.format in (INT8, UINT8) and "MatMul" in self.products

    def product_problem(self, scheme: Scheme) -> str | None:
        """Return why the operands of a product inside attention cannot be rounded by `scheme` here, or `None`."""
        return next(self._product_problems(scheme), None)

    def _product_problems(self, scheme: Scheme) -> Iterator[str]:
        if not scheme.static:
            yield from self._moment_problems(scheme)
            return
        yield from self._static_problems(scheme)
        if isinstance(scheme.format, Float) and not self.float8_products:
            text = input_scheme_to_text(scheme)
            yield f"{self.name} does not load products of two float8 activations, here '{text}'; use 'int8 static'"

    def _problems(self, quantized: QuantizedLayer) -> Iterator[str]:
        schemes = (quantized.scheme, quantized.input, quantized.output)
        if any(scheme is not None and isinstance(scheme.format, Cast) for scheme in schemes):
            yield from self._cast_problems(quantized)
            return
        yield from self._weight_problems(quantized.layer, quantized.scheme)
        if quantized.input is not None:
            yield from self._input_problems(quantized, quantized.input)
        if quantized.output is not None:
            yield from self._output_problems(quantized.output)

    def _cast_problems(self, quantized: QuantizedLayer) -> Iterator[str]:
        cast, others = quantized.scheme.format, {"input": quantized.input, "output": quantized.output}
        for name, scheme in others.items():
            if scheme is not None and scheme.format != cast:
                yield (
                    f"a layer of an ONNX file computes in one type, and here are the weight '{quantized.scheme}' and "
                    f"the {name} '{input_scheme_to_text(scheme)}'; cast both, or leave out {name}"
                )
        if quantized.output is not None and quantized.input is None:
            yield f"the output is cast to '{quantized.output}' and the input is not; cast both, or leave out output"
        if isinstance(cast, Cast) and cast not in self.casts:
            known = " or ".join(own.name for own in self.casts)
            yield f"{self.name} computes nothing in {cast.name}; use {known}, or another runtime"

    def _weight_problems(self, layer: Layer, scheme: Scheme) -> Iterator[str]:
        form, granularity = scheme.format, scheme.granularity
        known = (isinstance(form, Int) and form.bits <= 8) or form in self.weight_floats
        if not known or scheme.scale_scheme is not None or scheme.span is not None:
            floats = "".join(f", {own.name}" for own in self.weight_floats)
            yield f"{self.name} has no form for weights in '{scheme}'; use int4, int8{floats}"
        if scheme.float_zero:
            yield f"an ONNX file has no float zero points, and here is '{scheme}'; use asym"
        if not scheme.symmetric and not self.zero_points:
            yield f"{self.name} takes no zero points, and the weight is '{scheme}'; leave out asym"
        if not (granularity in (PerTensor(), PerChannel()) or isinstance(granularity, PerGroup)):
            yield f"an ONNX file has no scales by {granularity.name}; use tensor, channel or groups such as g128"
        if layer.kind == "conv" and isinstance(granularity, PerGroup):
            yield "the inputs of a convolution lie along several axes and ONNX blocks along one; use channel"
        if layer.kind == "conv" and granularity == PerChannel() and _shares_channels(layer):
            yield "the channels of a transposed convolution in groups have no axis of their own; use tensor"

    def _input_problems(self, quantized: QuantizedLayer, scheme: Scheme) -> Iterator[str]:
        if not quantized.scheme.symmetric:
            yield f"weights under rounded inputs are symmetric, and here is '{quantized.scheme}'; leave out asym"
        blocks = isinstance(quantized.scheme.granularity, PerGroup)
        if blocks and quantized.scheme.format.bits > 4 and not self.blocks_of_bytes:
            yield f"{self.name} misreads 8-bit blocks under rounded inputs, here '{quantized.scheme}'; use channel"
        if scheme.static:
            yield from self._static_problems(scheme)
        else:
            yield from self._dynamic_problems(quantized, scheme)

    def _dynamic_problems(self, quantized: QuantizedLayer, scheme: Scheme) -> Iterator[str]:
        weight, layer = quantized.scheme, quantized.layer
        yield from self._moment_problems(scheme)
        if layer.operator not in self.products:
            yield f"there is no integer {layer.operator} with a range of the moment; use 'int8 static'"
        if not isinstance(weight.format, Int) or weight.granularity not in (PerTensor(), PerChannel()):
            yield f"a dynamic input needs integer weights by tensor or channel, not '{weight}'; use 'int8 channel'"

    def _moment_problems(self, scheme: Scheme) -> Iterator[str]:
        """Yield why nothing can be rounded by the range of the moment so."""
        text = input_scheme_to_text(scheme)
        if not self.dynamic:
            yield f"{self.name} takes no ranges of the moment, and the input is '{text}'; use 'int8 static'"
        if scheme.format not in (INT8, UINT8) or scheme.granularity != PerTensor() or scheme.symmetric:
            yield f"ONNX has one dynamic rounding, 'int8 tensor asym', and the input is '{text}'; use that or static"

    def _static_problems(self, scheme: Scheme) -> Iterator[str]:
        """Yield why an input or output cannot be rounded by fixed ranges so."""
        text = input_scheme_to_text(scheme)
        if scheme.granularity != PerTensor():
            own = scheme.format if scheme.format in self.inputs else self.inputs[0]
            yield f"ONNX runtimes take one range a tensor, and here is '{text}'; use '{own.name} static'"
        if scheme.format not in self.inputs:
            known = ", ".join(own.name for own in self.inputs)
            yield f"{self.name} rounds to {known}, and here is '{text}'; use '{self.inputs[0].name} static'"
        if not (scheme.symmetric or self.zero_points):
            yield f"{self.name} takes no zero points, and here is '{text}'; use '{scheme.format.name} static sym'"

    def _output_problems(self, scheme: Scheme) -> Iterator[str]:
        text = input_scheme_to_text(scheme)
        if not self.takes_outputs:
            yield f"{self.name} wants the inputs of layers rounded, not what comes out, '{text}'; leave out output"
        if not scheme.static:
            yield f"outputs are rounded by fixed ranges, not by '{text}'; use '{scheme.format.name} static'"
        yield from self._static_problems(scheme)


def _shares_channels(layer: Layer) -> bool:
    """Whether a transposed convolution has groups: (in, out / groups, ...) is how it stands in the graph."""
    return layer.operator == "ConvTranspose" and layer.stored is not None and layer.stored[1] != layer.shape[0]
