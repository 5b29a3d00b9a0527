"""The `quantization_config` of GPTQ folders, written from a manifest and read into the form of each layer.

One form for the model; `dynamic` holds patterns of names, the first that matches counts: `-:` leaves a layer float,
`+:` or nothing gives it other bits. Source: GPTQModel 7.7, `QuantizeConfig`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from fewbit.checkpoints.gptq_layer import SUFFIXES, Form
from fewbit.checkpoints.json_object import read_flag, require_idle
from fewbit.checkpoints.linear_weights import WHOLE_ROW, granularity_of, group_size
from fewbit.checkpoints.qweight import quantized_names
from fewbit.errors import CheckpointError, NotYetError, SchemeError
from fewbit.formats.integer import Int
from fewbit.interfaces import Manifest, StoredTensor
from fewbit.name_pattern import NamePattern
from fewbit.schemes.scheme import Scheme

METHOD = "gptq"
BITS = (2, 3, 4, 8)
#: `checkpoint_format` by whether zero points are stored as they are.
FORMATS = {True: "gptq_v2", False: "gptq"}
#: Where transformers looks for the layers that are quantized, if others of the blocks are not.
_ONLY = "modules_in_block_to_quantize"
_SKIP, _CHANGE = "-:", "+:"
#: Keys that change how tensors are packed, with the values under which they do not.
_IDLE: dict[str, tuple[Any, ...]] = {
    "pack_dtype": (None, "int32", "torch.int32"),
    "is_marlin_format": (None, False),
    "adapter": (None, {}),
}


def write_config(manifest: Manifest, *, whole_zeros: bool) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`; its form is that of most layers, the others are `dynamic`."""
    forms = {quantized.layer.name: _entry(quantized.scheme) for quantized in manifest.quantized}
    usual = dict(Counter(tuple(form.items()) for form in forms.values()).most_common(1)[0][0])
    heads = [quantized for quantized in manifest.quantized if quantized.layer.kind == "head"]
    kept = [layer.name for layer in manifest.kept if layer.module_class == "Linear" and layer.kind != "head"]
    dynamic: dict[str, Any] = {f"{_SKIP}{_exactly(name)}": {} for name in kept}
    dynamic |= {f"{_CHANGE}{_exactly(name)}": form for name, form in forms.items() if form != usual}
    written = {
        "quant_method": METHOD,
        **usual,
        "desc_act": False,
        "static_groups": False,
        "lm_head": bool(heads),
        "checkpoint_format": FORMATS[whole_zeros],
        "pack_dtype": "int32",
        "meta": {"quantizer": [_writer()]},
    }
    # transformers knows no `dynamic`: it replaces all linear layers of the blocks, or those with these names.
    return written | ({"dynamic": dynamic} if dynamic else {}) | ({_ONLY: [list(forms)]} if kept else {})


def _entry(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.format.bits, "group_size": group_size(scheme), "sym": scheme.symmetric}


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def _writer() -> str:
    try:
        return f"fewbit:{metadata.version('fewbit')}"
    except metadata.PackageNotFoundError:
        return "fewbit"


def read_forms(quantization: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Form]:
    """Return the form of each layer that has a `qweight` among the `stored` tensors.

    Raises:
        CheckpointError: contradictions between tensors and configuration, entries that are none.
        NotYetError: other packings than those of GPTQ's int32 words at 2, 3, 4 and 8 bits.

    """
    require_idle(quantization, _IDLE, "quantization_config")
    given = quantization.get("checkpoint_format") or quantization.get("format") or FORMATS[False]
    if given not in tuple(FORMATS.values()):
        known = " and ".join(FORMATS.values())
        raise NotYetError(f"checkpoint_format {given!r:.80} is not read by this version; {known} are")
    patterns = _patterns(quantization.get("dynamic"))
    forms = {}
    for name in quantized_names(stored, SUFFIXES, "a GPTQ weight"):
        own = _own(name, quantization, patterns)
        scale_type = stored[f"{name}.scales"].dtype
        scattered = read_flag(own, "desc_act", name, usual=False)
        forms[name] = Form(_scheme(name, own, scale_type), given == FORMATS[True], scattered)
    return forms


def _patterns(dynamic: Any) -> list[tuple[NamePattern, Mapping[str, Any] | None]]:
    """Return the patterns in their order, each with what it changes; `None`: the layer is left float."""
    if dynamic is None:
        return []
    if not isinstance(dynamic, dict) or not all(isinstance(change, dict) for change in dynamic.values()):
        raise CheckpointError(f"`dynamic` of quantization_config is no object of objects: {dynamic!r:.80}")
    found: list[tuple[NamePattern, Mapping[str, Any] | None]] = []
    for key, change in dynamic.items():
        text = key.removeprefix(_SKIP).removeprefix(_CHANGE)
        pattern = NamePattern.of(text, "`dynamic` holds a pattern that", CheckpointError)
        found.append((pattern, None if key.startswith(_SKIP) else change))
    return found


def _own(
    name: str, quantization: Mapping[str, Any], patterns: list[tuple[NamePattern, Mapping[str, Any] | None]]
) -> dict[str, Any]:
    """Return the configuration of one layer."""
    change = next((change for pattern, change in patterns if pattern.match(name)), {})
    if change is None:
        raise CheckpointError(f"{name} has a qweight, but `dynamic` of quantization_config leaves it float")
    return {**quantization, **change}


def _scheme(name: str, own: Mapping[str, Any], scale_type: str) -> Scheme:
    bits, size = own.get("bits"), own.get("group_size", WHOLE_ROW)
    if type(bits) is not int or bits not in BITS:
        raise NotYetError(f"{name}: GPTQ weights of {bits!r:.40} bits are not read by this version; {BITS} are")
    if type(size) is not int or not (size > 0 or size == WHOLE_ROW):
        raise CheckpointError(f"{name}: group_size = {size!r:.40} is neither a number of columns nor {WHOLE_ROW}")
    try:
        return Scheme(
            format=Int(bits),
            granularity=granularity_of(size),
            symmetric=read_flag(own, "sym", name, usual=True),
            scale_type=scale_type,  # type: ignore[arg-type]
        )
    except SchemeError as error:
        raise CheckpointError(f"{name}: {error}") from error
