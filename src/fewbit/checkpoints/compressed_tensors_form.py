"""In which form compressed-tensors stores a layer: its schemes, and whether codes are packed.

Integers go to `pack-quantized`, with integer inputs to `int-quantized`; floats to `naive-quantized`, with rounded
inputs to `float-quantized`. Source: compressed-tensors 0.20, the order in which it infers formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

#: The word of each form, and the type of weights that it holds.
FORMS = {"pack-quantized": "int", "int-quantized": "int", "naive-quantized": "float", "float-quantized": "float"}
#: The word of the only one that packs.
PACKED = "pack-quantized"


def entry(scheme: Scheme) -> dict[str, Any]:
    """Return what a config group says of a scheme, be it that of weights or of inputs."""
    granularity = scheme.granularity
    return {
        "num_bits": scheme.format.bits,
        "type": "int" if isinstance(scheme.format, Int) else "float",
        "symmetric": scheme.symmetric,
        "strategy": "group" if isinstance(granularity, PerGroup) else granularity.name,
        "group_size": granularity.size if isinstance(granularity, PerGroup) else None,
    }


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer stands in a file."""

    #: Of the weight.
    scheme: Scheme
    #: Of the input; `None`: it stays float.
    input: Scheme | None
    #: Integer codes in dense words; otherwise each is a byte.
    packed: bool

    @classmethod
    def of(cls, quantized: QuantizedLayer) -> Form:
        """Return the form that a layer is written in."""
        scheme, given = quantized.scheme, quantized.input
        # Integers under float inputs stay packed: that is where vLLM looks for them.
        packed = isinstance(scheme.format, Int) and not (given and isinstance(given.format, Int))
        return cls(scheme, given, packed)

    @property
    def word(self) -> str:
        """The word for it in the configuration."""
        if self.packed:
            return PACKED
        if isinstance(self.scheme.format, Int):
            return "int-quantized"
        return "float-quantized" if self.input else "naive-quantized"
