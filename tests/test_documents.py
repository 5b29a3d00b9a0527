"""The code blocks of README and docs run, their commands exist, and their links lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
#: Documents whose blocks run elsewhere: in test_walkthroughs.py and test_contributing.py.
FOLLOWED = {"CONTRIBUTING.md", "tutorial.md", *(path.name for path in (ROOT / "docs" / "how-to").glob("*.md"))}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language, documents=DOCUMENTS):
    for document in documents:
        for number, (kind, code) in enumerate(FENCE.findall(document.read_text(encoding="utf-8")), 1):
            if kind == language:
                yield pytest.param(code, id=f"{document.name}-{number}")


@pytest.mark.parametrize("code", list(blocks("python", [path for path in DOCUMENTS if path.name not in FOLLOWED])))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", list(blocks("toml")))
def test_blocks_of_recipes_and_preprocessing_parse(code):
    from fewbit import Preprocessing, Recipe
    from fewbit.toml_table import parse_table

    table = parse_table(code, "the block")
    assert Recipe.from_text(code).rules if "rules" in table else Preprocessing.from_table(table)


@pytest.mark.parametrize("code", list(blocks("sh")))
def test_commands_name_targets_and_options_that_exist(code):
    import typer

    from fewbit.cli.application import application

    command = typer.main.get_command(application)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in makefile, line
        elif words[:1] == ["fewbit"]:
            found = command.commands[words[1]]
            options = {name for parameter in found.params for name in parameter.opts}
            given = [word for word in words[2:] if word.startswith("-")]
            assert set(given) <= options, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_no_document_names_a_path_of_a_machine():
    for document in DOCUMENTS:
        assert os.sep + "work" + os.sep not in document.read_text(encoding="utf-8")
