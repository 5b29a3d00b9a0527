"""What each quantized layer of a checkpoint becomes in another layout, told by schemes alone, and what will be written.

An embedding or a head becomes plain numbers where the layout may not hold it; float32 holds all that blocks stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewbit.errors import CheckpointError, PlanError
from fewbit.interfaces import (
    FLOAT_TYPES,
    Checkpoint,
    CheckpointFormat,
    Layer,
    Manifest,
    QuantizedLayer,
    StoredTensor,
    frontend_of,
)
from fewbit.problems import several
from fewbit.qtensor import QTensor
from fewbit.schemes.gguf import as_integers
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.sources.checkpoint import CheckpointFolder


@dataclass(frozen=True, slots=True)
class Planned:
    """What a layer becomes."""

    #: The scheme in the source, before any runs of columns.
    before: Scheme
    #: The layer under the scheme that it gets; `None`: its weight becomes plain numbers.
    quantized: QuantizedLayer | None = None
    #: Why its values cannot stay; `None`: they may, its numbers permitting.
    loss: str | None = None
    #: Of plain numbers: the tensor; `None` with a head whose weight is that of the embedding.
    plain: StoredTensor | None = None

    @property
    def after(self) -> str:
        """Notation of its scheme, or the type of its numbers, in what is written."""
        return str(self.quantized.scheme) if self.quantized else self.plain.dtype if self.plain else "tied"


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What becomes of a checkpoint in a layout."""

    source: CheckpointFolder
    target: CheckpointFormat
    #: Type of the scales, where the layout leaves it open, and of numbers that are rounded to 16 bits.
    storage_type: ScaleType
    #: Whether what cannot stay is rounded.
    lossy: bool
    #: Every layer of the model.
    layers: tuple[Layer, ...]
    #: What those with codes become.
    planned: Mapping[str, Planned]

    @classmethod
    def of(cls, source: CheckpointFolder, target: CheckpointFormat, dtype: str, *, lossy: bool) -> ConversionPlan:
        """Plan it; raise `PlanError` with all that the schemes of layers forbid."""
        checkpoint, layers = source.checkpoint, _layers(source)
        for name in checkpoint.schemes.keys() - {layer.name for layer in layers}:
            raise CheckpointError(f"{checkpoint.path} holds {name}; the model has no such layer")
        storage_type: Any = _storage_type(checkpoint) if dtype == "auto" else dtype
        made = cls(source, target, storage_type, lossy, tuple(layers), {})
        quantized = [layer for layer in layers if layer.name in checkpoint.schemes]
        planned = {layer.name: made._planned(layer) for layer in quantized}
        if checkpoint.configuration.get("tie_word_embeddings") and made._frees(quantized, planned):
            heads = [layer.name for layer in quantized if layer.kind == "head"]
            planned |= {name: Planned(planned[name].before) for name in heads}
        _require_lossless(planned, lossy=lossy)
        return replace(made, planned=planned)

    @property
    def manifest(self) -> Manifest:
        """What will be written."""
        checkpoint = self.source.checkpoint
        quantized = {name: own.quantized for name, own in self.planned.items() if own.quantized}
        floats = checkpoint.floats
        if floats is None:
            floats = tuple(tensor for tensor in checkpoint.stored if not self._owned(tensor.name))
        plain = [own.plain for own in self.planned.values() if own.plain]
        configuration = dict(checkpoint.configuration)
        if checkpoint.path.is_file():
            matrices = _matrix_type((*plain, *floats))
            configuration["dtype"] = matrices or self.target.scale_type(self.storage_type)
        return Manifest(
            quantized=tuple(quantized.values()),
            kept=tuple(layer for layer in self.layers if layer.name not in quantized),
            floats=(*plain, *floats),
            storage_type=self.storage_type,
            configuration=configuration,
            files=self.source.companions(),
        )

    def _planned(self, layer: Layer) -> Planned:
        checkpoint, target = self.source.checkpoint, self.target
        name, scale_type = layer.name, target.scale_type(self.storage_type)
        before = checkpoint.scattered.get(name, checkpoint.schemes[name])
        given = QuantizedLayer(layer, before, checkpoint.inputs.get(name))
        held = _typed(target.held_as(given), scale_type)
        loss = target.problem(held)
        if layer.kind in ("embedding", "head") and (loss or _uncertain(before, held.scheme)):
            dtype = scale_type if self.lossy else "float32"
            return Planned(before, plain=StoredTensor(f"{name}.weight", dtype, layer.shape))
        if loss is None and name in checkpoint.scattered:
            loss = f"its columns share scales by g_idx (act-order), and {target.name} is written for neighbours"
        if loss is not None and self.lossy:
            held = _typed(target.nearest(given), scale_type)
            if problem := target.problem(held):
                raise PlanError(f"{name}: {problem}")
        return Planned(before, held, loss)

    def _frees(self, layers: list[Layer], planned: Mapping[str, Planned]) -> bool:
        """Whether the embedding becomes plain numbers, which a tied head then takes."""
        return any(layer.kind == "embedding" and planned[layer.name].plain for layer in layers)

    def _owned(self, name: str) -> bool:
        """Whether a stored tensor is part of a quantized weight or of the range of its input."""
        owner, _, part = name.rpartition(".")
        return owner in self.planned and part != "bias"


def _layers(source: CheckpointFolder) -> list[Layer]:
    """Return the layers of the model, or without a description of it those that the names of tensors tell."""
    checkpoint = source.checkpoint
    if "model_type" in checkpoint.configuration:
        skeleton = source.skeleton()
        with source.experts_apart(skeleton):
            return list(frontend_of(source.framework).layers(skeleton))
    shapes = {name: value.shape for name, value in checkpoint.tensors() if isinstance(value, QTensor)}
    for tensor in checkpoint.stored:
        name = tensor.name.removesuffix(".weight")
        if name != tensor.name and name not in shapes and len(tensor.shape) == 2:
            shapes[name] = tensor.shape
    return [Layer(name, "linear", (shape[0], shape[1]), "Linear") for name, shape in shapes.items()]


def _uncertain(before: Scheme, after: Scheme) -> bool:
    """Whether it takes a look at the numbers to know if a block of GGUF has its values under another scheme."""
    wide = before.scale_scheme is not None and after.scale_type not in (None, "float32")
    return as_integers(before) != before and (before.minimum or wide)


def _require_lossless(planned: Mapping[str, Planned], *, lossy: bool) -> None:
    alike: dict[str, list[str]] = {}
    for name, own in planned.items():
        if own.loss is not None and not lossy:
            alike.setdefault(own.loss, []).append(name)
    if alike:
        remedy = "--lossy (lossy=True) rounds to what it holds"
        raise PlanError("\n".join(f"{several(names)}: {text}; {remedy}" for text, names in alike.items()))


def _typed(quantized: QuantizedLayer, scale_type: ScaleType) -> QuantizedLayer:
    """Return the layer with the type in which its scales are stored, if it has float ones."""
    scheme = quantized.scheme
    if not scheme.scaled or scheme.scale_scheme is not None:
        return quantized
    return replace(quantized, scheme=replace(scheme, scale_type=scale_type))


def _storage_type(checkpoint: Checkpoint) -> str:
    """Return the type of all scales; float32, which holds any, where there are several."""
    types = {str(own.scale_type) for own in map(as_integers, checkpoint.schemes.values()) if own.scale_type}
    return types.pop() if len(types) == 1 else "float32"


def _matrix_type(floats: tuple[StoredTensor, ...]) -> str | None:
    """Return a type that loads the float matrices as they are; vectors are float32 in every GGUF file."""
    types = {own.dtype for own in floats if len(own.shape) > 1 and own.dtype in FLOAT_TYPES}
    return None if not types else types.pop() if len(types) == 1 else "float32"
