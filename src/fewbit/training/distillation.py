"""Distillation: a model in training follows another one, usually itself in float, on the same inputs.

loss = alpha task + beta T^2 KL(softmax(t / T) || softmax(s / T)) + gamma sum ||f_s - f_t||^2 / ||f_t||^2, means over
predictions. Sources: Hinton et al., arXiv:1503.02531; features: Romero et al., "FitNets", arXiv:1412.6550.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import RecipeError
from fewbit.frontends.torch.calls import evaluating, run_batch


class Distillation:
    """What a teacher says of a batch, as a loss for its student.

    >>> teacher = nn.Linear(8, 4)
    >>> student = nn.Linear(8, 4)
    >>> distillation = Distillation(teacher, student, alpha=0.0)
    >>> inputs = torch.randn(2, 8)
    >>> float(distillation(student(inputs), inputs).detach()) > 0
    True
    """

    def __init__(  # the numbers of its equation
        self,
        teacher: nn.Module,
        student: nn.Module | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        features: Sequence[str] = (),
    ) -> None:
        """Follow `teacher`, a copy of the float model made before it was prepared.

        Args:
            teacher: runs without gradients, in evaluation mode.
            student: the model in training; only `features` need it.
            alpha: how much the loss of the task counts.
            beta: how much the divergence of the outputs counts.
            gamma: how much the difference of features counts.
            temperature: divides the scores of both; the divergence counts its square, as its gradient shrinks so.
            features: names of parts, in both models, whose outputs are to be alike.

        Raises:
            RecipeError: numbers out of range, or a part that a model does not have.

        """
        for name, given in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not isinstance(given, int | float) or not 0 <= given < float("inf"):
                raise RecipeError(f"{name} {given!r:.80} is no weight of a loss; 1 is usual")
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise RecipeError(f"temperature {temperature!r:.80} is not above 0; 1 to 4 are usual")
        if features and student is None:
            raise RecipeError("features are those of two models; give the student too")
        self.teacher = teacher
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self._own = _Features(student, features, "student") if student is not None else None
        self._theirs = _Features(teacher, features, "teacher")

    def __call__(self, outputs: Any, batch: Any, task: Tensor | float = 0.0) -> Tensor:
        """Return the loss.

        Args:
            outputs: what the student has just put out for `batch`: scores (..., classes), or an output of transformers.
            batch: a tensor, a tuple of arguments or a dict of keyword arguments, for the teacher.
            task: the loss of the task.

        """
        with torch.no_grad(), evaluating(self.teacher):
            expected = _scores(run_batch(self.teacher, batch, every_score=True))
        loss = self.alpha * task + self.beta * divergence(_scores(outputs), expected, self.temperature)
        if self._own is not None:
            for name, own in self._own.seen.items():
                theirs = self._theirs.seen[name].float()
                distance = (own.float() - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12)
                loss = loss + self.gamma * distance
        return loss

    def close(self) -> None:
        """Stop watching features."""
        for own in (self._own, self._theirs):
            if own is not None:
                own.close()


class _Features:
    """What parts of a model have put out last."""

    def __init__(self, model: nn.Module, names: Sequence[str], who: str) -> None:
        self.seen: dict[str, Tensor] = {}
        parts = dict(model.named_modules())
        for name in names:
            if name not in parts:
                raise RecipeError(f"the {who} has no part called {name!r:.120}")
        self._handles = [parts[name].register_forward_hook(self._keeper(name)) for name in names]

    def _keeper(self, name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self.seen[name] = output if isinstance(output, Tensor) else output[0]

        return keep

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def divergence(scores: Tensor, expected: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 times the mean over predictions of KL(expected, scores) in nats, both (..., classes), divided by T."""
    wanted = (expected.float() / temperature).log_softmax(-1)
    found = (scores.float() / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1).mean()


def _scores(outputs: Any) -> Tensor:
    """Return the scores of an output."""
    if isinstance(outputs, Mapping):
        outputs = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    found: Tensor = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return found
