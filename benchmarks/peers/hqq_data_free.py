"""HQQ, which needs no data, on all linear layers but the head; writes the weights that they compute with, as float32.

Run: hqq/bin/python hqq_data_free.py --model FOLDER --scheme "int4 g64 asym" --out FILE
Source: hqq's `HQQLinear` on the CPU with `BaseQuantizeConfig`, every option its default: scale and zero are float16.
"""

from __future__ import annotations

from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from peer import Scheme, arguments, fail, finish, linear_layers, load, timed, versions


def main() -> None:
    given = arguments(__doc__, tokens=False)
    found = versions("hqq", "transformers", "torch")
    model = load(given.model)
    layers = linear_layers(model)
    refuse(given.scheme, layers)
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    cost = timed(lambda: quantize(model, layers, given.scheme))
    weights = {name: module.dequantize() for name, module in model.named_modules() if isinstance(module, HQQLinear)}
    finish(weights, shapes, given, **cost, versions=found)


def refuse(scheme: Scheme, layers: dict[str, torch.nn.Linear]) -> None:
    """Exit where the tool has no such scheme, or would do something else without saying so."""
    if scheme.symmetric:
        fail(f"'{scheme.text}' is symmetric, and HQQ always has a zero point; use '{scheme.text} asym'")
    if scheme.bits not in Quantizer.SUPPORTED_BITS:
        fail(f"HQQ has no {scheme.bits} bits; use one of {Quantizer.SUPPORTED_BITS}")
    if not scheme.group or scheme.group % 8:
        fail(f"HQQ's groups are multiples of 8, not those of '{scheme}'; use another --scheme")
    for name, layer in layers.items():
        if layer.in_features % scheme.group:
            fail(
                f"groups of {scheme.group} do not divide the {layer.in_features} columns of {name}, and HQQ would "
                "let them run on into the next row; use a group size that divides"
            )


def quantize(model: Any, layers: dict[str, torch.nn.Linear], scheme: Scheme) -> None:
    """Replace every one of `layers` in `model` by the tool's own module."""
    config = BaseQuantizeConfig(nbits=scheme.bits, group_size=scheme.group, axis=1)
    for name, layer in layers.items():
        model.set_submodule(name, HQQLinear(layer, quant_config=config, device="cpu"))


if __name__ == "__main__":
    main()
