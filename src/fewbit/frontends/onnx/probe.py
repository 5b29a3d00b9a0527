"""Output SQNR of layers on their float inputs: both forms of a layer stand side by side in one graph.

SQNR = 10 log10(sum y^2 / sum (y' - y)^2) with y = layer(x), summed in float64; of layers in branches and loops none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import decibels
from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.products import OnnxProductForms
from fewbit.frontends.onnx.replacement import OnnxReplacement
from fewbit.frontends.onnx.simulation import Beside, Simulation
from fewbit.frontends.onnx.sizes import sizes_of, within_bounds
from fewbit.frontends.onnx.stages import stages_of
from fewbit.interfaces import Watch
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.attention import GraphProduct
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.schemes.granularity import PerToken

#: Bytes of outputs, and layers, that are compared in one run: onnxruntime holds them all until the last one.
_ALIVE, _AT_ONCE = 1 << 26, 32


class Probe:
    """Sums over the runs that it has seen."""

    def __init__(self, replacements: Sequence[OnnxReplacement | OnnxProductForms], inputs: Watch | None = None) -> None:
        """Take the forms to compare; `inputs` is given what goes into layers."""
        self._replacements, self._inputs = replacements, inputs
        self._powers: dict[str, list[float]] = {}

    def watch(self, model: OnnxModel, feeds: Mapping[str, Numbers]) -> None:
        """Compare the layers of `model`, whose float forms are installed, on a batch."""
        simulation = Simulation(model, {})
        flow = simulation.flow
        pairs = [_pair(model, own) for own in self._replacements]
        shown = {_made(own[0]): own for own in pairs if id(own[0].node) in flow.places}
        sizes = sizes_of(model.graph, flow, feeds)
        if self._inputs is not None:  # what goes into layers is held beside what comes out
            sizes = {
                name: own + sum(sizes.get(value, 0) for value in _given(shown[name][0])) if name in shown else own
                for name, own in sizes.items()
            }
        runs = within_bounds(sorted(shown, key=flow.makers.__getitem__), sizes, _ALIVE, _AT_ONCE)
        groups = [[name for own in run for name in (*_given(shown[own][0]), own)] for run in runs]
        known = dict(feeds)
        for stage, run in zip(stages_of(flow, groups), runs, strict=True):
            given = {name: known[name] for name in stage.needs}
            layers = [shown[name][0] for name in run]
            seen = self._seen(layers)
            outputs = [*stage.leaves, *(name for name in seen if name not in given and name not in stage.leaves)]
            session = simulation.session(stage.places, given, outputs, [shown[name] for name in run])
            found = session.run(given)
            made = given | {name: found.pop(name) for name in outputs}
            for name, users in seen.items():
                for own in users:
                    self._show(own, made[name])
            known |= {name: made[name] for name in stage.leaves}
            for name in stage.drops:
                known.pop(name)
            self._add(layers, list(found.values()))

    def _seen(self, layers: Sequence[GraphLayer | GraphProduct]) -> dict[str, list[GraphLayer]]:
        """Return the layers whose inputs are to be shown, by the name of the value."""
        found: dict[str, list[GraphLayer]] = {}
        for own in layers:
            if self._inputs is not None and isinstance(own, GraphLayer) and own.layer.multiplies_rows:
                found.setdefault(own.data.name or "", []).append(own)
        return found

    def _show(self, own: GraphLayer, values: Numbers) -> None:
        """Give the input of a layer to whoever wants it, channels last."""
        assert self._inputs is not None
        spatial = isinstance(own.arrangement, Kernel)
        rows = np.moveaxis(values, 1, -1) if spatial else values
        form = next(form for form in self._replacements if form.layer.name == own.layer.name)
        activation = form.rounded.activations.input if isinstance(form, OnnxReplacement) else None
        # Of a convolution a token is a whole sample, which is no row here.
        by_sample = activation is not None and spatial and isinstance(activation.scheme.granularity, PerToken)
        self._inputs(own.layer.name, rows.reshape(-1, rows.shape[-1]), None if by_sample else activation)

    def _add(self, layers: Sequence[GraphLayer | GraphProduct], sums: Sequence[Numbers]) -> None:
        for own, signal, noise in zip(layers, sums[0::2], sums[1::2], strict=True):
            if not np.isfinite(signal):
                raise NonFiniteError(f"{own.layer.name}: its output holds NaN or infinity before quantization")
            powers = self._powers.setdefault(own.layer.name, [0.0, 0.0])
            powers[0] += float(signal.sum())
            powers[1] += float(noise.sum())

    def ratios(self) -> dict[str, float]:
        """Return the SQNR in dB by layer; none where the output was 0."""
        return {name: decibels(signal, noise) for name, (signal, noise) in self._powers.items() if signal}


def _pair(model: OnnxModel, own: OnnxReplacement | OnnxProductForms) -> Beside:
    if isinstance(own, OnnxProductForms):
        return own.product, own.rounded
    return model.found[own.layer.name], own.rounded


def _given(own: GraphLayer | GraphProduct) -> list[str]:
    """Return the values that are rounded for it."""
    values = [own.data] if isinstance(own, GraphLayer) else [own.value(name) for name in own.operands]
    return [value.name or "" for value in values]


def _made(own: GraphLayer | GraphProduct) -> str:
    return (own.result if isinstance(own, GraphLayer) else own.output).name or ""
