"""`report.json` back into a report: equal to what was written, under its schema, and damage is named."""

import dataclasses
import json
import math
from html import escape

import numpy as np
import pytest

import fewbit as fb
from fewbit.activation import Activation
from fewbit.errors import CheckpointError
from fewbit.evaluation.input_profile import input_profile
from fewbit.evaluation.overlap import Overlap
from fewbit.report import schema
from fewbit.report.data import SCHEMA_VERSION
from fewbit.schemes.notation import parse_scheme


def profile(scheme="int8 token"):
    rows = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    return input_profile(rows, Activation(scheme=parse_scheme(scheme)) if scheme else None)


@pytest.fixture
def whole(toy):
    """A report with something in every field, and with every number that JSON does not have."""
    layers = (
        *toy.LAYERS, toy.layer("b", inputs=profile(), overflow="1e6", block_losses=(2.0, 1.0)),
        toy.layer("c", weight_sqnr=math.inf, inputs=profile(None), kernel="fbgemm", fast=False),
    )  # fmt: skip
    return toy.report(
        layers, overlap=Overlap(tokens=8, runs=10, shared=3), forward_seconds=(1.0, 2.0), call="f(x)", output_sqnr=30.0,
    )  # fmt: skip


def test_what_was_written_is_read_back_equal(whole, tmp_path):
    path = whole.save(tmp_path / "report.json")
    for place in (path, str(path), tmp_path):
        assert fb.Report.load(place) == whole


def test_the_report_beside_a_file_is_found_by_the_name_of_the_file(whole, tmp_path):
    whole.save(tmp_path / "net.report.json")
    assert fb.Report.load(tmp_path / "net.onnx") == fb.Report.load(tmp_path / "net.gguf") == whole


def test_what_is_written_fits_the_schema_in_the_package_and_damage_does_not(whole):
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'fewbit[test]'")
    stated = json.loads(schema.text())
    jsonschema.Draft202012Validator.check_schema(stated)
    validator = jsonschema.Draft202012Validator(stated)
    data = whole.to_dict()
    assert list(validator.iter_errors(json.loads(json.dumps(data)))) == []
    for damaged in (
        {**data, "seed": "7"}, {**data, "schema_version": SCHEMA_VERSION + 1}, {**data, "layers": [{}]},
        {**data, "layers": [{**data["layers"][1], "shape": [1]}]}, {**data, "levels": [["low"]]},
    ):  # fmt: skip
        assert not validator.is_valid(json.loads(json.dumps(damaged)))


def test_the_schema_in_the_package_is_that_of_the_dataclasses():
    from importlib import resources

    stored = resources.files("fewbit.report").joinpath(schema.FILE).read_text("utf-8")
    assert stored == schema.text(), "python -m fewbit.report.schema writes it anew"


def test_a_field_that_came_later_may_be_missing_and_one_of_later_is_passed_over(whole):
    from fewbit.report.reading import from_dict

    data = whole.to_dict()
    del data["overlap"]
    assert from_dict({**data, "of_later": 1}) == dataclasses.replace(whole, overlap=None)


def test_a_report_of_the_first_version_is_read(whole):
    from fewbit.report.reading import from_dict

    data = dataclasses.replace(whole, overlap=None, call=None, forward_seconds=None).to_dict()
    data["schema"] = 1
    for name in ("schema_version", "overlap", "call", "forward_seconds"):
        del data[name]
    for layer in data["layers"]:
        del layer["inputs"]
    found = from_dict(data)
    assert [own.name for own in found.layers] == [own.name for own in whole.layers]
    assert found.layers[1].histogram == whole.layers[1].histogram


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema_version {SCHEMA_VERSION + 1}, and this fewbit reads up to"),
        ({"schema_version": None}, "says no schema_version"),
        ({"schema_version": True}, "says no schema_version"),
        ({"seed": 1.5}, "the report.seed is 1.5, not a whole number"),
        ({"seed": True}, "the report.seed is True, not a whole number"),
        ({"model": 3}, "the report.model is 3, not a text"),
        ({"layers": {}}, "the report.layers is {}, not a list"),
        ({"layers": [{}]}, r"the report.layers\[0\] is {}, not an object with name"),
        ({"seconds": {"load": "soon"}}, "the report.seconds.load is 'soon', not a number"),
        ({"forward_seconds": [1.0]}, "not a list of 2"),
        ({"levels": []}, "not a place in levels"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(whole, tmp_path, change, words):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**whole.to_dict(), **change}))
    with pytest.raises(CheckpointError, match=words) as caught:
        fb.Report.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "[" * 100_000, "\xff"])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"report\.json"):
        fb.Report.load(path)


def test_a_folder_without_a_report_is_said_to_have_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read the report .*report\.json: No such file"):
        fb.Report.load(tmp_path)


def test_records_are_what_a_data_frame_takes(whole):
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install 'fewbit[test]'")
    records = whole.records()
    assert {type(value) for own in records for value in own.values()} <= {str, int, float, bool, type(None)}
    frame = pandas.DataFrame(records).set_index("name")
    assert list(frame.index) == [own.name for own in whole.layers]
    assert frame.loc["model.layers.2.up", "weight_sqnr"] == 9.5
    assert frame.loc["b", "bits"] == 8 * 1088 / (16 * 128)
    assert frame[~frame.kept].bytes_after.sum() == sum(own.bytes_after for own in whole.quantized)


def test_a_notebook_shows_the_summary_and_the_worst_layers_and_escapes(toy):
    made = toy.report((toy.layer("<b>", output_sqnr=1.0), *toy.LAYERS))
    html = made._repr_html_()
    assert "<b>" not in html
    assert html.index("&lt;b&gt;") < html.index("model.layers.2.up")
    for name, value in made.summary():
        assert f"{name}</th>" in html
        assert escape(value) in html


# The call in words.


def test_a_call_says_its_arguments_and_data_by_their_size():
    from fewbit.report.call import call_in_words

    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 g64")], name="mine")
    given = fb.Calibration(data=[np.zeros(3)] * 4, samples=2)
    assert call_in_words("f", recipe, to=None, dtype="auto", calibration=given, options=fb.Options(seed=7)) == (
        "f(<recipe 'mine'>, dtype='auto', calibration=Calibration(data=<4 batches>, samples=2), "
        "options=Options(seed=7))"
    )
    assert call_in_words("f", "x" * 1000, [np.zeros(1)], (own for own in ())) == (
        "f(<a text of 1,000 characters>, <1 batch>, <generator>)"
    )
