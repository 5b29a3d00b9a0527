"""The pictures and computed tables of docs/numerics.md are what the code makes now, and each is shown."""

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))


@pytest.fixture(scope="module")
def draw():
    """docs/pictures/draw.py, found as it is when it runs as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "pictures")
        yield importlib.import_module("draw")


def test_every_picture_has_its_code_and_the_other_way_round(draw):
    assert {path.stem for path in PICTURES} == set(draw.PICTURES)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_byte_for_byte_what_the_code_draws(draw, path):
    # After a change of the code: python docs/pictures/draw.py, and look at what became different.
    assert path.read_bytes() == str(draw.PICTURES[path.stem]()).encode()


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_shown_with_words_for_those_who_do_not_see_it(path):
    shown = re.findall(r"!\[([^\]]{20,})\]\(pictures/(\w+)\.svg\)", (DOCS / "numerics.md").read_text(encoding="utf-8"))
    assert [name for _, name in shown].count(path.stem) == 1
    root = ElementTree.fromstring(path.read_bytes())
    assert [child.tag.rpartition("}")[2] for child in root[:2]] == ["title", "desc"]
    assert all(child.text for child in root[:2])


def test_computed_tables_of_the_page_are_what_the_code_prints(draw):
    page = (DOCS / "numerics.md").read_text(encoding="utf-8")
    for name, make in draw.tables.TABLES.items():
        assert make() in page, f"table {name}: python docs/pictures/draw.py --table prints what it should be"
