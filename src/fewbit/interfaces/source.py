"""Where a model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fewbit.schemes.scheme import ScaleType


class Source(Protocol):
    """Where a model comes from."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def framework(self) -> str:
        """The front end that its models are for: a key of `FRONTENDS`."""

    @property
    def storage_type(self) -> ScaleType:
        """The type that the float numbers of its files have, or would have."""

    @property
    def computes_in(self) -> ScaleType:
        """The type that the float numbers of the loaded model have."""

    @property
    def origin(self) -> Path | None:
        """The GGUF file that it is read from; `None`: it comes from elsewhere."""

    def skeleton(self) -> Any:
        """Return the model with shapes but, where that saves time, without numbers."""

    def load(self) -> Any:
        """Return the model, ready to run."""

    def configuration(self) -> Mapping[str, Any]:
        """Return the content of `config.json` without any `quantization_config`; empty if there is none."""

    def companions(self) -> Mapping[str, bytes]:
        """Return the files that belong beside the weights: tokenizer, generation settings."""

    def tokenizer(self) -> Any | None:
        """Return the tokenizer, or `None`."""
