"""torchao's weight-only integers on all linear layers but the head; writes the weights that they compute with.

Run: torchao/bin/python torchao_data_free.py --model FOLDER --scheme "int4 g64" --out FILE
Source: torchao's `quantize_` with `IntxWeightOnlyConfig`, every option its default but the scheme.
"""

from __future__ import annotations

from typing import Any

import torch
from peer import Scheme, arguments, fail, finish, linear_layers, load, timed, versions
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_


def main() -> None:
    given = arguments(__doc__, tokens=False)
    found = versions("torchao", "transformers", "torch")
    model = load(given.model)
    layers = linear_layers(model)
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    cost = timed(lambda: quantize(model, set(layers), given.scheme))
    weights = {name: layer.weight.dequantize() for name, layer in linear_layers(model).items()}
    finish(weights, shapes, given, **cost, versions=found)


def quantize(model: Any, names: set[str], scheme: Scheme) -> None:
    """Quantize the layers called `names` in place."""
    if not scheme.group:
        fail(f"only groups are asked of torchao here, not '{scheme}'; use another --scheme")
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{scheme.bits}"),
        granularity=PerGroup(scheme.group),
        mapping_type=MappingType.SYMMETRIC if scheme.symmetric else MappingType.ASYMMETRIC,
    )
    quantize_(model, config, filter_fn=lambda _, name: name in names)


if __name__ == "__main__":
    main()
