"""A module in memory: any `nn.Module`; needs no hub, no tokenizer and no configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import SourceError
from fewbit.schemes.scheme import ScaleType


@dataclass(frozen=True)
class Memory:
    """A live module; fewbit changes it in place."""

    module: Any

    def __post_init__(self) -> None:
        from torch import nn

        if not isinstance(self.module, nn.Module):
            raise SourceError(
                f"a model is a torch.nn.Module, an ONNX model or a path, not {type(self.module).__name__}"
            )
        if any(parameter.is_meta for parameter in self.module.parameters()):
            raise SourceError(f"{self.name} has parameters on the meta device, without numbers; load its weights first")

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    @property
    def framework(self) -> str:
        """The front end for it."""
        return "torch"

    @property
    def storage_type(self) -> ScaleType:
        """The float type that most of the module's parameters have."""
        counts: dict[str, int] = {}
        for parameter in self.module.parameters():
            if parameter.dtype.is_floating_point:
                dtype = str(parameter.dtype).removeprefix("torch.")
                counts[dtype] = counts.get(dtype, 0) + parameter.numel()
        common = max(counts, key=counts.__getitem__) if counts else "float32"
        if common not in ("float32", "float16", "bfloat16"):
            raise SourceError(f"{self.name} has {common} parameters; say dtype='float32' to store them so")
        return common  # type: ignore[return-value]

    @property
    def computes_in(self) -> ScaleType:
        """The same: nothing is converted."""
        return self.storage_type

    @property
    def origin(self) -> Path | None:
        """None: it is read from no GGUF file."""
        return None

    def skeleton(self) -> Any:
        """Return the module itself."""
        return self.module

    def load(self) -> Any:
        """Return the module itself."""
        return self.module

    def configuration(self) -> Mapping[str, Any]:
        """Return the configuration of a transformers model, else nothing."""
        config = self._attribute("config")
        return plain_configuration(config.to_dict(), type(self.module).__name__) if hasattr(config, "to_dict") else {}

    def companions(self) -> Mapping[str, bytes]:
        """Return the generation settings of a transformers model, else nothing."""
        generation = self._attribute("generation_config")
        if not hasattr(generation, "to_diff_dict"):
            return {}
        return {"generation_config.json": (json.dumps(generation.to_diff_dict(), indent=2) + "\n").encode()}

    def _attribute(self, name: str) -> Any:
        return getattr(self.module, name, None)

    def tokenizer(self) -> Any | None:
        """There is none."""
        return None


def plain_configuration(configuration: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return a transformers configuration fit for `config.json`: its class named, how it was loaded left out."""
    plain = {key: value for key, value in configuration.items() if key != "quantization_config" and key[0] != "_"}
    plain["architectures"] = configuration.get("architectures") or [architecture]
    return plain
