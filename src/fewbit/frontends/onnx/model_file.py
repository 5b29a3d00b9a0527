"""An ONNX file as its users run it: quantized or not, in onnxruntime with all its optimizations, nothing simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.frontends.onnx.batches import Numbers, feeds_for, inputs_of
from fewbit.frontends.onnx.session import Session
from fewbit.onnx_graph.file import bytes_on_disk, read_model


class ModelFile:
    """A model that is ready to run on batches."""

    def __init__(self, path: Path) -> None:
        """Read and prepare the file at `path`, of any opset that onnxruntime runs.

        Raises:
            SourceError: a file that cannot be read, is damaged, or that onnxruntime cannot run.

        """
        model = read_model(path, oldest=1)
        self.name = str(path)
        #: What it takes.
        self.inputs = inputs_of(model.graph)
        #: Bytes of the file and of its external data.
        self.nbytes = bytes_on_disk(model, path)
        self._session = Session.of_file(path)

    def feeds(self, batch: Any) -> dict[str, Numbers]:
        """Return the arrays of `batch` by name, floats in the type that this file takes, which may be another's.

        Raises:
            CalibrationError: a batch that does not fit.

        """
        return feeds_for(self.inputs, batch, any_float=True)

    def run(self, feeds: Mapping[str, Numbers]) -> dict[str, Numbers]:
        """Return all outputs by name; raises `CalibrationError` where onnxruntime fails."""
        return self._session.run(feeds)
