"""What the BatchNorms of a module see on some batches: cumulative averages, each batch being normalized by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.corrections import Repaired
from fewbit.corrections.batchnorm import NO_NORM, reestimated_sentence, unreached_sentence
from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.frontends.torch.calls import Call, evaluating
from fewbit.frontends.torch.norm_folding import NORMS, is_known
from fewbit.schemes.scheme import ScaleType

_BUFFERS = ("running_mean", "running_var")


@dataclass(slots=True)
class NormStatistics:
    """The running means and variances of norms in two forms."""

    #: By norm and buffer.
    before: Mapping[tuple[nn.Module, str], Tensor]
    after: Mapping[tuple[nn.Module, str], Tensor]

    def install(self) -> None:
        """Put in what the norms see in the quantized model."""
        _put(self.after)

    def restore(self) -> None:
        """Put back what they have seen in training."""
        _put(self.before)


def reestimate_norms(model: nn.Module, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:
    """Return what the norms of `model` see of `batches`, rounded to `storage_type`; the model is as it was.

    Raises:
        CalibrationError: a batch with one number a channel, which has no variance.
        NonFiniteError: the quantized model makes NaN or infinity.

    """
    norms: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, NORMS) and is_known(module)
    }
    if not norms:
        return NO_NORM
    before = {(norm, name): norm.get_buffer(name).clone() for norm in norms for name in _BUFFERS}
    with _learning(list(norms)):
        for batch in batches:
            _run(model, batch, list(norms))
        reached = [norm for norm in norms if int(norm.num_batches_tracked)]  # type: ignore[arg-type]
        after = {(norm, name): _stored(norm.get_buffer(name), storage_type) for norm in reached for name in _BUFFERS}
    for (norm, name), values in after.items():
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{norms[norm]}.{name}: its inputs hold NaN or infinity; look upstream")
    said = [reestimated_sentence(len(reached), len(batches))] if reached else []
    missed = [name for norm, name in norms.items() if norm not in reached]
    said += [unreached_sentence(missed)] if missed else []
    kept = {key: values for key, values in before.items() if key in after}
    return Repaired(sentences=tuple(said), switch=NormStatistics(kept, after))


@torch.no_grad()
def _run(model: nn.Module, batch: Any, norms: Sequence[nn.Module]) -> None:
    call = Call.of(batch)
    with evaluating(model):
        for norm in norms:
            norm.training = True
        try:
            model(*call.args, **call.kwargs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise CalibrationError(
                "correction batchnorm: a batch has one number a channel, which has no variance; give larger batches"
            ) from error
        finally:
            for norm in norms:
                norm.training = False


@contextmanager
def _learning(norms: Sequence[Any]) -> Iterator[None]:
    """Let norms begin anew with a cumulative average; afterwards they have again what they had."""
    before = [
        (norm, norm.momentum, {name: own.clone() for name, own in norm.named_buffers(recurse=False)}) for norm in norms
    ]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    try:
        yield
    finally:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            _put({(norm, name): own for name, own in buffers.items()})


@torch.no_grad()
def _put(values: Mapping[tuple[nn.Module, str], Tensor]) -> None:
    for (norm, name), own in values.items():
        norm.get_buffer(name).copy_(own)


def _stored(values: Tensor, storage_type: ScaleType) -> Tensor:
    return values.to(getattr(torch, storage_type)).to(values.dtype).clone()
