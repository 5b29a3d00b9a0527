"""Key-value caches of decoder models in few bits: what is appended is rounded and stored as codes with their scales.

Keys and values are (batch, heads, tokens, width); x' = dequantize(quantize(x)) by the range of each token's head, of
each append (`tensor`), or by fixed ranges of a layer (`tensor static`) or of each of its heads (`channel static`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from fewbit.activation import Activation
from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError, CheckpointError, NotYetError, SchemeError
from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.canonical import from_canonical, to_canonical
from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import quantize, scale_shape
from fewbit.ranges import OutputRange
from fewbit.schemes.granularity import PerGroup, PerTensor, PerToken
from fewbit.schemes.notation import parse_input_scheme
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.statistics import STATISTICS


def key_value_cache(
    model: Any, scheme: str | Scheme = "int8", calibration: Sequence[Any] = (), dtype: ScaleType | None = None
) -> KeyValueCache:
    """Return an empty cache for `model`, to be given as `past_key_values`; `reset()` empties it again.

    Args:
        model: a decoder model of transformers.
        scheme: as that of an input: `int8` and `e4m3` go by token and head, `int8 tensor static` and `int8 channel
            static` (a range for each head) by ranges that `calibration` fixes.
        calibration: batches of token ids (sequences, length).
        dtype: the type in which a file is to hold fixed scales, that of its floats; left out: the model's.

    Raises:
        SchemeError: a scheme that is none of these.
        NotYetError: a model whose cache is not a plain one: sliding windows, states of linear attention.
        CalibrationError: a static scheme without calibration.

    """
    parsed = parse_input_scheme(scheme) if isinstance(scheme, str) else scheme
    if parsed.granularity not in (PerToken(), PerTensor()) and not (parsed.static or _is_group(parsed)):
        raise SchemeError(f"a key-value cache has a scale a token, tensor or group, not '{parsed.granularity.name}'")
    if isinstance(parsed.ranging, OutputRange):
        raise SchemeError(f"a key-value cache by '{parsed}': {parsed.ranging.name} ranges weights only; use mse")
    if parsed.format.bits > 8 or (parsed.scale_type not in (None, "float32") and not parsed.static):
        raise NotYetError(f"a cache by '{parsed}', of more than 8 bits or with 16-bit scales, is not in this version")
    if parsed.scale_scheme is not None or parsed.float_zero:
        raise NotYetError(
            f"a cache by '{parsed}', with a scale that is itself quantized or a float zero, is not in this version"
        )
    count = _plain_layers(model)
    if not parsed.static:
        same = Activation(scheme=parsed)
        return KeyValueCache([RoundedLayer(same, same) for _ in range(count)])
    # A fixed scale is rounded to the type that a file of the model stores it in.
    parsed = parsed.stored_as(dtype or str(model.dtype).removeprefix("torch."))  # type: ignore[arg-type]
    seen = _observed(model, [(_Seen(parsed), _Seen(parsed)) for _ in range(count)], calibration)
    return KeyValueCache([RoundedLayer(*(own.activation() for own in pair)) for pair in seen])


class KeyValueCache(Cache):
    """A cache of rounded keys and values."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales that are held."""
        return sum(part.numel() for layer in self.layers for part in (layer.keys, layer.values) if part is not None)

    def by_attention(self, model: Any) -> dict[str, tuple[Activation, Activation]]:
        """Return how keys and values are rounded, by the name of each attention of `model`.

        Raises:
            SchemeError: a model that does not have one attention for each layer of the cache.

        """
        names = attention_names(model)
        if sorted(names) != list(range(len(self.layers))):
            raise SchemeError(f"a cache of {len(self.layers)} layers, and the model has attentions {sorted(names)}")
        return {names[place]: layer.roundings for place, layer in enumerate(self.layers)}


def attention_names(model: Any) -> dict[int, str]:
    """Return the names of the attentions of a model of transformers by the number of their layer."""
    found = {}
    for name, module in model.named_modules():
        place = getattr(module, "layer_idx", None)
        if isinstance(place, int) and "attention" in type(module).__name__.lower():
            found[place] = name
    return found


def stored_cache(model: Any, caches: Mapping[str, tuple[Activation, Activation]]) -> KeyValueCache:
    """Return an empty cache for `model` by the fixed ranges of a folder, by the name of each attention.

    Raises:
        CheckpointError: ranges of something that is no attention, or of some attentions only.

    """
    names, like = attention_names(model), next(model.parameters())
    if set(names.values()) != set(caches):
        odd = sorted(set(names.values()) ^ set(caches))
        raise CheckpointError(f"ranges of caches do not fit the attentions of the model: {', '.join(odd[:5])}")
    pairs = [caches[names[place]] for place in sorted(names)]
    return KeyValueCache([RoundedLayer(*(own.like(like) for own in pair)) for pair in pairs])


class RoundedLayer(DynamicLayer):
    """The keys and values of one layer.

    Codes, scale and zero point of a token's head lie side by side as bytes, so that what transformers does with the
    axes of batch and tokens, cropping and reordering, needs no code here.
    """

    def __init__(self, key: Activation, value: Activation) -> None:
        super().__init__()
        self._roundings = key, value
        self._width = 0

    @property
    def roundings(self) -> tuple[Activation, Activation]:
        """How keys and values are rounded."""
        return self._roundings

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, for heads of this width."""
        self.dtype, self.device = key_states.dtype, key_states.device
        if key_states.shape[-1] != value_states.shape[-1]:
            raise NotYetError("keys and values of different widths are not cached by this version")
        self._width = key_states.shape[-1]
        key, value = self._roundings
        self._roundings = key.like(key_states), value.like(key_states)
        # No token yet, of as many bytes as one of them takes.
        self.keys = _stored(key_states[..., :1, :], self._roundings[0])[..., :0, :]
        self.values = _stored(value_states[..., :1, :], self._roundings[1])[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values as attention is to see them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key, value = self._roundings
        self.keys = torch.cat([self.keys, _stored(key_states, key)], dim=-2)
        self.values = torch.cat([self.values, _stored(value_states, value)], dim=-2)
        return self._read(self.keys, key), self._read(self.values, value)

    def _read(self, stored: Tensor, rounding: Activation) -> Tensor:
        return _values(stored, rounding, self._width).to(self.dtype)


@dataclass(slots=True)
class _Seen:
    """What a range method wants to know of the heads."""

    scheme: Scheme
    statistic: Any = None

    def update(self, states: Tensor) -> None:
        rows = states.detach().movedim(1, -1).reshape(-1, states.shape[1])
        name = self.scheme.ranging.statistic
        if name is None:
            return
        self.statistic = self.statistic or lookup(STATISTICS, name, what="statistic").init(rows.shape[1], rows)
        self.statistic.update(rows)

    def activation(self) -> Activation:
        if self.statistic is None and self.scheme.ranging.statistic:
            raise CalibrationError(
                f"a cache by '{self.scheme}' needs calibration: batches of token ids that reach every layer"
            )
        return Activation.calibrated(self.scheme, self.statistic)


class _Observing(DynamicLayer):
    """A float cache that watches what is appended."""

    def __init__(self, key: _Seen, value: _Seen) -> None:
        super().__init__()
        self._seen = key, value

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for seen, states in zip(self._seen, (key_states, value_states), strict=True):
            seen.update(states)
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states)
        return found


def _observed(model: Any, seen: list[tuple[_Seen, _Seen]], batches: Sequence[Any]) -> list[tuple[_Seen, _Seen]]:
    for batch in batches:
        cache = KeyValueCache([_Observing(*pair) for pair in seen])
        Call((batch,), {"past_key_values": cache, "use_cache": True}).run(model)
    return seen


def _plain_layers(model: Any) -> int:
    """Return how many layers keep keys and values, each all of them."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise NotYetError(f"this version caches full attention only; the model has {', '.join(sorted(kinds))}")
    return int(config.num_hidden_layers)


def _is_group(scheme: Scheme) -> bool:
    return isinstance(scheme.granularity, PerGroup)


def _by_token(scheme: Scheme) -> Scheme:
    """Return the scheme under which what was stored is read: a scale for each row of bytes."""
    return scheme if _is_group(scheme) else replace(scheme, granularity=PerToken(), static=False)


def _stored(states: Tensor, rounding: Activation) -> Tensor:
    """Return the bytes of each row: codes, and where ranges are not fixed, scale and zero point."""
    scheme = rounding.scheme
    if rounding.scale is not None:
        zero = None if rounding.zero_point is None else _beside_heads(rounding.zero_point)
        scale = _beside_heads(rounding.scale)
        codes: Tensor = scheme.grid.codes(states.to(torch.float32), scale, zero)
        packed: Tensor = pack(scheme.format.to_unsigned(codes), scheme.format.bits)
        return packed
    tensors = to_canonical(quantize(states, scheme))
    rows = [tensors["codes"], *(tensors[name] for name in ("scale", "zero_point") if name in tensors)]
    # One scale of an append is written beside every row: rows may be cropped and reordered.
    return torch.cat([part.expand(*states.shape[:-1], -1).contiguous().view(torch.uint8) for part in rows], dim=-1)


def _values(stored: Tensor, rounding: Activation, width: int) -> Tensor:
    """Return the float32 values of rows of bytes."""
    scheme = _by_token(rounding.scheme)
    shape = (*stored.shape[:-1], width)
    end = -(-width * scheme.format.bits // 8)
    values: Tensor
    if rounding.scale is not None:
        codes = scheme.format.from_unsigned(unpack(stored, scheme.format.bits, width))
        values = scheme.format.decode(codes)
        if rounding.zero_point is not None:
            values = values - _beside_heads(rounding.zero_point)
        values = values * _beside_heads(rounding.scale)
        return values
    cut = end + 4 * scale_shape(shape, scheme)[-1]
    tensors = {"codes": stored[..., :end], "scale": stored[..., end:cut].contiguous().view(torch.float32)}
    if not scheme.symmetric:
        tensors["zero_point"] = stored[..., cut:].contiguous().view(torch.int8 if _signed(scheme) else torch.uint8)
    values = from_canonical(tensors, scheme, shape).dequantize()
    return values


def _signed(scheme: Scheme) -> bool:
    return scheme.grid.integer.signed


def _beside_heads(number: Tensor) -> Tensor:
    return number.reshape(1, -1, 1, 1) if number.ndim else number
