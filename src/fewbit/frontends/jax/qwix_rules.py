"""Rules of Qwix read as rules of fewbit, by their attributes; Qwix itself is not needed.

Source: Qwix 0.1.8, `QuantizationRule` and `QtRule`. What has no counterpart is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from fewbit.errors import RecipeError
from fewbit.rule import Rule, keep

#: Number formats by Qwix's names for them; signed integers have the same.
_FORMATS = {
    **{f"int{bits}": f"int{bits}" for bits in range(2, 9)},
    "nf4": "nf4",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float4_e2m1fn": "e2m1",
}
#: Whole schemes, with the tiles that belong to them.
_WHOLE = {"mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
#: Calibration methods that have a counterpart: whether the zero point is fixed.
_METHODS = {"absmax": "sym", "minmax": "asym"}
#: Fields that say nothing unless they differ from these values.
_WITHOUT_COUNTERPART: Mapping[str, tuple[Any, ...]] = {
    "op_names": ((), [], None),
    "bwd_qtype": (None,),
    "bwd_weight_grad_tile_size": (None,),
    "bwd_stochastic_rounding": (None,),
    "additional_qt_config": (None, {}),
    "rank": (None,),
    "alpha": (None,),
    "n_grid": (None,),
    "correction_factor": (None,),
}
#: Algorithms by the class of the rule.
_ALGORITHMS = {"GptqRule": "gptq"}


def rules_from_qwix(rules: Iterable[Any]) -> list[Rule]:
    r"""Return the rules that do what Qwix's do, in their order, after one that keeps embeddings, as Qwix does.

    `module_path` matches paths of parameters (`blocks/0/up` those of `blocks.0.up`) and scopes of operations.

    Raises:
        RecipeError: a field whose value has no counterpart.

    >>> from types import SimpleNamespace
    >>> print(rules_from_qwix([SimpleNamespace(module_path="mlp/.*", weight_qtype="int4", tile_size=64)])[1])
    match '(?:params\\.)?(?:mlp[/.].*)(?:\\.[^.]+)?': int4 g64 by nearest

    """
    return [keep(kind="embedding", optional=True), *(_rule(own, number) for number, own in enumerate(rules, 1))]


def _rule(given: Any, number: int) -> Rule:
    where = f"rule {number} of Qwix ({getattr(given, 'module_path', '.*')!r:.80})"
    for name, usual in _WITHOUT_COUNTERPART.items():
        value = getattr(given, name, usual[0])
        if value not in usual:
            raise RecipeError(f"{where}: {name} = {value!r:.80} has no counterpart in fewbit; leave it out")
    match = rf"(?:params\.)?(?:{getattr(given, 'module_path', '.*').replace('/', '[/.]')})(?:\.[^.]+)?"
    weight, act = (getattr(given, f"{name}_qtype", None) for name in ("weight", "act"))
    if weight is None and act is None:
        return keep(match)
    if weight is None:
        raise RecipeError(f"{where}: act_qtype = {act!r} without weight_qtype, which Qwix ignores; give both")
    if act is None and getattr(given, "act_static_scale", None):
        raise RecipeError(f"{where}: act_static_scale without act_qtype; give it, or leave both out")
    return Rule(
        match,
        weight=_weight(given, where),
        input=None if act is None else _input(given, where),
        algorithm=_ALGORITHMS.get(type(given).__name__),
    )


def _weight(given: Any, where: str) -> str:
    name, tile = _format(given.weight_qtype, where), _tile(given, where)
    symmetry = _symmetry(given, "weight_calibration_method", where)
    if name in _WHOLE:
        return _whole(name, tile, symmetry, where)
    granularity = "tensor" if getattr(given, "disable_channelwise_axes", False) else "channel"
    return f"{name} {f'g{tile}' if tile else granularity}{' asym' if symmetry == 'asym' else ''}"


def _input(given: Any, where: str) -> str:
    name, tile = _format(given.act_qtype, where), _tile(given, where)
    symmetry = _symmetry(given, "act_calibration_method", where)
    if name in _WHOLE:
        return _whole(name, tile, symmetry, where)
    if getattr(given, "act_static_scale", None):
        if tile:
            raise RecipeError(f"{where}: act_static_scale with tile_size = {tile}; static ranges are of the tensor")
        return f"{name} tensor {symmetry} static average"
    granularity = "tensor" if getattr(given, "disable_channelwise_axes", False) else "token"
    return f"{name} {f'g{tile}' if tile else granularity} {symmetry}"


def _format(qtype: Any, where: str) -> str:
    name = qtype if isinstance(qtype, str) else jnp.dtype(qtype).name
    if name not in (*_FORMATS, *_WHOLE):
        known = ", ".join((*_FORMATS, *_WHOLE))
        raise RecipeError(f"{where}: type {name!r:.40} has no counterpart in fewbit; use one of {known}")
    return _FORMATS.get(name, name)


def _whole(name: str, tile: int | None, symmetry: str, where: str) -> str:
    if tile not in (None, _WHOLE[name]) or symmetry != "sym":
        raise RecipeError(f"{where}: {name} has tiles of {_WHOLE[name]} and absmax; leave out tile_size and method")
    return name


def _tile(given: Any, where: str) -> int | None:
    tile = getattr(given, "tile_size", None)
    if tile is None or (isinstance(tile, int) and not isinstance(tile, bool)):
        return tile
    raise RecipeError(f"{where}: tile_size = {tile!r:.40} is a share of a width; give the size of the tile")


def _symmetry(given: Any, field: str, where: str) -> str:
    text = getattr(given, field, None) or "absmax"
    method, _, factor = text.partition(",")
    if method not in _METHODS or (factor and float(factor) != 1.0):
        raise RecipeError(f"{where}: {field} = {text!r:.40} has no counterpart in fewbit; use absmax, or minmax")
    return _METHODS[method]
