"""The tokenizer of a model as metadata of a GGUF file: carried over from one, or made from the files of a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf.arrays import read_values
from fewbit.checkpoints.gguf.byte_level import byte_level_values
from fewbit.checkpoints.gguf.sentencepiece import sentencepiece_values
from fewbit.checkpoints.gguf_header import read_gguf_header
from fewbit.checkpoints.json_object import parse_object
from fewbit.errors import CheckpointError

#: What a tokenizer consists of; `config.json` comes from the manifest.
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "added_tokens.json", "chat_template.jinja",
          "chat_template.json", "merges.txt")  # fmt: skip
#: Special tokens by their word in tokenizer_config.json.
_WORDS = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # "seperator" is how the format spells it


def carried_values(origin: Path) -> dict[str, Any]:
    """Return what a GGUF file says of its tokenizer and of itself: names, license, languages."""
    header = read_gguf_header(origin)
    values = read_values(origin, header, "tokenizer.") | read_values(origin, header, "general.")
    ours = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
    # The format has no array of nothing.
    return {key: value for key, value in values.items() if key not in ours and value != []}


def tokenizer_values(
    files: Mapping[str, bytes], configuration: Mapping[str, Any], pre: str | None = None
) -> dict[str, Any]:
    """Return the tokenizer in the files of a Hugging Face folder; none there: that there is none.

    Args:
        files: contents by plain name.
        configuration: `config.json`; it knows how many rows the embedding has.
        pre: how a byte-level BPE splits text, where fewbit does not know it by its structure.

    Raises:
        CheckpointError: a tokenizer that has no form in GGUF, or files that are damaged.

    """
    rows = int(configuration["vocab_size"])
    if "tokenizer.model" not in files and "tokenizer.json" not in files:
        return {"tokenizer.ggml.model": "no_vocab"}
    tokenizer = _parsed(files, "tokenizer.json")
    settings = _parsed(files, "tokenizer_config.json")
    try:
        if "tokenizer.model" in files or (tokenizer.get("model") or {}).get("byte_fallback"):
            values = sentencepiece_values(files.get("tokenizer.model"), tokenizer, settings, rows)
        else:
            values = byte_level_values(tokenizer, rows, pre)
        return values | _special_values(files, configuration, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"tokenizer.json or tokenizer_config.json is no tokenizer: {error!r:.200}") from error


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return parse_object(files.get(name, b"{}"))
    except CheckpointError as error:
        raise CheckpointError(f"{name} {error}; is the download complete?") from error


def _special_values(files: Mapping[str, bytes], configuration: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return special tokens, which of them are added to a text, and the chat template."""
    from gguf import SpecialVocab

    plain = {key: configuration.get(key) for key in configuration if key.endswith("_token_id")}
    with tempfile.TemporaryDirectory() as folder:
        for name in _FILES:
            if name in files and name != "tokenizer.model":
                (Path(folder) / name).write_bytes(files[name])
        (Path(folder) / "config.json").write_text(json.dumps(plain))
        found = SpecialVocab(folder, n_vocab=rows)
    values: dict[str, Any] = {}
    for word, number in found.special_token_ids.items():
        values[f"tokenizer.ggml.{_WORDS.get(word, word)}_token_id"] = number
    for word, added in found.add_special_token.items():
        if word in ("bos", "eos", "sep"):
            values[f"tokenizer.ggml.add_{word}_token"] = added
    template = found.chat_template
    if isinstance(template, list):
        template = next((own["template"] for own in template if own.get("name") == "default"), None)
    return values | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})
