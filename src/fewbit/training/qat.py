"""Quantization-aware training: quantizers into a module, and from the trained module to a quantized one.

What a layer computes in training is what its codes will stand for: Krishnamoorthi, arXiv:1806.08342, section 3.2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.planning import Plan
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.result import Result
from fewbit.training.memory import TrainingMemory
from fewbit.training.options import Training


def prepare_qat(  # each is a choice of its own
    model: Any,
    recipe: str | Path | Recipe,
    *,
    training: Training | None = None,
    batch: Any = None,
    calibration: Any = None,
    to: str | None = None,
    dtype: str = "auto",
) -> Any:
    """Put differentiable quantizers into `model`, in place, and return it; your own loop trains it from here.

    Make the optimizer afterwards: ranges that are learned are parameters of the model. A resumed run prepares the float
    model alike and then loads the state_dict.

    Args:
        model: a float module in memory.
        recipe: as for `quantize`; its algorithms give way to training, or begin it (`calibration`). Of transforms
            `batchnorm` is understood: weights are rounded as folded with the averages of the BatchNorm behind, which is
            folded in at the end.
        training: gradients, ranges, schedule.
        batch: shows which BatchNorm follows which layer, and begins static ranges; without it those begin with the
            first batch of the training.
        calibration: data as for `quantize`: the algorithms of the recipe then solve a copy of the model first, and
            training begins with their levels and scales; without it, with the float weights.
        to: the checkpoint format that it is meant for.
        dtype: type of floats and scales in files, as for `plan`.

    Raises:
        PlanError: the recipe cannot be carried out; the model is untouched.

    >>> import torch
    >>> layer = torch.nn.Linear(64, 8)
    >>> ready = prepare_qat(torch.nn.Sequential(layer), "w4a16")
    >>> bool((ready[0].weight == layer.parametrizations.weight.original).all())
    False

    """
    from fewbit.training.preparing import TrainingData, prepare

    data = TrainingData(batch=batch, calibration=calibration)
    return prepare(model, parse_recipe(recipe), training or Training(), data, (to, dtype))


@dataclass(frozen=True, slots=True)
class TrainingNeeds:
    """What becomes of the layers of a model in training, and what that takes; printed, both are tables."""

    plan: Plan
    memory: TrainingMemory

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.memory}"


def plan_qat(  # each is a choice of its own
    model: Any,
    recipe: str | Path | Recipe,
    *,
    training: Training | None = None,
    batch: Any = None,
    optimizer: str = "adamw",
    to: str | None = None,
    dtype: str = "auto",
) -> TrainingNeeds:
    """Return what `prepare_qat` would do to `model`, and the bytes that its training takes; a copy is prepared and run.

    Args:
        model: a float module in memory; it stays as it is.
        recipe: as for `prepare_qat`.
        training: as for it.
        batch: as for it; what a forward of it saves for gradients is counted.
        optimizer: `adamw`, `adam`, `sgd`, `sgd-momentum`.
        to: the checkpoint format that it is meant for.
        dtype: type of floats and scales in files, as for `plan`.

    Raises:
        PlanError: the recipe cannot be carried out.
        RecipeError: another optimizer.

    """
    from fewbit.training.measuring import measured
    from fewbit.training.memory import require_known
    from fewbit.training.prepared import prepared

    require_known(optimizer)
    own = prepare_qat(copy.deepcopy(model), recipe, training=training, batch=batch, to=to, dtype=dtype)
    return TrainingNeeds(prepared(own).plan, measured(own, batch, optimizer))


def finish_qat(model: Any, *, evaluation: Any = None) -> Result:
    """Turn a model that `prepare_qat` prepared into a quantized one, in place; the result is that of `quantize`.

    Its report compares with the float weights that training has come to; their reference is kept nowhere else.

    Args:
        model: prepared, and trained since.
        evaluation: what to measure on, as for `quantize`.

    Raises:
        PlanError: the model is not prepared.
        CalibrationError: a static range that no input has reached.
        NonFiniteError: training has left NaN or infinity in a weight; its layer is named.

    """
    from fewbit.training.finishing import finish

    return finish(model, evaluation)
