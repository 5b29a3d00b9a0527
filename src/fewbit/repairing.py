"""Corrections of a whole model at work, once all of its layers are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbit.attention import installed
from fewbit.corrections import on_models
from fewbit.interfaces import Frontend, Switch
from fewbit.planning import Plan


def repaired(
    model: Any, made: Plan, frontend: Frontend, batches: Sequence[Any], forms: Sequence[Switch]
) -> tuple[list[Switch], tuple[str, ...]]:
    """Repair `model` with its `forms` installed; return what repairs it, not installed, and what the report says."""
    switches: list[Switch] = []
    said: list[str] = []
    for own in on_models(made.recipe.corrections):
        with installed([*forms, *switches]):
            done = own.repaired(model, frontend, batches, made.storage_type)
        said += done.sentences
        switches += [] if done.switch is None else [done.switch]
    return switches, tuple(said)
