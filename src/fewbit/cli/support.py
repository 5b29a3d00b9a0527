"""`fewbit support`: number formats in figures, and what works with what."""

from __future__ import annotations

from typing import Any

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Quiet


def support(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Print the number formats, and which schemes, algorithms and files go together; generated from the code."""
    from fewbit.support import tables

    data = tables()
    Terminal(quiet=quiet, as_json=as_json).result("\n".join(_lines(data)), data)


def _lines(data: dict[str, Any]) -> list[str]:
    lines = [f"{'format':14}{'bits':>5}{'levels':>9}{'smallest':>14}{'largest':>14}  accumulator"]
    for row in data["formats"]:
        levels = "" if row["levels"] is None else row["levels"]
        lines.append(
            f"{row['name']:14}{row['bits']:>5}{levels:>9}{row['smallest']:>14.6g}{row['largest']:>14.6g}"
            f"  {row['accumulator']}"
        )
    lines += ["", f"{'scheme':26}{'bits':>8}  {'asym':6}{'algorithms':14}files"]
    for row in data["schemes"]:
        asymmetric = "yes" if row["asymmetric"] else "no"
        files = ", ".join(row["files"]) or "none: in memory, state_dict"
        lines.append(f"{row['scheme']:26}{row['bits']:>8.3f}  {asymmetric:6}{', '.join(row['algorithms']):14}{files}")
    lines += ["", f"ranges      {', '.join(data['ranges'])}"]
    lines += [f"presets     {', '.join(f'{name} ({scheme})' for name, scheme in data['presets'].items())}"]
    return lines
