"""Rows that were measured, kept in the repository: a line of JSON each, with what they were measured with, and tables.

Run: not by itself; `language_models.py --keep` and `weight_only.py --keep` write to benchmarks/kept/weights.jsonl, and
`language_models.py --kept` prints its tables of that, as docs/language-models.md has them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.report.data import installed_versions, this_machine

HERE = Path(__file__).resolve().parent
KEPT = HERE / "kept/weights.jsonl"
HEADS = ("scheme", "tool", "bits", "topics: KL", "perplexity", "WikiText: KL", "perplexity", "CPU s", "peak MB")


@dataclass(frozen=True)
class KeptRow:
    """What a row of a table measured, on which texts, and with what."""

    model: str
    calibration: str
    tool: str
    scheme: str
    label: str
    options: Sequence[str]
    #: Bits a weight; quality by text: divergence, agreement, perplexity; seconds, seconds of all cores, most megabytes.
    figures: Mapping[str, Any]
    #: Versions of packages, the machine, and of fewbit's own rows the commit.
    made_by: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others: measured again, it takes the place of the row that was there."""
        return (self.model, self.calibration, *self.identity)

    @property
    def identity(self) -> tuple[str, ...]:
        """That of the benchmark's row."""
        return (self.tool, self.scheme, *self.options)

    def cells(self) -> list[str]:
        """Return its line of the table."""
        quality = [f"{text[0]:.4f} | {text[2]:,.2f}" for text in self.figures["quality"].values()]
        costs = [f"{self.figures[name]:,.0f}" for name in ("cpu_seconds", "peak_mb")]
        return [self.scheme, f"{self.tool}, {self.label}", f"{self.figures['bits']:.2f}", *quality, *costs]

    @property
    def divergence(self) -> float:
        """That of the last text."""
        return float(list(self.figures["quality"].values())[-1][0])


def made_by(found: Mapping[str, Any], *, own: bool) -> dict[str, Any]:
    """Return what figures were made by: the peer's versions as it tells them, or those of fewbit's environment."""
    told = {"machine": this_machine(), "versions": installed_versions() if own else found.get("versions", {})}
    if not own:
        return told
    git = ["git", "rev-parse", "--short=10", "HEAD"]
    return told | {"commit": subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()}


def read_kept(path: Path = KEPT) -> list[KeptRow]:
    """Return the rows of a file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [KeptRow(**json.loads(line)) for line in lines]


def keep(row: KeptRow, path: Path = KEPT) -> None:
    """Write a row into the file, in the place of one with its key."""
    rows = {own.key: own for own in [*read_kept(path), row]}
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    text = "".join(json.dumps(vars(rows[key]), ensure_ascii=False) + "\n" for key in sorted(rows))
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def kept_table(sections: Iterable[Sequence[KeptRow]]) -> Iterator[str]:
    """Yield the lines of a table, in each section from the most divergence to the least, which is in bold."""
    yield f"| {' | '.join(HEADS)} |"
    yield f"| --- | --- | {' | '.join(['---:'] * (len(HEADS) - 2))} |"
    for section in sections:
        for row in (ordered := sorted(section, key=lambda own: -own.divergence)):
            cells = row.cells()
            if row is ordered[-1]:
                cells = [cells[0], *(f"**{part}**" for part in " | ".join(cells[1:]).split(" | "))]
            yield f"| {' | '.join(cells)} |"
