"""What fewbit's docstrings hold beside Markdown, made Markdown: doctests, and trees drawn with lines."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_TREE = re.compile(r"^.+\n(?:[├│└].*\n?)+", re.MULTILINE)


class Fenced(Extension):
    """Puts doctests and drawn trees into code blocks."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was loaded."""
        if obj.docstring:
            text = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = _TREE.sub(r"```text\n\g<0>\n```\n", text)
