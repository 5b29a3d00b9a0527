"""Put quantizers into a model where a recipe says so, so that it is trained on what its codes will stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fewbit.errors import PlanError, RecipeError
from fewbit.frontends.torch.norm_folding import NormFold, found_folds
from fewbit.interfaces import frontend_of
from fewbit.planning import Plan
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.sources import open_source
from fewbit.training.options import Training
from fewbit.training.prepared import SCHEDULE, Prepared
from fewbit.training.schedule import Schedule
from fewbit.training.trained import Trained
from fewbit.training.training_plan import BATCHNORM, TrainingPlan
from fewbit.transforms.batchnorm import folded, folded_sentence


def prepare(
    model: Any, recipe: str | Path | Recipe, training: Training | None, batch: Any, target: tuple[str | None, str]
) -> Any:
    """Do what `fewbit.prepare_qat` says; the target is a checkpoint format and a type of floats."""
    training = training or Training()
    if not isinstance(model, nn.Module):
        raise RecipeError(f"prepare_qat takes a torch module in memory, not a {type(model).__name__}; load it first")
    if SCHEDULE in model.__dict__:
        raise PlanError(f"{type(model).__name__} is prepared already; fewbit.finish_qat takes the quantizers out")
    source, frontend = open_source(model), frontend_of("torch")
    asked = TrainingPlan(source, parse_recipe(recipe), training, *target)
    made = asked(model, batch)
    frontend.require_finite(model, [own.layer for own in made.quantized], made.float_names, made.storage_type)
    folds = _folds(model, made, batch)
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
    schedule.owner = work
    work.install()
    if batch is not None:
        schedule.starting = True
        frontend.run(model, batch)
        schedule.starting = False
    return model


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
        found.append(f"{len(straight)} layers of {schemes} have no range to learn: gradients went straight through")
    return tuple(found)
