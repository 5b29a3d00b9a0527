"""The `quantization_config` of AWQ folders, written from a manifest and read into the scheme of each layer.

Bits and group size are those of all layers; those named in `modules_to_not_convert` stay float. Source: transformers
5.23, `AwqConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.checkpoints.awq_layer import BITS, SUFFIXES
from fewbit.checkpoints.linear_weights import WHOLE_ROW, granularity_of, group_size
from fewbit.checkpoints.qweight import quantized_names
from fewbit.errors import CheckpointError, NotYetError, SchemeError
from fewbit.formats.integer import Int
from fewbit.interfaces import Manifest, StoredTensor
from fewbit.schemes.scheme import Scheme

METHOD = "awq"
#: The only order of nibbles that is read and written.
LAYOUT = "gemm"


def write_config(manifest: Manifest) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`."""
    kept = [layer.name for layer in manifest.kept if layer.module_class == "Linear"]
    return {
        "quant_method": METHOD,
        "bits": BITS,
        "group_size": group_size(manifest.quantized[0].scheme),
        # Zero points are stored in any case: in the middle, where they all are the same.
        "zero_point": True,
        "version": LAYOUT,
        "modules_to_not_convert": kept or None,
    }


def require_one_size(manifest: Manifest) -> None:
    """Raise `CheckpointError` unless the groups of all layers have one size."""
    sizes = {group_size(own.scheme): own.layer.name for own in manifest.quantized}
    if len(sizes) != 1:
        each = ", ".join(f"{size} of {name}" for size, name in sizes.items())
        raise CheckpointError(
            f"an AWQ folder has one group size for all its layers, and here are {each or 'no quantized layers'}; "
            "use one, or write gptq or compressed-tensors"
        )


def read_granularity(quantization: Mapping[str, Any]) -> int:
    """Return the group size.

    Raises:
        CheckpointError: values that are none.
        NotYetError: other bits and other orders of nibbles.

    """
    bits = quantization.get("bits", quantization.get("w_bit"))
    if type(bits) is not int or bits != BITS:
        raise NotYetError(f"AWQ weights of {bits!r:.40} bits are not read by this version; {BITS} are")
    layout = next((quantization[key] for key in ("version", "format", "checkpoint_format") if key in quantization), "")
    if not isinstance(layout, str) or layout.lower() != LAYOUT:
        raise NotYetError(f"the AWQ layout {layout!r:.80} is not read by this version; {LAYOUT} is")
    size = quantization.get("group_size", quantization.get("q_group_size"))
    if type(size) is not int or not (size > 0 or size == WHOLE_ROW):
        raise CheckpointError(f"group_size = {size!r:.40} is neither a number of columns nor {WHOLE_ROW}")
    return size


def read_schemes(size: int, stored: Mapping[str, StoredTensor]) -> dict[str, Scheme]:
    """Return the scheme of each layer that has a `qweight` among the `stored` tensors, taken as asymmetric.

    Raises:
        CheckpointError: parts of a layer that are missing, or one that is float as well.

    """
    schemes = {}
    for name in quantized_names(stored, SUFFIXES, "an AWQ weight"):
        kind: Any = stored[f"{name}.scales"].dtype
        try:
            schemes[name] = Scheme(format=Int(BITS), granularity=granularity_of(size), symmetric=False, scale_type=kind)
        except SchemeError as error:
            raise CheckpointError(f"{name}: {error}") from error
    return schemes
