"""The report as data and as a page: complete, valid, escaped, and alone."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fewbit.errors import RecipeError
from fewbit.evaluation.level_histogram import level_histogram
from fewbit.evaluation.quality import Quality
from fewbit.qtensor import quantize
from fewbit.report.data import SCHEMA_VERSION, Report, installed_versions
from fewbit.report.layer_report import LayerReport
from fewbit.schemes.notation import parse_scheme

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
    return Report(**{"peak_memory": {"load": 123_456_789, "solve": 234_567_890}, **defaults, **values})


def histogram(scheme="int4 g64", seed=0):
    weight = np.random.default_rng(seed).standard_normal((8, 64)).astype(np.float32)
    return level_histogram(weight, quantize(weight, parse_scheme(scheme)))


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page; a place where a line may break is none of them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(source.replace("<wbr>", ""))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, tag, attribute):
        return [value for own, name, value in self.attributes if (own, name) == (tag, attribute)]


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
    assert data["schema_version"] == SCHEMA_VERSION == 2


def test_the_data_hold_every_field_with_its_value():
    data = report().to_dict()
    assert set(data) == {"schema_version", "levels", *(field.name for field in dataclasses.fields(Report))}
    assert set(data["layers"][0]) == {field.name for field in dataclasses.fields(LayerReport)}
    assert data["layers"][0]["shape"] == [8, 64]
    assert data["layers"][2]["weight_sqnr"] is None
    assert data["after"] == {
        "predictions": 2044, "perplexity": 22.25, "kl_divergence": 0.0625, "top1_agreement": 0.875, "seconds": 2.5,
    }  # fmt: skip


def test_the_data_hold_counts_as_numbers_on_a_line_and_levels_once():
    first, second, third = histogram(), histogram("int8 channel"), histogram(seed=1)
    layers = tuple(layer(str(n), histogram=own) for n, own in enumerate([first, second, third]))
    text = report(layers=(*layers, kept("head"))).files()["report.json"].decode()
    data = strict_json(text)
    assert data["levels"] == [list(first.levels), list(second.levels)]
    assert [own["histogram"] and own["histogram"]["levels"] for own in data["layers"]] == [0, 1, 0, None]
    assert data["layers"][2]["histogram"] == {
        **dataclasses.asdict(third), "levels": 0, "weights": list(third.weights), "codes": list(third.codes),
        "clipped": [0, 0], "scales": list(third.scales),
    }  # fmt: skip
    assert f'"weights": {list(third.weights)}' in text


def test_a_text_that_looks_like_a_list_of_numbers_stays_as_it_is():
    for odd in ("[\n  1,\n  2\n]", "[ 1,\t2 ]"):
        assert strict_json(report(command=odd).files()["report.json"])["command"] == odd


def test_the_data_hold_time_and_memory_of_each_phase():
    data = report().to_dict()
    assert data["seconds"] == {"load": 1.0, "solve": 0.5}
    assert data["peak_memory"] == {"load": 123_456_789, "solve": 234_567_890}


@pytest.mark.parametrize(
    ("values", "states"),
    [
        ({}, ("quantized",)),
        ({"asked": "int4 g128"}, ("quantized", "adapted")),
        ({"remarks": ("damping raised",)}, ("quantized", "fell back")),
        ({"asked": "int4 g128", "remarks": ("damping raised",)}, ("quantized", "adapted", "fell back")),
        ({"becomes": "float"}, ("kept",)),
    ],
)
def test_a_layer_knows_what_became_of_what_was_asked(values, states):
    own = layer(**values)
    assert own.states == states
    for state in ("quantized", "adapted", "fell back", "kept"):
        assert report(layers=(own,)).in_state(state) == ([own] if state in states else [])


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
        "fewbit quantize toy -o out", "Seed 7", "Time 1.50 s", "Peak memory 234.6 MB", "load 1.00 s 123.5 MB",
        "head: kept by rule 'x'",
    ):  # fmt: skip
        assert text in joined, text


def test_the_page_draws_each_histogram_on_the_levels_of_its_scheme():
    schemes = ("int4 g64", "int8 channel", "int4 g64 asym", "nf4 g64")
    layers = tuple(layer(text, becomes=text, histogram=histogram(text)) for text in schemes)
    parsed = Page(page(report(layers=(*layers, kept("head")))))
    # The two kinds of int4 share their levels.
    assert parsed.values("use", "href") == ["#scale0", "#scale1", "#scale0", "#scale2"]
    assert parsed.values("g", "id") == ["scale0", "scale1", "scale2"]
    marks = [
        path.count("M")
        for path, style in zip(parsed.values("path", "d"), parsed.values("path", "class"), strict=False)
        if style.startswith("marks")
    ]
    assert marks == [16, 16, 256, 16, 16]  # few levels twice: through the drawing and below it
    assert parsed.values("path", "class").count("weights") == 4
    assert parsed.values("path", "class").count("codes") == 3
    joined = " ".join(" ".join(parsed.texts).split())
    assert "Levels used 16 of 16" in joined
    assert f"Levels used {layers[1].histogram.used} of 256" in joined
    assert "Its weight stays float: there are no levels to draw." in joined


def test_the_page_names_every_adaptation_fallback_and_kept_layer():
    layers = (
        layer("one", asked="int4 g128"),
        layer("two", remarks=("damping raised from 0.01 to 0.03", "3 scales stay float32")),
        *(kept(f"kept.{n}") for n in range(8)),
    )
    remarks = tuple(f"two: remark {n}" for n in range(20))
    joined = " ".join(" ".join(Page(page(report(layers=layers, remarks=remarks))).texts).split())
    for text in (
        "Adapted: group size 128 -> 64", "a note; adapted from int4 g128", "8 layers stay float: kept by rule 'x'",
        "fell back: damping raised from 0.01 to 0.03; 3 scales stay float32", *remarks,
        ", ".join(f"kept.{n}" for n in range(8)),
        "all layers (10)", "quantized (2)", "adapted (1)", "fell back (1)", "kept (8)",
    ):  # fmt: skip
        assert text in joined, text
    for text in ("adapted (0)", "Nothing: every layer became what was asked."):
        assert text not in joined
    plain = " ".join(Page(page(report(layers=(layer(),), adaptations=(), remarks=()))).texts)
    assert "Nothing: every layer became what was asked." in plain


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
    assert parsed.tags.count("script") == 1  # the page's own
    assert "img" not in parsed.tags
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert any(HOSTILE in text for text in parsed.texts)


def test_the_page_needs_nothing_but_itself():
    source = page(report()).lower()
    for word in ("http://", "https://", "src=", "url(", "@import", "<link", "<iframe", "fetch(", "import("):
        assert word not in source, word
    assert [value for _, name, value in Page(source).attributes if name == "href" and value[0] != "#"] == []


def test_the_policy_allows_the_own_style_and_script_by_their_hashes_and_nothing_else():
    source = page(report(command="</script><script>evil()</script>"))
    (policy,) = [value for value in Page(source).values("meta", "content") if "default-src" in value]
    texts = [re.search(f"<{tag}>(.*?)</{tag}>", source, re.DOTALL)[1] for tag in ("style", "script")]
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # What the policy forbids must not be needed.
    assert not [value for _, name, value in Page(source).attributes if name == "style"]


def test_bars_are_errors_and_lie_between_nothing_and_the_longest():
    levels = [-math.inf, -6.0, 0.0, 14.0, 34.0, math.inf]
    layers = tuple(layer(f"l{n}", weight_sqnr=value, output_sqnr=None) for n, value in enumerate(levels))
    widths = Page(page(report(layers=layers, seconds={}))).values("rect", "width")
    assert widths == ["100", "100", "50.12", "10", "1", "0"]  # 20 dB are ten times the error


def test_a_bar_has_a_line_from_the_better_rows_to_the_worse():
    layers = (layer(weight_sqnr=20.0, row_sqnr=(0.0, 40.0), output_sqnr=None), layer("b", output_sqnr=None))
    parsed = Page(page(report(layers=layers, seconds={})))
    assert parsed.values("path", "d") == ["M1 5H100"]
    assert parsed.values("rect", "width") == ["10", "8.41"]


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
        "seconds                1.5: load 1.0, solve 0.5",
        "peak memory            234.6 MB",
    ]


def test_the_summary_says_what_fell_back():
    fallen = tuple(layer(name, remarks=("damping raised",)) for name in ("a.up", "a.down"))
    assert "fell back              a.up: damping raised, and 1 more" in str(report(layers=fallen)).splitlines()


def test_the_summary_of_a_module_says_the_sqnr_of_its_output():
    lines = str(report(before=None, after=None, output_sqnr=31.415, seconds={}, peak_memory={})).splitlines()
    assert lines[-2:] == ["output SQNR            31.41 dB", "measured on            a book"]
