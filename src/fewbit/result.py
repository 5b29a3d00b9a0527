"""Result: a quantized model with its plan, its report and its recipe; `save` writes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbit.catalogue import unknown
from fewbit.errors import PlanError, RecipeError
from fewbit.interfaces import RUNTIME_FILES, Content, Source, frontend_of, target_of
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
    #: What it was calibrated on, if anything: ranges that only a runtime needs are taken when its file is written.
    batches: Sequence[Any] = field(default=(), repr=False)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was carried out."""
        return self.plan.recipe

    def run(self, batch: Any) -> Any:
        """Return what the model puts out for a batch as for `Evaluation`; of an ONNX model arrays by name."""
        return frontend_of(self.source.framework).run(self.model, batch)

    def save(
        self, path: str | Path, to: str | None = None, *, runtime: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the model to `path`, with its report, and return the path; it is renamed into place when complete.

        Args:
            path: a folder, or the name of an `.onnx` file.
            to: the layout; left out: `compressed-tensors`, or onnxruntime's for a name that ends in `.onnx`.
            runtime: instead, the runtime that an ONNX file is for: `ort-cpu`, `tensorrt`, `migraphx`, `openvino`.
            overwrite: replace what is there.

        Raises:
            PlanError: the layout cannot hold a layer under its scheme.
            CheckpointError: `path` exists, cannot be written, or scales would not be stored exactly.

        """
        path = Path(path)
        target = target_of(self._target(path, to, runtime))
        problems = [target.problem(quantized) for quantized in self.plan.quantized]
        named = [f"{q.layer.name}: {text}" for q, text in zip(self.plan.quantized, problems, strict=True) if text]
        products = [(row.layer, row.input) for row in self.plan.rounded_products if row.input]
        named += [f"{own.name}: {text}" for own, scheme in products if (text := target.product_problem(own, scheme))]
        if named:
            raise PlanError("\n".join(named))
        files = {**self.source.companions(), **(self.report.files() if self.report else {})}
        content = Content(
            model=self.model,
            frontend=frontend_of(self.source.framework),
            manifest=self.plan.manifest(self.source.configuration(), files),
            batches=self.batches,
            report=self.report,
        )
        return target.write(content, path, overwrite=overwrite)

    def _target(self, path: Path, to: str | None, runtime: str | None) -> str:
        """Return the word for what is to be written; one that the plan was made for comes before the usual one."""
        if to is not None and runtime is not None:
            raise RecipeError(f"to={to!r} and runtime={runtime!r} exclude each other; a runtime is for ONNX files")
        if runtime is not None and runtime not in RUNTIME_FILES:
            raise RecipeError(unknown(runtime, RUNTIME_FILES, what="runtime"))
        given = to or runtime
        usual = "ort-cpu" if path.suffix == ".onnx" else "compressed-tensors"
        planned = self.plan.target if (self.plan.target in RUNTIME_FILES) == (path.suffix == ".onnx") else None
        name = given or planned or usual
        if (name in RUNTIME_FILES) != (path.suffix == ".onnx"):
            what = "writes a file that ends in .onnx" if name in RUNTIME_FILES else "writes a folder"
            raise RecipeError(f"{name} {what}, and the output is {str(path)!r}; name it so, or choose another layout")
        return name
