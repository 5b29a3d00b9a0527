"""A call cut to one sample and few tokens: what reads what shows in any of them, and a run costs as many times less.

Tensors of whole numbers with two axes are tokens, (samples, length); of others the samples alone are cut.
"""

from __future__ import annotations

from torch import Tensor, nn

from fewbit.frontends.torch.calls import Call, mapped, run_batch, shapes

#: Tokens that stay: marks are compared on 64 rows.
_TOKENS = 64


def shortened(model: nn.Module, call: Call) -> Call:
    """Return `call` cut, where `model` takes that; else as it is."""
    leading = {shape[0] for shape in shapes([call.args, dict(call.kwargs)]) if shape}
    if len(leading) != 1:  # not all of them are samples
        return call
    short = Call(mapped(call.args, _cut), mapped(dict(call.kwargs), _cut))
    try:
        run_batch(model, short.batch())
    except Exception:  # whatever a model of somebody else raises, it takes no other shapes
        return call
    return short


def _cut(given: Tensor) -> Tensor:
    tokens = given.ndim == 2 and not given.is_floating_point() and not given.is_complex()
    return given[:1, :_TOKENS] if tokens else given[:1]
