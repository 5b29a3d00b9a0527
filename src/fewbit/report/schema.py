"""The JSON Schema of `report.json`, made from the dataclasses: `python -m fewbit.report.schema` writes the file anew.

Fields that have a default may be missing: files of the same version were written before these came.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

#: Words for numbers that JSON does not have.
NOT_FINITE = ("inf", "-inf", "nan")
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]},
    type(None): {"type": "null"},
}
FILE = "report.schema.json"


def schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12)."""
    from fewbit.report.data import SCHEMA_VERSION, Report

    definitions: dict[str, Any] = {}
    root = _object(Report, definitions)
    listed = {"type": "array", "items": _schema(hints_of(_listing("levels"))["levels"], definitions)}
    own = {"schema_version": {"const": SCHEMA_VERSION}, "levels": listed}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "report.json of fewbit",
        **root,
        "properties": {**own, **root["properties"]},
        "required": ["schema_version", *root["required"]],
        "$defs": definitions,
    }


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass."""
    return get_type_hints(kind)


def is_required(own: Field[Any]) -> bool:
    """Whether a file must have the field."""
    return own.default is MISSING and own.default_factory is MISSING


def _listing(name: str) -> type:
    from fewbit.evaluation.level_histogram import LevelHistogram

    assert any(own.name == name and own.metadata.get("listed") for own in fields(LevelHistogram))
    return LevelHistogram


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = hints_of(kind)
    properties = {
        own.name: {"type": "integer", "minimum": 0}
        if own.metadata.get("listed")
        else _schema(hints[own.name], definitions)
        for own in fields(kind)
    }
    required = [own.name for own in fields(kind) if is_required(own)]
    words = (kind.__doc__ or "").partition("\n")[0]
    return {"type": "object", "description": words, "properties": properties, "required": required}


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # one that holds itself ends here
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(part, definitions) for part in parts]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(parts[1], definitions)}
    assert origin is tuple, kind
    if parts[1:] == (...,):
        return {"type": "array", "items": _schema(parts[0], definitions)}
    items = [_schema(part, definitions) for part in parts]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def text() -> str:
    """Return the schema as the file has it."""
    from fewbit.report.strict_json import json_text

    return json_text(schema())


if __name__ == "__main__":
    Path(str(resources.files("fewbit.report").joinpath(FILE))).write_text(text(), "utf-8")
