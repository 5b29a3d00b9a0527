"""A quantized module as a float one: plain layers on the numbers that the codes stand for.

Only those numbers are new. Every other parameter and buffer is shared with the module, which stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.quantized import QuantizedLayer, QuantizedLinear
from fewbit.frontends.torch.quantized_convolution import QuantizedConvolution
from fewbit.frontends.torch.quantized_embedding import QuantizedEmbedding
from fewbit.frontends.torch.rounded_product import RoundedForward
from fewbit.frontends.torch.scaled_embedding import ScaledEmbedding


def float_copy(model: nn.Module) -> nn.Module:
    """Return `model` with plain layers for quantized ones, in evaluation mode, on the CPU, without gradients.

    Raises:
        CheckpointError: something in the model cannot be copied.

    """
    known: dict[int, Any] = {id(own): _shared(own) for own in (*model.parameters(), *model.buffers())}
    known |= {id(own): _plain(own) for own in model.modules() if isinstance(own, QuantizedLayer)}
    try:
        copied = copy.deepcopy(model, known)
    except Exception as error:  # whatever the parts of someone else's module raise
        raise CheckpointError(
            f"{type(model).__name__} cannot be copied: {error}; take what cannot be out of the module"
        ) from error
    for module in copied.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, RoundedForward):
            forward.take_off()
    return copied.eval()


def _shared(tensor: Tensor) -> Tensor:
    own = tensor.detach().cpu()
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def _plain(layer: QuantizedLayer) -> nn.Module:
    module = _PLAIN[type(layer)](layer)
    module.register_parameter("weight", _shared(nn.Parameter(layer.weight, requires_grad=False)))  # type: ignore[arg-type]
    if not isinstance(module, nn.Embedding):
        bias = layer.bias
        module.register_parameter("bias", None if bias is None else _shared(nn.Parameter(bias, requires_grad=False)))  # type: ignore[arg-type]
    return module


def _embedding(own: QuantizedEmbedding) -> nn.Embedding:
    sizes = own.num_embeddings, own.embedding_dim
    if own.factor is None:
        return nn.Embedding(*sizes, device="meta")
    module = ScaledEmbedding(*sizes, 1.0, device="meta")
    module.register_buffer("factor", _shared(own.factor), persistent=False)
    return module


#: What takes the place of a quantized layer, without its numbers.
_PLAIN: dict[type[QuantizedLayer], Callable[[Any], nn.Module]] = {
    QuantizedLinear: lambda own: nn.Linear(own.in_features, own.out_features, device="meta"),
    QuantizedConvolution: lambda own: own.convolution.module(),
    QuantizedEmbedding: _embedding,
}
