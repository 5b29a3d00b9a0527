"""Modules of a model that are called one after the other, each with what the one before gives: as one, with one name.

The name is the dotted paths in order, `stem.conv > stem.norm > act`; a path alone is the module itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

#: No attribute name holds it.
_BETWEEN = " > "


def chain_name(names: Sequence[str]) -> str:
    """Return the name of the chain of the modules called `names`."""
    return _BETWEEN.join(names)


def names_in(chain: str) -> list[str]:
    """Return the paths of the modules of a chain.

    >>> names_in("stem.conv > stem.norm"), names_in("layers.0")
    (['stem.conv', 'stem.norm'], ['layers.0'])
    """
    return chain.split(_BETWEEN)


def modules_in(model: nn.Module, chain: str) -> list[nn.Module]:
    """Return the modules of a chain as they now are."""
    return [model.get_submodule(name) for name in names_in(chain)]


def chained(model: nn.Module, chain: str) -> nn.Module:
    """Return what computes a chain: its modules as they now are; one that is replaced later is not seen."""
    modules = modules_in(model, chain)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
