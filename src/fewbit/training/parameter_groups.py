"""What an optimizer is given of a prepared model: ranges step in proportion to themselves, only weights decay.

Adam moves every number by about its rate, whatever the gradient: that of a weight is too fast for a scale of 0.01 and
too slow for a bound of 6. Rates of ranges are therefore shares of what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewbit.errors import CalibrationError

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    model: nn.Module, rate: float, *, range_rate: float = 1e-3, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the parameters of `model` in groups for an optimizer of torch, each with `lr` and `weight_decay`.

    Args:
        model: prepared by `prepare_qat`; its ranges have begun (`batch=`).
        rate: of weights, biases and norms.
        range_rate: of learned ranges, as a share of what each is now.
        weight_decay: of weights of two axes and more; biases, norms and ranges have none.

    Raises:
        CalibrationError: a range that no input has reached.

    >>> import torch
    >>> from fewbit.training.qat import prepare_qat
    >>> model = prepare_qat(torch.nn.Sequential(torch.nn.Linear(64, 8)), "w8a16")
    >>> sorted(len(group["params"]) for group in parameter_groups(model, 1e-3, weight_decay=0.01))
    [1, 1, 1]

    """
    from fewbit.training.trained_range import TrainedRange

    groups, taken = [], set()
    for name, part in model.named_modules():
        for own in part.parameters() if isinstance(part, TrainedRange) else ():
            if id(own) in taken:
                continue
            if not part.ready:
                raise CalibrationError(f"{name} has no range yet; give prepare_qat a batch, or run one before")
            taken.add(id(own))
            share = range_rate * float(own.detach().abs().mean())
            groups.append({"params": [own], "lr": share, "weight_decay": 0.0})
    rest = [own for own in model.parameters() if id(own) not in taken and own.requires_grad]
    for decay, wide in ((weight_decay, True), (0.0, False)):
        own_kind = [own for own in rest if (own.ndim >= 2) is wide]
        if own_kind:
            groups.append({"params": own_kind, "lr": rate, "weight_decay": decay})
    return groups
