"""Low-rank adapters as PEFT reads and writes them: adapter_config.json and adapter_model.safetensors in a folder.

A and B of a layer are `base_model.model.LAYER.lora_A.weight` (r, in) and `.lora_B.weight` (out, r); what is added is
(lora_alpha / r) B A. Source: huggingface/peft, LoraConfig and utils/save_and_load.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.folder import NewFolder, write_at
from fewbit.checkpoints.json_object import read_flag, read_object, require_idle
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_file import read_tensors
from fewbit.checkpoints.safetensors_header import create_empty
from fewbit.errors import CheckpointError
from fewbit.interfaces import StoredTensor

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: What changes what is computed, with the values that change nothing.
_IDLE = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "lora_bias": (None, False),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "target_parameters": (None, []),
}

#: A and B of a layer.
Pair = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """What such a folder says."""

    rank: int
    alpha: float
    dropout: float
    #: By layer.
    pairs: Mapping[str, Pair]
    #: What B A is multiplied by.
    share: float


class _NewAdapters(NewFolder):
    """A folder under construction; only adapters are ever replaced."""

    def require_free(self) -> None:
        """Raise `CheckpointError` unless a folder can be put at `final`."""
        if not self.final.exists():
            return
        if not self.overwrite:
            raise CheckpointError(f"{self.final} exists; choose another name or pass overwrite")
        if not (self.final / CONFIG).is_file():
            raise CheckpointError(f"{self.final} is no folder of adapters and is not overwritten; remove it yourself")


def write_adapters(
    path: Path, adapters: AdapterFolder, said: Mapping[str, Any], names: Collection[str], *, overwrite: bool
) -> Path:
    """Write a folder and return its path; it appears when it is complete.

    Args:
        path: where.
        adapters: what to write.
        said: further entries of the configuration: the base model, the task.
        names: of all modules of the model, among which PEFT is to find those with adapters.
        overwrite: replace a folder of adapters.

    Raises:
        CheckpointError: `path` exists, or cannot be written.

    """
    configuration = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        **said,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": _targets(adapters.pairs, names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    arrays = {
        f"{_PREFIX}{name}.lora_{letter}.weight": array
        for name, pair in adapters.pairs.items()
        for letter, array in zip("AB", pair, strict=True)
    }
    folder = _NewAdapters(path, overwrite=overwrite)
    try:
        stored = [StoredTensor(name, str(array.dtype), tuple(array.shape)) for name, array in arrays.items()]
        starts = create_empty(folder.path / TENSORS, stored)
        for name, array in arrays.items():
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            write_at(folder.path / TENSORS, starts[name], content.data)
        folder.write(CONFIG, f"{json.dumps(configuration, indent=2)}\n".encode())
        return folder.commit()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        folder.remove()


def read_adapters(path: Path) -> AdapterFolder:
    """Return what the folder at `path` says.

    Raises:
        CheckpointError: no such folder, or a damaged one.
        NotYetError: adapters of another kind.

    """
    where = str(path / CONFIG)
    for name in (CONFIG, TENSORS):
        require_own(path / name)
    said = read_object(path / CONFIG)
    require_idle({"peft_type": None, **said}, {"peft_type": ("LORA",)}, where)
    require_idle({**dict.fromkeys(_IDLE), **said}, _IDLE, where)
    rank: Any = said.get("r")
    alpha: Any = said.get("lora_alpha")
    dropout: Any = said.get("lora_dropout", 0.0)
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{where}: r = {rank!r:.40} is no rank")
    for name, number in (("lora_alpha", alpha), ("lora_dropout", dropout)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
            raise CheckpointError(f"{where}: {name} = {number!r:.40} is no such number")
    stabilized = read_flag(said, "use_rslora", where, usual=False)
    return AdapterFolder(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        pairs=_pairs(path / TENSORS, rank),
        share=alpha / (rank**0.5 if stabilized else rank),
    )


def _targets(pairs: Collection[str], names: Collection[str]) -> list[str] | str:
    """Return what says which modules have adapters: PEFT takes a name for the end of any that it is the end of."""
    ends = tuple(f".{name}" for name in pairs)
    if any(name.endswith(ends) and name not in pairs for name in names):
        return "|".join(re.escape(name) for name in pairs)
    return list(pairs)


def _pairs(path: Path, rank: int) -> dict[str, Pair]:
    found: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for name, array in read_tensors(path):
        shape = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if shape is None:
            raise CheckpointError(f"{path}: tensor {name!r:.120} is no part of a low-rank adapter of a linear layer")
        found.setdefault(shape[1], {})[shape[2]] = array
    for name, own in found.items():
        if set(own) != {"A", "B"}:
            raise CheckpointError(f"{path}: {name} has lora_{next(iter(own))} alone")
        if own["A"].ndim != 2 or own["B"].ndim != 2 or not own["A"].shape[0] == own["B"].shape[1] == rank:
            shapes = f"{list(own['A'].shape)} and {list(own['B'].shape)}"
            raise CheckpointError(f"{path}: {name} has lora_A and lora_B of shapes {shapes}, not of rank {rank}")
    return {name: (own["A"], own["B"]) for name, own in found.items()}
