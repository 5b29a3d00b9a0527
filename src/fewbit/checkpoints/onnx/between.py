"""Roundings of values between layers: what keeps a runtime in integers.

Where the layers that read a value have a fixed range, it has that; else the range of the quantized layers' outputs on
calibration data, before any value between them is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.fixed_ranges import fixed_ranges
from fewbit.checkpoints.onnx.writer import described
from fewbit.errors import CalibrationError
from fewbit.float_bias import FloatBias
from fewbit.interfaces import frontend_of
from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.onnx_graph.placement import place
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Between:
    """The values of a model in their two forms; the float one is installed at first."""

    model: OnnxModel
    values: Mapping[str, Activation]
    #: The installed layers that read one of them, with that rounding as their input's.
    readers: Mapping[str, Rounded]
    #: The installed products that read one of them, likewise.
    products: Mapping[str, Mapping[str, Activation]]

    def install(self) -> None:
        """Round them; the layers are installed already."""
        self.model.values.update(self.values)
        self.model.layers.update(self.readers)
        self.model.products.update(self.products)

    def restore(self) -> None:
        """Leave them as they are; layers are given back by those who installed them."""
        for name in self.values:
            self.model.values.pop(name, None)


def between(model: OnnxModel, runtime: Runtime, batches: Sequence[Any]) -> Between | None:
    """Return the roundings that `runtime` needs between the installed layers of `model`; `None`: no such.

    Raises:
        CalibrationError: there is no data to take ranges from, or none of it reaches a value.

    """
    placement = place(model, [described(model, name) for name in model.layers], runtime)
    if not placement.values:
        return None
    fixed = fixed_ranges(model, placement)
    open_values = {name: scheme for name, scheme in placement.values.items() if name not in fixed}
    if open_values and not batches:
        raise CalibrationError(
            f"{runtime.name} needs ranges of {len(open_values)} values between layers, and there is no "
            "calibration data; give calibration=[batch, ...] to fewbit.quantize, or 'synthetic' with a torch module"
        )
    values = fixed | _activations(open_values, _seen(model, open_values, placement.groups, batches))
    return Between(model, values, dict(_readers(model, values)), dict(_products(model, values)))


def _products(model: OnnxModel, values: Mapping[str, Activation]) -> Iterator[tuple[str, Mapping[str, Activation]]]:
    known = {own.layer.name: own for own in find_products(model.graph)} if model.products else {}
    for name, operands in model.products.items():
        given = {operand: values.get(str(known[name].value(operand).name), own) for operand, own in operands.items()}
        if any(given[operand] is not own for operand, own in operands.items()):
            yield name, given


def _readers(model: OnnxModel, values: Mapping[str, Activation]) -> Iterator[tuple[str, Rounded]]:
    for name, rounded in model.layers.items():
        given = values.get(str(model.found[name].data.name))
        before = rounded.activations.input
        if given is not None and before is not None and before is not given:
            # An int32 bias counts in the scale of the input; the writer makes its own where the runtime wants one.
            bias = rounded.bias if isinstance(rounded.bias, FloatBias) else None
            yield name, replace(rounded, activations=replace(rounded.activations, input=given), bias=bias)


def _seen(
    model: OnnxModel, values: Mapping[str, Scheme], groups: Sequence[Sequence[str]], batches: Sequence[Any]
) -> dict[str, Any]:
    """Return the statistic of each value; values that share a scale share what all of them saw."""
    wanted = {name: own.ranging.statistic for name, own in values.items() if own.ranging.statistic}
    frontend: Any = frontend_of("onnx")
    seen: dict[str, Any] = dict(frontend.value_statistics(model, wanted, batches)) if wanted else {}
    for group in groups:
        first, *others = [seen[name] for name in group if name in seen] or [None]
        for other in others:
            first.merge(other)
        seen |= {name: first for name in group if name in seen}
    return seen


def _activations(values: Mapping[str, Scheme], seen: Mapping[str, Any]) -> dict[str, Activation]:
    found = {}
    for name, scheme in values.items():
        if scheme.ranging.statistic and name not in seen:
            raise CalibrationError(f"value {name!r}: no calibration input reached it, so it has no range")
        found[name] = Activation.calibrated(scheme, seen.get(name))
    return found
