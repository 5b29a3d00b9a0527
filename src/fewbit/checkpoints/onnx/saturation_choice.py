"""Which weights each layer of a graph gets where integer products saturate: measured on rows of its calibration data.

A layer whose rows cannot be had, such as one inside of a branch, gets uint8 wherever it could saturate, or 7 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fewbit.checkpoints.onnx.saturation import SEVEN, Choice, can_saturate, choose
from fewbit.interfaces import frontend_of
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.live import OnnxModel, Rounded
from fewbit.problems import several
from fewbit.qtensor import quantize
from fewbit.runtimes.runtime import Runtime

#: Batches that rows are taken from, and rows of a layer that are multiplied out.
_BATCHES, _ROWS = 4, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is to be written instead."""

    #: Layers with weights of 7 bits.
    narrow: Mapping[str, Rounded]
    #: Layers whose weights are stored as uint8.
    unsigned: tuple[str, ...]
    notes: tuple[str, ...]


def choose_weights(model: OnnxModel, batches: Sequence[Any], runtime: Runtime) -> Chosen:
    """Return the weights of the installed layers that could saturate, by their error on inputs from `batches`."""
    saturation = runtime.saturation
    if saturation is None:
        return Chosen(narrow={}, unsigned=(), notes=())
    names = [name for name, own in model.layers.items() if can_saturate(model.found[name], own, runtime)]
    rows = _rows(model, names, [batches[place] for place in range(min(_BATCHES, len(batches)))])
    choices = {name: choose(model.found[name], model.layers[name], own, saturation) for name, own in rows.items()}
    unmeasured = [name for name in names if name not in choices]
    safe = "uint8" if saturation.exact_uint8 else "7 bits"
    weights = {name: choices[name].weights if name in choices else safe for name in names}
    notes = [_told(choices, word, text) for word, text in _TEXTS.items()]
    if unmeasured:
        notes.append(f"{several(unmeasured)}: {_UNMEASURED[safe]}: its inputs cannot be shown, so nothing was measured")
    return Chosen(
        narrow={name: _narrowed(model, name) for name, word in weights.items() if word == "7 bits"},
        unsigned=tuple(name for name, word in weights.items() if word == "uint8"),
        notes=tuple(note for note in notes if note),
    )


def _rows(model: OnnxModel, names: Sequence[str], batches: Sequence[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return rows of what goes into each layer, as the quantized layers before it leave it."""
    layers = [model.found[name].layer for name in names if model.found[name].layer.multiplies_rows]
    layers = [layer for layer in layers if model.found[layer.name].node.graph is model.graph.graph]
    if not layers or not batches:
        return {}
    wanted = {layer.name: ("row_sample",) for layer in layers}
    run = frontend_of("onnx").calibrate(model, layers, wanted, batches, sequential=False)
    found = {name: own["row_sample"] for stage in run for part in stage for name, own in part.statistics.items()}
    # Of a convolution in groups the first one stands for all.
    width = {name: model.found[name].layer.shape[1] for name in found}
    return {name: to_numpy(own.result())[:_ROWS, : width[name]] for name, own in found.items() if own.count}


def _narrowed(model: OnnxModel, name: str) -> Rounded:
    own, rounded = model.found[name], model.layers[name]
    held = own.weight.const_value
    assert held is not None
    weight = own.arrangement.matrix(held.numpy()).astype(np.float32)
    # An int32 bias counts in the scale of the weight; the writer makes its own.
    return replace(rounded, qtensor=quantize(weight, replace(rounded.qtensor.scheme, format=SEVEN)), bias=None)


_TEXTS = {
    "plain": "could saturate on this processor and stay in 8 bits, which measured best",
    "7 bits": "in 7 bits, since products of 8 bits saturate on this processor",
    "uint8": "as uint8, which is slower, since 7 bits lose too much",
}
_UNMEASURED = {"uint8": "as uint8, which is slower", "7 bits": "in 7 bits, since products of 8 bits could saturate"}


def _told(choices: Mapping[str, Choice], word: str, text: str) -> str | None:
    """Return a sentence on the layers that got the weights `word`, with the decibels of the first."""
    names = [name for name, own in choices.items() if own.weights == word]
    if not names:
        return None
    sqnr = ", ".join(f"{key} {value:.1f}" for key, value in choices[names[0]].sqnr.items())
    return f"{several(names)}: {text} (SQNR in dB of {names[0]}: {sqnr})"
