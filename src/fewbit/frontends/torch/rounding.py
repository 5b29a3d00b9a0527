"""A torch module that rounds the input or the output of a quantized layer; in a state_dict `scale` and `zero_point`.

A token is a row along the last axis; of what goes through a convolution it is a sample, which alone factors out of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.activation import Activation
from fewbit.schemes.granularity import PerToken
from fewbit.schemes.notation import input_scheme_to_text


class Rounding(nn.Module):
    """Rounds tensors whose channels lie `spatial` axes before the last; keeps their type."""

    def __init__(self, activation: Activation, *, spatial: int = 0) -> None:
        super().__init__()
        self.scheme = activation.scheme
        self.spatial = spatial
        self._names = tuple(name for name in ("scale", "zero_point") if getattr(activation, name) is not None)
        for name in self._names:
            # As whole numbers: `half()` and its kin would round a float buffer.
            self.register_buffer(f"bits_{name}", getattr(activation, name).view(torch.int32), persistent=False)

    @property
    def activation(self) -> Activation:
        """The rounding with the numbers that this module holds."""
        return Activation(scheme=self.scheme, **{name: self._number(name) for name in self._names})

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` rounded."""
        shape = values.shape
        if not values.numel():
            return values
        if self.spatial and isinstance(self.scheme.granularity, PerToken):
            # Without an axis of samples there is one.
            values = values.reshape(shape[0] if len(shape) > self.spatial + 1 else 1, -1)
        rounded: Tensor = self._spread().rounded(values).to(values.dtype)
        return rounded.reshape(shape)

    def extra_repr(self) -> str:
        """Return the notation, for `print(model)`."""
        return input_scheme_to_text(self.scheme)

    def _spread(self) -> Activation:
        """Return the rounding with the numbers of channels beside their spatial axes."""
        numbers = {name: self._number(name) for name in self._names}
        if self.spatial:
            numbers = {
                name: number.reshape(-1, *(1 for _ in range(self.spatial))) if number.ndim else number
                for name, number in numbers.items()
            }
        return Activation(scheme=self.scheme, **numbers)

    def _number(self, name: str) -> Tensor:
        bits: Tensor = getattr(self, f"bits_{name}")
        return bits.view(torch.float32)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._names:
            destination[prefix + name] = self._number(name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {prefix + name: name for name in self._names}
        others = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for key, name in own.items():
            here: Tensor = getattr(self, f"bits_{name}")
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != here.shape:
                error_msgs.append(f"{key} has shape {list(state_dict[key].shape)}, not {list(here.shape)}")
            else:
                here.copy_(state_dict[key].to(torch.float32).view(torch.int32))
