"""The `quantization_config` of compressed-tensors, written from a manifest.

A group for all layers of one form; targets are the class `Linear` where one covers all, else layer names. Source:
`QuantizationConfig`, version 0.20.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fewbit.checkpoints.compressed_tensors_caches import cache_entry
from fewbit.checkpoints.compressed_tensors_form import Form, entry
from fewbit.checkpoints.compressed_tensors_inputs import input_entry
from fewbit.errors import CheckpointError
from fewbit.interfaces import Layer, Manifest

_PATTERN = "re:"
_CLASSES = ("Linear",)
#: What a config group says of weights besides their scheme; readers need an observer and do not use it.
_FIXED: dict[str, Any] = {"dynamic": False, "observer": "memoryless_minmax", "observer_kwargs": {}}
#: Version of the layout that is written.
VERSION = "0.19.0"


def write_config(manifest: Manifest) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`: a group for each form, layers by class or by name.

    Casts are no group: to compressed-tensors they are float weights.
    """
    scaled = [quantized for quantized in manifest.quantized if quantized.scheme.scaled]
    plain = [*manifest.kept, *(quantized.layer for quantized in manifest.quantized if not quantized.scheme.scaled)]
    by_form: dict[Form, list[Layer]] = {}
    for quantized in scaled:
        by_form.setdefault(Form.of(quantized), []).append(quantized.layer)
    simple = len(by_form) == 1 and all(q.layer.module_class == "Linear" for q in scaled)
    groups = {}
    for number, (form, layers) in enumerate(by_form.items()):
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if simple else [layer.name for layer in layers],
            "format": form.word,
            "weights": {**entry(form.scheme), **_FIXED},
            "input_activations": input_entry(form.input) if form.input else None,
            "output_activations": None,
        }
    words = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": words.pop() if len(words) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*(layer.name for layer in plain if layer.module_class == "Linear"), *_matrices(manifest)],
        "kv_cache_scheme": cache_entry(manifest.caches),
        "global_compression_ratio": None,
    }


def _matrices(manifest: Manifest) -> list[str]:
    """Return the modules with a float matrix that are no layers here and may be linear to a reader: routers."""
    known = {layer.name for layer in (*manifest.kept, *(quantized.layer for quantized in manifest.quantized))}
    matrices = [own.name for own in manifest.floats if len(own.shape) == 2 and own.name.endswith(".weight")]
    return [name for own in matrices if (name := own.removesuffix(".weight")) not in known]


def require_targets(names: Iterable[str]) -> None:
    """Raise `CheckpointError` for layers whose names readers would take for a pattern or a class of modules."""
    for name in names:
        if name.startswith(_PATTERN) or name in _CLASSES:
            raise CheckpointError(
                f"a layer called {name!r} would read as a {'pattern' if name not in _CLASSES else 'class'} in "
                "quantization_config; rename the attribute of the module"
            )
