"""The plan of a model that is trained: the recipe with training in place of every algorithm, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fewbit.interfaces import Source, frontend_of
from fewbit.model_plan import checked, model_plan
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.training.options import Training
from fewbit.training.trained import Trained

BATCHNORM = "batchnorm"


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What is asked for; called with a float model, the plan for it."""

    source: Source
    recipe: Recipe
    training: Training
    #: The checkpoint format that it is meant for, and the type of floats and scales in files.
    to: str | None
    dtype: str

    def __call__(self, model: Any, batch: Any) -> Plan:
        """Return the plan.

        Raises:
            PlanError: it cannot be carried out.

        """
        recipe = _trained(self.recipe, self.training)
        made = model_plan(self.source, model, recipe, to=self.to, dtype=self.dtype, batch=batch)
        made = checked(made, frontend_of("torch"), model, batch)
        made = replace(made, problems=(*made.problems, *_problems(made)))
        made.require_sound()
        return replace(made, rows=tuple(_under(row, self.training) for row in made.rows))


def _trained(recipe: Recipe, training: Training) -> Recipe:
    """Return the recipe with training in place of every algorithm."""
    rules = []
    for rule in recipe.rules:
        if rule.keep or rule.weight is None:
            rules.append(rule)
            continue
        rules.append(
            Rule(
                rule.match,
                kind=rule.kind,
                weight=rule.weight,
                input=rule.input,
                output=rule.output,
                bias=rule.bias if rule.bias != "float" else None,
                algorithm=Trained(training.gradient.name),
                optional=rule.optional,
            )
        )
    return replace(recipe, rules=tuple(rules))


def _under(row: PlanRow, training: Training) -> PlanRow:
    """Return the row of a plan with the gradient that its scheme allows."""
    return row if row.scheme is None else replace(row, algorithm=Trained(training.gradient.name).under(row.scheme))


def _problems(made: Plan) -> list[str]:
    """Return what of a recipe training does not do, with the remedy."""
    found = [
        f"transform {own.name} works on calibration data before rounding; apply it by fewbit.quantize, or leave it out"
        for own in made.recipe.transforms
        if own.name != BATCHNORM
    ]
    found += [
        f"correction {own.name} repairs a model that was not trained; leave it out" for own in made.recipe.corrections
    ]
    return [*found, *_fixed_units(made)]


def _fixed_units(made: Plan) -> list[str]:
    """Return which layers have inputs or outputs whose scales are counted in a unit that only calibration fixes."""
    alike: dict[str, list[str]] = {}
    for row in made.rows:
        for name, scheme in {"input": row.input, "output": row.output}.items():
            if scheme is not None and scheme.fixes_unit:
                text = (
                    f"{name} '{scheme}': training fixes no scale of scales; leave out 'static', and `to` with a preset"
                )
                alike.setdefault(text, []).append(row.layer.name)
    return [f"{several(names)}: {text}" for text, names in alike.items()]
