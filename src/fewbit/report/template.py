"""Pages from templates of this package: every value is escaped, and nothing but their own style and script may run."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from fewbit.evaluation.size import megabytes


def template(name: str) -> Template:
    """Return a template that knows the filter `breakable`, sizes and times."""
    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    environment.globals.update(size=megabytes, duration=duration)
    return environment.get_template(name)


def assets(style: str, script: str | None = None) -> dict[str, Markup | str]:
    """Return the text of files as `style` and `script`; by `policy` a browser runs these and loads nothing."""
    found = {"style": _file(style), **({"script": _file(script)} if script else {})}
    allowed = "".join(f" {name}-src '{_hash(text)}';" for name, text in found.items())
    policy = f"default-src 'none';{allowed} base-uri 'none'; form-action 'none'"
    # Trusted: files of this package. Everything else is escaped.
    return {**{name: Markup(text) for name, text in found.items()}, "policy": policy}  # noqa: S704


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(0.0123), duration(75.31), duration(4000)
    ('0.01 s', '75.3 s', '66 min 40 s')
    """
    if seconds < 600:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def breakable(name: str) -> Markup:
    """Return an escaped name that a line may break in after each dot.

    >>> breakable("a.<b>")
    Markup('a.<wbr>&lt;b&gt;')
    """
    return escape(name).replace(".", Markup(".<wbr>"))


def _file(name: str) -> str:
    return resources.files("fewbit.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
