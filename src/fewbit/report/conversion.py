"""What became of a folder that was converted: which weights are equal to the bit, and what the others lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbit.problems import several


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """What became of one layer."""

    name: str
    #: Notation of its scheme in the source, and in what was written.
    before: str
    after: str
    #: SQNR in dB of the new values beside those of the source; `None`: they are equal to the bit.
    sqnr: float | None = None
    #: Notation of how its input was rounded, where that was left out.
    unrounded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A folder that was converted; `str` says what was proven, and what was lost."""

    source: str
    path: Path
    #: The layout.
    to: str
    layers: tuple[ConvertedLayer, ...]

    @property
    def lossy(self) -> tuple[ConvertedLayer, ...]:
        """The layers that were rounded anew."""
        return tuple(layer for layer in self.layers if layer.sqnr is not None)

    def __str__(self) -> str:
        equal = len(self.layers) - len(self.lossy)
        lines = [
            f"converted {self.source} -> {self.path} ({self.to})",
            f"{equal} of {len(self.layers)} quantized weights, read back, are equal to the bit to those of the source",
        ]
        if self.lossy:
            width = max(len(layer.name) for layer in self.lossy)
            lines.append(f"{len(self.lossy)} were rounded anew, to nearest:")
            lines += [f"{own.name:{width}}  {own.before} -> {own.after}  SQNR {own.sqnr:.2f} dB" for own in self.lossy]
        dropped = [f"{own.name} (was {own.unrounded})" for own in self.layers if own.unrounded]
        lines += [f"the input is no longer rounded of {several(dropped)}"] if dropped else []
        return "\n".join(lines)
