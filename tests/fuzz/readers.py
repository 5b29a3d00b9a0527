"""Every reader of files that nobody vouches for, as a function of a folder: what the fuzzer runs.

Each reads the header first, then metadata, then decodes the tensors, which are small. Imports happen when a reader is
looked up, so that executions measure reading alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Read = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader and what it reads."""

    #: Imports what it needs and returns what reads a folder.
    made: Callable[[], Read]
    #: The name of a file that comes alone; several are framed.
    file: str
    #: Of 100 executions over all readers; those that take long get few.
    share: float


def _safetensors() -> Read:
    from fewbit.checkpoints.safetensors_file import read_tensors

    def read(folder: Path) -> None:
        for _, array in read_tensors(folder / "m.safetensors"):
            array.tobytes()

    return read


def _index() -> Read:
    from fewbit.checkpoints.safetensors_file import tensor_readers
    from fewbit.checkpoints.safetensors_folder import files_of
    from fewbit.sources.weights import weights_of_folder

    def read(folder: Path) -> None:
        weights_of_folder(folder)
        for file in files_of(folder):
            for own in tensor_readers(file).values():
                own()

    return read


def _checkpoint(name: str = "") -> Callable[[], Read]:
    def made() -> Read:
        import numpy as np

        from fewbit.qtensor import QTensor
        from fewbit.sources.checkpoint import CheckpointFolder

        def read(folder: Path) -> None:
            opened = CheckpointFolder(folder / name).checkpoint
            for _, value in opened.tensors():
                if isinstance(value, QTensor):
                    assert np.isfinite(np.asarray(value.dequantize())).all(), "weights that are no numbers"
            opened.caches()

        return read

    return made


def _gguf() -> Read:
    from fewbit.checkpoints.gguf.tokenizer import carried_values
    from fewbit.sources.gguf import described_file

    own = _checkpoint("m.gguf")()

    def read(folder: Path) -> None:
        described_file(folder / "m.gguf")
        carried_values(folder / "m.gguf")
        own(folder)

    return read


def _gguf_parts() -> Read:
    from fewbit.checkpoints.gguf_parts import place_of, read_gguf

    def read(folder: Path) -> None:
        path = folder / "m-00001-of-00002.gguf"
        header = read_gguf(path)
        for own in header.tensors:
            file, start = place_of(path, header, own)
            assert start + own.nbytes <= file.stat().st_size

    return read


def _importance() -> Read:
    from fewbit.checkpoints.gguf.importance_matrix import read_importance_matrix

    def read(folder: Path) -> None:
        found = read_importance_matrix(folder / "m.imatrix")
        for name in found.sums:
            found.mean_squares(name)

    return read


def _onnx() -> Read:
    from fewbit.onnx_graph.file import bytes_on_disk, weight_bytes
    from fewbit.onnx_graph.live import OnnxModel

    def read(folder: Path) -> None:
        model = OnnxModel.read(folder / "m.onnx").graph
        weight_bytes(model)
        bytes_on_disk(model, folder / "m.onnx")
        for graph in model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value.numpy()

    return read


def _configuration() -> Read:
    from fewbit.sources.huggingface import TransformersModel

    def read(folder: Path) -> None:
        TransformersModel(folder).skeleton()

    return read


def _tokenizer_values() -> Read:
    from fewbit.checkpoints.gguf.tokenizer import tokenizer_values
    from fewbit.sources.model_folder import companion_files

    def read(folder: Path) -> None:
        tokenizer_values(companion_files(folder), {"vocab_size": 64, "bos_token_id": 1})

    return read


def _tokenizer() -> Read:
    from fewbit.sources.huggingface import load_tokenizer

    def read(folder: Path) -> None:
        load_tokenizer(folder)

    return read


def _recipe() -> Read:
    from fewbit.interfaces import Layer
    from fewbit.recipe import Recipe

    layers = [Layer(name, "linear", (64, 64), "Linear") for name in ("model.layers.0.mlp.up_proj", "a" * 60)]

    def read(folder: Path) -> None:
        recipe = Recipe.from_toml(folder / "r.toml")
        for layer in layers:
            recipe.winner(layer)

    return read


def _preprocessing() -> Read:
    from fewbit.samples.preprocessing import Preprocessing

    def read(folder: Path) -> None:
        Preprocessing.from_toml(folder / "p.toml")

    return read


def _samples(name: str) -> Callable[[], Read]:
    def made() -> Read:
        from fewbit.samples.files import Samples

        def read(folder: Path) -> None:
            opened: Any = Samples(folder / name).open(None)
            for batch in opened.batches[:4]:
                assert batch is not None

        return read

    return made


def _labels() -> Read:
    from fewbit.samples.labels import read_labels

    def read(folder: Path) -> None:
        read_labels(folder / "labels.csv", ["a.png", "b.png"])

    return read


def _adapters() -> Read:
    from fewbit.checkpoints.adapter_folder import read_adapters

    def read(folder: Path) -> None:
        for first, second in read_adapters(folder).pairs.values():
            first.tobytes()
            second.tobytes()

    return read


READERS = {
    "safetensors": Reader(_safetensors, "m.safetensors", 14),
    "index": Reader(_index, "model.safetensors.index.json", 6),
    "gptq": Reader(_checkpoint(), "config.json", 4),
    "awq": Reader(_checkpoint(), "config.json", 4),
    "compressed-tensors": Reader(_checkpoint(), "config.json", 4),
    "gguf": Reader(_gguf, "m.gguf", 6),
    "gguf-parts": Reader(_gguf_parts, "m-00001-of-00002.gguf", 6),
    "importance": Reader(_importance, "m.imatrix", 12),
    "onnx": Reader(_onnx, "m.onnx", 8),
    "configuration": Reader(_configuration, "config.json", 0.3),
    "tokenizer-values": Reader(_tokenizer_values, "tokenizer.json", 5),
    "tokenizer": Reader(_tokenizer, "tokenizer.json", 0.7),
    "recipe": Reader(_recipe, "r.toml", 10),
    "preprocessing": Reader(_preprocessing, "p.toml", 4),
    "npy": Reader(_samples("x.npy"), "x.npy", 6),
    "npz": Reader(_samples("x.npz"), "x.npz", 5),
    "labels": Reader(_labels, "labels.csv", 2),
    "adapters": Reader(_adapters, "adapter_config.json", 3),
}
