"""Runs side by side: as data, in the terminal, and as a page in a headless Chromium."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from fewbit.cli.application import main
from fewbit.errors import CheckpointError, RecipeError
from fewbit.evaluation.quality import Quality
from fewbit.report.comparison import compare
from fewbit.report.comparison_page import render

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}


def quality(divergence):
    return Quality(predictions=2044, perplexity=20.0 + divergence, kl_divergence=divergence, top1_agreement=0.9)


@pytest.fixture
def runs(toy, tmp_path):
    """Four runs in folders; `big` is larger than `w8` and worse."""
    folders = []
    for name, size, lost in (
        ("w4", 125_000, 0.06),
        ("w3", 90_000, 0.4),
        ("w8", 200_000, 0.001),
        ("big", 210_000, 0.01),
    ):
        layers = [
            toy.layer("a.up", output_sqnr=20.0 - 30 * lost),
            toy.layer("a.down", output_sqnr=20.0),
            toy.kept("head"),
        ]
        if name == "w3":
            layers[1] = toy.kept("a.down", kind="linear")
        made = toy.report(
            layers, recipe=name, bytes_after=size, after=quality(lost), forward_seconds=(2.0, 1.0),
            call=None, command=f"fewbit quantize toy -o {name}",
        )  # fmt: skip
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        made.save(folders[-1] / "report.json")
    return folders


def test_what_nothing_beats_in_size_and_quality_is_told(runs):
    assert compare(runs).best == {"w3", "w4", "w8"}
    assert [own["best"] for own in compare(runs).to_dict()["runs"]] == [True, True, True, False]


def test_layers_that_differ_most_come_first(runs):
    found = compare(runs[:3]).differences()
    assert [own.name for own in found] == ["a.up", "a.down"]  # the head is float in all
    assert found[0].becomes == ("int4 g64",) * 3
    assert found[0].spread == pytest.approx(10 ** (-(20.0 - 12) / 20) - 10 ** (-(20.0 - 0.03) / 20))
    assert found[1].becomes == ("int4 g64", "float", "int4 g64")
    assert found[1].spread == 0.0


def test_models_that_are_no_language_models_are_compared_by_their_outputs(toy, tmp_path):
    paths = []
    for ratio in (20.0, 40.0):
        made = toy.report(toy.LAYERS, before=None, after=None, output_sqnr=ratio, bytes_after=int(1000 * ratio))
        paths.append(made.save(tmp_path / f"n{ratio:.0f}.report.json").with_name(f"n{ratio:.0f}.onnx"))
    found = compare(paths)
    assert [own.name for own in found.runs] == ["n20", "n40"]
    assert [own.loss for own in found.runs] == [0.1, 0.01]
    assert found.loss == "error of the output"
    assert found.plot() is not None


def test_runs_without_quality_have_sizes_and_no_plot(toy, tmp_path):
    paths = [toy.report(toy.LAYERS, before=None, after=None).save(tmp_path / f"{n}.json") for n in "ab"]
    found = compare(paths)
    assert found.plot() is None
    assert found.best == set()
    assert "Size, quality, speed" in render(found)


def test_other_models_and_other_texts_are_warned_of(runs, toy):
    assert compare(runs).warnings == []
    other = toy.report(toy.LAYERS, model="another", text="a poem", after=quality(0.1))
    other.save(runs[1] / "report.json")
    models, data = compare(runs[:2]).warnings
    assert "different models: w4: toy; w3: another" in models
    assert "different data: w4: a book, 2044 predictions; w3: a poem, 2044 predictions" in data


def test_one_run_or_a_folder_without_a_report_is_refused(runs, tmp_path):
    with pytest.raises(RecipeError, match="1 run cannot be compared; name at least two"):
        compare(runs[:1])
    with pytest.raises(CheckpointError, match="cannot read the report"):
        compare([runs[0], tmp_path])


# The command.


def told(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["compare", *map(str, words)])
    shown = capsys.readouterr()
    return left.value.code, shown.out, shown.err


def test_the_command_prints_a_table_and_writes_a_page(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    code, out, _ = told(capsys, *runs, "-o", page)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["run", "recipe", "tensors", "bits", "KL", "top-1", "perplexity", "speed"]
    assert lines[1].split() == ["w4", "*", "w4", "125.0", "kB", "4.25", "0.0600", "90.0%", "20.060", "2.00", "x"]
    assert lines[4].split()[:2] == ["big", "big"]
    assert "  a.up: int4 g64 12.303% | int4 g64 39.811% | int4 g64 10.035% | int4 g64 10.351%" in lines
    assert page.read_text() == render(compare(runs))
    code, _, err = told(capsys, *runs, "-o", page)
    assert code == 2
    assert "exists; give --overwrite" in err
    assert told(capsys, *runs, "-o", page, "--overwrite")[0] == 0


def test_the_command_prints_data_for_scripts(runs, capsys):
    code, out, _ = told(capsys, *runs[:2], "--json")
    assert code == 0
    data = json.loads(out)
    assert [own["kl_divergence"] for own in data["runs"]] == [0.06, 0.4]
    assert data["layers"][0]["name"] == "a.up"


@pytest.mark.parametrize(
    ("words", "said"), [(["-o", "page.pdf"], "written as .html, not '.pdf'"), (["nowhere"], "cannot read the report")]
)
def test_the_command_says_what_it_cannot_do(runs, capsys, words, said):
    code, _, err = told(capsys, *runs, *words)
    assert code == 2
    assert said in err


# The page.


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_in_silence_with_every_section(opened, runs, viewport, scheme):
    window = opened(render(compare(runs)), viewport=viewport, color_scheme=scheme)
    titles = window.page.eval_on_selector_all("h2", "all => all.map(own => own.textContent)")
    assert titles == ["Size, quality, speed", "What a byte buys", "Where layers differ", "How they were made"]
    assert window.page.locator(".scatter circle").count() == 4
    assert window.too_wide() <= 0
    rows = window.page.locator("table.runs").first.locator("tbody tr")
    assert [("not beaten" in text) for text in rows.all_inner_texts()] == [True, True, True, False]


def test_many_layers_are_folded_and_open_by_keyboard(opened, toy, runs):
    for n, folder in enumerate(runs[:2]):
        layers = [toy.layer(f"l.{k}", output_sqnr=20.0 + k + n) for k in range(50)]
        toy.report(layers, after=quality(0.1 + n)).save(folder / "report.json")
    window = opened(render(compare(runs[:2])))
    summary = window.page.locator("summary", has_text="10 more layers")
    summary.focus()
    window.page.keyboard.press("Enter")
    assert window.page.locator("th[scope=row]:visible", has_text="l.").count() == 50


def test_hostile_names_are_shown_and_do_nothing(opened, toy, tmp_path):
    hostile = "<img src=x onerror=alert(1)>{{ 7 * 7 }}"
    made = toy.report([toy.layer(hostile, output_sqnr=-math.inf)], model=hostile, recipe=hostile, text=hostile)
    paths = [made.save(tmp_path / f"{n}.json") for n in "ab"]
    dataclasses.replace(made, model="other").save(paths[1])
    window = opened(render(compare(paths)))
    assert window.page.locator("img, script").count() == 0
    assert hostile in window.page.inner_text("body")
