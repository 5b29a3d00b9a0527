"""How far weights are from their levels, as a loss: trained weights then lose less when they are rounded.

mean over the layers of mean(((w - Q(w)) / scale)^2), a twelfth for numbers spread evenly over a step. Annealed, it
grows with the steps, so that weights are free at first. Source: Choi et al., "Learning low precision deep neural
networks through regularization", arXiv:1809.00095.
"""

from __future__ import annotations

from typing import Any

from fewbit.errors import RecipeError


def level_distance(model: Any, *, anneal: int = 0) -> Any:
    """Return the mean squared distance of the weights of a prepared model from their levels, in units of the scale.

    Add it to your loss, times what it is to count. Gradients reach the weights, not their ranges.

    Args:
        model: prepared by `prepare_qat`.
        anneal: the steps over which it grows from 0 to its full size; 0: it has that from the start.

    Raises:
        PlanError: the model is not prepared.
        RecipeError: `anneal` is no number of steps.

    """
    import torch

    from fewbit.training.prepared import prepared

    if type(anneal) is not int or anneal < 0:
        raise RecipeError(f"anneal {anneal!r:.80} is no number of steps")
    work = prepared(model)
    distances = [work.quantizer(row).distance(work.trained(row)) for row in work.rows]
    whole = torch.stack(distances).mean()
    return whole * work.schedule.progress(anneal) if anneal else whole
