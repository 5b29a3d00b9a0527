"""The report in a notebook: what a person wants to know first, and the layers that lost most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from fewbit.report.drawing import error

if TYPE_CHECKING:
    from fewbit.report.data import Report

#: Layers that are named.
_WORST = 10
_ROW = Markup("<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>")
_LAYER = Markup(
    "<tr><td style='text-align:left'>{}</td><td style='text-align:left'>{}</td><td>{:,}</td><td>{}</td></tr>"
)
_HEAD = Markup(
    "<tr><th style='text-align:left'>layer</th><th style='text-align:left'>becomes</th><th>bytes</th><th>{}</th></tr>"
)


def fragment(report: Report) -> str:
    """Return tables without a style of their own, so that they look as the notebook does; every value is escaped."""
    from fewbit.report.damage import by_damage

    rows = Markup("").join(_ROW.format(name, value) for name, value in report.summary())
    parts = [Markup("<table><tbody>{}</tbody></table>").format(rows)]
    found = by_damage(report.layers)
    if found.layers:
        worst = Markup("").join(
            _LAYER.format(own.layer.name, own.layer.becomes, own.layer.bytes_after, f"{100 * error(own.sqnr):.3g} %")
            for own in found.layers[:_WORST]
        )
        title = Markup("<p>Layers by {}, the worst {} of {}</p>").format(
            found.what, min(_WORST, len(found.layers)), len(found.layers)
        )
        table = Markup("<table><thead>{}</thead><tbody>{}</tbody></table>").format(_HEAD.format("error"), worst)
        parts += [title, table]
    return str(Markup("").join(parts))
