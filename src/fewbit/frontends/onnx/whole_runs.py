"""Run a graph again with some of its layers changed: as a whole, since onnxruntime optimizes it as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fewbit.frontends.onnx.batches import feeds_of
from fewbit.frontends.onnx.ready import ready
from fewbit.interfaces import Layer
from fewbit.onnx_graph.live import OnnxModel


class WholeRuns:
    """Float runs of a graph on some batches, and runs with a change."""

    #: Nothing before a change is left out.
    reuses = False

    def __init__(self, model: OnnxModel, layers: Sequence[Layer], batches: Sequence[Any]) -> None:  # noqa: ARG002
        """Run the float graph on every batch."""
        self._model, self._batches = model, batches
        self.floats: list[Any] = list(self.outputs(()))

    def outputs(self, names: Collection[str]) -> Iterator[Any]:  # noqa: ARG002
        """Yield the outputs by name for each batch, of the graph as it now is."""
        for batch in self._batches:
            yield ready(self._model).run(feeds_of(self._model.graph.graph, batch))
