"""JSON of files that nobody vouches for: one meaning, bounded, or an error that names the file and the fault."""

import json
import re

import pytest

from fewbit.checkpoints import json_object
from fewbit.checkpoints.json_object import DEEPEST, parse_object, read_object
from fewbit.errors import CheckpointError, SourceError


def nested(depth):
    return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_an_object_is_read_with_all_that_json_has():
    value = {"text": "ä\u20ac", "whole": -3, "float": 0.5, "none": None, "list": [1, [True]], "object": {"a": {}}}
    assert parse_object(json.dumps(value).encode()) == value


def test_infinity_is_read_since_configurations_hold_it():
    assert parse_object(b'{"a": [0.0, Infinity]}') == {"a": [0.0, float("inf")]}


def test_equal_keys_in_different_objects_are_none_twice():
    assert parse_object(b'{"a": {"b": 1}, "c": {"b": 2}}')["c"] == {"b": 2}


def test_nesting_up_to_the_limit_is_read():
    parse_object(nested(DEEPEST))


FAULTS = {
    "nothing": (b"", "is not valid JSON: Expecting value: line 1 column 1"),
    "cut off": (b'{"a": ', "is not valid JSON: Expecting value: line 1 column 7"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not valid JSON: Unexpected UTF-8 BOM"),
    "no UTF-8": (b'{"\xff": 1}', "is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
    "NUL": (b"\x00", "is not valid JSON"),
    "a list": (b"[1]", "does not hold a JSON object but a list"),
    "a text": (b'"a"', "does not hold a JSON object but a str"),
    "null": (b"null", "does not hold a JSON object but a NoneType"),
    "a key twice": (b'{"a": 1, "b": 2, "a": 1}', "names 'a' twice; which of them counts is not said"),
    "a key twice inside": (b'{"a": {"b": 1, "b": 2}}', "names 'b' twice"),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: Exceeds the limit"),
    "one level too many": (nested(DEEPEST + 1), f"nests deeper than {DEEPEST}"),
    "a hundred thousand levels": (nested(100_000), f"nests deeper than {DEEPEST}"),
    "a hundred thousand objects": (b'{"a": ' * 100_000, f"nests deeper than {DEEPEST}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_that_names_it(fault):
    content, message = FAULTS[fault]
    with pytest.raises(CheckpointError, match=re.escape(message)):
        parse_object(content)


def test_a_file_at_fault_is_named_and_the_error_is_of_the_kind_asked_for(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"[]")
    with pytest.raises(SourceError, match=re.escape(f"{path} does not hold a JSON object")):
        read_object(path, error=SourceError)
    with pytest.raises(CheckpointError, match=r"nowhere\.json cannot be read \(No such file or directory\)"):
        read_object(tmp_path / "nowhere.json")


def test_a_file_that_is_too_large_is_not_read_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    monkeypatch.setattr(json_object, "LARGEST", 7)
    with pytest.raises(CheckpointError, match="has 8 bytes; more than 7 are not read as JSON"):
        read_object(path)
    monkeypatch.setattr(json_object, "LARGEST", 8)
    assert read_object(path) == {"a": 1}
