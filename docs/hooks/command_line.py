"""The reference of the command line, written from the commands themselves where a page says <!-- commands -->."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

import typer

from fewbit.cli.application import application

_MARK = "<!-- commands -->"
_LATER = "Not in this version."


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the mark replaced."""
    return markdown.replace(_MARK, "\n".join(described())) if _MARK in markdown else markdown


def described() -> Iterator[str]:
    """Yield the lines of Markdown that describe every command."""
    commands = typer.main.get_command(application).commands  # type: ignore[attr-defined]
    for registered in application.registered_commands:
        if not registered.hidden and registered.callback:
            command = commands[registered.name or registered.callback.__name__]
            yield from _section(command, get_type_hints(registered.callback))


def _section(command: Any, types: Mapping[str, Any]) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    yield f"\n## fewbit {command.name}\n"
    yield f"`fewbit {' '.join([command.name, *(argument.name.upper() for argument in arguments)])} [OPTIONS]`\n"
    yield f"{command.help.strip()}\n"
    yield from (f"`{argument.name.upper()}`: {argument.help}\n" for argument in arguments)
    yield "| option | takes | default | |\n| --- | --- | --- | --- |"
    yield from (_row(option, types[option.name]) for option in options if option.help != _LATER)
    later = [f"`{option.opts[0]}`" for option in options if option.help == _LATER]
    if later:
        yield f"\nKept for later versions and refused until then: {', '.join(later)}."


def _row(option: Any, kind: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag else _takes(str(kind))
    default = option.opts[0] if option.is_flag and option.default else option.default
    shown = "" if default is None or default is False else f"`{default}`"
    return f"| {names} | {takes} | {shown} | {option.help.replace('|', chr(92) + '|')} |"


def _takes(kind: str) -> str:
    words = {"int": "number", "float": "number", "Path": "path", "list[str]": "text, several times", "str": "text"}
    return next(word for name, word in words.items() if name in kind)
