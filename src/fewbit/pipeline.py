"""plan -> calibrate -> solve -> replace -> measure: the only place where the order of the work is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.attention import installed, round_products
from fewbit.calibration import default_calibration, first_batch, parse_calibration
from fewbit.clock import Clock
from fewbit.errors import CheckpointError, PlanError
from fewbit.evaluation.overlap import overlap
from fewbit.evaluation.side_by_side import Measured, measure
from fewbit.evaluation.token_ids import require_known
from fewbit.execution.executor import parse_executor
from fewbit.hints import hints_of
from fewbit.instead import in_place_of_data
from fewbit.interfaces import ONE_FILE, Forms, Frontend, Switch, frontend_of, target_of
from fewbit.measurement import parse_evaluation
from fewbit.model_plan import checked, model_plan
from fewbit.no_data import NoData
from fewbit.options import Options
from fewbit.overflow import needs_check, without_large_activations
from fewbit.planning import Plan
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.repairing import repaired
from fewbit.report.call import call_in_words
from fewbit.report.data import Report
from fewbit.reporting import remarks_of, report_of
from fewbit.rescaling import Rescaling
from fewbit.result import Result
from fewbit.rule import Rule
from fewbit.samples.batches import Joined
from fewbit.schemes.scheme import Scheme
from fewbit.shared_scales import names_global_scales
from fewbit.solved import Data
from fewbit.solving import needs_data, solve
from fewbit.sources.floats import float_source
from fewbit.transforming import transformed
from fewbit.weighting import Weighting


def plan(  # all that is said of a run
    model: Any,
    recipe: str | Path | Recipe,
    *,
    to: str | None = None,
    dtype: str = "auto",
    batch: Any = None,
    importance: str | Path | None = None,
    calibration: Any = None,
) -> Plan:
    """Return what `quantize` would do, and every problem, without doing it.

    Args:
        model: a `torch.nn.Module`, a Hugging Face folder, a `.gguf` file, `smollm2` or `smollm2-rotated`.
        recipe: a preset's name, the path of a TOML file, or a `Recipe`.
        to: the checkpoint format that it is meant for; its limits then count as problems.
        dtype: `float32`, `float16` or `bfloat16` for what stays float and for scales; `auto` is the model's.
        batch: what to run the model on, for a recipe with rules for the products inside attention, or a model with
            experts in one parameter: they show in a run only. A language model of transformers needs none.
        importance: an importance matrix in the place of calibration data, see `quantize`.
        calibration: `none`: there is to be no data, so what needs some gives way or is a problem; any other data
            changes nothing about a plan.

    >>> from torch import nn
    >>> print(plan(nn.Sequential(nn.Linear(64, 8), nn.ReLU()), "w8a16").rows[0].becomes)
    int8 channel

    """
    source, parsed = float_source(model), parse_recipe(recipe)
    instead = in_place_of_data(calibration, importance, source)
    skeleton = source.skeleton()
    frontend = frontend_of(source.framework)
    with frontend.experts_apart(skeleton, lambda: batch) as fused:
        own = instead.recipe(parsed) if instead else parsed
        made = model_plan(source, skeleton, own, to=to, dtype=dtype, batch=batch, fused=fused)
        made = instead.plan(made, parsed) if instead else made
        return checked(made, frontend, skeleton, batch)


def quantize(  # noqa: PLR0913  # all that is said of a run
    model: Any,
    recipe: str | Path | Recipe,
    *,
    to: str | None = None,
    dtype: str = "auto",
    calibration: Any = None,
    evaluation: Any = None,
    importance: str | Path | None = None,
    options: Options | None = None,
) -> Result:
    """Quantize `model`; a module is changed in place and is also `Result.model`.

    Args:
        model: a `torch.nn.Module`, a Hugging Face folder, a `.gguf` file, `smollm2` or `smollm2-rotated`.
        recipe: a preset's name, the path of a TOML file, or a `Recipe`.
        to: the checkpoint format to check against and whose type of scale to round to.
        dtype: type of floats and scales in files, see `plan`; float numbers of the model are rounded to it.
        calibration: data for algorithms that need it (`gptq`): batches or files as for `evaluation`, the path of a text
            file, `self` (a language model writes its own text, what happens by default), `synthetic` or a `Synthetic`
            (a module makes images for itself), `none` (no data at all) or a `Calibration`.
        evaluation: what to measure quality on; without it only weights are measured. Batches, a reader with
            `get_next()`, an `Evaluation`, or files: `Samples`, or the path of an .npz or .npy file or of a folder.
            Casts are checked for overflow on both.
        importance: the path of an importance matrix, as `llama-imatrix` and `fewbit imatrix` write it, in the place of
            calibration data: it weighs searches of scales; GPTQ, which needs more, gives way to rounding to nearest.
        options: device, seed, progress, and who does the work.

    Raises:
        PlanError: the recipe cannot be carried out; every problem is in the message, the model is untouched.
        ExecutionError: workers that cannot be reached, or that keep dying.
        CalibrationError: token ids that the model does not know, or sequences longer than its context; calibration
            data together with an importance matrix.
        CheckpointError: a damaged importance matrix.
        NonFiniteError: NaN or infinity in a weight or an activation; the layer is named, its model left float.

    >>> import torch
    >>> batches = [torch.randn(16, 64) for _ in range(4)]
    >>> result = quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), "w4a16", calibration=batches)
    >>> result.report.layers[0].becomes, result.report.layers[0].algorithm
    ('int4 g64', 'gptq')

    """
    options = options or Options()
    parse_executor(options.executor).require()
    call = None if options.command else call_in_words(
        "fewbit.quantize", model, recipe, to=to, dtype=dtype, calibration=calibration, evaluation=evaluation,
        importance=importance, options=options,
    )  # fmt: skip
    given = None if NoData.of(calibration) else parse_calibration(calibration)
    asked = parse_evaluation(evaluation)
    source, parsed = float_source(model), parse_recipe(recipe)
    instead = in_place_of_data(calibration, importance, source)
    wished = instead.recipe(parsed) if instead else parsed
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

        def planned() -> Plan:
            made = model_plan(source, live, wished, to=to, dtype=dtype, batch=sample, fused=fused)
            made = instead.plan(made, parsed) if instead else made
            made = checked(made, frontend, live, sample)
            made.require_sound()
            return replace(made, part=given.part) if given and frontend.divides else made

        made = planned()
        frontend.require_finite(live, [own.layer for own in made.quantized], made.float_names, made.storage_type)
        require_known(evaluated, live, what="evaluation")
        rescaling, data = Rescaling.of(made), Data(shown=instead.shown(made, live) if instead else ())
        if not instead and (needs_data(made) or rescaling or (given and (parsed.changes_model or needs_check(made)))):
            given = given or default_calibration(live)
            with clock.phase("calibration data"):
                batches = given.batches(live, source, seed=options.seed, progress=options.progress)
            data = Data(batches=batches, sequential=given.sequential, seed=options.seed, part=given.part)
        idle = given is not None and not data.batches and not (given.holds_batches and shown_by_runs)
        shown = data.batches or data.shown
        data = replace(data, example=shown[0] if shown else first_batch(live, given, evaluated))
        work = _Work(live, frontend, data, evaluated, clock, options, instead)
        made, report = work.done(planned, made, rescaling, idle=idle)
        described = given.described(data.batches) if given and data.batches else None
        described = instead.described(made) if instead else described
        seen = overlap(data.batches, evaluated)
        report = replace(report, text=name, calibration=described, overlap=seen, call=call)
        return Result(model=live, plan=made, report=report, source=source, batches=data.batches, example=data.example)


@dataclass(frozen=True, slots=True)
class _Work:
    """A loaded model, and what it is worked on with from its plan to its report."""

    model: Any
    frontend: Frontend
    data: Data
    evaluated: Sequence[Any]
    clock: Clock
    options: Options
    #: What stands in the place of data.
    instead: Weighting | NoData | None = None

    def done(self, planned: Callable[[], Plan], made: Plan, rescaling: Rescaling, *, idle: bool) -> tuple[Plan, Report]:
        """Quantize the model in place; return the plan in its last form, and the report.

        `planned` makes the plan anew where transforms have changed the model; `idle`: data was given for nothing.
        """
        model, frontend, batches = self.model, self.frontend, self.data.batches
        shown = batches or self.data.shown or self.evaluated
        with transformed(model, made.recipe, frontend, shown, made.target) as changed, rescaling:
            made = planned() if changed.sentences else made
            rescaling.known.update(changed.outputs)
            with self.clock.phase("check") if needs_check(made) else nullcontext():
                made, unchecked = without_large_activations(made, frontend, model, Joined(batches, self.evaluated))
            place = parse_executor(self.options.executor)
            with self.clock.phase("solve"), place.opened() as executor:
                instead, data = self.instead, replace(self.data, executor=executor)
                data = instead.prepared(made, model, frontend, data, rescaling) if instead else data
                solved = solve(model, made, frontend, data, self.options.progress, rescaling)
                layers = [done.replacement for done in solved.values()]
                forms = [*layers, *round_products(model, made, layers, frontend, batches)]
                beside = _between(model, made, forms, batches)
                rounded = frontend.round_floats(model, made.float_names, made.storage_type)
                switches, repairs = repaired(model, made, frontend, batches, [*forms, *beside])
                beside += switches
            measured = self._measured(forms, beside)
        for switch in (*forms, *beside):
            switch.install()
        remarks = remarks_of(rounded, solved, made, idle=idle)
        return made, replace(
            report_of(made, solved, measured, frontend, model, rescaling.notes),
            remarks=(*changed.sentences, *rescaling.sentences, *unchecked, *remarks, *repairs, *executor.notes),
            executor=str(executor),
            calibration_part=made.part if batches else None,
            seed=self.options.seed,
            command=self.options.command,
            seconds=self.clock.seconds,
            peak_memory=self.clock.peak_memory,
        )

    def _measured(self, forms: Sequence[Forms], beside: Sequence[Switch]) -> Measured:
        """Return what the forms do to the outputs on the data for evaluation, if there is some."""
        if not self.evaluated:
            return Measured()
        with self.clock.phase("measure"):
            return measure(self.model, forms, self.evaluated, self.frontend, self.options.progress, beside=beside)


def _between(model: Any, made: Plan, forms: Sequence[Forms], batches: Sequence[Any]) -> list[Switch]:
    """Return what the target of a plan rounds between layers."""
    if made.target is None:
        return []
    with installed(forms):
        found = target_of(made.target).between(model, batches)
    return [] if found is None else [found]


def load(
    path: str | Path, *, into: Any = None, recipe: str | Path | Recipe | None = None, dtype: str = "auto"
) -> Result:
    """Open a checkpoint that fewbit reads, with its quantized layers in place; or quantize a float model as it is read.

    Args:
        path: a folder or `.gguf` file in one of the checkpoint formats, as `Result.save` writes it; with a `recipe`, a
            float model: a Hugging Face folder, a `.gguf` file of a Llama, or `smollm2`.
        into: for a module of one's own, the float module to load into; it is changed in place.
        recipe: one that needs no data, such as `nf4` or `w8a16`. Each layer is read, rounded and let go of before the
            next is read: memory holds codes, what stays float, and one float layer.
        dtype: with a recipe, the type of what stays float and of scales, as for `plan`.

    Raises:
        CheckpointError: no such checkpoint, or one that does not fit the module.
        PlanError: a recipe that cannot be carried out, or not without data.
        NotYetError: with a recipe, a model that has to be read as a whole.

    """
    from fewbit.loading import quantized_while_loading
    from fewbit.sources.checkpoint import CheckpointFolder

    if recipe is not None:
        if into is not None:
            raise PlanError("a model that is quantized while loading is built from its files; leave out into")
        return quantized_while_loading(float_source(path), parse_recipe(recipe), dtype)
    path = Path(path)
    if not path.is_dir() and not (path.is_file() and path.suffix in ONE_FILE):
        raise CheckpointError(f"no checkpoint {str(path)!r}: no such folder or .gguf file")
    source = CheckpointFolder(path, into)
    alike: dict[tuple[Scheme, Scheme | None], list[str]] = {}
    for name, scheme in source.checkpoint.schemes.items():
        alike.setdefault((scheme, source.checkpoint.inputs.get(name)), []).append(name)
    rules = [
        Rule("|".join(re.escape(name) for name in names), weight=scheme, input=given)
        for (scheme, given), names in alike.items()
    ]
    recipe, model = Recipe(rules, name=path.name), source.skeleton()
    with source.experts_apart(model):
        made = model_plan(source, model, recipe, to=None, dtype="auto")
        made = replace(made, hints=hints_of(made, frontend_of(source.framework), model))
    loaded = source.load()
    return Result(model=loaded, plan=made, report=None, source=source, cache=source.cache(loaded))
