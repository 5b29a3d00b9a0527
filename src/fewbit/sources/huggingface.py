"""A Hugging Face folder, read through transformers. Safetensors only: no pickle, no remote code."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fewbit.checkpoints.json_object import read_object, require_light
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_file import tensor_readers
from fewbit.checkpoints.safetensors_folder import INDEX, files_of
from fewbit.errors import CheckpointError, FewbitError, MissingExtraError, NotYetError, SourceError
from fewbit.schemes.scheme import ScaleType
from fewbit.sources.completeness import require_whole, require_whole_by_name
from fewbit.sources.memory import plain_configuration
from fewbit.sources.model_folder import (
    CONFIGURATION,
    companion_files,
    read_configuration,
    require_no_code,
    require_own_weights,
)
from fewbit.sources.unloaded import Unloaded
from fewbit.sources.weights import Weights, require_fit, require_plausible, weights_of_folder

#: What the files of tokenizers are called.
_TOKENIZER = re.compile(r"(tokenizer|vocab|merges|spiece|sentencepiece|bpe).*|.*\.(model|tiktoken)$")


def transformers() -> Any:
    """Return the transformers module, quiet; the message of the error names the extra."""
    try:
        import accelerate  # noqa: F401  # transformers needs it to load GGUF and to build models without numbers
        import transformers as module
    except ImportError as error:
        raise MissingExtraError("language models need: pip install 'fewbit[transformers]'") from error
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@dataclass(frozen=True)
class TransformersModel:
    """A model that transformers knows, in `folder`."""

    folder: Path

    @property
    def name(self) -> str:
        """Path as the user gave it."""
        return str(self.folder)

    @property
    def framework(self) -> str:
        """The front end for it."""
        return "torch"

    @property
    def storage_type(self) -> ScaleType:
        """What `config.json` says."""
        dtype = str(getattr(self._config, "dtype", None) or "float32").removeprefix("torch.")
        if dtype not in ("float32", "float16", "bfloat16"):
            raise NotYetError(f"{self.name} is stored as {dtype}, which this version does not read")
        return dtype  # type: ignore[return-value]

    @property
    def computes_in(self) -> ScaleType:
        """Float32, whatever the files hold."""
        return "float32"

    @property
    def origin(self) -> Path | None:
        """None: it is read from no GGUF file."""
        return None

    def skeleton(self) -> Any:
        """Return the model on the meta device; only the configuration and the headers of the weights are read."""
        model = outline(self._config, self.name)
        weights = replace(self._weights, named_alike=False) if _converts(model) else self._weights
        require_fit(model, weights, self.name)
        return model

    def load(self) -> Any:
        """Return the model in float32, ready to run.

        Raises:
            SourceError: files that do not fill the model, or that hold more than it takes.

        """
        self.skeleton()
        return self._from_pretrained(use_safetensors=True, config=self._config)

    def unloaded(self) -> Unloaded:
        """Return the model without numbers, and how to read them; raises as `TensorwiseSource` says."""
        from fewbit.frontends.torch.fused_experts import as_stored

        self.skeleton()
        model = skeleton(self._config, self.name)
        names = as_stored(model)
        if names is None:
            raise NotYetError(
                f"transformers merges or reshapes tensors of {self.name} that are no experts, which is not done one by "
                "one; use fewbit.quantize"
            )
        readers = {name: read for file in files_of(self.folder) for name, read in tensor_readers(file).items()}
        ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
        readers = {name: read for name, read in readers.items() if not any(own.search(name) for own in ignored)}
        # Files have the names of the architecture's first release, or those that transformers gives its modules.
        here = {file: name for name, file in names.items()}
        here = {name: here.get(name, name) for name in readers}
        require_whole_by_name({here[name]: self._weights.shapes[name] for name in readers}, model, self.name)
        return Unloaded(model, {here[name]: read for name, read in readers.items()})

    def configuration(self) -> Mapping[str, Any]:
        """Return the content of `config.json`."""
        return plain_configuration(self._config.to_dict(), model_class_of(self._config, self.name).__name__)

    def companions(self) -> Mapping[str, bytes]:
        """Return tokenizer files and generation settings."""
        return companion_files(self.folder)

    def tokenizer(self) -> Any | None:
        """Return the tokenizer; `None`: the folder holds no file of one."""
        names = [path.name for path in self.folder.iterdir()]
        return load_tokenizer(self.folder) if any(map(_TOKENIZER.match, names)) else None

    def _from_pretrained(self, **arguments: Any) -> Any:
        """Return what transformers loads with these arguments, in float32."""
        import torch

        model_class = model_class_of(self._config, self.name)
        # transformers draws a bar for GGUF files that no setting turns off; errors come as exceptions.
        with refusals(f"transformers cannot load {self.name}"), contextlib.redirect_stderr(io.StringIO()):
            # Mismatched sizes are ignored here so that they come back by name; `require_whole` refuses them.
            model, found = model_class.from_pretrained(
                self.folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **arguments,
            )
        require_whole(found, model, self.name)
        return model.eval()

    @cached_property
    def _weights(self) -> Weights:
        return weights_of_folder(self.folder)

    @cached_property
    def _config(self) -> Any:
        configuration = read_configuration(self.folder)
        require_own_weights(self.folder, configuration)
        require_described(configuration, self.folder / CONFIGURATION)
        require_plausible(configuration, self._weights, str(self.folder / CONFIGURATION))
        return self._read_configuration()

    def _read_configuration(self, **arguments: Any) -> Any:
        """Return the configuration that transformers reads with these arguments."""
        with refusals(f"transformers cannot read the configuration of {self.name}"):
            return without_kernels(
                transformers().AutoConfig.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False, **arguments
                )
            )


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn whatever transformers raises over a file into a `SourceError` that begins with `what`.

    It checks little of what it reads: a wrong file ends it with any exception there is.
    """
    try:
        yield
    except (FewbitError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:400]
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) and said else type(error).__name__
        raise SourceError(": ".join(part for part in (what, kind, said) if part)) from error


def require_described(configuration: Mapping[str, Any], file: Path) -> None:
    """Raise `SourceError` unless `config.json` is that of a model which transformers has code for."""
    module = transformers()
    require_no_code(configuration, module, file)
    kind = configuration.get("model_type")
    if not isinstance(kind, str) or kind not in module.CONFIG_MAPPING:
        raise SourceError(f"{file} has model_type {kind!r:.80}, which transformers {module.__version__} does not have")
    named = configuration.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise SourceError(f"{file} has architectures {named!r:.80}, which is no list of names of classes")


def without_kernels(config: Any) -> Any:
    """Return `config` without the words by which it would fetch kernels, which are code, for attention or experts."""
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def model_class_of(config: Any, name: str) -> Any:
    """Return the transformers class that the configuration names, else the causal language model of its type.

    Raises:
        SourceError: no such class; code inside the folder is never run.

    """
    module = transformers()
    architecture = (getattr(config, "architectures", None) or [None])[0]
    if architecture:
        found = getattr(module, architecture, None)
        if not (isinstance(found, type) and issubclass(found, module.PreTrainedModel)):
            raise SourceError(f"{name}: transformers {module.__version__} has no class {architecture!r}")
        return found
    mapping = module.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise SourceError(f"{name}: config.json names no architecture, and {config.model_type!r} is no language model")
    return mapping[type(config)]


def outline(config: Any, name: str) -> Any:
    """Return the model of a configuration on the meta device, buffers too: of any size, it takes no memory.

    Raises:
        SourceError: a configuration that transformers cannot build.

    """
    import torch

    model_class = model_class_of(config, name)
    with refusals(f"transformers cannot build the model that the configuration of {name} describes"):
        with torch.device("meta"):
            model = model_class._from_config(config)
        model.tie_weights()
    return model.eval()


def skeleton(config: Any, name: str) -> Any:
    """Return the model of a configuration: parameters on the meta device, buffers with their numbers."""
    model_class = model_class_of(config, name)
    from accelerate import init_empty_weights

    with refusals(f"transformers cannot build the model that the configuration of {name} describes"):
        with init_empty_weights(include_buffers=False):
            model = model_class._from_config(config)
        model.tie_weights()
    return model.eval()


def _converts(model: Any) -> bool:
    """Whether transformers merges or reshapes stored tensors of `model` when it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(model))


def _require_light(file: Path) -> None:
    try:
        require_light(file.read_bytes())
    except CheckpointError as error:
        raise SourceError(f"{file} {error}") from error


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        SourceError: there is none.

    """
    module = transformers()
    for file in folder.iterdir():  # any of them may be a part of it
        if file.is_file():
            require_own(file, error=SourceError)
            if file.suffix == ".json" and not file.name.endswith(INDEX):
                _require_light(file)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        require_no_code(read_object(file, error=SourceError), module, file)
    with refusals(f"transformers cannot load the tokenizer of {folder}"):
        return module.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
