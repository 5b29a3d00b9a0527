"""ONNX files as targets of a plan, one for each runtime; beside `NAME.onnx` stand `NAME.report.json` and `.html`.

After writing for onnxruntime the file is optimized as a session would, and the report says what runs in integers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbit.checkpoints.hashes import write_reports
from fewbit.checkpoints.onnx.between import Between, between
from fewbit.checkpoints.onnx.cast_whole import write_cast_whole
from fewbit.checkpoints.onnx.fusion import fusion
from fewbit.checkpoints.onnx.saturation_choice import choose_weights
from fewbit.checkpoints.onnx.stored import stored_tensors
from fewbit.checkpoints.onnx.told import Told
from fewbit.checkpoints.onnx.writer import write
from fewbit.errors import FewbitWarning
from fewbit.interfaces import Content, Layer, QuantizedLayer, Source, StoredTensor
from fewbit.onnx_graph.live import OnnxModel
from fewbit.runtimes.migraphx import MIGRAPHX
from fewbit.runtimes.openvino import OPENVINO
from fewbit.runtimes.ort_cpu import ORT_CPU
from fewbit.runtimes.processor import processor_flags
from fewbit.runtimes.runtime import Runtime
from fewbit.runtimes.tensorrt import TENSORRT
from fewbit.samples.batches import Mapped
from fewbit.schemes.scheme import ScaleType, Scheme

#: What a report has to say whose figures come from a module.
_UNSEEN = ("values between layers are rounded in the file only, not in the module that was measured",)


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """ONNX files for a runtime."""

    runtime: Runtime

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return self.runtime.name

    @property
    def keeps_layers(self) -> bool:
        """A graph says itself which layers there are."""
        return False

    @property
    def holds_graph(self) -> bool:
        """A graph for a runtime."""
        return True

    @property
    def shares_weights(self) -> bool:
        """Layers have constants of their own."""
        return False

    def source_problems(self, source: Source) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: a graph holds any model."""
        return ()

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the nearest schemes that the runtime has a form for."""
        return self.runtime.fitted(quantized)

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why the runtime cannot have a layer under its schemes, or `None`."""
        return self.runtime.problem(quantized)

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return why the runtime cannot have operands of a product inside attention so, or `None`."""
        return self.runtime.product_problem(scheme)

    def cache_problem(self, scheme: Scheme) -> str | None:
        """Return why a graph has no place for the ranges of a key-value cache: it holds no cache."""
        return f"ONNX files hold no key-value cache yet, and here is one in '{scheme}'; leave out `cache`"

    def scale_type(self, storage_type: ScaleType) -> ScaleType:
        """Scales have the type of the graph's float numbers."""
        return storage_type

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for a quantized layer."""
        return stored_tensors(quantized, self.runtime, storage_type)

    def between(self, model: Any, batches: Sequence[Any]) -> Between | None:
        """Return the roundings between layers of a graph; those of another model are made when its graph is."""
        if not isinstance(model, OnnxModel):
            return None
        return between(model, self.runtime, batches)

    def write(self, content: Content, path: Path, *, overwrite: bool = False) -> Path:
        """Write a result to `path` and its report beside it; warns of layers that should run in integers and do not.

        Raises:
            CheckpointError: the file exists, cannot be written, or the runtime does not load it.

        """
        batches = Mapped(content.frontend.fed, content.batches)
        graph: OnnxModel = content.frontend.graph(content.model, content.example)
        if content.cast is None:
            told = self._quantized(graph, content, batches, path, overwrite=overwrite)
        else:
            told = write_cast_whole(graph, content, self.runtime, path, overwrite=overwrite)
        if content.report is not None:
            write_reports(
                told.put_into(content.report).files(),
                path,
                [own for own in (path, path.with_name(f"{path.name}.data")) if own.is_file()],
            )
        return path

    def _quantized(
        self, graph: OnnxModel, content: Content, batches: Sequence[Any], path: Path, *, overwrite: bool
    ) -> Told:
        """Write each layer in its form; return what there is to tell of it."""
        layers, values, products = dict(graph.layers), dict(graph.values), dict(graph.products)
        added = None if values else self.between(graph, batches)
        if added is not None:
            added.install()
        try:
            chosen = choose_weights(graph, batches, self.runtime)
            graph.layers |= chosen.narrow
            written = write(graph, self.runtime, path, overwrite=overwrite, unsigned=chosen.unsigned)
            written = replace(written, notes=(*written.notes, *chosen.notes))
            if added is not None and graph is not content.model:
                written = replace(written, notes=(*_UNSEEN, *written.notes))
            found = fusion(graph, self.runtime, path) if self.runtime.name == "ort-cpu" else None
        finally:
            graph.layers, graph.values, graph.products = layers, values, products
        for text in found.warnings if found else ():
            warnings.warn(text, FewbitWarning, stacklevel=5)
        return Told.of(written, found)


def ort_cpu() -> OnnxFile:
    """Return the target for onnxruntime on this processor."""
    return OnnxFile(ORT_CPU.on_processor(processor_flags()))


def tensorrt() -> OnnxFile:
    """Return the target for TensorRT."""
    return OnnxFile(TENSORRT)


def migraphx() -> OnnxFile:
    """Return the target for MIGraphX."""
    return OnnxFile(MIGRAPHX)


def openvino() -> OnnxFile:
    """Return the target for OpenVINO on this processor."""
    return OnnxFile(OPENVINO.on_processor(processor_flags()))
