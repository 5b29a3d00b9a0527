"""The page in a headless Chromium: silent, alone, safe, as wide as its window, and quick."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}
#: A small machine under load: what takes longer than this is not a matter of load.
A_MOMENT = 5.0


# Silent and alone.


def all_layers(toy):
    return toy.report()


def one_kept_layer(toy):
    missing = {"before": None, "after": None, "text": None, "calibration": None, "seconds": {}, "peak_memory": {}}
    return toy.report(toy.LAYERS[:1], **missing)


def no_histograms(toy):
    return toy.report([dataclasses.replace(own, histogram=None) for own in toy.LAYERS])


def a_module(toy):
    return toy.report(before=None, after=None, output_sqnr=31.5)


@pytest.mark.parametrize("make", [all_layers, one_kept_layer, no_histograms, a_module])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_in_silence_and_asks_for_nothing(opened, toy, make, scheme):
    made = make(toy)
    window = opened(made, color_scheme=scheme)
    window.page.click("#open")
    assert window.names() == [own.name for own in made.layers]


@pytest.mark.parametrize(
    ("extra", "trace"),
    [
        ("<script>console.warn('a word')</script>", "warning: a word"),
        ("<script>undefined.wrong</script>", "Cannot read properties"),
        ("<img src='http://127.0.0.1:9/x.png'>", "http://127.0.0.1:9/x.png"),
    ],
)
def test_a_word_an_error_and_a_request_would_be_noticed(opened, toy, extra, trace):
    made = toy.report().files()["report.html"].decode()
    without = re.sub(r"<meta http-equiv=.*?>", "", made)
    window = opened(without.replace("</body>", extra + "</body>"), silent=False)
    assert any(trace in seen for seen in window.said + window.asked)


@pytest.mark.parametrize(
    "extra",
    [
        "<script>window.evil = 1</script>",
        "<img src='x:' onerror='window.evil = 1'>",
        "<style>body { opacity: .5 }</style>",
    ],
)
def test_the_policy_stops_what_is_not_the_pages_own(opened, toy, extra):
    window = opened(toy.report().files()["report.html"].decode().replace("</body>", extra + "</body>"), silent=False)
    assert any("Content Security Policy" in seen for seen in window.said)
    assert window.page.evaluate("window.evil") is None
    assert window.page.evaluate("getComputedStyle(document.body).opacity") == "1"
    window.header("Layer").click()  # its own script still runs
    assert window.directions()[0] == "ascending"


HOSTILE = "</script></style><script>evil()</script><img src=x onerror=evil()>\"' onclick=evil() {{ 7 * 7 }} <!--"


def test_a_hostile_text_is_shown_as_it_is_and_does_nothing(opened, toy):
    own = toy.layer(HOSTILE, kind=HOSTILE, algorithm=HOSTILE, notes=(HOSTILE,), remarks=(HOSTILE,), asked=HOSTILE)
    window = opened(
        toy.report(
            [own, dataclasses.replace(own, becomes=HOSTILE), toy.kept(HOSTILE, notes=(HOSTILE,))],
            model=HOSTILE, recipe=HOSTILE, rules=(HOSTILE,), adaptations=(HOSTILE,), remarks=(HOSTILE,), text=HOSTILE,
            command=HOSTILE, machine=HOSTILE, versions={HOSTILE: HOSTILE}, calibration=HOSTILE,
            seconds={HOSTILE: 1.0}, peak_memory={HOSTILE: 10**8},
        )
    )  # fmt: skip
    for title in ("Layer", "Kind", "Notes"):
        window.header(title).click()
    window.page.fill("#search", "onclick=evil() {{ 7 * 7 }} <!--")
    window.page.click("#open")
    assert window.names() == [HOSTILE] * 3
    assert window.page.locator("img").count() == 0
    assert window.page.locator("script").count() == 1
    assert window.page.locator("[onerror], [onclick]").count() == 0
    assert window.page.title() == f"fewbit: {HOSTILE}, {HOSTILE}"
    assert HOSTILE in window.page.inner_text("h1")


# On paper; widths and colours.


def test_on_paper_there_are_no_controls(opened, toy):
    window = opened(toy.report(), color_scheme="dark")
    window.page.emulate_media(media="print")
    assert window.page.locator(".controls").is_hidden()
    assert window.page.locator("#table > tbody .name:visible").count() == 7


LONG = "model." + "a_name_without_any_place_to_break_" * 5 + ".q_proj"


@pytest.mark.parametrize(
    "viewport", [PHONE, {"width": 768, "height": 900}, {"width": 1280, "height": 800}, DESKTOP], ids=str
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways(opened, toy, viewport, scheme):
    long = toy.layer(LONG, notes=("x" * 300,), remarks=("y" * 90,), bytes_before=10**12, bytes_after=10**12)
    texts = {"model": "m" * 80, "command": "fewbit " + "c" * 200, "rules": ("r" * 120,), "remarks": ("z" * 200,)}
    window = opened(toy.report([*toy.LAYERS, long], **texts), viewport=viewport, color_scheme=scheme)
    assert window.too_wide() <= 0
    window.page.click("#open")
    assert window.page.locator(".panel:visible").count() == 8
    assert window.too_wide() <= 0


def test_a_page_that_does_scroll_sideways_would_be_noticed(opened, toy):
    made = re.sub(r"<meta http-equiv=.*?>", "", toy.report().files()["report.html"].decode())
    window = opened(made.replace("<h1>", "<h1 style='width: 500px'>"), viewport=PHONE)
    assert window.too_wide() > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_what_matters_of_each_layer_and_the_rest_when_it_is_opened(opened, toy, scheme):
    window = opened(toy.report(), viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    body = window.body("model.layers.3.up")
    for style, there in (("name", True), ("becomes", True), ("weight", True), ("output", True), ("notes", True),
                         ("damping", False), ("shape", False)):  # fmt: skip
        assert body.locator(f".{style}").is_visible() is there, style
    body.locator(".name summary").tap()
    for style in ("kind", "shape", "before", "after", "nearest", "solved", "damping", "seconds"):
        assert body.locator(f".{style}").is_visible(), style
    for part in (body, body.locator(".of-weights svg.histogram"), body.locator(".notes")):
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    assert body.locator(".notes").bounding_box()["width"] > 300
    window.header("Notes").tap()  # the headers are a strip that scrolls by itself
    assert window.names()[0] == "model.layers.1.up"  # "adapted from ..."
    assert window.too_wide() <= 0


def test_dark_and_light_follow_the_system(opened, toy):
    grounds = [
        opened(toy.report(), color_scheme=scheme).page.evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


def test_the_header_stays_in_sight_where_the_table_fits(opened, toy):
    window = opened(toy.report([toy.layer(f"l.{n}") for n in range(60)]))
    window.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    box = window.header("Layer").bounding_box()
    assert 0 <= box["y"] < 60


# Size.


def many(toy, count):
    schemes = ("int4 g64", "nf4 g64", "int8 channel", "int4 g64 asym")
    return [
        toy.layer(f"model.layers.{n // 7}.self_attn.{n % 7}_proj", schemes[n % 4], asked="int4 g128",
              weight_sqnr=20 + math.sin(n), output_sqnr=20 + math.cos(n))
        for n in range(count)
    ]  # fmt: skip


def test_a_report_of_500_layers_stays_below_a_megabyte_and_a_half(toy):
    assert len(toy.report(many(toy, 500)).files()["report.html"]) < 1_500_000
    # A layer costs the same, however many there are.
    sizes = [len(toy.report(many(toy, count)).files()["report.html"]) for count in (100, 200, 300)]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.01)


def test_a_page_of_600_layers_opens_sorts_and_searches_in_a_moment(opened, toy):
    window = opened(toy.report(many(toy, 600)))
    page = window.page
    assert page.evaluate("performance.getEntriesByType('navigation')[0].domComplete") < 1000 * A_MOMENT
    took = page.evaluate("""() => {
        const at = () => { document.body.offsetHeight; return performance.now(); };
        const start = at();
        document.querySelector('#table thead .weight button').click();
        const sorted = at();
        search.value = 'layers.3';
        search.dispatchEvent(new Event('input'));
        const searched = at();
        search.value = '';
        search.dispatchEvent(new Event('input'));
        document.querySelector('#open').click();
        return { sort: sorted - start, search: searched - sorted, all: at() - searched };
    }""")
    for what, milliseconds in took.items():
        assert milliseconds < 1000 * A_MOMENT, what
    levels = page.eval_on_selector_all("td.weight", "all => all.map(cell => Number(cell.dataset.v))")
    assert levels == sorted(levels)
    assert len(levels) == 600
