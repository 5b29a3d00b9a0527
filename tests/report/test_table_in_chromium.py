"""The table of layers in a headless Chromium: sorted, searched, filtered and opened, by pointer and by keyboard."""

from __future__ import annotations

import math
import re

import pytest

from fewbit.report.page import COLUMNS

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}


# Sorting.


def shown(own, style):
    """What a cell is sorted by: a number, a text, or `None` for what goes last."""
    value = {
        "name": own.name, "kind": own.kind, "shape": own.shape[0] * own.shape[1], "becomes": own.becomes,
        "by": own.algorithm, "before": own.bytes_before, "after": own.bytes_after, "weight": own.weight_sqnr,
        "output": own.output_sqnr, "nearest": own.nearest_sqnr, "solved": own.solved_sqnr, "damping": own.damping,
        "seconds": own.seconds,
        "notes": "".join(f"fell back: {text} " for text in own.remarks)
        + "; ".join((*own.notes, *([f"adapted from {own.asked}"] if own.asked else []))),
    }[style]  # fmt: skip
    if isinstance(value, str):  # numbers in names count as numbers
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", value.lower())] if value else None
    return value if value is not None and math.isfinite(value) else None


def sorted_names(toy, style, *, descending):
    there = [own for own in toy.LAYERS if shown(own, style) is not None]
    ordered = sorted(there, key=lambda own: shown(own, style), reverse=descending)
    if descending:  # equal ones stay in the order of the model
        ordered = sorted(there, key=lambda own: [shown(other, style) for other in ordered].index(shown(own, style)))
    return [own.name for own in [*ordered, *(own for own in toy.LAYERS if shown(own, style) is None)]]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.style)
def test_a_column_sorts_both_ways_and_back(opened, toy, column):
    window = opened(toy.report())
    place = COLUMNS.index(column)
    # Otherwise the test would show nothing.
    assert len({str(shown(own, column.style)) for own in toy.LAYERS}) > 1
    seen = []
    for direction in ("ascending", "descending", None):
        window.header(column.title).click()
        assert window.directions() == [direction if number == place else None for number in range(len(COLUMNS))]
        seen.append(window.names())
    assert seen[0] == sorted_names(toy, column.style, descending=False)
    assert seen[1] == sorted_names(toy, column.style, descending=True)
    assert seen[2] == toy.NAMES


def test_what_is_infinite_or_missing_goes_last_both_ways(opened, toy):
    window = opened(toy.report())
    for title, last in (
        ("Weight SQNR, dB", {"model.layers.10.up", "model.embed_tokens", "lm_head"}),
        ("Output SQNR, dB", {"model.layers.1.up", "model.layers.1.down", "model.embed_tokens", "lm_head"}),
    ):
        for _ in range(2):
            window.header(title).click()
            assert set(window.names()[-len(last) :]) == last


def test_numbers_are_sorted_as_numbers_and_layers_in_the_order_of_their_numbers(opened, toy):
    window = opened(toy.report())
    window.header("Output SQNR, dB").click()
    assert window.names()[:3] == ["model.layers.10.up", "model.layers.3.up", "model.layers.2.up"]  # 5.5, 20.25, 101
    window.header("Layer").click()
    assert window.names()[2:] == [f"model.layers.{name}" for name in ("1.down", "1.up", "2.up", "3.up", "10.up")]


def test_sorting_by_another_column_forgets_the_first(opened, toy):
    window = opened(toy.report())
    window.header("Kind").click()
    window.header("Bytes after").click()
    assert window.directions().count(None) == len(COLUMNS) - 1
    assert window.names() == sorted_names(toy, "after", descending=False)


# Searching and filtering.


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("layers.1.", [3, 4]),
        ("E4M3", [5]),
        ("kept by rule", [6]),
        ("tied lm_head", [0]),
        ("damping raised", [5]),
        ("up nf4", [4]),
        ("nearest", [3]),
        ("head embedding", [0]),
        ("nothing of the kind", []),
        ("  ", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_searching_leaves_the_layers_that_have_every_word(opened, toy, words, found):
    window = opened(toy.report())
    window.page.fill("#search", words)
    assert window.names() == [toy.NAMES[place] for place in found]
    told = f"{len(found)} of 7 layers" if len(found) < 7 else ""
    assert window.page.inner_text("#found") == told
    window.page.fill("#search", "")
    assert window.names() == toy.NAMES


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("all layers (7)", range(7)),
        ("quantized (5)", range(1, 6)),
        ("adapted (1)", [4]),
        ("fell back (1)", [5]),
        ("kept (2)", [0, 6]),
    ],
)
def test_layers_are_shown_by_what_became_of_them(opened, toy, state, found):
    window = opened(toy.report())
    window.page.select_option("#show", label=state)
    assert window.names() == [toy.NAMES[place] for place in found]


def test_what_nothing_came_to_is_not_offered(opened, toy):
    window = opened(toy.report(toy.LAYERS[1:4]))
    assert window.page.eval_on_selector_all("#show option", "all => all.map(o => o.textContent)") == [
        "all layers (3)", "quantized (3)",
    ]  # fmt: skip


def test_search_filter_and_order_go_together(opened, toy):
    window = opened(toy.report())
    window.page.fill("#search", "up")
    window.page.select_option("#show", label="quantized (5)")
    window.header("Weight SQNR, dB").click()
    wanted = [name for name in sorted_names(toy, "weight", descending=False) if name.endswith("up")]
    assert window.names() == wanted
    assert len(wanted) == 4


# Opening layers.


def test_a_layer_opens_on_its_histogram_and_facts(opened, toy):
    window = opened(toy.report())
    body = window.body("model.layers.1.up")
    picture = body.locator(".of-weights svg.histogram")
    assert not picture.is_visible()
    body.locator(".name summary").click()
    box, panel = picture.bounding_box(), body.locator(".panel").bounding_box()
    assert box["width"] > 300
    assert box["height"] > 100
    assert panel["x"] <= box["x"]
    assert box["x"] + box["width"] <= panel["x"] + panel["width"]
    area = body.locator("path.weights").bounding_box()
    assert area["height"] == pytest.approx(114, abs=1)  # the highest bin reaches the top
    # The marks of the levels, from -1 to 1 on an axis of 73 / 32.
    marks = picture.locator("use").bounding_box()
    assert marks["width"] == pytest.approx(box["width"] * 64 / 73, abs=12)  # labels are wider than marks
    assert marks["x"] >= box["x"]
    text = body.locator(".panel").inner_text()
    assert "16 of 16" in text
    assert "20.00 to 22.50 dB" in text
    assert window.page.locator(".panel:visible").count() == 1
    body.locator(".name summary").click()
    assert not picture.is_visible()


def test_all_that_is_shown_opens_and_closes_at_once(opened, toy):
    window = opened(toy.report())
    window.page.fill("#search", "layers.1.")
    window.page.click("#open")
    assert window.page.locator(".panel:visible").count() == 2
    window.page.fill("#search", "")
    assert window.page.locator(".panel:visible").count() == 2
    window.page.click("#open")
    assert window.page.locator(".panel:visible").count() == 0


def test_an_open_layer_stays_with_its_row(opened, toy):
    window = opened(toy.report())
    window.body("model.layers.3.up").locator(".name summary").click()
    window.header("Layer").click()
    panel = window.page.locator(".panel:visible")
    assert panel.count() == 1
    assert panel.locator("xpath=ancestor::tbody//th//summary").inner_text() == "model.layers.3.up"


# Without a script, by keyboard, on paper.


def test_without_a_script_the_table_is_complete_and_its_layers_open(opened, toy):
    window = opened(toy.report(), java_script_enabled=False)
    page = window.page
    assert page.locator("#table > tbody").count() == page.locator("#table > tbody .name:visible").count() == 7
    assert page.locator(".controls").is_hidden()
    assert page.locator("button:visible").count() == 0
    assert page.locator(".panel:visible").count() == 0
    page.locator(".name summary", has_text="model.layers.1.up").click()
    assert page.locator(".panel:visible").count() == 1


def press_until(page, wanted, *, limit=60):
    """Press Tab until `wanted`, an expression on the active element, holds."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if page.evaluate(f"(e => {wanted})(document.activeElement)"):
            # Where one is has to be seen.
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab does not lead to what has {wanted}")


def test_the_keyboard_alone_searches_sorts_and_opens(opened, toy):
    window = opened(toy.report())
    page = window.page
    press_until(page, "e.id === 'search'")
    page.keyboard.type("up")
    assert len(window.names()) == 4
    press_until(page, "e.id === 'show'")
    page.keyboard.type("quant")  # a list goes to the entry that begins so
    press_until(page, "e.textContent === 'Weight SQNR, dB'")
    page.keyboard.press("Enter")
    assert window.directions()[7] == "ascending"
    page.keyboard.press("Space")
    assert window.directions()[7] == "descending"
    assert window.names()[0] == "model.layers.3.up"
    press_until(page, "e.tagName === 'SUMMARY' && e.textContent === 'model.layers.3.up'")
    page.keyboard.press("Enter")
    assert window.body("model.layers.3.up").locator(".panel").is_visible()
    assert page.locator(".panel:visible").count() == 1
    page.keyboard.press("Space")
    assert page.locator(".panel:visible").count() == 0


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_readers_of_the_screen_find_controls_by_name_and_a_table(opened, toy, viewport):
    window = opened(toy.report(), viewport=viewport)
    nodes = window.context.new_cdp_session(window.page).send("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    assert ("searchbox", "Search") in found
    assert ("combobox", "Show") in found
    assert [name for role, name in found if role == "columnheader"][-len(COLUMNS) :] == [own.title for own in COLUMNS]
    # Phases and the most damaged layers have row headers, too. A place where a line may break is read as one.
    headers = [name.replace(". ", ".") for role, name in found if role == "rowheader"]
    worst = [f"model.layers.{name}" for name in ("1.up", "10.up", "3.up", "2.up")]  # -inf, 5.5, 20.25, 101 dB
    assert headers == ["load", "solve", *worst, *toy.NAMES]
    assert sum(role == "cell" for role, _ in found) > 7 * 4
