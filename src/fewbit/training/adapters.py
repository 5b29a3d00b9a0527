"""Low-rank adapters on a frozen base of few bits: only they are trained, and their base stays as it is stored.

y = Q(W) x + (alpha / r) B A x. Source: Dettmers et al., "QLoRA", arXiv:2305.14314.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import RecipeError
from fewbit.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What is put beside the quantized linear layers of a model.

    >>> Adapters(rank=4).share
    4.0
    """

    #: Of A (rank, in) and B (out, rank).
    rank: int = 8
    #: B A counts alpha / rank.
    alpha: float = 16.0
    #: The part of what goes into A that is left out at random in training.
    dropout: float = 0.0
    #: Regular expression that the whole name of a layer has to match; `None`: every one but heads, as is usual.
    match: str | None = None
    #: For A.
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise RecipeError(f"rank {self.rank!r:.80} is no rank; 8 is usual")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < float("inf"):
            raise RecipeError(f"alpha {self.alpha!r:.80} is not above 0; twice the rank is usual")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout {self.dropout!r:.80} is not in [0, 1); 0 to 0.1 are usual")
        if type(self.seed) is not int or self.seed < 0:
            raise RecipeError(f"seed {self.seed!r:.80} is no seed; give a whole number from 0 on")
        try:
            re.compile(self.match or "")
        except (re.error, TypeError) as error:
            raise RecipeError(f"match {self.match!r:.80} is no regular expression: {error}") from error

    @property
    def share(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def prepare_adapters(result: Result, adapters: Adapters | None = None) -> Any:
    """Put adapters beside the quantized linear layers of a model, in place, and return it; your own loop trains it.

    Nothing else of the model is trained: codes are no parameters, and its parameters ask for no gradients any more. For
    the way back a layer keeps its packed codes, which are dequantized again. Adapters are float32, and change nothing
    at first.

    Args:
        result: what `quantize` or `load` has returned; its layers may have any scheme.
        adapters: their rank, and which layers get some.

    Raises:
        RecipeError: not the result of a torch model.
        PlanError: no layer to put one beside, one that rounds its output, or a model that has adapters.

    >>> import torch, fewbit
    >>> result = fewbit.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), "nf4")
    >>> model = prepare_adapters(result, Adapters(rank=2))
    >>> [(name, tuple(own.shape)) for name, own in model.named_parameters() if own.requires_grad]
    [('0.adapter.down', (2, 64)), ('0.adapter.up', (8, 2))]

    """
    from fewbit.training.adapting import prepare

    return prepare(result, adapters or Adapters())


def load_adapters(result: Result, path: str | Path) -> Any:
    """Do what `prepare_adapters` does with the adapters in a folder, written by `save_adapters` or by PEFT.

    Raises:
        CheckpointError: no such folder, a damaged one, or one for other layers.
        NotYetError: adapters of another kind than low-rank ones of linear layers.
        PlanError: as `prepare_adapters`.

    """
    from fewbit.training.adapting import load

    return load(result, Path(path))


def save_adapters(model: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the adapters of a model to a folder as PEFT reads it, and return its path; the base is not in it.

    Raises:
        PlanError: the model has no adapters.
        NonFiniteError: training has left NaN or infinity in one; its layer is named.
        CheckpointError: `path` exists, or cannot be written.

    """
    from fewbit.training.adapting import save

    return save(model, Path(path), overwrite=overwrite)


def merge_adapters(model: Any, *, evaluation: Any = None) -> Result:
    """Put adapters into the weights, rounded again to their schemes, in place; the result is that of `quantize`.

    Its report compares with the base beside its adapters. Rounding again costs what rounding costs: a change that is
    smaller than a step may be lost, and the report says how far each lies above the rounding.

    Args:
        model: from `prepare_adapters` or `load_adapters`.
        evaluation: what to measure on, as for `quantize`.

    Raises:
        PlanError: the model has no adapters.
        NonFiniteError: training has left NaN or infinity in one; its layer is named.

    """
    from fewbit.training.merging import merged

    return merged(model, evaluation)
