"""What a search for bits found: a recipe, and the data that it was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError, RecipeError
from fewbit.recipe import Recipe
from fewbit.recipe_text import recipe_text
from fewbit.report.allocation import AllocatedLayer, AllocationReport
from fewbit.result import Result
from fewbit.whole_file import write_whole


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A recipe that gives each layer its bits; `fewbit.quantize(model, allocation.recipe)` carries it out."""

    recipe: Recipe
    #: What it was chosen by, for the report too.
    report: AllocationReport

    @property
    def rows(self) -> Sequence[AllocatedLayer]:
        """What each layer was given, in the order of the model."""
        return self.report.layers

    def records(self) -> list[dict[str, Any]]:
        """Return a plain dict for each layer, as `pandas.DataFrame` takes them; costs have a column a candidate."""
        return [
            {
                "layer": row.name, "kind": row.kind, "scheme": row.scheme, "bits": row.bits, "bytes": row.bytes,
                "unit": row.unit, "predicted": row.predicted,
                **{f"cost of {name}": row.costs.get(name) for name in self.report.candidates},
            }
            for row in self.rows
        ]  # fmt: skip

    def text(self) -> str:
        """Return the recipe in TOML."""
        return recipe_text(self.recipe)

    def save(self, path: str | Path) -> Path:
        """Write the recipe as a .toml file and return the path.

        Raises:
            RecipeError: another ending.
            CheckpointError: it cannot be written.

        """
        path = Path(path)
        if path.suffix != ".toml":
            raise RecipeError(f"a recipe is written as .toml, not {path.suffix!r}")
        try:
            write_whole(path, self.text().encode())
        except OSError as error:
            raise CheckpointError(f"cannot write the recipe {path}: {error.strerror}") from error
        return path

    def reported(self, result: Result) -> Result:
        """Return a result of this recipe whose report says how it was chosen."""
        return replace(result, report=replace(result.report, allocation=self.report))

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        lines = [f"{name:22} {value}" for name, value in self.report.summary()]
        lines += ["", f"{'layer':{width}}  {'becomes':<12} {'bits':>6} {'bytes':>12}  costs"]
        lines += [
            f"{row.name:{width}}  {row.scheme:<12} {row.bits:6.2f} {row.bytes:12,}  {row.predicted:.3g}"
            for row in self.rows
        ]
        lines += [f"note: {note}" for note in self.report.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the summary, and a table of layers, those that cost most first."""
        summary = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self.report.summary()
        )
        order = sorted(self.rows, key=lambda row: -row.predicted)
        cells = "".join(
            f"<tr><th scope='row'>{escape(row.name)}</th><td>{escape(row.scheme)}</td><td>{row.bits:.2f}</td>"
            f"<td>{row.bytes:,}</td><td>{row.predicted:.3g}</td></tr>"
            for row in order
        )
        names = ("layer", "becomes", "bits", "bytes", self.report.cost)
        head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
        return f"<table>{summary}</table><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"
