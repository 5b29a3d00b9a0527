"""The colours of the page, light and dark: their contrast is that which WCAG 2.2 asks of text and of graphics."""

import re
from importlib import resources

import pytest


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def palette(dark):
    style = resources.files("fewbit.report").joinpath("page.css").read_text("utf-8")
    light, other = (
        dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    )
    assert set(light) == set(other)
    return other if dark else light


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # a known near miss of 4.5
    assert contrast("#808080", "#808080") == 1.0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["page", "tint"])
def test_text_is_told_from_its_ground(dark, ground):
    colours = palette(dark)
    for ink in ("ink", "soft", "warn"):
        assert contrast(colours[ink], colours[ground]) >= 4.5, ink
    for shape in ("bar", "whisker", "weights", "codes", "marks", "inputs", "heat"):
        assert contrast(colours[shape], colours[ground]) >= 3.0, shape


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_link_is_told_as_text_and_a_large_channel_from_a_usual_one(dark):
    colours = palette(dark)
    assert contrast(colours["marks"], colours["page"]) >= 4.5
    assert contrast(colours["heat"], colours["cell"]) >= 3.0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_line_is_told_from_what_it_is_drawn_on(dark):
    colours = palette(dark)
    assert contrast(colours["codes"], colours["weights"]) >= 3.0
    assert contrast(colours["whisker"], colours["bar"]) >= 3.0
