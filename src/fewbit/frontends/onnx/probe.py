"""Output SQNR of layers on their float inputs: both forms of a layer stand side by side in one graph.

SQNR = 10 log10(sum y^2 / sum (y' - y)^2) with y = layer(x), summed in float64; of layers in branches and loops none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import decibels
from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.replacement import OnnxReplacement
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.onnx_graph.live import OnnxModel


class Probe:
    """Sums over the runs that it has seen."""

    def __init__(self, replacements: Sequence[OnnxReplacement]) -> None:
        self._replacements = replacements
        self._powers: dict[str, list[float]] = {}

    def watch(self, model: OnnxModel, feeds: Mapping[str, Numbers]) -> None:
        """Compare the layers of `model`, whose float forms are installed, on a batch."""
        simulation = Simulation(model, {})
        flow = simulation.flow
        shown = [own for own in self._replacements if id(model.found[own.layer.name].node) in flow.places]
        beside = [(model.found[own.layer.name], own.rounded) for own in shown]
        places = flow.needed([own.result.name or "" for own, _ in beside], set())
        found = list(simulation.session(places, feeds, (), beside).run(feeds).values())
        for (own, _), signal, noise in zip(beside, found[0::2], found[1::2], strict=True):
            if not np.isfinite(signal):
                raise NonFiniteError(f"{own.layer.name}: its output holds NaN or infinity before quantization")
            powers = self._powers.setdefault(own.layer.name, [0.0, 0.0])
            powers[0] += float(signal.sum())
            powers[1] += float(noise.sum())

    def ratios(self) -> dict[str, float]:
        """Return the SQNR in dB by layer; none where the output was 0."""
        return {name: decibels(signal, noise) for name, (signal, noise) in self._powers.items() if signal}
