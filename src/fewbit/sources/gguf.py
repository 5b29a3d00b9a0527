"""A GGUF file. Its header is checked first; a Llama is then read here, what else transformers knows by transformers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf_header import GgufHeader
from fewbit.checkpoints.gguf_parts import read_gguf
from fewbit.errors import CheckpointError, NotYetError, SourceError
from fewbit.schemes.scheme import ScaleType
from fewbit.sources import gguf_llama
from fewbit.sources.completeness import require_whole_by_name
from fewbit.sources.huggingface import TransformersModel, refusals, skeleton, transformers, without_kernels
from fewbit.sources.unloaded import Unloaded
from fewbit.sources.weights import Weights, require_plausible, weights_of_gguf


@dataclass(frozen=True)
class GgufModel(TransformersModel):
    """The model in the file `gguf` of `folder`, which everything is taken from."""

    gguf: str
    #: What the file says of itself.
    header: GgufHeader

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self.path)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / self.gguf

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the tensors in the model by those in the file, which others than Llamas keep."""
        return gguf_llama.names(self.header) if self._is_llama else {own.name: own.name for own in self.header.tensors}

    @property
    def storage_type(self) -> ScaleType:
        """Float16, the type of the scales of GGUF's quantized types."""
        return "float16"

    @property
    def origin(self) -> Path:
        """The file."""
        return self.path

    def load(self) -> Any:
        """Return the model in float32, ready to run.

        Raises:
            SourceError: files that do not fill the model, or that hold more than it takes.

        """
        if self._is_llama:
            return self._load_llama()
        self.skeleton()
        return self._from_pretrained(gguf_file=self.gguf)

    def unloaded(self) -> Unloaded:
        """Return the model without numbers, and how to read them; raises as `TensorwiseSource` says."""
        if not self._is_llama:
            raise NotYetError(f"{self.name} is no plain Llama: transformers reads it as a whole; use fewbit.quantize")
        return self._empty_llama()

    def companions(self) -> Mapping[str, bytes]:
        """Return tokenizer files and generation settings."""
        with tempfile.TemporaryDirectory() as folder:
            if self._has_tokenizer:
                self.tokenizer().save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        tokens = {key: getattr(self._config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {**files, "generation_config.json": (json.dumps(tokens, indent=2) + "\n").encode()}

    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        module = transformers()
        tokenizer_class = module.AutoTokenizer
        # transformers takes a file of settings beside the model for the tokenizer's own.
        if self._is_llama and not (self.folder / "tokenizer_config.json").exists():
            tokenizer_class = module.TOKENIZER_MAPPING.get(module.LlamaConfig, module.PreTrainedTokenizerFast)
        with refusals(f"transformers cannot load the tokenizer of {self.name}"):
            return tokenizer_class.from_pretrained(
                self.folder, gguf_file=self.gguf, local_files_only=True, trust_remote_code=False
            )

    def _empty_llama(self) -> Unloaded:
        self.skeleton()
        config = self._llama_config()
        model = skeleton(config, self.name)
        require_whole_by_name(gguf_llama.shapes(self.header), model, self.name)
        return Unloaded(model, gguf_llama.readers(self.path, self.header, config))

    def _load_llama(self) -> Any:
        import torch

        opened = self._empty_llama()
        with refusals(f"cannot read {self.name}"):
            numbers = {name: torch.from_numpy(read()) for name, read in opened.tensors.items()}
            opened.model.load_state_dict(numbers, strict=False, assign=True)
        opened.model.tie_weights()
        return opened.model.eval()

    @property
    def _has_tokenizer(self) -> bool:
        """Whether it comes with one: a file may say that it has none, `no_vocab`."""
        return self.header.values.get("tokenizer.ggml.model", "no_vocab") != "no_vocab"

    @cached_property
    def _is_llama(self) -> bool:
        return gguf_llama.is_llama(self.header)

    @cached_property
    def _weights(self) -> Weights:
        return weights_of_gguf(self.header)

    @cached_property
    def _config(self) -> Any:
        return self._llama_config() if self._is_llama else self._read_configuration(gguf_file=self.gguf)

    def _llama_config(self) -> Any:
        """Return a new configuration; what stands in the file is not always a value that transformers takes."""
        with refusals(f"transformers cannot read the configuration of {self.name}"):
            return without_kernels(transformers().LlamaConfig(**gguf_llama.configuration(self.header)))


def gguf_file(path: Path) -> GgufModel:
    """Return the source for the GGUF file at `path`.

    Raises:
        SourceError: not a GGUF file, one that does not hold what it says, or no model.
        NotYetError: tensors of a type that is not read.

    """
    found = described_file(path)
    _require_readable(found.header, path)
    if found.header.others and not gguf_llama.is_llama(found.header):
        raise NotYetError(
            f"{path} is the first of {len(found.header.others) + 1} parts, and transformers, which reads models other "
            "than plain Llamas here, takes one file; join them with llama-gguf-split --merge"
        )
    return found


def described_file(path: Path) -> GgufModel:
    """Return the same where only what it says of the model and its tokenizer is wanted, whatever its tensors are.

    Raises:
        SourceError: not a GGUF file, one that does not hold what it says, or no model.

    """
    try:
        header = read_gguf(path)
    except CheckpointError as error:
        raise SourceError(str(error)) from error
    _require_model(header, path)
    require_plausible(header.values, weights_of_gguf(header), str(path))
    return GgufModel(path.absolute().parent, path.name, header)


def _require_model(header: GgufHeader, path: Path) -> None:
    """Raise `SourceError` unless the file holds a model, the whole of it and nothing beside it."""
    values = header.values
    kind = values.get("general.type", "model")
    if kind != "model":
        raise SourceError(f"{path} holds no model: its general.type is {kind!r:.80}")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise SourceError(f"{path} names no architecture (general.architecture); it cannot be run")
    if not header.tensors:
        raise SourceError(f"{path} holds no tensor; is it a file of vocabulary only?")
    blocks = values.get(f"{architecture}.block_count")
    for tensor in header.tensors:
        match = re.match(r"blk\.([0-9]+)\.", tensor.name)
        if match and isinstance(blocks, int) and int(match[1]) >= blocks:
            raise SourceError(
                f"{path} says {architecture}.block_count = {blocks} and holds {tensor.name}; "
                "transformers would leave that tensor out"
            )


def _require_readable(header: GgufHeader, path: Path) -> None:
    """Raise `NotYetError` for tensors that transformers would not read, or would read as other numbers."""
    for tensor in header.tensors:
        if not _is_decoded(tensor.kind):
            raise NotYetError(
                f"{path}: tensor {tensor.name} is of type {tensor.kind}, which the gguf package cannot read"
            )
        if tensor.name.endswith(".scale"):
            raise NotYetError(f"{path}: {tensor.name} multiplies a weight, which transformers does not do")


@cache
def _is_decoded(kind: str) -> bool:
    """Whether the gguf package turns blocks of a type into numbers: it is asked to decode one block of zeros."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    form: Any = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[form][1]), dtype=np.uint8), form)
    except NotImplementedError:
        return False
    return True
