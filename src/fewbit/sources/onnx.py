"""An ONNX model: a file, or one in memory. Files are checked when they are read; nothing of them is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewbit.errors import MissingExtraError
from fewbit.schemes.scheme import ScaleType

#: Where the classes of models in memory come from.
_PACKAGES = ("onnx", "onnx_ir")


def is_onnx(model: object) -> bool:
    """Whether `model` is a model of onnx or onnx-ir, neither of which is imported for that."""
    kind = type(model)
    return kind.__module__.partition(".")[0] in _PACKAGES and kind.__name__ in ("ModelProto", "Model")


@dataclass(frozen=True)
class OnnxSource:
    """An `.onnx` file by its path, an `onnx.ModelProto`, or an `onnx_ir.Model`."""

    model: Any

    @property
    def name(self) -> str:
        """The path, or the name of the graph."""
        if isinstance(self.model, Path):
            return str(self.model)
        return self.model.graph.name or type(self.model).__name__

    @property
    def framework(self) -> str:
        """The front end for it."""
        return "onnx"

    @cached_property
    def storage_type(self) -> ScaleType:
        """The float type that most of the constants have, counted by numbers; float32 for double."""
        from fewbit.frontends.onnx.stored import storage_type_of

        return storage_type_of(self.load())

    @property
    def computes_in(self) -> ScaleType:
        """The same: the types of a graph stay as they are."""
        return self.storage_type

    @property
    def origin(self) -> Path | None:
        """None: it is read from no GGUF file."""
        return None

    def skeleton(self) -> Any:
        """Return the model; numbers in external files are not read."""
        return self.load()

    def load(self) -> Any:
        """Return the model as an `OnnxModel`.

        Raises:
            SourceError: no file, or no valid model.

        """
        try:
            from fewbit.onnx_graph.live import OnnxModel
        except ImportError as error:
            raise MissingExtraError(f"ONNX models need {error.name}; pip install 'fewbit[onnx]'") from error
        from fewbit.frontends.onnx.stored import storage_type_of
        from fewbit.onnx_graph.file import checked_model

        if isinstance(self.model, Path):
            made = OnnxModel.read(self.model)
        else:
            made = OnnxModel.of(checked_model(self.model, self.name), Path(self.name))
        # Known from now on: to load a model for its type alone takes as long as this.
        self.__dict__.setdefault("storage_type", storage_type_of(made))
        return made

    def configuration(self) -> Mapping[str, Any]:
        """A graph says all there is."""
        return {}

    def companions(self) -> Mapping[str, bytes]:
        """There are none."""
        return {}

    def tokenizer(self) -> Any | None:
        """There is none."""
        return None
