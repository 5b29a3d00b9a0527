"""The report as data and as a page: complete, valid, escaped, and alone."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import pytest

from fewbit.errors import RecipeError
from fewbit.evaluation.quality import Quality
from fewbit.report.data import SCHEMA, LayerReport, Report, installed_versions

HOSTILE = "<script>alert(\"x\")</script><img src=x onerror='y'>&amp;{{ 7 * 7 }}"


def layer(name="a.up", **values):
    defaults = {
        "kind": "linear", "shape": (8, 64), "becomes": "int4 g64", "algorithm": "nearest", "bytes_before": 1024,
        "bytes_after": 272, "weight_sqnr": 21.5, "output_sqnr": 20.25, "notes": ("a note",),
    }  # fmt: skip
    return LayerReport(name=name, **{**defaults, **values})


def kept(name):
    return layer(name, becomes="float", algorithm=None, weight_sqnr=None, output_sqnr=None, notes=("kept by rule 'x'",))


def report(**values):
    defaults = {
        "model": "toy", "recipe": "w4a16", "rules": ("kind 'linear': int4 g128 by nearest",),
        "storage_type": "float16", "bytes_before": 4_000_000, "bytes_after": 1_250_000,
        "layers": (layer(), layer("a.down", weight_sqnr=math.inf), kept("head")),
        "adaptations": ("group size 128 -> 64",), "remarks": ("3 float numbers were rounded",), "text": "a book",
        "before": Quality(predictions=2044, perplexity=20.5, seconds=1.5),
        "after": Quality(predictions=2044, perplexity=22.25, kl_divergence=0.0625, top1_agreement=0.875, seconds=2.5),
        "seconds": {"load": 1.0, "solve": 0.5}, "seed": 7, "command": "fewbit quantize toy -o out",
    }  # fmt: skip
    return Report(**{**defaults, **values})


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def page(made):
    return made.files()["report.html"].decode()


def strict_json(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


# report.json


def test_the_data_are_valid_json_and_say_their_schema():
    made = report()
    data = strict_json(made.files()["report.json"])
    assert data == json.loads(json.dumps(made.to_dict()))
    assert data["schema"] == SCHEMA == 1


def test_the_data_hold_every_field_with_its_value():
    data = report().to_dict()
    assert set(data) == {"schema", *(field.name for field in dataclasses.fields(Report))}
    assert set(data["layers"][0]) == {field.name for field in dataclasses.fields(LayerReport)}
    assert data["layers"][0]["shape"] == [8, 64]
    assert data["layers"][2]["weight_sqnr"] is None
    assert data["after"] == {
        "predictions": 2044, "perplexity": 22.25, "kl_divergence": 0.0625, "top1_agreement": 0.875, "seconds": 2.5,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "word"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_what_json_has_no_number_for_becomes_a_word(value, word):
    made = report(layers=(layer(weight_sqnr=value, output_sqnr=value),), output_sqnr=value)
    data = strict_json(made.files()["report.json"])
    assert data["layers"][0]["weight_sqnr"] == data["layers"][0]["output_sqnr"] == data["output_sqnr"] == word


def test_a_report_without_measurements_is_valid_too():
    made = report(before=None, after=None, text=None, command=None, adaptations=(), remarks=())
    assert strict_json(made.files()["report.json"])["after"] is None
    assert "Quality was not measured." in page(made)


def test_versions_name_python_and_the_packages_that_are_installed():
    versions = installed_versions()
    assert {"python", "fewbit", "numpy", "torch"} <= set(versions)
    assert report().to_dict()["versions"] == versions


# report.html


def test_the_page_shows_every_layer_and_every_measure():
    texts = Page(page(report())).texts
    for text in ("a.up", "a.down", "head", "int4 g64", "21.50", "20.25", "inf", "1,024", "272", "a note"):
        assert text in texts, text
    joined = " ".join(" ".join(texts).split())
    for text in (
        "2 layers quantized, 1 kept in float16", "22.250", "was 20.500", "0.0625", "87.5 %",
        "2044 predictions of a book", "3.20", "group size 128 -> 64", "3 float numbers were rounded",
        "fewbit quantize toy -o out", "Seed 7",
    ):  # fmt: skip
        assert text in joined, text


def test_the_page_shows_what_calibration_brought_where_there_was_one():
    solved = layer(algorithm="gptq", nearest_sqnr=18.25, solved_sqnr=23.75, damping=0.03, seconds=0.125)
    texts = Page(page(report(layers=(solved, kept("head")), calibration="a novel: 32 x 512 tokens"))).texts
    for text in ("18.25", "23.75", "0.03", "0.125", "Calibrated on a novel: 32 x 512 tokens."):
        assert text in texts, text
    assert "Damping" not in Page(page(report())).texts


@pytest.mark.parametrize("place", ["layer", "notes", "kind", "model", "recipe", "rules", "text", "command", "remarks"])
def test_a_hostile_name_is_escaped_wherever_it_stands(place):
    values = {
        "layer": {"layers": (layer(HOSTILE),)},
        "notes": {"layers": (layer(notes=(HOSTILE,)),)},
        "kind": {"layers": (layer(kind=HOSTILE),)},
        "rules": {"rules": (HOSTILE,)},
        "remarks": {"remarks": (HOSTILE,)},
    }.get(place, {place: HOSTILE})
    parsed = Page(page(report(**values)))
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert any(HOSTILE in text for text in parsed.texts)


def test_the_page_needs_nothing_but_itself():
    source = page(report()).lower()
    for word in ("http://", "https://", "src=", "url(", "@import", "<link", "<script", "<iframe"):
        assert word not in source, word
    assert [value for name, value in Page(source).attributes if name == "href"] == []


def test_the_bars_of_the_page_lie_between_nothing_and_their_track():
    layers = tuple(layer(f"l{n}", weight_sqnr=value) for n, value in enumerate([-math.inf, -3.0, 0.0, 40.0, math.inf]))
    styles = [value for name, value in Page(page(report(layers=layers))).attributes if name == "style"]
    widths = [float(style.removeprefix("width: ").removesuffix("%")) for style in styles]
    assert widths == [0.0, 0.0, 0.0, 88.0, 88.0]


# Saving and printing.


@pytest.mark.parametrize("name", ["r.json", "r.html"])
def test_save_writes_what_the_ending_says(tmp_path, name):
    made = report()
    path = made.save(tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes() == made.files()[f"report{path.suffix}"]


@pytest.mark.parametrize("name", ["r.txt", "r", "r.htm", "r.json.gz"])
def test_save_refuses_other_endings_and_writes_nothing(tmp_path, name):
    with pytest.raises(RecipeError, match=r"written as \.json or \.html"):
        report().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_size_and_quality():
    assert str(report()).splitlines() == [
        "model                  toy",
        "recipe                 w4a16",
        "layers                 2 quantized, 1 float",
        "tensors                4.0 MB as float16 -> 1.2 MB, 3.20 times smaller",
        "perplexity             20.500 -> 22.250",
        "mean KL divergence     0.0625 nats",
        "top-1 agreement        87.5%",
        "measured on            2044 predictions, a book",
    ]


def test_the_summary_of_a_module_says_the_sqnr_of_its_output():
    lines = str(report(before=None, after=None, output_sqnr=31.415)).splitlines()
    assert lines[-1] == "output SQNR            31.41 dB"
