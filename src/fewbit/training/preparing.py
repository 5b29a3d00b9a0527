"""Put quantizers into a model where a recipe says so, so that it is trained on what its codes will stand for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewbit.errors import PlanError, RecipeError
from fewbit.frontends.torch.norm_folding import NormFold, found_folds
from fewbit.interfaces import frontend_of
from fewbit.pipeline import quantize
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.qtensor import QTensor
from fewbit.recipe import Recipe
from fewbit.sources import open_source
from fewbit.training.options import Training
from fewbit.training.prepared import PREPARED, Prepared
from fewbit.training.schedule import Schedule
from fewbit.training.trained import Trained
from fewbit.training.training_plan import BATCHNORM, TrainingPlan
from fewbit.transforms.batchnorm import folded, folded_sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a training may begin with; neither is needed."""

    #: Shows which BatchNorm follows which layer, and begins static ranges.
    batch: Any = None
    #: What the algorithms of the recipe solve on first.
    calibration: Any = None


def prepare(model: Any, recipe: Recipe, training: Training, data: TrainingData, target: tuple[str | None, str]) -> Any:
    """Do what `fewbit.prepare_qat` says; the target is a checkpoint format and a type of floats."""
    batch = data.batch
    if not isinstance(model, nn.Module):
        raise RecipeError(f"prepare_qat takes a torch module in memory, not a {type(model).__name__}; load it first")
    if PREPARED in model.__dict__:
        raise PlanError(f"{type(model).__name__} is prepared already; fewbit.finish_qat takes the quantizers out")
    source, frontend = open_source(model), frontend_of("torch")
    asked = TrainingPlan(source, recipe, training, *target)
    made = asked(model, batch)
    frontend.require_finite(model, [own.layer for own in made.quantized], made.float_names, made.storage_type)
    folds = _folds(model, made, batch)
    found = {} if data.calibration is None else _solved(model, recipe, data.calibration, target)
    schedule = Schedule(
        model, delay=training.delay, freeze_ranges=training.freeze_ranges, freeze_norms=training.freeze_norms
    )
    work = Prepared(
        model=model,
        asked=asked,
        plan=made,
        schedule=schedule,
        batch=batch,
        pairs=[fold.pair for fold in folds],
        sentences=_sentences(made, folds),
    )
    work.install()
    for row in work.rows if found else ():
        work.quantizer(row).adopt(work.trained(row), found[row.layer.name])
    if batch is not None:
        schedule.starting = True
        frontend.run(model, batch)
        schedule.starting = False
    return model


def _solved(model: nn.Module, recipe: Recipe, calibration: Any, target: tuple[str | None, str]) -> dict[str, QTensor]:
    """Return what the algorithms of the recipe make of the weights of a copy of the model."""
    result = quantize(copy.deepcopy(model), recipe, to=target[0], dtype=target[1], calibration=calibration)
    names = [row.layer.name for row in result.plan.rows if row.scheme]
    return {name: result.model.get_submodule(name).qtensor for name in names}


def _folds(model: nn.Module, made: Plan, batch: Any) -> list[NormFold]:
    """Return the folds of BatchNorms that the recipe asks for and a run shows."""
    if batch is None or all(own.name != BATCHNORM for own in made.recipe.transforms):
        return []
    return found_folds(model, batch, folded)


def _sentences(made: Plan, folds: list[NormFold]) -> tuple[str, ...]:
    found = [f"{folded_sentence(len(folds))} after training"] if folds else []
    straight = [row for row in made.rows if row.algorithm == Trained("straight-through")]
    if straight and len({row.algorithm for row in made.rows if row.scheme}) > 1:
        schemes = ", ".join(sorted({str(row.scheme) for row in straight}))
        names = [row.layer.name for row in straight]
        found.append(f"{several(names)}: no range to learn in {schemes}, so that gradients went straight through")
    return tuple(found)
