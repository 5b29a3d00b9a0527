"""What a report says of an ONNX file: the form of each layer in it, and of onnxruntime what it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewbit.checkpoints.onnx.fusion import Fusion
from fewbit.checkpoints.onnx.writer import Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known when the file is written."""

    #: What each layer runs on, and whether that is faster than float, by its name.
    kernels: Mapping[str, tuple[str, bool]]
    #: Sentences on the whole file.
    notes: tuple[str, ...]

    @classmethod
    def of(cls, written: Written, found: Fusion | None) -> Told:
        """Return what there is to tell of a file, of which onnxruntime made what was `found`."""
        values = len(written.values)
        notes = [f"opset {written.opset}, for {written.runtime}"]
        notes += [f"{values} values between layers are rounded too, so that integers flow there"] if values else []
        if found is not None:
            for what, nodes in (("integers", found.integer_nodes), ("floats", found.float_nodes)):
                told = ", ".join(f"{count} {kind}" for kind, count in sorted(nodes.items()))
                notes += [f"onnxruntime computes with {what}: {told}"] if told else []
            notes += found.warnings
        kernels = {name: _kernel(name, written, found) for name in written.forms}
        return cls(kernels=kernels, notes=(*notes, *written.notes))

    def put_into(self, report: Any) -> Any:
        """Return `report` with it."""
        layers = []
        for own in report.layers:
            kernel, fast = self.kernels.get(own.name, (own.kernel, own.fast))
            layers.append(replace(own, kernel=kernel, fast=fast))
        return replace(report, layers=tuple(layers), remarks=(*report.remarks, *self.notes))


def _kernel(name: str, written: Written, found: Fusion | None) -> tuple[str, bool]:
    form = written.forms[name]
    if found is None:
        return f"{written.runtime}, from {form}", True
    if name in found.integers:
        return f"onnxruntime {found.integers[name]}, from {form}", True
    return f"onnxruntime, in float: {found.floats[name]}", False
