"""A checkpoint that fewbit reads: the quantized layers go straight into the model, float numbers into the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, get_args

from fewbit.activation import Activation
from fewbit.checkpoints.json_object import read_object
from fewbit.errors import CheckpointError
from fewbit.interfaces import (
    CHECKPOINTS,
    ONE_FILE,
    Activations,
    Checkpoint,
    Replacement,
    checkpoint_format,
    frontend_of,
)
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import ScaleType
from fewbit.sources.memory import Memory
from fewbit.sources.model_folder import CONFIGURATION, companion_files
from fewbit.sources.weights import Weights, require_plausible, require_small_buffers


@dataclass(frozen=True)
class CheckpointFolder:
    """A quantized model folder; without a `config.json` of a transformers model it needs the module it belongs to."""

    path: Path
    #: The float module to load into; `None`: built from the configuration.
    into: Any = None

    @property
    def name(self) -> str:
        """Path as the user gave it."""
        return str(self.path)

    @property
    def framework(self) -> str:
        """The front end for it."""
        return "torch"

    @property
    def storage_type(self) -> ScaleType:
        """The type that most of the float numbers have; without any, that of the scales."""
        schemes = self.checkpoint.schemes
        scales = [scheme.scale_type for scheme in schemes.values() if scheme.scale_type]
        counts: Counter[Any] = Counter()
        for tensor in self.checkpoint.stored:
            if tensor.name.removesuffix(".weight") not in schemes and tensor.dtype in get_args(ScaleType):
                counts[tensor.dtype] += prod(tensor.shape)
        return next(iter((*(dtype for dtype, _ in counts.most_common()), *scales)), "float32")

    @property
    def computes_in(self) -> ScaleType:
        """Float32, or what the module that it was loaded into has."""
        return "float32" if self.into is None else Memory(self.into).storage_type

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The opened checkpoint."""
        opened: Checkpoint = checkpoint_format(_layout(self.path)).read(self.path)
        if not opened.schemes:
            remedy = "use fewbit quantize" if self.path.is_file() else "though its config.json says so"
            raise CheckpointError(f"{self.path} holds no quantized layer; {remedy}")
        return opened

    @property
    def origin(self) -> Path | None:
        """The file, where it is one."""
        return self.path if self.path.is_file() else None

    def skeleton(self) -> Any:
        """Return the float model, without numbers unless `into` brought them."""
        if self.into is not None:
            return self.into
        if "model_type" not in self.checkpoint.configuration:
            raise CheckpointError(
                f"{self.path} was saved from a module of your own; build it and call fewbit.load(path, into=module)"
            )
        from fewbit.sources.huggingface import (
            outline,
            refusals,
            require_described,
            skeleton,
            transformers,
            without_kernels,
        )

        file = self.path / CONFIGURATION
        require_described(self.checkpoint.configuration, file)
        require_plausible(
            self.checkpoint.configuration, Weights({t.name: t.shape for t in self.checkpoint.stored}), str(file)
        )
        with refusals(f"transformers cannot read the configuration of {self.name}"):
            config = without_kernels(transformers().AutoConfig.for_model(**self.checkpoint.configuration))
        require_small_buffers(outline(config, self.name), self.name)
        return skeleton(config, self.name)

    def experts_apart(self, model: Any) -> AbstractContextManager[Any]:
        """Keep experts that share a parameter of `model`, and are quantized in the files, as layers meanwhile."""
        from fewbit.frontends.torch.fused_experts import experts_apart

        return experts_apart(model, lambda: None, among=self.checkpoint.schemes)

    def load(self) -> Any:
        """Return the model with its quantized layers in place."""
        import torch

        model = self.skeleton()
        with self.experts_apart(model):
            self._install(model)
        # Embedding and head that are quantized both have no weights to tie.
        if hasattr(model, "tie_weights") and any(parameter.is_meta for parameter in model.parameters()):
            model.tie_weights()
        empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if empty:
            raise CheckpointError(f"{self.path} lacks {', '.join(empty[:5])}; the folder is incomplete")
        return model.to(torch.float32).eval() if self.into is None else model

    def _install(self, model: Any) -> None:
        """Put the quantized layers and the float numbers into `model`; one of the user's stays as it was on failure."""
        from fewbit.frontends.torch.stored import from_stored

        frontend = frontend_of(self.framework)
        layers = {layer.name: layer for layer in frontend.layers(model)}
        floats = {}
        static: dict[str, Activation] = {}
        installed: list[Replacement] = []
        try:
            for name, value in self.checkpoint.tensors():
                if isinstance(value, Activation):
                    static[name] = value
                    continue
                if not isinstance(value, QTensor):
                    floats[name] = from_stored(value)
                    continue
                if name not in layers or layers[name].shape != value.shape:
                    there = layers[name].shape if name in layers else "no such layer"
                    raise CheckpointError(f"{self.path} holds {name} of shape {value.shape}; the model has {there}")
                rounded = Activations(input=static.get(name, self._dynamic(name)))
                installed.append(frontend.replacement(model, layers[name], value.map(from_stored), rounded))
                installed[-1].install()
            self._fill(model, floats)
        except BaseException:
            for replacement in installed:
                replacement.restore()
            raise

    def configuration(self) -> Mapping[str, Any]:
        """Return `config.json` without `quantization_config`."""
        return self.checkpoint.configuration

    def companions(self) -> Mapping[str, bytes]:
        """Return tokenizer files and generation settings."""
        return self._file().companions() if self.path.is_file() else companion_files(self.path)

    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        from fewbit.sources.huggingface import load_tokenizer

        return self._file().tokenizer() if self.path.is_file() else load_tokenizer(self.path)

    def _file(self) -> Any:
        """Return the file as a source of float numbers, which knows its tokenizer."""
        from fewbit.sources.gguf import described_file

        return described_file(self.path)

    def cache(self, model: Any) -> Any:
        """Return an empty key-value cache for `model` by the ranges that the folder holds; `None`: it holds none."""
        caches = self.checkpoint.caches()
        if not caches:
            return None
        from fewbit.frontends.torch.key_value_cache import stored_cache

        return stored_cache(model, caches)

    def _dynamic(self, name: str) -> Activation | None:
        scheme = self.checkpoint.inputs.get(name)
        return Activation(scheme=scheme) if scheme and not scheme.static else None

    def _fill(self, model: Any, floats: dict[str, Any]) -> None:
        from fewbit.frontends.torch.quantized import quantized_prefixes

        own = quantized_prefixes(model)
        current = {name: t for name, t in model.state_dict(keep_vars=True).items() if not name.startswith(own)}
        for name, tensor in floats.items():
            if name not in current or current[name].shape != tensor.shape:
                there = list(current[name].shape) if name in current else "no such tensor"
                raise CheckpointError(f"{self.path} holds {name} {list(tensor.shape)}; the model has {there}")
            if not current[name].is_meta:
                floats[name] = tensor.to(current[name].device, current[name].dtype)
        absent = current.keys() - floats.keys() - _twins(current, floats.keys())
        if absent:
            raise CheckpointError(f"{self.path} lacks {', '.join(sorted(absent)[:5])}; the folder is incomplete")
        model.load_state_dict(floats, strict=False, assign=True)


def _layout(path: Path) -> str:
    """Return the checkpoint format that `config.json` names, or compressed-tensors, whose reader says what is amiss."""
    if path.is_file():
        return ONE_FILE[path.suffix]
    try:
        method = read_object(path / CONFIGURATION)["quantization_config"]["quant_method"]
    except (CheckpointError, LookupError, TypeError):
        method = None
    return str(method) if str(method) in CHECKPOINTS else "compressed-tensors"


def _twins(tensors: Mapping[str, Any], present: Any) -> set[str]:
    """Return the names that share their tensor with one that is present."""
    owners = {id(tensors[name]) for name in present}
    return {name for name, tensor in tensors.items() if id(tensor) in owners}
