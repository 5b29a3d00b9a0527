"""Put ReLU where modules of a live model are ReLU6, at every place where they hang."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from fewbit.frontends.torch.calls import copied, run_batch
from fewbit.frontends.torch.output_change import output_change
from fewbit.transforms import Applied
from fewbit.transforms.relu6 import NO_RELU6, replaced_sentence


def replace_relu6(model: nn.Module, batch: Any) -> Applied:
    """Replace the modules; one that is a function in someone's `forward` cannot be, and stays."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, nn.Hardtanh) and child.min_val == 0.0
    ]
    if not places:
        return Applied(sentences=(f"{NO_RELU6} among the modules; one that is called as a function stays",))
    run = partial(run_batch, model, batch, every_score=True)
    before = None if batch is None else copied(run())
    for parent, name, _ in places:
        setattr(parent, name, nn.ReLU())

    def restore() -> None:
        for parent, name, child in places:
            setattr(parent, name, child)

    change = None if before is None else output_change(before, run())
    return Applied(sentences=(replaced_sentence(len({child for *_, child in places}), change),), restore=restore)
