"""The GGUF layout, as llama.cpp and what is built on it load it: one file with weights, metadata and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewbit.checkpoints.gguf.architecture import architecture_of
from fewbit.checkpoints.gguf.blocks import BLOCKS
from fewbit.checkpoints.gguf.container import Entry
from fewbit.checkpoints.gguf.metadata import model_values
from fewbit.checkpoints.gguf.pre_tokenizers import WORDS
from fewbit.checkpoints.gguf.reader import read_checkpoint
from fewbit.checkpoints.gguf.stored_kind import weight_kind
from fewbit.checkpoints.gguf.tokenizer import tokenizer_values
from fewbit.checkpoints.gguf.writer import GgufWriter
from fewbit.checkpoints.hashes import write_reports
from fewbit.checkpoints.streamed import Streamed
from fewbit.errors import CheckpointError
from fewbit.interfaces import Checkpoint, Content, Layer, Manifest, QuantizedLayer, Source, StoredTensor
from fewbit.part_names import beside, whole_of
from fewbit.schemes.gguf import as_blocks
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme


@dataclass(frozen=True, slots=True)
class Gguf(Streamed):
    """A GGUF file."""

    #: How llama.cpp splits text for a byte-level BPE; `None`: by the structure of the tokenizer.
    pre: str | None = None

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return "gguf" if self.pre is None else f"gguf:{self.pre}"

    @property
    def shares_weights(self) -> bool:
        """A head that is left out is the embedding."""
        return True

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why this layout cannot hold a layer under its schemes, or `None`."""
        layer, scheme = quantized.layer, quantized.scheme
        for name, own in {"input": quantized.input, "output": quantized.output}.items():
            if own and scheme.scaled:
                return f"GGUF rounds no {name}s, and here is '{input_scheme_to_text(own)}'; leave out `{name}`"
        if quantized.bias != "float":
            return "GGUF stores a bias as floats; leave out `bias`"
        if layer.kind == "conv":
            return "GGUF holds the linear layers of language models, no convolutions; keep it"
        try:
            kind = weight_kind(scheme)
        except CheckpointError as error:
            return str(error)
        return _whole_scale_problem(layer) if kind == "NVFP4" else None

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in the blocks of 32 that hold the levels of its own, where there are such."""
        return replace(quantized, scheme=as_blocks(quantized.scheme))

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return why this layout cannot hold a rounded product inside attention: it never can."""
        return "GGUF has no place for rounded products inside attention; keep them"

    def source_problems(self, source: Source) -> Sequence[str]:
        """Return why a model of this family, or its tokenizer, cannot stand in such a file."""
        try:
            configuration = source.configuration()
            model_values(architecture_of(configuration), configuration)
            if source.origin is None or self.pre is not None:
                tokenizer_values(source.companions(), configuration, self.pre)
        except CheckpointError as error:
            return (str(error),)
        return ()

    def scale_type(self, storage_type: ScaleType) -> ScaleType:  # noqa: ARG002
        """Scales of blocks are float16."""
        return "float16"

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:  # noqa: ARG002
        """Return what stands in the file for a quantized layer; the plan does not know its name there."""
        try:
            kind = weight_kind(quantized.scheme)
        except CheckpointError:  # told by `problem`
            return ()
        rows, width = quantized.layer.shape
        if kind in BLOCKS and width % BLOCKS[kind][0]:
            return ()
        own = Entry("", kind, (rows, width))
        return (StoredTensor(f"{quantized.layer.name}.weight", "uint8", (rows, own.row_bytes)),)

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> GgufWriter:
        """Start a file that will hold exactly what `manifest` says."""
        return GgufWriter(path, manifest, self.pre, overwrite=overwrite)

    def write(self, content: Content, path: Path, *, overwrite: bool = False) -> Path:
        """Write a result to `path`, complete or not at all, its report beside it, and return the path."""
        written = Streamed.write(self, content, path, overwrite=overwrite)
        if content.report is not None:
            write_reports(content.report.files(), whole_of(written), beside(written))
        return written

    def read(self, path: Path) -> Checkpoint:
        """Open the file at `path`; tensors are read when asked for.

        Raises:
            CheckpointError: no such file, or one that does not hold what it says.
            NotYetError: an architecture or a type of tensors that is not read.

        """
        return read_checkpoint(Path(path))


def _whole_scale_problem(layer: Layer) -> str | None:
    """Return why a layer cannot be NVFP4, whose blocks are wider than its groups and want a scale beside them."""
    block = BLOCKS["NVFP4"][0]
    if layer.shape[1] % block:
        return f"in_features {layer.shape[1]} is not a multiple of the {block} numbers of a block of NVFP4; use mxfp4"
    if layer.kind != "linear":
        return f"GGUF has no place for the scale of a whole NVFP4 tensor beside a layer of kind {layer.kind}; keep it"
    return None


def named(option: str) -> Gguf:
    """Return the layout for `gguf:WORD`, which names how a byte-level BPE splits text."""
    if not option.isprintable() or not 1 <= len(option) <= 40:
        raise CheckpointError(f"gguf:{option!r:.60} names no split of text; llama.cpp has {', '.join(WORDS)} and more")
    return Gguf(pre=option)
