"""A Hugging Face folder without its weights: the configuration, the files beside it, and no code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.checkpoints.json_object import read_object
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_folder import PICKLES
from fewbit.errors import SourceError

CONFIGURATION = "config.json"
#: Files of a model folder that belong beside the weights whatever their type.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template*", "generation_config.json",
)  # fmt: skip
#: Endings of files that are code or may hold some; they are neither read nor copied.
_CODE = (*PICKLES, ".py", ".pyc", ".so")
_LARGEST_COMPANION = 256 << 20
#: Files and keys that make transformers read something else than the folder's own weights.
_ADAPTER = "adapter_config.json"
_REDIRECTION = "transformers_weights"


def read_configuration(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
        SourceError: no such file, or one that is not a configuration.

    """
    file = folder / CONFIGURATION
    if not file.is_file():
        weights = sorted(path.name for path in folder.iterdir() if path.name.endswith((".safetensors", *PICKLES)))
        beside = f"; it belongs beside {weights[0]}, take it from where the weights come from" if weights else ""
        raise SourceError(f"{folder} is not a model folder: {CONFIGURATION} cannot be read (no such file){beside}")
    require_own(file, error=SourceError)
    configuration = read_object(file, error=SourceError)
    quantization = configuration.get("quantization_config")
    if quantization is not None and not (isinstance(quantization, dict) and quantization.get("quant_method")):
        raise SourceError(f"{file} has a quantization_config without quant_method: {quantization!r:.80}; remove it")
    return configuration


def require_own_weights(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Raise `SourceError` where the folder sends transformers to weights that are not its own."""
    if (folder / _ADAPTER).is_file():
        raise SourceError(
            f"{folder} holds an adapter ({_ADAPTER}); merge it into its base model (merge_and_unload of peft), save "
            "that, and give its folder"
        )
    if _REDIRECTION in configuration:
        raise SourceError(
            f"{folder / CONFIGURATION} names other weights ({_REDIRECTION} = {configuration[_REDIRECTION]!r:.80}); "
            "remove the key"
        )


def require_no_code(configuration: Mapping[str, Any], known: Any, where: Path) -> None:
    """Raise `SourceError` if a configuration needs a class that stands in the folder and not in the module `known`.

    A folder that brings code for classes that transformers has by now is read with those; its code never runs.
    """
    named = configuration.get("auto_map")
    for name in _class_names(named):
        if not isinstance(getattr(known, name, None), type):
            raise SourceError(
                f"{where} needs the class {name} from code in the folder, and transformers {known.__version__} has "
                "none of that name; fewbit runs no code of a model: where you trust it, load the model yourself with "
                "trust_remote_code=True and give the module to fewbit.quantize"
            )


def companion_files(folder: Path) -> dict[str, bytes]:
    """Return tokenizer and generation files of a folder; code and pickles that bear such names are left out.

    Raises:
        SourceError: one of them is a link out of the folder: what it leads to would be copied into the output.

    """
    files = {}
    for pattern in _COMPANIONS:
        for path in sorted(folder.glob(pattern)):
            if path.suffix not in _CODE and path.is_file() and path.stat().st_size <= _LARGEST_COMPANION:
                require_own(path, error=SourceError)
                files[path.name] = path.read_bytes()
    return files


def _class_names(named: Any) -> list[str]:
    """Return the classes that an `auto_map` names, each as `module.Class` or `repository--module.Class`."""
    if isinstance(named, str):
        return [named.rpartition(".")[2]]
    if isinstance(named, Mapping):
        named = list(named.values())
    return [name for inner in named for name in _class_names(inner)] if isinstance(named, list) else []
