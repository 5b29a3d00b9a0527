"""What a change of a graph is tried on: the outputs of the whole on a batch, or on random inputs without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fewbit.errors import CalibrationError
from fewbit.frontends.onnx.batches import Numbers, feeds_of
from fewbit.frontends.onnx.random_inputs import random_inputs
from fewbit.frontends.onnx.ready import ready
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms import Applied


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Runs forms of one model on the same batch."""

    batch: Any

    def __call__(self, model: OnnxModel) -> Mapping[str, Numbers]:
        """Return the outputs of `model` by name."""
        return ready(model).run(feeds_of(model.graph.graph, self.batch))


def tried(model: OnnxModel, batch: Any, work: Callable[[TrialRun], Applied], otherwise: str) -> Applied:
    """Return what `work` does with a run of `model`; `otherwise` is said where it cannot run on random inputs."""
    if batch is not None:
        return work(TrialRun(batch))
    try:
        return work(TrialRun(random_inputs(model.graph.graph)))
    except CalibrationError:
        why = "the model does not run on random inputs; give calibration data"
        return Applied(sentences=(f"{otherwise}, {why}",))
