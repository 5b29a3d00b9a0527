"""Front ends, checkpoint formats and runtimes by name: where the implementations of the contracts are."""

from __future__ import annotations

from fewbit.catalogue import lookup
from fewbit.interfaces.checkpoint import CheckpointFormat
from fewbit.interfaces.frontend import Frontend
from fewbit.interfaces.target import Target

#: Front ends by framework.
FRONTENDS = {
    "torch": "fewbit.frontends.torch.frontend:TorchFrontend",
    "onnx": "fewbit.frontends.onnx.frontend:OnnxFrontend",
}
#: Checkpoint formats by the word for them in `to=`, which is also the `quant_method` of their `config.json`.
CHECKPOINTS = {
    "compressed-tensors": "fewbit.checkpoints.compressed_tensors:CompressedTensors",
    "gptq": "fewbit.checkpoints.gptq:Gptq",
    "awq": "fewbit.checkpoints.awq:Awq",
    "gguf": "fewbit.checkpoints.gguf.format:Gguf",
}
#: Checkpoint formats that are one file instead of a folder, by the ending of its name.
ONE_FILE = {".gguf": "gguf"}
#: Checkpoint formats that take a word, as in `gguf:qwen2`.
_OPTIONS = {"gguf": "fewbit.checkpoints.gguf.format:named"}
#: Runtimes that ONNX files are written for, by the word for them in `to=` and `runtime=`.
RUNTIME_FILES = {
    "ort-cpu": "fewbit.checkpoints.onnx.format:ort_cpu",
    "tensorrt": "fewbit.checkpoints.onnx.format:tensorrt",
    "migraphx": "fewbit.checkpoints.onnx.format:migraphx",
    "openvino": "fewbit.checkpoints.onnx.format:openvino",
}


def target_of(name: str) -> Target:
    """Return the checkpoint format or the runtime called `name`.

    Raises:
        RecipeError: no such format.

    """
    known = {**CHECKPOINTS, **RUNTIME_FILES}
    base, colon, option = name.partition(":")
    if colon and base in _OPTIONS:
        with_option: Target = lookup(_OPTIONS, base, what="checkpoint format")(option)
        return with_option
    made: Target = lookup(known, name, what="checkpoint format")()
    return made


def checkpoint_format(name: str) -> CheckpointFormat:
    """Return the checkpoint format called `name`, one that can be read; raises `RecipeError`: no such format."""
    made: CheckpointFormat = lookup(CHECKPOINTS, name, what="checkpoint format")()
    return made


def frontend_of(framework: str) -> Frontend:
    """Return the front end of a framework."""
    made: Frontend = lookup(FRONTENDS, framework, what="front end")()
    return made
