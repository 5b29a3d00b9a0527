"""The site of `make docs`: it builds without a warning, loads nothing from elsewhere, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import fewbit as fb

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The ids of a page, what it links to, and what a browser loads to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if "src" in given:
            self.loaded.append(given["src"])
        # A canonical address is a name; every other link in the head is fetched.
        if tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """The pages of the site by where they are, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stderr), done.stderr
    return {path.resolve(): Page(path.resolve()) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_built(site):
    names = {page.path.name for page in site.values()}
    assert {"index.html", "tutorial.html", "numerics.html", "contributing.html", "changelog.html"} <= names
    assert {f"{page.stem}.html" for page in (ROOT / "docs").rglob("*.md")} <= names


def test_links_and_anchors_inside_of_the_site_lead_somewhere(site):
    lost = []
    for page in site.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            anchor = unquote(parts.fragment)
            if target.suffix == ".html" and target in site:
                found = not anchor or anchor.startswith("__") or anchor in site[target].ids
            else:
                found = target.exists()
            lost += [] if found else [f"{page.path.name}: {link}"]
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = {address for page in site.values() for address in page.loaded}
    assert any(address.endswith(".css") for address in loaded)
    assert [address for address in loaded if urlsplit(address).scheme or urlsplit(address).netloc] == []
    root = next(path.parent for path in site if path.name == "numerics.html")
    styles = list(root.rglob("*.css"))
    assert root / "pages.css" in styles
    for style in styles:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_formulas_are_mathml(site):
    page = next(page for page in site.values() if page.path.name == "numerics.html")
    text = page.path.read_text(encoding="utf-8")
    source = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    blocks, inline = source.count("```math"), len(re.findall(r"(?<!\$)\$[^$\n]+\$", source))
    assert blocks > 5
    assert text.count('display="block"') == blocks
    assert text.count("<math") == blocks + inline
    assert "arithmatex" not in text


def test_every_public_name_has_its_entry_in_the_reference(site):
    ids = set().union(*(page.ids for page in site.values() if page.path.parent.name == "reference"))
    assert [name for name in fb.__all__ if f"fewbit.{name}" not in ids and not hidden(name, ids)] == []


def hidden(name: str, ids: set[str]) -> bool:
    """Whether a name has its entry under the module that defines it."""
    defined = getattr(fb, name)
    return f"{defined.__module__}.{defined.__qualname__}" in ids


def test_the_reference_of_the_command_line_has_every_option(site):
    import typer

    from fewbit.cli.application import application

    page = next(page for page in site.values() if page.path.name == "command-line.html")
    text = page.path.read_text(encoding="utf-8")
    for name, command in typer.main.get_command(application).commands.items():
        if not command.hidden:
            assert f"fewbit-{name}" in page.ids
            options = {word for parameter in command.params for word in parameter.opts if word.startswith("-")}
            assert [option for option in options if f"<code>{option}</code>" not in text] == []
