"""In which form compressed-tensors stores a layer: its schemes, and the layout of its weight.

Integers go to `pack-quantized`, with integer inputs to `int-quantized`; floats to `naive-quantized`, with rounded
inputs to `float-quantized`; NVFP4 and microscaling formats to layouts of their own. Source: compressed-tensors 0.20,
the order in which it infers formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, block_layout
from fewbit.checkpoints.json_object import read_flag
from fewbit.errors import CheckpointError, NotYetError, SchemeError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.interfaces import QuantizedLayer
from fewbit.schemes.granularity import Granularity, PerGroup
from fewbit.schemes.scheme import Scheme

#: The word of each form, and the type of weights that it holds.
FORMS = {
    "pack-quantized": "int", "int-quantized": "int", "naive-quantized": "float", "float-quantized": "float",
    **dict.fromkeys(BLOCKS, "float"),
}  # fmt: skip
#: The word of the only one that packs integers.
PACKED = "pack-quantized"


def entry(scheme: Scheme) -> dict[str, Any]:
    """Return what a config group says of a scheme, be it that of weights or of inputs."""
    granularity, inner = scheme.granularity, scheme.scale_scheme
    said = {
        "num_bits": scheme.format.bits,
        "type": "int" if isinstance(scheme.format, Int) else "float",
        "symmetric": scheme.symmetric,
        "strategy": "group" if isinstance(granularity, PerGroup) else granularity.name,
        "group_size": granularity.size if isinstance(granularity, PerGroup) else None,
    }
    if inner is None:
        return said
    if inner.format == E4M3:
        return {**said, "strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    return {**said, "scale_dtype": "torch.uint8"}


def read_entry(
    said: Mapping[str, Any],
    granularities: Mapping[str, Granularity],
    where: str,
    *,
    scale_type: str,
    static: bool = False,
) -> Scheme:
    """Undo `entry` for a scheme with float scales.

    Args:
        said: the entry.
        granularities: by the strategies that there are.
        where: what has the scheme, for errors.
        scale_type: type of the stored scale.
        static: whether it is that of a fixed range.

    Raises:
        CheckpointError: an entry that contradicts itself.
        NotYetError: schemes of later versions.

    """
    bits, kind, strategy = said.get("num_bits", 8), said.get("type", "int"), said.get("strategy")
    whole = kind == "int" and type(bits) is int and 1 <= bits <= 8
    if strategy not in tuple(granularities) or not (whole or (kind, bits) == ("float", 8)):
        raise NotYetError(
            f"{where}: {bits!r:.40}-bit {kind!r:.40} by {strategy!r:.40} (group size {said.get('group_size')!r:.40}) "
            "is not read by this version"
        )
    symmetric = read_flag(said, "symmetric", where, usual=True)
    try:
        return Scheme(
            format=Int(bits) if whole else E4M3,
            granularity=granularities[strategy],
            symmetric=symmetric,
            scale_type=scale_type,  # type: ignore[arg-type]
            static=static,
        )
    except SchemeError as error:
        raise CheckpointError(f"{where}: {error}") from error


def groups_said(said: Mapping[str, Any]) -> dict[str, Granularity]:
    """Return the strategy of groups, where an entry says their size."""
    size = said.get("group_size")
    return {"group": PerGroup(size)} if type(size) is int and size > 0 else {}


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer stands in a file."""

    #: Of the weight.
    scheme: Scheme
    #: Of the input; `None`: it stays float.
    input: Scheme | None
    #: The word for the layout of its weight, of `FORMS`.
    word: str

    @classmethod
    def of(cls, quantized: QuantizedLayer) -> Form:
        """Return the form that a layer is written in."""
        scheme, given = quantized.scheme, quantized.input
        if (word := block_layout(scheme)) is not None:
            return cls(scheme, given, word)
        if not isinstance(scheme.format, Int):
            return cls(scheme, given, "float-quantized" if given else "naive-quantized")
        # Integers under float inputs stay packed: that is where vLLM looks for them.
        return cls(scheme, given, "int-quantized" if given and isinstance(given.format, Int) else PACKED)

    @property
    def packed(self) -> bool:
        """Whether codes are integers in dense words; otherwise each is a byte, or in the way of `blocks`."""
        return self.word == PACKED

    @property
    def blocks(self) -> bool:
        """Whether scales are codes too."""
        return self.word in BLOCKS
