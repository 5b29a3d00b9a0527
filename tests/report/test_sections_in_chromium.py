"""The sections above the table of layers, and what goes into layers, in a headless Chromium at two widths."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from fewbit.activation import Activation
from fewbit.evaluation.input_profile import input_profile
from fewbit.evaluation.overlap import Overlap
from fewbit.report.allocation import AllocatedLayer, AllocationPoint, AllocationReport, AllocationRound
from fewbit.schemes.notation import parse_scheme

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}
SECTIONS = (
    "What to do next", "What was asked", "Time and memory", "What was adapted, fell back or stayed float",
    "How it runs on this machine", "How it was made", "How bits were allocated", "Where it hurts",
    "Large channels of inputs", "Layers",
)  # fmt: skip


@cache
def profile(scheme="int8 token", factor=30.0):
    rows = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    rows[:, 37] *= factor
    return input_profile(rows, Activation(scheme=parse_scheme(scheme)) if scheme else None)


def replaced(**changes):
    return dataclasses.replace(profile(None, 1.0), **changes)


def allocation():
    layers = tuple(
        AllocatedLayer(
            name=f"model.layers.{n}.up", kind="linear", numbers=2048, scheme="int4 g64", bytes=1088,
            unit="model.layers.0.up", costs={"int4 g64": 0.02, "int8 channel": 0.001}, measured={"int4 g64": 0.021},
        )
        for n in range(3)
    )  # fmt: skip
    points = [("int3 g64", 70, 0.4), ("int4 g64", 88, 0.12), ("allocation", 92, 0.06), ("int8 g64", 150, 0.003)]
    return AllocationReport(
        budget="4.5 bits a weight", cost="KL divergence (nats)", candidates=("int4 g64", "int8 channel"),
        constraints=("queries and keys are equal",), metric="fisher, refined by kl_divergence", scored=12, refined=4,
        measured_on="256 tokens", solver="exact", gap=0.0, bytes=92_000_000, bits=4.5, seconds=None, predicted=0.05,
        measured=0.06, layers=layers,
        pareto=tuple(
            AllocationPoint(label=label, bytes=size * 10**6, bits=4.5, predicted=cost, chosen=label == "allocation")
            for label, size, cost in points
        ),
        rounds=(AllocationRound(bytes=92_000_000, bits=4.5, predicted=0.05, measured=0.06, holds=True, moved=0),),
    )  # fmt: skip


@pytest.fixture
def full(toy):
    """A report with every section."""
    layers = [
        toy.layer("a.up", "int4 g64, input int8 token", inputs=profile(), output_sqnr=9.0, kernel="fbgemm"),
        toy.layer("a.gate", "int4 g64, input int8 token", inputs=profile(), kernel="fbgemm"),
        toy.layer(
            "a.down", inputs=profile(None, 10.0), kernel="dequantize, not faster than float: its input", fast=False
        ),
        toy.layer("b.up", inputs=dataclasses.replace(profile(), clipped=0.02, median=2.0), kernel="fbgemm"),
        *(toy.layer(f"more.{n}", inputs=replaced(median=3.0 + n), kernel="fbgemm") for n in range(45)),
    ]
    return toy.report(
        [*layers, *toy.LAYERS], allocation=allocation(), forward_seconds=(1.5, 3.0), call="fewbit.quantize('toy')",
        overlap=Overlap(tokens=8, runs=1000, shared=120),
    )  # fmt: skip


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_is_there_and_nothing_scrolls_sideways(opened, full, viewport, scheme):
    window = opened(full, viewport=viewport, color_scheme=scheme)
    assert tuple(window.page.eval_on_selector_all("h2", "all => all.map(own => own.textContent)")) == SECTIONS
    assert window.too_wide() <= 0
    window.page.click("#open")
    for summary in window.page.locator("section .figures summary >> visible=true").all()[:8]:
        summary.click()
    assert window.too_wide() <= 0


def test_the_overlap_of_texts_is_a_warning_with_its_share(opened, full):
    window = opened(full)
    assert "12 % of the runs of 8 tokens" in window.page.inner_text(".warning")
    quiet = opened(dataclasses.replace(full, overlap=Overlap(tokens=8, runs=1000, shared=2)))
    assert quiet.page.locator(".warning").count() == 0
    assert "0.2 % of the runs of 8 tokens" in quiet.page.inner_text("body")


def test_speed_before_and_after_is_told(opened, full):
    tile = opened(full).page.locator(".tiles div", has_text="Speed").inner_text()
    assert "0.50 \N{MULTIPLICATION SIGN}" in tile
    assert "forwards took 3.00 s, as float 1.50 s" in tile


def test_layers_stand_in_the_order_of_their_damage_with_bars_and_lead_to_their_rows(opened, full):
    window = opened(full)
    rows = window.page.locator(".damage tbody tr")
    assert rows.count() == 12
    assert rows.first.inner_text().split()[:1] == ["model.layers.1.up"]  # -inf dB
    widths = [box["width"] for box in (row.bounding_box() for row in rows.locator("line").all()[2:])]
    assert widths == sorted(widths, reverse=True)
    rows.locator("a", has_text="a.up").click()
    assert window.body("a.up").locator(".panel").is_visible()
    assert 0 <= window.body("a.up").bounding_box()["y"] < 900


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_inputs_are_drawn_beside_weights_with_their_figures(opened, full, viewport):
    window = opened(full, viewport=viewport)
    body = window.body("a.up")
    body.locator(".name summary").click()
    for kind in ("weights", "inputs"):
        figure = body.locator(f".of-{kind}")
        box = figure.locator(f"path.{kind}").bounding_box()
        assert box["height"] == pytest.approx(114, abs=1)  # the highest bin reaches the top
        assert figure.locator("use").count() == 1  # the levels
        assert not figure.locator("table").is_visible()
        figure.locator("summary").click()
        shares = [float(text) for text in figure.locator("td:nth-child(2)").all_inner_texts()]
        assert len(shares) > 8
        assert sum(shares) == pytest.approx(100, abs=0.5)  # each has three digits
    assert "37, 29.6 times the median" in body.locator(".panel dl").inner_text()
    plain = window.body("a.down")
    plain.locator(".name summary").click()
    assert plain.locator(".of-inputs use").count() == 0
    assert "inputs, which stay float" in plain.inner_text()


def test_an_outlier_channel_is_a_dark_cell_and_a_figure(opened, full):
    window = opened(full)
    rows = window.page.locator("table.heat").first.locator("tbody tr")
    assert rows.count() == 40
    assert "37: 29.6\N{MULTIPLICATION SIGN}" in rows.first.inner_text()
    assert rows.first.locator("th").inner_text() == "a.up, gate"  # one input, one row
    cell, whole = (rows.first.locator(name).bounding_box() for name in ("path", "rect"))
    assert cell["x"] - whole["x"] == pytest.approx(whole["width"] * 18 / 64, abs=1)  # channels in twos
    window.page.locator("summary", has_text="more inputs").click()
    assert window.page.locator("table.heat tbody tr:visible").count() == 48


def test_the_plot_of_an_allocation_has_a_dot_for_each_model_and_a_table(opened, full):
    window = opened(full)
    assert window.page.locator(".scatter circle").count() == 4
    chosen = window.page.locator(".scatter circle.chosen").bounding_box()
    plot = window.page.locator(".scatter").bounding_box()
    assert plot["x"] < chosen["x"] < plot["x"] + plot["width"]
    summary = window.page.locator("summary", has_text="Figures of 4 models")
    summary.focus()
    window.page.keyboard.press("Enter")
    table = window.page.locator("details", has=summary).locator("table")
    assert [text.split("\t")[0] for text in table.locator("tbody tr").all_inner_texts()] == [
        "int3 g64", "int4 g64", "allocation (chosen)", "int8 g64",
    ]  # fmt: skip


def test_the_next_steps_follow_from_the_figures(opened, full):
    text = opened(full).page.inner_text("ul.steps")
    for words in ("12 % of the runs", "clip more than 0.1 %", "finetune", "2.00 times as long"):
        assert words in text, words


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_keyboard_reaches_a_layer_of_the_damaged_ones_and_opens_it(opened, full, viewport):
    window = opened(full, viewport=viewport)
    window.page.locator(".damage a", has_text="a.up").focus()
    window.page.keyboard.press("Enter")
    assert window.body("a.up").locator(".panel").is_visible()


def test_without_a_script_the_link_leads_to_the_row(opened, full):
    window = opened(full, java_script_enabled=False)
    window.page.locator(".damage a", has_text="a.up").click()
    assert -1 <= window.page.locator("#l0").bounding_box()["y"] < 900


def test_500_layers_with_everything_stay_below_3_megabytes(toy):
    schemes = ("int4 g64", "nf4 g64", "int8 channel", "int4 g64 asym")
    layers = [
        toy.layer(f"model.layers.{n // 7}.self_attn.{n % 7}_proj", f"{schemes[n % 4]}, input int8 token",
                  inputs=profile(factor=1.0 + n % 9), asked="int4 g128", kernel="fbgemm")
        for n in range(500)
    ]  # fmt: skip
    made = toy.report(layers, allocation=allocation(), overlap=Overlap(tokens=8, runs=9, shared=1))
    assert len(made.files()["report.html"]) < 3_000_000
