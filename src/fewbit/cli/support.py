"""`fewbit support`: number formats in figures, what works with what, and what runs it."""

from __future__ import annotations

from typing import Any

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Quiet


def support(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Print the number formats, which schemes, algorithms, files and kernels go together; generated from the code."""
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
    wide = 1 + max(len(", ".join(row["algorithms"])) for row in data["schemes"])
    lines += ["", f"{'scheme':26}{'bits':>8}  {'asym':6}{'algorithms':{wide}}files"]
    for row in data["schemes"]:
        asymmetric = "yes" if row["asymmetric"] else "no"
        files = ", ".join(row["files"]) or "none: in memory, state_dict"
        lines.append(
            f"{row['scheme']:26}{row['bits']:>8.3f}  {asymmetric:6}{', '.join(row['algorithms']):{wide}}{files}"
        )
    lines += ["", "kernel      runs"]
    for row in data["kernels"]:
        lines += _kernel_lines(row)
    wide = max(len(name) for name in data["frontends"])
    lines += ["", "front end   algorithms"]
    lines += [f"{name:{max(wide, 11)}} {', '.join(own)}" for name, own in data["frontends"].items()]
    lines += ["", f"ranges      {', '.join(data['ranges'])}"]
    lines += [f"{name:12}{', '.join(data[name])}" for name in ("transforms", "corrections")]
    lines += [f"presets     {', '.join(f'{name} ({scheme})' for name, scheme in data['presets'].items())}"]
    return lines


def _kernel_lines(row: dict[str, Any]) -> list[str]:
    if not row["layers"]:
        return [f"{row['name']:12}{row['what']}"]
    own = [
        f"{row['layers']} on {row['device']}, {', '.join(row['dtypes'])}",
        *([f"weights {', '.join(row['weights'])}"] if row["weights"] else []),
        *([f"inputs {', '.join(row['inputs'])}"] if row["inputs"] else []),
        f"faster {row['faster']}" if row["measured"] else f"nobody has measured it on {row['device']} yet",
        f"needs {row['needs']}",
        *([f"not here: {row['missing']}"] if row["missing"] else []),
    ]
    return [f"{name:12}{text}" for name, text in zip([row["name"], *[""] * (len(own) - 1)], own, strict=True)]
