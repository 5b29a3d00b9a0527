"""Layouts for the integer weights of linear layers, and for nothing else: which layers they hold, and as what."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from fewbit.checkpoints.streamed import Streamed
from fewbit.formats.integer import Int
from fewbit.interfaces import Layer, QuantizedLayer, StoredTensor
from fewbit.schemes.gguf import as_integers
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme

#: The word for a group that is a whole row.
WHOLE_ROW = -1
#: The type of scales that is written; other writers use others.
SCALES: ScaleType = "float16"


class LinearWeights(Streamed):
    """The parts of `fewbit.interfaces.Target` that such layouts share."""

    #: What it is called in errors.
    title: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    #: The sizes of groups that the kernels of runtimes have.
    groups: ClassVar[tuple[int, ...]]

    @abstractmethod
    def width_problem(self, shape: tuple[int, int], scheme: Scheme) -> str | None:
        """Return why a weight of `shape` (out, in) does not fill whole words, or `None`."""

    @abstractmethod
    def parts(self, name: str, shape: tuple[int, int], scheme: Scheme) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why this layout cannot hold a layer under its schemes, or `None`."""
        layer, scheme, name = quantized.layer, quantized.scheme, self.title
        if layer.module_class != "Linear":
            return f"{name} files hold Linear modules only, and this one is of class {layer.module_class}; keep it"
        for what, given in {"input": quantized.input, "output": quantized.output}.items():
            if given:
                return f"{name} files round no {what}, and here is '{input_scheme_to_text(given)}'; leave out `{what}`"
        if quantized.bias != "float":
            return f"{name} stores a bias as floats; leave out `bias`"
        number, plain = scheme.format, scheme.scale_scheme is None and not scheme.float_zero
        if not (isinstance(number, Int) and number.signed and number.bits in self.bits and plain):
            words = ", ".join(f"int{own}" for own in self.bits)
            return f"{name} has no layout for '{scheme}'; use {words}, with float scales and whole zero points"
        if group_size(scheme) not in self.groups:
            sizes = ", ".join("channel" if own == WHOLE_ROW else f"g{own}" for own in self.groups)
            return f"runtimes load {name} weights by {sizes}, not '{scheme}'; use one of these"
        return self.width_problem(layer.shape, scheme)

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in integers and groups that hold the levels of its own, where there are such."""
        scheme, width = as_integers(quantized.scheme), quantized.layer.shape[1]
        if not isinstance(scheme.format, Int):
            return quantized
        number = Int(next((own for own in self.bits if own >= scheme.format.bits), scheme.format.bits))
        symmetric = scheme.symmetric and (scheme.format.signed or number.bits > scheme.format.bits)
        size = group_size(scheme)
        if scheme.granularity == PerTensor():
            size = WHOLE_ROW
        if size is not None and size not in self.groups:
            fits = [own for own in self.groups if own > 0 and (width if size == WHOLE_ROW else size) % own == 0]
            size = max(fits, default=size)
        granularity = scheme.granularity if size is None else granularity_of(size)
        own = replace(scheme, format=number, symmetric=symmetric, granularity=granularity, range_method=None)
        return replace(quantized, scheme=own)

    def nearest(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in the nearest integers and groups, its input and output in float."""
        scheme, width = quantized.scheme, quantized.layer.shape[1]
        wanted = next((own for own in self.bits if own >= scheme.format.bits), max(self.bits))
        size = scheme.granularity.box(quantized.layer.shape)[1]
        fits = [own for own in self.groups if own > 0 and width % own == 0]
        size = max((own for own in fits if own <= size), default=min(fits, default=WHOLE_ROW))
        if WHOLE_ROW in self.groups and scheme.granularity in (PerTensor(), PerChannel()):
            size = WHOLE_ROW
        own = Scheme(
            format=Int(wanted),
            granularity=granularity_of(size),
            symmetric=scheme.symmetric,
            scale_type=scheme.scale_type,
        )
        return replace(quantized, scheme=own, input=None, output=None, bias="float")

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return why this layout cannot hold a rounded product inside attention: it holds weights."""
        return f"{self.title} files hold weights only; keep the products inside attention"

    def scale_type(self, storage_type: ScaleType) -> ScaleType:  # noqa: ARG002
        """Scales are float16, whatever the model's float numbers are."""
        return SCALES

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:  # noqa: ARG002
        """Return what stands in the file for a quantized layer."""
        return self.parts(quantized.layer.name, quantized.layer.shape, quantized.scheme)


def group_size(scheme: Scheme) -> int | None:
    """Return how many columns share a scale, -1 for whole rows; `None`: it is no group of a row."""
    if isinstance(scheme.granularity, PerGroup):
        return scheme.granularity.size
    return WHOLE_ROW if scheme.granularity == PerChannel() else None


def granularity_of(size: int) -> PerChannel | PerGroup:
    """Undo `group_size`."""
    return PerChannel() if size == WHOLE_ROW else PerGroup(size)
