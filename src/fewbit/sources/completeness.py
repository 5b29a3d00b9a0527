"""Whether files fill a model: every tensor of it in its shape, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.errors import SourceError
from fewbit.sources.weights import mismatch


def require_whole(found: Mapping[str, Any], model: Any, where: str) -> None:
    """Raise `SourceError` unless the files had every tensor of `model` in its shape, and no other.

    transformers fills what it does not find with random numbers, and leaves out what it has no place for.
    """
    order = {name: place for place, name in enumerate(model.state_dict())}
    wrong = sorted(found["mismatched_keys"], key=lambda entry: order.get(entry[0], 0))
    if wrong:
        name, stored, wanted = wrong[0]
        raise SourceError(mismatch(where, name, tuple(stored), tuple(wanted)))
    for names, fact, remedy in (
        (found["missing_keys"], "lacks", "is the download complete, and is config.json that of these weights?"),
        (found["unexpected_keys"], "holds what the model of its configuration has no place for:",
         "if they may be left out, load it with transformers and give the module to fewbit.quantize"),
    ):  # fmt: skip
        if names:
            first = ", ".join(sorted(names, key=lambda name: (order.get(name, 0), name))[:3])
            raise SourceError(f"{where} {fact} {first} ({len(names)} in all); {remedy}")


def require_whole_by_name(held: Mapping[str, tuple[int, ...]], model: Any, where: str) -> None:
    """Raise `SourceError` unless the tensors of shapes `held`, by their names in `model`, fill it."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = [name for name in held.keys() & wanted.keys() if held[name] != wanted[name]]
    found = {
        "mismatched_keys": [(name, held[name], wanted[name]) for name in differing],
        "missing_keys": wanted.keys() - held.keys() - set(model.all_tied_weights_keys),
        "unexpected_keys": held.keys() - wanted.keys(),
    }
    require_whole(found, model, where)
