"""A Hugging Face folder, or a GGUF file read through transformers. Safetensors only: no pickle, no remote code."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewbit.errors import MissingExtraError, NotYetError, SourceError
from fewbit.schemes.scheme import ScaleType
from fewbit.sources.memory import plain_configuration

#: Files of a model folder that belong beside the weights whatever their type.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template*", "generation_config.json",
)  # fmt: skip
_LARGEST_COMPANION = 256 << 20


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
    """A model that transformers knows, in `folder`; `gguf` names a file in it to take everything from."""

    folder: Path
    gguf: str | None = None

    @property
    def name(self) -> str:
        """Path as the user gave it."""
        return str(self.folder / self.gguf if self.gguf else self.folder)

    @property
    def storage_type(self) -> ScaleType:
        """What `config.json` says; float16 for GGUF, whose quantized types have float16 scales."""
        if self.gguf:
            return "float16"
        dtype = str(getattr(self._config, "dtype", None) or "float32").removeprefix("torch.")
        if dtype not in ("float32", "float16", "bfloat16"):
            raise NotYetError(f"{self.name} is stored as {dtype}, which this version does not read")
        return dtype  # type: ignore[return-value]

    def skeleton(self) -> Any:
        """Return the model with its parameters on the meta device; only the configuration is read."""
        return skeleton(self._config, self.name)

    def load(self) -> Any:
        """Return the model in float32, ready to run."""
        import torch

        config = self._config
        model_class = model_class_of(config, self.name)
        arguments = {"gguf_file": self.gguf} if self.gguf else {"use_safetensors": True}
        try:
            # transformers draws a bar for GGUF files that no setting turns off; errors come as exceptions.
            with contextlib.redirect_stderr(io.StringIO()):
                model = model_class.from_pretrained(
                    self.folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    **arguments,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise SourceError(f"transformers cannot load {self.name}: {error}") from error
        return model.eval()

    def configuration(self) -> Mapping[str, Any]:
        """Return the content of `config.json`."""
        return plain_configuration(self._config.to_dict(), model_class_of(self._config, self.name).__name__)

    def companions(self) -> Mapping[str, bytes]:
        """Return tokenizer files and generation settings."""
        if not self.gguf:
            return companion_files(self.folder)
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer().save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        tokens = {key: getattr(self._config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {**files, "generation_config.json": (json.dumps(tokens, indent=2) + "\n").encode()}

    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        return load_tokenizer(self.folder, gguf_file=self.gguf)

    @cached_property
    def _config(self) -> Any:
        arguments = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            return transformers().AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, **arguments
            )
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"transformers cannot read the configuration of {self.name}: {error}") from error


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


def skeleton(config: Any, name: str) -> Any:
    """Return the model of a configuration: parameters on the meta device, buffers with their numbers."""
    model_class = model_class_of(config, name)
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = model_class._from_config(config)
    model.tie_weights()
    return model.eval()


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Any:
    """Return the tokenizer of a folder or GGUF file.

    Raises:
        SourceError: there is none.

    """
    arguments = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        return transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **arguments
        )
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"transformers cannot load the tokenizer of {folder}: {error}") from error


def companion_files(folder: Path) -> dict[str, bytes]:
    """Return tokenizer and generation files of a folder."""
    files = {}
    for pattern in _COMPANIONS:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.stat().st_size <= _LARGEST_COMPANION:
                files[path.name] = path.read_bytes()
    return files
