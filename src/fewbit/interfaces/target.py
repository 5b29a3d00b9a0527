"""What a result is written for: a layout of files, or a runtime of ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fewbit.formats.cast import Cast
from fewbit.interfaces.forms import Switch
from fewbit.interfaces.frontend import Frontend
from fewbit.interfaces.layer import Layer, QuantizedLayer
from fewbit.interfaces.manifest import Manifest, StoredTensor
from fewbit.interfaces.source import Source
from fewbit.schemes.scheme import ScaleType, Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A result on its way into a file."""

    #: The live model with its quantized forms.
    model: Any
    frontend: Frontend
    manifest: Manifest
    #: What it was calibrated on, if anything.
    batches: Sequence[Any] = ()
    #: A batch to trace a module on; `None`: what it makes up.
    example: Any = None
    #: The type that the whole model is cast to; `None`: layers have schemes of their own.
    cast: Cast | None = None
    #: The report, or `None`.
    report: Any = None


class Target(Protocol):
    """What a plan is checked against and a result is written for: a layout of files, or a runtime of ONNX files."""

    @property
    def name(self) -> str:
        """The word for it in `to=`."""

    @property
    def keeps_layers(self) -> bool:
        """Whether its files hold every layer of the model as it was, so that none can be folded into another."""

    @property
    def holds_graph(self) -> bool:
        """Whether its files hold how the model computes: in which type, and a runtime instead of kernels runs it."""

    @property
    def shares_weights(self) -> bool:
        """Whether its files hold a weight once that tied layers share, and are quantized alike in."""

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return what a preset gives a layer here instead: the nearest schemes that the target has a form for."""

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why it cannot hold a layer under its schemes, with the remedy, or `None`."""

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:
        """Return why it cannot hold that operands of a product inside attention are rounded so, or `None`."""

    def source_problems(self, source: Source) -> Sequence[str]:
        """Return why it cannot hold a model of this kind or its tokenizer, with the remedy."""

    def cache_problem(self, scheme: Scheme) -> str | None:
        """Return why it has no place for the ranges of a key-value cache that is rounded so, or `None`."""

    def scale_type(self, storage_type: ScaleType) -> ScaleType:
        """Return the type in which it stores scales."""

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for a quantized layer."""

    def between(self, model: Any, batches: Sequence[Any]) -> Switch | None:
        """Return what it rounds between the installed layers of `model`, ranged on `batches`; `None`: nothing."""

    def write(self, content: Content, path: Path, *, overwrite: bool = False) -> Path:
        """Write a result to `path`, complete or not at all, and return the path."""
