"""`report.json` read back into the dataclasses, every value checked against the type of its field."""

from __future__ import annotations

import json
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from fewbit.errors import CheckpointError
from fewbit.part_names import whole_of
from fewbit.report.data import SCHEMA_VERSION, Report
from fewbit.report.layer_report import LayerReport
from fewbit.report.schema import NOT_FINITE, hints_of, is_required

#: The word for the version, and that of version 1.
_VERSION, _FIRST = "schema_version", "schema"
#: More bytes than a report of a hundred thousand layers has.
_MOST_BYTES = 1 << 30
_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def read_report(path: Path) -> Report:
    """Return the report in a `.json` file, in a folder, or beside an `.onnx` or `.gguf` file.

    Raises:
        CheckpointError: no such file, no report, or one of a newer fewbit.

    """
    file = report_file(path)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes, more than any report; it is none")
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the report {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON ({error}); give a report.json of fewbit") from error
    try:
        return from_dict(data)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def report_file(path: Path) -> Path:
    """Return where the report of an output is.

    >>> [report_file(Path(name)).name for name in ("net.onnx", "m-00001-of-00003.gguf")]
    ['net.report.json', 'm.report.json']
    """
    if path.is_dir():
        return path / "report.json"
    return path if path.suffix == ".json" else path.with_name(f"{whole_of(path).stem}.report.json")


def from_dict(data: Any) -> Report:
    """Return the report that `Report.to_dict` has written.

    Raises:
        CheckpointError: a value of another type, or a newer version.

    """
    version = data.get(_VERSION, data.get(_FIRST)) if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise CheckpointError("it says no schema_version; give a report.json of fewbit")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"it has schema_version {version}, and this fewbit reads up to {SCHEMA_VERSION}; install a newer fewbit"
        )
    found = _Reading(data).value(Report, data, "the report")
    assert isinstance(found, Report)
    return found


def layer_report_of(table: Any) -> LayerReport:
    """Return the report of a layer that `plain` has written by itself.

    Raises:
        CheckpointError: a value of another type.

    """
    found = _Reading(None).value(LayerReport, table, "the report of a layer")
    assert isinstance(found, LayerReport)
    return found


class _Reading:
    """The values of one file."""

    def __init__(self, data: dict[str, Any] | None) -> None:
        #: What lists stand in; `None`: every value stands where it belongs.
        self._data = data

    def value(self, kind: Any, value: Any, where: str) -> Any:
        """Return `value` as one of type `kind`."""
        if is_dataclass(kind):
            return self._object(kind, value, where)
        origin, parts = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            rest = [part for part in parts if part is not type(None)]
            assert len(rest) == 1, kind
            return None if value is None else self.value(rest[0], value, where)
        if origin is dict:
            self._require(isinstance(value, dict), where, value, "an object")
            return {key: self.value(parts[1], item, f"{where}.{key}") for key, item in value.items()}
        if origin is tuple:
            self._require(isinstance(value, list), where, value, "a list")
            kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
            self._require(len(kinds) == len(value), where, value, f"a list of {len(kinds)}")
            return tuple(
                self.value(own, item, f"{where}[{n}]") for n, (own, item) in enumerate(zip(kinds, value, strict=True))
            )
        return self._plain(kind, value, where)

    def _object(self, kind: Any, value: Any, where: str) -> Any:
        self._require(isinstance(value, dict), where, value, "an object")
        hints, found = hints_of(kind), {}
        for own in fields(kind):
            if own.name not in value:
                self._require(not is_required(own), where, value, f"an object with {own.name}")
                continue
            given, place = value[own.name], f"{where}.{own.name}"
            if self._data is not None and own.metadata.get("listed"):
                known = self._data.get(own.name)
                fits = type(given) is int and isinstance(known, list) and 0 <= given < len(known)
                self._require(fits, place, given, f"a place in {own.name}")
                assert isinstance(known, list)
                given = known[given]
            found[own.name] = self.value(hints[own.name], given, place)
        return kind(**found)

    def _plain(self, kind: Any, value: Any, where: str) -> Any:
        if kind is float:
            if isinstance(value, str) and value in NOT_FINITE:
                return float(value)
            self._require(type(value) in (int, float), where, value, _WORDS[float])
            return float(value)
        self._require(type(value) is kind, where, value, _WORDS[kind])
        return value

    @staticmethod
    def _require(fits: bool, where: str, value: Any, wanted: str) -> None:
        if not fits:
            raise CheckpointError(f"{where} is {value!r:.60}, not {wanted}; the file is damaged, quantize again")
