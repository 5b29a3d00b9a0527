"""A headless Chromium, windows that remember whatever their pages said, asked for or broke, and reports to open."""

from __future__ import annotations

import math
import re
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fewbit.evaluation.level_histogram import level_histogram
from fewbit.evaluation.quality import Quality
from fewbit.qtensor import quantize
from fewbit.report.data import Report
from fewbit.report.layer_report import LayerReport
from fewbit.schemes.notation import parse_scheme

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
DESKTOP = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def chromium():
    """A browser; the Chromium of the system, or the one that `playwright install chromium` fetched."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'fewbit[test]'")
    with api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), None) or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip(f"no Chromium on this machine: none of {', '.join(BROWSERS)}, and playwright installed none")
        browser = playwright.chromium.launch(executable_path=found, args=[*FLAGS, "--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in a window of its own, and whatever it said, asked for or broke."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address)

    def assert_silent_and_alone(self):
        assert self.said == []
        assert self.asked == [self.address]

    # What the table shows.

    def names(self):
        return self.page.eval_on_selector_all(
            "#table > tbody", "all => all.filter(b => b.offsetHeight).map(b => b.querySelector('.name').textContent)"
        )

    def header(self, title):
        return self.page.get_by_role("button", name=title, exact=True)

    def directions(self):
        return self.page.eval_on_selector_all("#table > thead th", "all => all.map(th => th.getAttribute('aria-sort'))")

    def body(self, name):
        return self.page.locator("#table > tbody", has=self.page.locator(".name", has_text=re.compile(f"^{name}$")))

    def too_wide(self):
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a report, or the text of a page; closes what it opened, and holds every page to silence."""
    windows = []

    def opening(made, *, silent=True, **options):
        path = tmp_path / f"report{len(windows)}.html"
        path.write_bytes(made.encode() if isinstance(made, str) else made.files()["report.html"])
        windows.append((Opened(chromium, path, **options), silent))
        return windows[-1][0]

    yield opening
    for window, silent in windows:
        if silent:
            window.assert_silent_and_alone()
        window.context.close()


@cache
def histogram(scheme):
    weight = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    return level_histogram(weight, quantize(weight, parse_scheme(scheme)))


def layer(name, becomes="int4 g64", **values):
    defaults = {
        "kind": "linear", "shape": (16, 128), "algorithm": "gptq", "bytes_before": 4096, "bytes_after": 1088,
        "weight_sqnr": 21.5, "row_sqnr": (20.0, 22.5), "output_sqnr": 20.25, "nearest_sqnr": 18.0, "solved_sqnr": 23.0,
        "damping": 0.01, "seconds": 0.25, "histogram": histogram(becomes.partition(",")[0]),
    }  # fmt: skip
    return LayerReport(name=name, becomes=becomes, **{**defaults, **values})


def kept(name, **values):
    return LayerReport(
        name=name, becomes="float", algorithm=None,
        **{"kind": "head", "shape": (512, 128), "bytes_before": 131072, "bytes_after": 131072,
           "notes": ("kept by rule 'head'",), **values},
    )  # fmt: skip


#: Values that differ in every column, in no order, with an infinite and with missing ones.
LAYERS = (
    kept("model.embed_tokens", kind="embedding", shape=(1000, 128), bytes_before=0, notes=("tied to lm_head",)),
    layer("model.layers.2.up", weight_sqnr=9.5, output_sqnr=101.0, nearest_sqnr=7.0, seconds=10.0),
    layer("model.layers.10.up", shape=(8, 32), bytes_before=512, bytes_after=100, weight_sqnr=math.inf, damping=0.3,
          row_sqnr=None, output_sqnr=5.5),
    layer("model.layers.1.down", "int8 channel", algorithm="nearest", bytes_before=40960, bytes_after=20500,
          weight_sqnr=41.0, output_sqnr=None, nearest_sqnr=None, solved_sqnr=None, damping=None, seconds=2.0),
    layer("model.layers.1.up", "nf4 g64", asked="nf4 g128", solved_sqnr=9.0, weight_sqnr=-0.5, output_sqnr=-math.inf),
    layer("model.layers.3.up", "e4m3 channel", remarks=("damping raised from 0.01 to 0.03",), damping=0.03,
          weight_sqnr=30.125, solved_sqnr=100.0, notes=("untied: stored on its own",)),
    kept("lm_head"),
)  # fmt: skip


def report(layers=LAYERS, **values):
    defaults = {
        "model": "toy", "recipe": "mixed", "rules": ("kind 'head': keep", "kind 'linear': int4 g128 by gptq"),
        "storage_type": "float16", "bytes_before": 400_000, "bytes_after": 125_000, "layers": tuple(layers),
        "adaptations": ("group size 128 -> 64",), "remarks": ("3 float numbers were rounded",), "text": "a book",
        "calibration": "a novel: 32 x 512 tokens", "peak_memory": {"load": 10**8, "solve": 2 * 10**8},
        "before": Quality(predictions=2044, perplexity=20.5, seconds=1.5),
        "after": Quality(predictions=2044, perplexity=22.25, kl_divergence=0.0625, top1_agreement=0.875, seconds=2.5),
        "seconds": {"load": 1.0, "solve": 75.5}, "command": "fewbit quantize toy -o out",
    }  # fmt: skip
    return Report(**{**defaults, **values})


NAMES = [own.name for own in LAYERS]


@pytest.fixture
def toy():
    """What reports to open are made with."""
    return SimpleNamespace(report=report, layer=layer, kept=kept, LAYERS=LAYERS, NAMES=NAMES)
