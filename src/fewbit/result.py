"""Result: a quantized model with its plan, its report and its recipe; `save` writes a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError, PlanError
from fewbit.interfaces import Source, checkpoint_format, frontend_of
from fewbit.planning import Plan
from fewbit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `fewbit.quantize` and `fewbit.load` return."""

    #: The model with its quantized layers in place, ready to run.
    model: Any
    plan: Plan
    #: What was measured; `None` for a loaded checkpoint.
    report: Any
    #: Where the model came from.
    source: Source

    @property
    def recipe(self) -> Recipe:
        """The recipe that was carried out."""
        return self.plan.recipe

    def run(self, batch: Any) -> Any:
        """Return what the model puts out for a batch as for `Evaluation`; of an ONNX model arrays by name."""
        return frontend_of(self.source.framework).run(self.model, batch)

    def save(self, path: str | Path, to: str = "compressed-tensors", *, overwrite: bool = False) -> Path:
        """Write the model to `path` in the layout `to`, with its report, and return the path.

        The folder is written beside `path` and renamed when complete.

        Raises:
            PlanError: the layout cannot hold a layer under its scheme.
            CheckpointError: `path` exists, cannot be written, or scales would not be stored exactly.

        """
        target = checkpoint_format(to)
        problems = [target.problem(quantized) for quantized in self.plan.quantized]
        named = [f"{q.layer.name}: {text}" for q, text in zip(self.plan.quantized, problems, strict=True) if text]
        products = [(row.layer, row.input) for row in self.plan.rounded_products if row.input]
        named += [f"{own.name}: {text}" for own, scheme in products if (text := target.product_problem(own, scheme))]
        if named:
            raise PlanError("\n".join(named))
        files = {**self.source.companions(), **(self.report.files() if self.report else {})}
        manifest = self.plan.manifest(self.source.configuration(), files)
        wanted = {tensor.name for tensor in manifest.floats} | {q.layer.name for q in manifest.quantized}
        writer = target.open(Path(path), manifest, overwrite=overwrite)
        try:
            for name, value in frontend_of(self.source.framework).tensors(self.model, manifest.storage_type):
                if name in wanted:
                    writer.put(name, value)
            return writer.close()
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            writer.abort()
