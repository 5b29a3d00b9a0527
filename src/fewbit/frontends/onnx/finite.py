"""Weights and biases of a graph's layers, with a check that every number of them is finite."""

from __future__ import annotations

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.frontends.onnx.batches import Numbers
from fewbit.onnx_graph.layers import GraphLayer

#: A range of twice this, divided by one step, still has a float32.
_LARGEST = 2.0**120


def finite_weight(own: GraphLayer) -> Numbers:
    """Return the weight of a layer as float32 (out, in); raises `NonFiniteError` for NaN and infinity in it."""
    name = own.layer.name
    assert own.weight.const_value is not None
    with np.errstate(over="ignore"):  # of a double; found below
        weight: Numbers = own.arrangement.matrix(own.weight.const_value.numpy()).astype(np.float32, copy=False)
    if bad := int(np.count_nonzero(~np.isfinite(weight))):
        raise NonFiniteError(f"{name}: {bad} of {weight.size} weights are NaN or infinite; repair or keep it")
    if float(np.abs(weight).max()) > _LARGEST:
        raise NonFiniteError(
            f"{name}: a weight of magnitude {float(np.abs(weight).max()):.3g} would overflow "
            "float32 arithmetic; repair or keep it"
        )
    return weight


def finite_bias(own: GraphLayer) -> Numbers:
    """Return the bias of a layer that has one, float32 (out,); raises `NonFiniteError` for NaN and infinity in it."""
    value = own.bias_value
    assert value is not None
    assert value.const_value is not None
    with np.errstate(over="ignore"):  # of a double; found below
        bias: Numbers = value.const_value.numpy().astype(np.float32).reshape(-1)
    if bad := int(np.count_nonzero(~np.isfinite(bias))):
        raise NonFiniteError(
            f"{own.layer.name}.bias: {bad} of its numbers are NaN or infinite; repair them, or keep the layer"
        )
    return bias
