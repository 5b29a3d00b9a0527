"""CONTRIBUTING.md and CHANGELOG.md, which live in the root of the repository, are pages of the site, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages; their links into docs/ lose that folder."""
    root = Path(config.config_file_path).parent
    for name, source in _PAGES.items():
        text = (root / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links to the files in the root lead to their pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, source in _PAGES.items():
        markdown = markdown.replace(f"](../{up}{source}", f"]({up}{name}")
    return markdown
