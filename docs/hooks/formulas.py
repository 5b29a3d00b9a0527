"""Formulas become MathML while the site is built, so that a reader's browser needs no script for them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

#: What pymdownx.arithmatex makes of `$...$` and of ```math.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Return the page with every formula as MathML; one that cannot be converted ends the build."""
    return _FORMULA.sub(_converted, content)


def _converted(found: re.Match[str]) -> str:
    latex = html.unescape(found[2]).strip()
    block = latex.startswith(r"\[")
    mathml = convert(latex[2:-2].strip(), display="block" if block else "inline")
    return f'<div class="formula">{mathml}</div>' if block else mathml
