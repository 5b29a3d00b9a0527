"""A language model trained with rounding in the loop to follow its float self on text; no labels are needed.

Weights move by Adam, ranges by steps in proportion to themselves; rates fall to 0 along a cosine. Source: Liu et al.,
"LLM-QAT", arXiv:2305.17888, section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibration import Calibration
from fewbit.errors import PlanError, RecipeError
from fewbit.evaluation.overlap import overlap
from fewbit.evaluation.quality import compare
from fewbit.evaluation.token_ids import vocabulary_of, writes_text
from fewbit.frontends.torch.calls import Call
from fewbit.interfaces import Progress, Silent, Source
from fewbit.presets import parse_recipe
from fewbit.recipe import Recipe
from fewbit.result import Result
from fewbit.sources import open_source
from fewbit.training.distillation import Distillation
from fewbit.training.finishing import finish
from fewbit.training.measuring import memory_of, saved_bytes
from fewbit.training.memory import MemoryRow
from fewbit.training.options import Training
from fewbit.training.parameter_groups import parameter_groups
from fewbit.training.prepared import prepared
from fewbit.training.preparing import TrainingData, prepare
from fewbit.training.qat import TrainingNeeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """How long and how fast."""

    steps: int = 100
    #: Sequences of tokens a step; its gradients are summed one by one.
    sequences: int = 4
    #: Of Adam, for weights.
    rate: float = 1e-5
    #: The same for ranges, as a part of what they are.
    range_rate: float = 1e-3
    #: How much the loss of the next token counts beside the divergence from the float model.
    alpha: float = 0.0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "sequences"):
            given = getattr(self, name)
            if type(given) is not int or given < 1:
                raise RecipeError(f"{name} {given!r:.80} is no number of {name}; 100 steps of 4 are usual")
        for name in ("rate", "range_rate"):
            given = getattr(self, name)
            if not isinstance(given, int | float) or not 0.0 <= given < 1.0:
                raise RecipeError(f"{name} {given!r:.80} is not in [0, 1); 1e-5 and 1e-3 are usual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a model is trained and measured on."""

    #: The text to train on.
    training: Calibration
    #: Batches of token ids to measure on, and what to call them.
    evaluation: Sequence[Tensor] = ()
    name: str | None = None


def finetune(
    model: Any,
    recipe: str | Recipe,
    texts: Texts,
    *,
    options: Finetuning | None = None,
    to: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Return `model`, quantized and trained to follow itself; the algorithms of the recipe solve it first.

    Args:
        model: a language model, as for `fewbit.quantize`.
        recipe: as for it.
        texts: what to train on, and what to measure divergence from the float model on.
        options: steps, rates.
        to: the checkpoint format that it is meant for.
        progress: shows how far it is.

    Raises:
        PlanError: the recipe cannot be carried out, or the model has no token scores.
        NonFiniteError: training has diverged.

    """
    options, progress = options or Finetuning(), progress or Silent()
    source, student, distillation = _opened(model, options, progress)
    teacher = distillation.teacher
    with progress.phase("calibration data"):
        batches = list(texts.training.batches(student, source, seed=options.seed, progress=progress))
    with progress.phase("solve"):
        data = TrainingData(batch=batches[0], calibration=batches)
        prepare(student, parse_recipe(recipe), Training(), data, (to, "auto"))
    _train(student, distillation, batches, options, progress)
    result = finish(student, None)
    if not texts.evaluation:
        return replace(result, source=source)
    with progress.phase("measure"):
        before, after = compare(_logits(teacher), _logits(student), progress.track(texts.evaluation, "measure"))
    assert result.report is not None
    seen = overlap(batches, texts.evaluation)
    report = replace(result.report, before=before, after=after, text=texts.name, model=source.name, overlap=seen)
    return replace(result, report=report, source=source)


def plan_finetuning(
    model: Any,
    recipe: str | Recipe,
    *,
    length: int = 256,
    options: Finetuning | None = None,
    to: str | None = None,
    progress: Progress | None = None,
) -> TrainingNeeds:
    """Return what `finetune` would do to a language model, and the bytes that it takes on sequences of `length` tokens.

    Raises:
        PlanError: as `finetune`.

    """
    options, progress = options or Finetuning(), progress or Silent()
    _, student, distillation = _opened(model, options, progress)
    tokens = torch.randint(vocabulary_of(student) or 1, (1, length), generator=torch.Generator().manual_seed(0))
    own = sum(tensor.nbytes for tensor in distillation.teacher.parameters())
    count = sum(tensor.numel() for tensor in distillation.teacher.parameters())
    with progress.phase("measure"):
        prepare(student, parse_recipe(recipe), Training(), TrainingData(batch=tokens), (to, "auto"))
        _to_training(student)
        saved = saved_bytes(student, lambda: _loss(student, distillation, tokens, options))
    beside = MemoryRow(what="the float model to follow", numbers=count, weights=own)
    return TrainingNeeds(prepared(student).plan, memory_of(student, "adam", saved=saved, beside=[beside]))


def _opened(model: Any, options: Finetuning, progress: Progress) -> tuple[Source, nn.Module, Distillation]:
    """Return a language model, and what it is to follow: itself in float."""
    source = open_source(model)
    with progress.phase("load"):
        student = source.load()
    if not writes_text(student):
        raise PlanError(f"{source.name} is no causal language model; train it in a loop of your own, by prepare_qat")
    teacher = copy.deepcopy(student).eval()
    return source, student, Distillation(teacher, alpha=options.alpha, temperature=options.temperature)


def _train(
    student: nn.Module, distillation: Distillation, batches: Sequence[Any], options: Finetuning, progress: Progress
) -> None:
    """Train the student in place."""
    optimizer = torch.optim.Adam(parameter_groups(student, options.rate, range_rate=options.range_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(options.seed)
    _to_training(student)
    order = _order(len(batches), generator)
    for _ in progress.track(range(options.steps), "train"):
        optimizer.zero_grad()
        for _ in range(options.sequences):
            loss = _loss(student, distillation, batches[next(order)], options)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    student.eval()


def _to_training(student: nn.Module) -> None:
    """Set the student to training without dropout: what it is to follow is what it puts out in evaluation."""
    student.train()
    for part in student.modules():
        if isinstance(part, nn.Dropout):
            part.eval()


def _loss(student: nn.Module, distillation: Distillation, tokens: Any, options: Finetuning) -> Tensor:
    """Return the part of a sequence in the loss of a step."""
    call = Call.of(tokens)
    scores = student(*call.args, **call.kwargs, use_cache=False).logits
    task = _next_token(scores, tokens) if options.alpha else 0.0
    return distillation(scores, tokens, task) / options.sequences


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    """Yield places of batches, each as often, in a new order every time."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _next_token(scores: Tensor, tokens: Any) -> Tensor:
    ids = tokens["input_ids"] if isinstance(tokens, dict) else tokens
    return nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _logits(model: nn.Module) -> Any:
    @torch.no_grad()
    def forward(tokens: Tensor) -> Tensor:
        found: Tensor = model(tokens, use_cache=False).logits
        return found

    return forward
