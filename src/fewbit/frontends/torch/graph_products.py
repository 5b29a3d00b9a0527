"""The rounded products of attention in the graph that torch's exporter made: found by module, in the units of torch.

torch exports (Q K^T) c as (Q r)(K r)^T with r r = c, and a module rounds Q and K themselves: both r go behind the
product.
"""

from __future__ import annotations

import ast

import numpy as np
import onnx_ir as ir
from torch import nn

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.rounded_product import RoundedProduct
from fewbit.frontends.torch.rounding import Rounding
from fewbit.onnx_graph.attention import GraphProduct, find_products
from fewbit.onnx_graph.layers import SCOPES
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several


def install_products(model: nn.Module, made: OnnxModel) -> None:
    """Install the rounded products of `model` in the graph that was exported from it, at every call.

    Raises:
        CheckpointError: the graph has no such product.

    """
    rounded = {
        name: own for name, own in model.named_modules(remove_duplicate=False) if isinstance(own, RoundedProduct)
    }
    found = set()
    for own in find_products(made.graph) if rounded else ():
        name = next((name for name in _names(own) if name in rounded), None)
        if name is not None:
            found.add(id(rounded[name]))
            _put_factors_behind(own)
            roundings = {operand: rounded[name].get_submodule(operand) for operand in own.operands}
            made.products[own.layer.name] = {
                operand: rounding.activation.like(np.empty(0, np.float32))
                for operand, rounding in roundings.items()
                if isinstance(rounding, Rounding)
            }
    missing = [name for name, own in rounded.items() if id(own) not in found]
    if missing:
        raise CheckpointError(
            f"{several(missing)}: the exported graph has no MatMul for it beside a Softmax, so that it cannot round "
            "its operands; leave out the rules of kind attention"
        )


def _names(own: GraphProduct) -> list[str]:
    """Return what a product is called in each of the modules around it, the innermost first."""
    role = "query_key" if "query" in own.operands else "probabilities_value"
    scopes = [scope.partition("@")[0] for scope in _scopes(own.node)[:-1]]
    return [f"{scope}.{role}" if scope else role for scope in reversed(scopes)]


def _scopes(node: ir.Node) -> list[str]:
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return scopes


def _put_factors_behind(own: GraphProduct) -> None:
    """Multiply what a product makes by the factors that its own operation puts on its operands."""
    factors = []
    for index, value in enumerate(own.node.inputs):
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "Mul" and _scopes(maker) == _scopes(own.node):
            own.node.replace_input_with(index, maker.inputs[0])
            factors.append(maker.inputs[1])
    if not factors:
        return
    graph, result = own.node.graph, own.output
    assert graph is not None
    readers = list(result.uses())
    for factor in factors:
        behind = ir.node("Mul", [result, factor], outputs=[ir.Value(type=own.output.type, shape=own.output.shape)])
        behind.metadata_props[SCOPES] = own.node.metadata_props[SCOPES]
        graph.insert_after(result.producer(), behind)  # type: ignore[arg-type]
        result = behind.outputs[0]
    for node, index in readers:
        node.replace_input_with(index, result)
