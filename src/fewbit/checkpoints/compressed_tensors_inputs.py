"""How compressed-tensors rounds the input of a layer: the entry of the configuration and the tensors of a static range.

Static: `input_scale` and `input_zero_point`, one number each; of NVFP4 `input_global_scale`, 1 / the scale of scales.
Dynamic ranges are not stored. Source: compressed-tensors 0.20, `QuantizationArgs` and `initialize_qparams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, block_layout, read_reciprocal, stored_reciprocal
from fewbit.checkpoints.compressed_tensors_form import entry, groups_said, read_entry
from fewbit.checkpoints.compressed_tensors_layer import Arrays, alike, require_within
from fewbit.checkpoints.json_object import read_flag, require_idle
from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError, NotYetError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.formats.scale_type import scale_fits
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import SMALLEST_NORMAL, to_numpy
from fewbit.schemes.block_formats import NVFP4
from fewbit.schemes.granularity import PerGroup, PerTensor, PerToken
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme

#: Layouts whose scales a runtime finds in an input as fewbit does, to the bit.
_ALIKE = ("mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized")
#: The reciprocal of the scale of scales that calibration has fixed.
INPUT_GLOBAL_SCALE = "input_global_scale"
INPUT_SUFFIXES = ("input_scale", "input_zero_point", INPUT_GLOBAL_SCALE)
#: Its groups have scales of each input, in a unit that is stored.
_NVFP4 = replace(NVFP4, static=True)
#: Keys of an entry that change what a runtime computes, with the values under which they do not.
_IDLE: dict[str, tuple[Any, ...]] = {
    "actorder": (None, False),
    "block_structure": (None,),
    "scale_dtype": (None,),
    "zp_dtype": (None, "torch.int8", "int8"),
}


def input_problem(scheme: Scheme) -> str | None:
    """Return why an input cannot be rounded by `scheme` in this layout, or `None`."""
    text, number_format = input_scheme_to_text(scheme), scheme.format
    if block_layout(scheme) in _ALIKE or (block_layout(scheme) and scheme.fixes_unit):
        return _ranging_problem(scheme, text)
    if block_layout(scheme):
        return (
            f"a runtime has one fixed scale for those of all inputs, and '{text}' finds one in each; "
            "use 'nvfp4 static', mxfp4, mxfp6, mxfp8, int2 to int8 or e4m3"
        )
    whole = isinstance(number_format, Int) and number_format.signed and number_format.bits <= 8
    if not (whole or number_format == E4M3) or scheme.scale_scheme is not None or scheme.float_zero:
        return (
            f"compressed-tensors has no layout for the input '{text}'; "
            "use int2 to int8, e4m3, mxfp4, mxfp6, mxfp8 or 'nvfp4 static'"
        )
    if isinstance(number_format, Int) and number_format.narrow:
        return f"compressed-tensors rounds inputs to the full range, and '{text}' is narrow; leave out 'narrow'"
    if not (isinstance(scheme.granularity, PerTensor | PerGroup) or scheme.granularity == PerToken()):
        return f"compressed-tensors ranges inputs by tensor, token or group, not as '{text}' says; use one of them"
    return None if scheme.static else _ranging_problem(scheme, text)


def _ranging_problem(scheme: Scheme, text: str) -> str | None:
    if scheme.ranging != replace(scheme, range_method=None).ranging:
        return (
            f"a runtime takes the dynamic range of an input from its extremes, and '{text}' says "
            f"{scheme.ranging.name!r}; leave that word out, or add 'static'"
        )
    return None


def fitted_input(scheme: Scheme | None) -> Scheme | None:
    """Return what a preset rounds inputs by here: NVFP4 under a scale of scales that calibration fixes."""
    return _NVFP4 if scheme == replace(_NVFP4, static=False) else scheme


def input_entry(scheme: Scheme) -> dict[str, Any]:
    """Return the `input_activations` of a config group."""
    return {**entry(scheme), "dynamic": "local" if scheme.fixes_unit else not scheme.static}


def require_input(name: str, scheme: Scheme | None, stored: Mapping[str, StoredTensor]) -> None:
    """Raise unless what is `stored` of the input of layer `name` is what its scheme needs."""
    needed = {part.name for part in stored_input(name, scheme, "float32")}
    text = input_scheme_to_text(scheme) if scheme else "float"
    for full_name in (f"{name}.{suffix}" for suffix in INPUT_SUFFIXES):
        if full_name in needed and full_name not in stored:
            raise CheckpointError(f"{full_name} is missing; the input '{text}' needs it")
        if full_name in stored and full_name not in needed:
            raise CheckpointError(f"{full_name} has no meaning beside the input '{text}' of quantization_config")


def read_input(entry: Mapping[str, Any], name: str, scale_type: str) -> Scheme:
    """Return the scheme that the `input_activations` of a config group say for layer `name`.

    Args:
        entry: what the file says.
        name: for errors.
        scale_type: type of the stored scale, if there is one.

    Raises:
        CheckpointError: an entry that contradicts itself.
        NotYetError: inputs of later versions.

    """
    if (whole := _whole(entry)) is not None:
        return whole
    where = f"{name}: its input"
    if entry.get("dynamic") == "local":
        raise NotYetError(f"{where}: dynamic = 'local' is not read by this version")
    require_idle(entry, _IDLE, where)
    dynamic = read_flag(entry, "dynamic", where, usual=False)
    return read_entry(
        entry,
        {"tensor": PerTensor(), "token": PerToken(), **groups_said(entry)},
        where,
        scale_type="float32" if dynamic else scale_type,
        static=not dynamic,
    )


def _whole(said: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme whose scales are powers of two that the file says, if it is one."""
    for scheme in (*(BLOCKS[word] for word in _ALIKE), _NVFP4):
        expected = input_entry(scheme)
        if {key: said.get(key, value if key == "symmetric" else None) for key, value in expected.items()} == expected:
            return scheme
    return None


def stored_input(name: str, scheme: Scheme | None, storage_type: ScaleType) -> list[StoredTensor]:
    """Return what stands in the file for the input of layer `name`."""
    if scheme is None or not scheme.static:
        return []
    if scheme.fixes_unit:
        return [StoredTensor(f"{name}.{INPUT_GLOBAL_SCALE}", "float32", (1,))]
    scale = StoredTensor(f"{name}.input_scale", storage_type, (1,))
    return [scale] if scheme.symmetric else [scale, StoredTensor(f"{name}.input_zero_point", "int8", (1,))]


def encoded_input(name: str, activation: Activation, storage_type: ScaleType) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a static range by their suffix."""
    scale = to_numpy(activation.scale).reshape(1)
    if activation.scheme.fixes_unit:
        return {INPUT_GLOBAL_SCALE: stored_reciprocal(f"{name}: input", np.float32(scale[0]))}
    if not scale_fits(scale, storage_type).all():
        raise CheckpointError(
            f"{name}: {storage_type} does not hold the scale {scale[0]:.3g} of its input exactly; "
            f"quantize with dtype='{'bfloat16' if storage_type == 'float16' else 'float32'}' (--dtype)"
        )
    arrays = {"input_scale": scale.astype(numpy_type(storage_type))}
    if activation.zero_point is not None:
        arrays["input_zero_point"] = to_numpy(activation.zero_point).reshape(1).astype(np.int8)
    return arrays


def decoded_input(name: str, arrays: Arrays, scheme: Scheme) -> Activation:
    """Undo `encoded_input`.

    Raises:
        CheckpointError: shapes, types or values that no static range has.

    """
    numbers = {}
    for part in stored_input("", scheme, scheme.scale_type or "float32"):
        suffix = part.name.removeprefix(".")
        found = arrays[suffix]
        if found.dtype != numpy_type(part.dtype) or not alike(found.shape, part.shape):
            raise CheckpointError(
                f"{name}: {suffix} is {found.dtype}{list(found.shape)}; "
                f"the input '{input_scheme_to_text(scheme)}' has {part.dtype}{list(part.shape)}"
            )
        numbers[suffix] = found.astype(np.float32).reshape(())
    if scheme.fixes_unit:
        unit = read_reciprocal(numbers[INPUT_GLOBAL_SCALE], f"{name}: its {INPUT_GLOBAL_SCALE}")
        return Activation(scheme=scheme, scale=unit.reshape(()))
    scale, zero = numbers["input_scale"], numbers.get("input_zero_point")
    if not (np.isfinite(scale) and scale >= SMALLEST_NORMAL):
        raise CheckpointError(f"{name}: its input_scale is {float(scale):.3g}, not a positive number; it is damaged")
    if zero is not None and isinstance(scheme.format, Int):
        require_within(zero, scheme.format, f"{name}: zero points of its input")
    return Activation(scheme=scheme, scale=scale, zero_point=zero)


def require_fitting(name: str, scheme: Scheme, width: int) -> None:
    """Raise `CheckpointError` for groups that do not divide the input, which no runtime takes."""
    if isinstance(scheme.granularity, PerGroup) and width % scheme.granularity.size:
        raise CheckpointError(f"{name}: its input of {width} numbers has no groups of {scheme.granularity.size}")
