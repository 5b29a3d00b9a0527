"""Find the layers of one module that are given the same tensor, such as queries, keys and values, by a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.input_watch import InputWatch
from fewbit.interfaces import Layer


def shared_inputs(model: nn.Module, layers: Sequence[Layer], batch: Any | None) -> list[tuple[str, ...]] | None:
    """Return names of `layers` that share module and input in a run, two and more together.

    Args:
        model: its numbers do not matter, and need not be there where the run does without.
        layers: those that are asked about.
        batch: as for a run; `None`: token ids, for a language model of transformers.

    Returns `None` where there is nothing to run the model on, or it does not run without numbers.

    """
    call = Call.made_up(model) if batch is None else None
    if batch is None and call is None:
        return None
    watch = InputWatch(model, layers, {})
    try:
        watch.groups([partial(run_batch, model, batch) if call is None else partial(call.run, model)])
    except (CalibrationError, RuntimeError, NotImplementedError):
        # Layers that share an input at one call and not at another share no number; nor does what cannot run as it is.
        return None
    alike: dict[tuple[str, str], list[str]] = {}
    for name, leader in watch.leaders.items():
        alike.setdefault((leader, name.rpartition(".")[0]), []).append(name)
    return [tuple(names) for names in alike.values() if len(names) > 1]
