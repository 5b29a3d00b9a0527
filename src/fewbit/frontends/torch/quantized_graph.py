"""A quantized module as an ONNX model: the graph of its float copy, in which the same scales and codes are installed.

A layer is found by its weight, which no other layer of the copy has: what multiplies by it are the calls of the layer.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.exporter import export
from fewbit.frontends.torch.float_copy import float_copy
from fewbit.frontends.torch.graph_form import UNREACHED, GraphForm
from fewbit.frontends.torch.graph_products import install_products
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.onnx_graph.constants import origin
from fewbit.onnx_graph.live import OnnxModel
from fewbit.problems import several


def quantized_graph(model: nn.Module, batch: Any) -> OnnxModel:
    """Return the ONNX model of a quantized module, exported on `batch`; the module stays as it is.

    Args:
        model: any module, with quantized layers or without.
        batch: a tensor, a tuple of arguments or a dict of keyword arguments; `None`: what a language model of
            transformers makes up.

    Raises:
        CheckpointError: no batch, torch cannot export the module, or the graph cannot hold what is quantized in it.

    """
    call = _made_up(model) if batch is None else Call.of(batch)
    _require_holdable(call)
    made = OnnxModel.of(export(float_copy(model), call), Path(type(model).__name__))
    forms = _forms(model)
    by_weight = {f"{name}.weight": form for form in forms for name in form.names}
    for found in made.found.values():
        form = by_weight.get(origin(found.weight).name or "")
        if form is not None:
            form.uses.append(found)
    _require_sound(forms, made.graph)
    rounded = {name: own for form in forms for name, own in form.rounded()}
    made.layers.update({name: rounded[name] for name in made.found if name in rounded})
    install_products(model, made)
    return made


def _made_up(model: nn.Module) -> Call:
    """Return token ids for a language model of transformers, and what says which of them count where it takes that."""
    call = Call.made_up(model)
    if call is None:
        raise CheckpointError(
            f"there is no batch to trace {type(model).__name__} on; quantize it with `calibration`, or export the "
            "float model yourself and quantize the .onnx file"
        )
    named = dict(call.kwargs)
    if "attention_mask" in inspect.signature(model.forward).parameters:
        named.setdefault("attention_mask", torch.ones_like(named["input_ids"]))
    return Call((), named)


def _forms(model: nn.Module) -> list[GraphForm]:
    """Return every quantized layer once, with all names that it has."""
    names: dict[int, list[str]] = {}
    layers: dict[int, QuantizedLayer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLayer):
            names.setdefault(id(module), []).append(name)
            layers[id(module)] = module
    return [GraphForm(layer, tuple(names[key])) for key, layer in layers.items()]


def _require_sound(forms: list[GraphForm], graph: ir.Model) -> None:
    """Raise `CheckpointError` for layers that the graph does not hold; one whose tied twin it holds is not missed."""
    found = [form for form in forms if form.is_found()]
    alike: dict[str, list[str]] = {}
    for form in forms:
        problem = form.problem(graph)
        if problem and not (problem == UNREACHED and any(form.is_twin(other) for other in found)):
            alike.setdefault(problem, []).append(form.names[0])
    if alike:
        raise CheckpointError("\n".join(f"{several(names)}: {text}" for text, names in alike.items()))


def _require_holdable(call: Call) -> None:
    caches = call.caches()
    if caches:
        raise CheckpointError(
            f"argument {caches[0]!r} of the example batch is a key-value cache: ONNX graphs of this version hold none, "
            "rounded or not; leave it out"
        )
