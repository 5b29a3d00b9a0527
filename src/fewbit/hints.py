"""What a plan hints at: layers that gain no speed on the machine at hand, and files of several float types."""

from __future__ import annotations

from typing import Any

from fewbit.interfaces import Frontend, target_of
from fewbit.planning import Plan
from fewbit.problems import several


def hints_of(made: Plan, frontend: Frontend, model: Any) -> tuple[str, ...]:
    """Return a sentence for each; layers are those whose inputs are rounded."""
    slow: dict[str, list[str]] = {}
    if made.target is not None and target_of(made.target).holds_graph:
        return ()  # its runtime has kernels of its own
    for row in made.rows:
        if row.input:
            found = frontend.execution(model, row.layer, row.scheme, row.input)
            if not found.fast:
                slow.setdefault(str(found), []).append(row.layer.name)
    return (*(f"{several(names)}: {text}" for text, names in slow.items()), *_mixed_types(made))


def _mixed_types(made: Plan) -> list[str]:
    others = sorted(made.cast_types - {made.storage_type})
    if not made.target or not others or made.storage_type == "float32":
        return []
    return [
        f"files will hold {' and '.join(others)} beside {made.storage_type}, which readers load as float32; "
        f"dtype='{others[0]}' (--dtype) stores what stays float so, too"
    ]
