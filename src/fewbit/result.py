"""Result: a quantized model with its plan, its report and its recipe; `save` writes a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewbit.byte_size import byte_size
from fewbit.catalogue import unknown
from fewbit.errors import PlanError, RecipeError
from fewbit.interfaces import ONE_FILE, RUNTIME_FILES, Content, Source, frontend_of, target_of
from fewbit.planning import Plan
from fewbit.problems import width_problems
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
    #: A batch to trace a module on, if there was any.
    example: Any = field(default=None, repr=False)
    #: Of a loaded checkpoint that has ranges for it: an empty key-value cache, to be given as `past_key_values`.
    cache: Any = field(default=None, repr=False)

    @property
    def recipe(self) -> Recipe:
        """The recipe that was carried out."""
        return self.plan.recipe

    def records(self) -> list[dict[str, Any]]:
        """Return a flat dict for each layer of the report, as `pandas.DataFrame` takes them."""
        if self.report is None:
            raise RecipeError("a loaded checkpoint has no report; fewbit.Report.load reads the one in its folder")
        found: list[dict[str, Any]] = self.report.records()
        return found

    def _repr_html_(self) -> str | None:
        return None if self.report is None else str(self.report._repr_html_())

    def run(self, batch: Any) -> Any:
        """Return what the model puts out for a batch as for `Evaluation`; of an ONNX model arrays by name."""
        frontend = frontend_of(self.source.framework)
        return frontend.run(self.model, frontend.adopted(self.model, batch))

    def save(
        self,
        path: str | Path,
        to: str | None = None,
        *,
        runtime: str | None = None,
        overwrite: bool = False,
        cache: Any = None,
        shard_size: str | int | None = None,
    ) -> Path:
        """Write the model to `path`, with its report, and return the path; it is renamed into place when complete.

        Args:
            path: a folder, or the name of an `.onnx` file.
            to: the layout; left out: `compressed-tensors`, or onnxruntime's for a name that ends in `.onnx`.
            runtime: instead, the runtime that an ONNX file is for: `ort-cpu`, `tensorrt`, `migraphx`, `openvino`.
            overwrite: replace what is there.
            cache: a key-value cache of the model by fixed ranges, for runtimes to use; left out: that of the folder
                which was loaded.
            shard_size: the most bytes of tensors in a file, a number or `2GB`; what has more becomes several files, of
                GGUF `m-00001-of-00003.gguf`. Left out: one `.gguf` file, or 1 GiB in those of a folder.

        Raises:
            RecipeError: a size that is none, or of an ONNX file.
            PlanError: the layout cannot hold a layer under its scheme, or the cache.
            CheckpointError: `path` exists, cannot be written, or scales would not be stored exactly.

        """
        path, shard_bytes = Path(path), None if shard_size is None else byte_size(shard_size)
        if shard_bytes is not None and path.suffix == ".onnx":
            raise RecipeError("an ONNX file is not written in parts; leave out shard_size (--shard-size)")
        target = target_of(target_name(path, to, runtime, self.plan.target))
        problems = [target.problem(quantized) for quantized in self.plan.quantized]
        named = [f"{q.layer.name}: {text}" for q, text in zip(self.plan.quantized, problems, strict=True) if text]
        products = [(row.layer, row.input) for row in self.plan.rounded_products if row.input]
        named += [f"{own.name}: {text}" for own, scheme in products if (text := target.product_problem(own, scheme))]
        kept = self.cache if cache is None else cache
        caches = {} if kept is None else kept.by_attention(self.model)
        schemes = {own.scheme for pair in caches.values() for own in pair}
        named += [f"the key-value cache: {text}" for own in schemes if (text := target.cache_problem(own))]
        named += width_problems(self.recipe, target)
        if named:
            if self.recipe.adapts and target.name != self.plan.target:
                named.append(f"give to={target.name!r} when quantizing: a preset then fits itself to it")
            raise PlanError("\n".join(named))
        # The report of a file is written beside it, after it; that of an ONNX file says what the runtime made of it.
        report = self.report.files() if self.report and not is_file_name(path) else {}
        origin = self.source.origin
        companions = {} if origin is not None and target.name == "gguf" else self.source.companions()
        content = Content(
            model=self.model,
            frontend=frontend_of(self.source.framework),
            manifest=replace(
                self.plan.manifest(self._configuration(), {**companions, **report}),
                origin=origin,
                caches=caches,
                shard_bytes=shard_bytes,
            ),
            batches=self.batches,
            example=self.example,
            cast=self.plan.cast_whole,
            report=self.report,
        )
        return target.write(content, path, overwrite=overwrite)

    def _configuration(self) -> dict[str, Any]:
        """Return the source's, but for a head that a transform has untied."""
        configuration = dict(self.source.configuration())
        if getattr(getattr(self.model, "config", None), "tie_word_embeddings", None) is False:
            configuration |= {"tie_word_embeddings": False} if "tie_word_embeddings" in configuration else {}
        return configuration


def target_name(path: Path, to: str | None, runtime: str | None, planned: str | None = None) -> str:
    """Return the word for what is to be written to `path`; what a plan was made for comes before the usual.

    >>> [target_name(Path(name), None, None) for name in ("net.onnx", "m.gguf", "folder")]
    ['ort-cpu', 'gguf', 'compressed-tensors']

    Raises:
        RecipeError: a runtime that does not exist, or a path that is no name for such a file or folder.

    """
    if to is not None and runtime is not None:
        raise RecipeError(f"to={to!r} and runtime={runtime!r} exclude each other; a runtime is for ONNX files")
    if runtime is not None and runtime not in RUNTIME_FILES:
        raise RecipeError(unknown(runtime, RUNTIME_FILES, what="runtime"))
    usual = "ort-cpu" if path.suffix == ".onnx" else ONE_FILE.get(path.suffix, "compressed-tensors")
    fits = planned is not None and _ending(planned) == _ending(usual)
    name = to or runtime or (planned if fits else None) or usual
    if _ending(name) != _ending(usual):
        what = f"writes a file that ends in {_ending(name)}" if _ending(name) else "writes a folder"
        raise RecipeError(f"{name} {what}, and the output is {str(path)!r}; name it so, or choose another layout")
    return name


def is_file_name(path: Path) -> bool:
    """Whether the ending of `path` is that of a layout which is one file.

    >>> is_file_name(Path("m.gguf")), is_file_name(Path("out"))
    (True, False)
    """
    return path.suffix == ".onnx" or path.suffix in ONE_FILE


def _ending(name: str) -> str:
    """Return how files of a layout end; nothing for folders."""
    if name in RUNTIME_FILES:
        return ".onnx"
    return next((ending for ending, own in ONE_FILE.items() if name.partition(":")[0] == own), "")
