"""The worked examples of CONTRIBUTING.md, taken from the page: one file and one catalogue line each, and all works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SECTIONS = ("A number format", "An algorithm", "A checkpoint format")


@dataclass(frozen=True)
class Example:
    """What a section of the page shows."""

    #: Where the new file belongs, and what it holds.
    file: str
    content: str
    #: Where the catalogue is, its name, and the line that it gets.
    catalogue: str
    table: str
    line: str
    #: What then works: Python code, and a command.
    code: str
    command: str


def example(section: str) -> Example:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    file, line, code, command = FENCE.findall(text)
    assert [found[0] for found in (file, line, code, command)] == ["python", "python", "python", "console"]
    catalogue, _, table = line[1].partition(", in ")
    return Example(file[1], file[2], catalogue, table, line[2], code[2], command[2].removeprefix("$ ").strip())


def copied(folder: Path) -> Path:
    """Copy what a contributor works on, and return where."""
    for name in ("src", "tests"):
        # With what numba has compiled, which counts as long as the files have the times that it was compiled at.
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def add_file(given: Example, folder: Path) -> None:
    assert not (folder / given.file).exists()
    (folder / given.file).write_text(given.content, encoding="utf-8")


def add_line(given: Example, folder: Path) -> None:
    """Put the line at the end of the catalogue."""
    path = folder / given.catalogue
    before, start, after = path.read_text(encoding="utf-8").partition(f"\n{given.table} = {{\n")
    assert start
    entries, end, rest = after.partition("\n}\n")
    assert end
    path.write_text(f"{before}{start}{entries}\n{given.line}}}\n{rest}", encoding="utf-8")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` on the package there."""
    paths = {
        "PYTHONPATH": str(folder / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.fixture(params=SECTIONS, scope="module")
def extended(request, tmp_path_factory) -> tuple[Example, Path]:
    """Each example in turn, with a copy of the package that it was added to."""
    given, folder = example(request.param), copied(tmp_path_factory.mktemp("package"))
    add_file(given, folder)
    add_line(given, folder)
    return given, folder


def test_an_example_adds_a_single_line_to_a_catalogue(extended):
    given, _ = extended
    assert re.fullmatch(r'    "[\w-]+": "fewbit\.[\w.]+:\w+",\n', given.line)
    module = given.file.removeprefix("src/").removesuffix(".py").replace("/", ".")
    assert f'"{module}:' in given.line


def test_the_package_that_runs_is_the_extended_one(extended):
    _, folder = extended
    done = run(folder, "python", "-c", "import fewbit; print(fewbit.__file__)")
    assert done.stdout.strip() == str(folder / "src" / "fewbit" / "__init__.py")


def test_the_code_of_an_example_works_from_end_to_end(extended):
    given, folder = extended
    done = run(folder, "python", "-W", "error", "-c", given.code)
    assert done.returncode == 0, done.stderr


def test_the_tests_of_its_kind_pass_with_an_example(extended):
    given, folder = extended
    done = run(folder, "bash", "-c", given.command)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


def test_linter_formatter_and_import_contract_accept_an_example(extended):
    given, folder = extended
    for command in (("ruff", "check", given.file), ("ruff", "format", "--check", given.file), ("lint-imports",)):
        done = run(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("section", SECTIONS)
def test_without_the_line_in_the_catalogue_nothing_of_it_is_known(section, tmp_path):
    """The negative control of this file."""
    given, folder = example(section), copied(tmp_path)
    add_file(given, folder)
    done = run(folder, "python", "-c", given.code)
    name = given.line.split('"')[1]
    assert done.returncode == 1
    assert re.search(rf"unknown [\w ]+ '{name}'", done.stderr), done.stderr
