"""plan -> calibrate -> solve -> replace -> measure: the only place where the order of the work is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.attention import installed, round_products
from fewbit.calibration import Calibration, first_batch, parse_calibration
from fewbit.clock import Clock
from fewbit.composition import composition_problems
from fewbit.errors import CheckpointError, PlanError, RecipeError
from fewbit.evaluation.side_by_side import Measured, measure
from fewbit.evaluation.token_ids import require_known, writes_text
from fewbit.hints import hints_of
from fewbit.interfaces import Forms, Frontend, Progress, Silent, Source, Switch, frontend_of, target_of
from fewbit.measurement import parse_evaluation
from fewbit.overflow import needs_check, without_large_activations, without_large_weights
from fewbit.planning import Plan, resolve
from fewbit.presets import parse_recipe
from fewbit.problems import width_problems
from fewbit.recipe import Recipe
from fewbit.reporting import remarks_of, report_of
from fewbit.rescaling import Rescaling
from fewbit.result import Result
from fewbit.rule import Rule
from fewbit.samples.batches import Joined
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.shared_scales import names_global_scales, with_shared_scales
from fewbit.solved import Data
from fewbit.solving import needs_data, solve, statistics_of, untrainable
from fewbit.sources import open_source
from fewbit.transforming import transformed

_STORAGE_TYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is carried out, as opposed to what becomes of the layers."""

    #: `auto` is the model's own place; else a torch device such as `cuda`.
    device: str = "auto"
    #: For the text that a model writes for its own calibration; recorded.
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    #: The command line to put into the report.
    command: str | None = None


def plan(
    model: Any, recipe: str | Path | Recipe, *, to: str | None = None, dtype: str = "auto", batch: Any = None
) -> Plan:
    """Return what `quantize` would do, and every problem, without doing it.

    Args:
        model: a `torch.nn.Module`, a Hugging Face folder, a `.gguf` file, `smollm2` or `smollm2-rotated`.
        recipe: a preset's name, the path of a TOML file, or a `Recipe`.
        to: the checkpoint format that it is meant for; its limits then count as problems.
        dtype: `float32`, `float16` or `bfloat16` for what stays float and for scales; `auto` is the model's.
        batch: what to run the model on, for a recipe with rules for the products inside attention, or a model with
            experts in one parameter: they show in a run only. A language model of transformers needs none.

    >>> from torch import nn
    >>> print(plan(nn.Sequential(nn.Linear(64, 8), nn.ReLU()), "w8a16").rows[0].becomes)
    int8 channel

    """
    source = _float_source(model)
    skeleton = source.skeleton()
    frontend = frontend_of(source.framework)
    with frontend.experts_apart(skeleton, lambda: batch) as fused:
        made = _plan(source, skeleton, parse_recipe(recipe), to=to, dtype=dtype, batch=batch, fused=fused)
        return _checked(made, frontend, skeleton, batch)


def quantize(
    model: Any,
    recipe: str | Path | Recipe,
    *,
    to: str | None = None,
    dtype: str = "auto",
    calibration: Any = None,
    evaluation: Any = None,
    options: Options | None = None,
) -> Result:
    """Quantize `model`; a module is changed in place and is also `Result.model`.

    Args:
        model: a `torch.nn.Module`, a Hugging Face folder, a `.gguf` file, `smollm2` or `smollm2-rotated`.
        recipe: a preset's name, the path of a TOML file, or a `Recipe`.
        to: the checkpoint format to check against and whose type of scale to round to.
        dtype: type of floats and scales in files, see `plan`; float numbers of the model are rounded to it.
        calibration: data for algorithms that need it (`gptq`): batches or files as for `evaluation`, the path of a text
            file, `self` (a language model writes its own text, what happens by default) or a `Calibration`.
        evaluation: what to measure quality on; without it only weights are measured. Batches, a reader with
            `get_next()`, an `Evaluation`, or files: `Samples`, or the path of an .npz or .npy file or of a folder.
            Casts are checked for overflow on both.
        options: device, seed, progress.

    Raises:
        PlanError: the recipe cannot be carried out; every problem is in the message, the model is untouched.
        CalibrationError: token ids that the model does not know, or sequences longer than its context.
        NonFiniteError: NaN or infinity in a weight or an activation; the layer is named, its model left float.

    >>> import torch
    >>> batches = [torch.randn(16, 64) for _ in range(4)]
    >>> result = quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), "w4a16", calibration=batches)
    >>> result.report.layers[0].becomes, result.report.layers[0].algorithm
    ('int4 g64', 'gptq')

    """
    options = options or Options()
    given = parse_calibration(calibration)
    asked = parse_evaluation(evaluation)
    source, parsed = _float_source(model), parse_recipe(recipe)
    frontend = frontend_of(source.framework)
    clock = Clock()
    with clock.phase("load"), options.progress.phase("load"):
        live = source.load()
        if options.device != "auto":
            live = frontend.place(live, options.device)
    given = given.opened(live, frontend) if given else None
    evaluated, name = asked.opened(live, frontend) if asked else ((), None)
    with frontend.experts_apart(live, partial(first_batch, live, given, evaluated)) as fused:
        shown_by_runs = parsed.names_products or names_global_scales(parsed)
        sample = first_batch(live, given, evaluated) if shown_by_runs else None
        planned = partial(_plan, source, live, parsed, to=to, dtype=dtype, batch=sample, fused=fused)
        made = _checked(planned(), frontend, live, sample)
        made.require_sound()
        kept = {tensor.name for tensor in made.manifest({}, {}).floats}
        frontend.require_finite(live, [own.layer for own in made.quantized], kept, made.storage_type)
        require_known(evaluated, live, what="evaluation")
        data = Data()
        rescaling = Rescaling.of(made)
        if needs_data(made) or rescaling or (given and (parsed.transforms or needs_check(made))):
            given = given or _default_calibration(live)
            with clock.phase("calibration data"):
                batches = given.batches(live, source, seed=options.seed, progress=options.progress)
            data = Data(batches=batches, sequential=given.sequential, seed=options.seed)
        with transformed(live, parsed, frontend, data.batches or evaluated, made.target) as sentences, rescaling:
            if sentences:
                made = _checked(planned(), frontend, live, sample)
                made.require_sound()
            with clock.phase("check") if needs_check(made) else nullcontext():
                made, unchecked = without_large_activations(made, frontend, live, Joined(data.batches, evaluated))
            kept = {tensor.name for tensor in made.manifest({}, {}).floats}
            with clock.phase("solve"):
                solved = solve(live, made, frontend, data, options.progress, rescaling)
                layers = [done.replacement for done in solved.values()]
                forms = [*layers, *round_products(live, made, layers, frontend, data.batches)]
                beside = _between(live, made, forms, data.batches)
                changed = frontend.round_floats(live, kept, made.storage_type)
            measured = Measured()
            if evaluated:
                with clock.phase("measure"):
                    measured = measure(live, forms, evaluated, frontend, options.progress, beside=beside)
        for switch in (*forms, *beside):
            switch.install()
        idle = given is not None and not data.batches and not (given.holds_batches and shown_by_runs)
        report = replace(
            report_of(made, solved, measured, frontend, live, rescaling.notes),
            remarks=(*sentences, *rescaling.sentences, *unchecked, *remarks_of(changed, solved, made, idle=idle)),
            seed=options.seed,
            command=options.command,
            text=name,
            calibration=given.described(data.batches) if given and data.batches else None,
            seconds=clock.seconds,
            peak_memory=clock.peak_memory,
        )
        example = data.batches[0] if data.batches else first_batch(live, given, evaluated)
        return Result(model=live, plan=made, report=report, source=source, batches=data.batches, example=example)


def _between(model: Any, made: Plan, forms: Sequence[Forms], batches: Sequence[Any]) -> list[Switch]:
    """Return what the target of a plan rounds between layers."""
    if made.target is None:
        return []
    with installed(forms):
        found = target_of(made.target).between(model, batches)
    return [] if found is None else [found]


def load(path: str | Path, *, into: Any = None) -> Result:
    """Open a checkpoint that fewbit reads, with its quantized layers in place.

    Args:
        path: a folder in one of the checkpoint formats, as `Result.save` writes it.
        into: for a module of one's own, the float module to load into; it is changed in place.

    Raises:
        CheckpointError: no such checkpoint, or one that does not fit the module.

    """
    from fewbit.sources.checkpoint import CheckpointFolder

    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint {str(path)!r}: no such folder")
    source = CheckpointFolder(path, into)
    alike: dict[tuple[Scheme, Scheme | None], list[str]] = {}
    for name, scheme in source.checkpoint.schemes.items():
        alike.setdefault((scheme, source.checkpoint.inputs.get(name)), []).append(name)
    rules = [
        Rule("|".join(re.escape(name) for name in names), weight=scheme, input=given)
        for (scheme, given), names in alike.items()
    ]
    recipe, model = Recipe(rules, name=path.name), source.skeleton()
    made = _plan(source, model, recipe, to=None, dtype="auto")
    made = replace(made, hints=hints_of(made, frontend_of(source.framework), model))
    return Result(model=source.load(), plan=made, report=None, source=source)


def _default_calibration(model: Any) -> Calibration:
    if not writes_text(model):
        raise PlanError(
            "this recipe needs calibration data (for gptq, static ranges, transforms) and the model writes no text; "
            "give calibration=[batch, ...], or the path of samples"
        )
    return Calibration(data="self")


def _float_source(model: Any) -> Source:
    from fewbit.sources.checkpoint import CheckpointFolder

    source = open_source(model)
    if isinstance(source, CheckpointFolder):
        raise PlanError(f"{source.name} is quantized already; start from the float model")
    return source


def _plan(
    source: Source,
    model: Any,
    recipe: Recipe,
    *,
    to: str | None,
    dtype: str,
    batch: Any = None,
    fused: Sequence[str] = (),
) -> Plan:
    if dtype not in _STORAGE_TYPES:
        raise RecipeError(f"dtype {dtype!r} is none of {', '.join(_STORAGE_TYPES)}")
    target = target_of(to) if to is not None else None
    frontend = frontend_of(source.framework)
    graph = source.framework == "onnx" or (target is not None and target.holds_graph)
    own = source.computes_in if graph else source.storage_type if dtype == "auto" else None
    storage_type: ScaleType = own if dtype == "auto" else dtype  # type: ignore[assignment]
    layers = frontend.layers(model)
    if recipe.names_products:
        layers += frontend.products(model, batch)
    floats = frontend.floats(model)
    settled: dict[str, Any] = {"storage_type": storage_type, "target": target, "differentiable": frontend.trains}
    made = resolve(source.name, layers, floats, recipe, **settled)
    quantized = [row for row in made.rows if row.scheme]
    wanted = [(own, statistics_of(row)) for own, row in zip(made.quantized, quantized, strict=True)]
    found = composition_problems(recipe, made.quantized, rotates=frontend.rotates)
    found += width_problems(recipe, target)
    products = [(row.layer, row.input) for row in made.rounded_products if row.input]
    found += untrainable(quantized, frontend, source.framework)
    found += [*frontend.problems(model, wanted), *frontend.product_problems(model, products)]
    if graph and storage_type not in (own, made.cast_whole and made.cast_whole.dtype):
        found.append(
            f"dtype {storage_type}: a graph has the types that the model computes in, here {own}; leave out dtype, or "
            "use the presets fp16 and bf16"
        )
    if graph and own == "bfloat16" and source.framework == "torch":
        found.append(
            "the module computes in bfloat16, from which this version writes no graph; convert it by module.float(), "
            "and use the preset bf16 for a file in bfloat16"
        )
    return replace(made, problems=(*made.problems, *found), adaptations=(*made.adaptations, *fused))


def _checked(made: Plan, frontend: Frontend, model: Any, batch: Any) -> Plan:
    """Return the plan with what the numbers of `model`, a run and the machine at hand have to say to it."""
    made = with_shared_scales(without_large_weights(made, frontend, model), frontend, model, batch)
    return replace(made, hints=(*made.hints, *hints_of(made, frontend, model)))
