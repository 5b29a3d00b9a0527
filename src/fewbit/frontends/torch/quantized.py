"""Quantized torch layers: they hold what their kernel packed, and their state_dict is canonical.

Beside `bias`, or `bias_codes` in int32, that is what `canonical.py` makes of the weight, each name after `weight_`, and
`weight_scheme`, the notation as UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fewbit.activation import Activation
from fewbit.float_bias import FloatBias
from fewbit.frontends.torch.canonical import from_canonical, to_canonical
from fewbit.frontends.torch.rounding import Rounding
from fewbit.integer_bias import IntegerBias, bias_scale
from fewbit.interfaces import Activations
from fewbit.kernels import Kernel, Request, opaque, select
from fewbit.kernels.dequantize import Deferred, Dequantize, wants_gradient
from fewbit.kernels.packed import dense, loose, packed, unpacked
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme


class QuantizedLayer(nn.Module):
    """A layer whose weight is a QTensor; base of the concrete layers below."""

    #: What the names of the canonical tensors begin with.
    PREFIX: ClassVar[str] = "weight_"
    #: The same, and those of the numbers of static roundings and of int32 biases.
    PREFIXES: ClassVar[tuple[str, ...]] = (PREFIX, "input.", "output.", "bias_codes")

    def __init__(self, qtensor: QTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.scheme: Scheme = qtensor.scheme
        self.shape = qtensor.shape
        #: Type of the float weight that was replaced; `weight` has it, and so do an embedding's rows.
        self.dtype = dtype
        #: What calls run from, by the type of the inputs and how they are read: made at the first call, never copied.
        self._ready: dict[tuple[torch.dtype, Window | None], tuple[Kernel, Any, Tensor | None]] = {}
        self._held: Tensor | None = None
        #: Whether codes are held as dense bits, and unpacked again at each call in training.
        self.sparing = False
        self._pack(qtensor)
        #: What rounds the input and the output of the layer.
        self.input: Rounding | None = None
        self.output: Rounding | None = None

    def round_activations(self, activations: Activations) -> None:
        """Round input and output from now on."""
        self.input, self.output = self._rounding(activations.input), self._rounding(activations.output)
        self._ready = {}

    def replace_bias(self, bias: FloatBias) -> None:
        """Add `bias` from now on, in the type of the one that was there."""
        own = self._parameters["bias"]
        assert own is not None  # the plan says so
        self._parameters["bias"] = nn.Parameter(bias.values.to(own.dtype), requires_grad=own.requires_grad)

    def round_bias(self, bias: IntegerBias) -> None:
        """Add `bias` from now on, which counts in the scales of this layer's input and weight."""
        self._parameters.pop("bias")
        self.register_buffer("bias_codes", bias.codes)
        self._ready = {}

    @property
    def integer_bias(self) -> IntegerBias | None:
        """The bias in int32; `None`: it is float, or there is none."""
        codes = self._buffers.get("bias_codes")
        if codes is None:
            return None
        assert self.input is not None  # the plan says so
        return IntegerBias(codes=codes, scale=bias_scale(self.input.activation.scale, self.qtensor))

    @property
    def bias(self) -> Tensor | None:
        """The bias as a parameter; dequantized, and made anew at each access, if it is in int32."""
        found = self.integer_bias
        return self._parameters.get("bias") if found is None else found.dequantize().to(self.dtype)

    def _rounding(self, activation: Activation | None) -> Rounding | None:
        return None if activation is None else Rounding(activation.like(self._probe()), spatial=self.spatial)

    def forward(self, input: Tensor, *further: Any, **named: Any) -> Tensor:  # noqa: A002  # as torch's own layers
        """Return the output for `input`, both rounded where that is asked for."""
        output = self.compute(input if self.input is None else self.input(input), *further, **named)
        return output if self.output is None else self.output(output)

    def fix_output(self, activation: Activation) -> None:
        """Round the output so from now on."""
        self.output = self._rounding(activation)

    def compute(self, inputs: Tensor) -> Tensor:
        """Return the output for inputs that are rounded already."""
        raise NotImplementedError

    @property
    def spatial(self) -> int:
        """How many axes follow that of the channels."""
        return 0

    def request(self, dtype: torch.dtype, window: Window | None = None) -> Request:
        """Return what a kernel is asked for."""
        return Request(
            weight=self.scheme,
            input=self.input.scheme if self.input is not None else None,
            device=self._probe().device.type,
            dtype=str(dtype).removeprefix("torch."),
            shape=(self.shape[0], self.shape[1]),
            window=window,
        )

    def kernel(self, dtype: torch.dtype, window: Window | None = None) -> tuple[Kernel, Any, Tensor | None]:
        """Return the kernel, the weight as it wants it, and a bias in int32 dequantized."""
        if (dtype, window) not in self._ready:
            kernel = select(self.request(dtype, window))
            rounded = None if self.integer_bias is None else self.bias
            self._ready[dtype, window] = kernel, kernel.prepare(self.qtensor, window), rounded
        return self._ready[dtype, window]

    def _probe(self) -> Tensor:
        """Return a tensor on the device of this layer."""
        tensor: Tensor = getattr(self, f"packed_{self._packed_names[0]}")
        return tensor

    @property
    def device(self) -> torch.device:
        """Where its codes are."""
        return self._probe().device

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight (out, in)."""
        tensors = self._packed()
        if self.sparing:
            tensors["codes"] = loose(tensors["codes"], self.scheme, self.shape[1])
        return unpacked(tensors, self.scheme)

    def spare(self, *, sparing: bool) -> None:
        """Hold as little as can be from now on, at the price of unpacking codes at each call in training; or do not."""
        qtensor = self.qtensor
        self.sparing = sparing
        self._pack(qtensor)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, for code that reads `layer.weight`; made anew at each access."""
        return self.arranged(self.qtensor.dequantize().to(self.dtype))

    def canonical(self) -> dict[str, Tensor]:
        """Return the tensors that stand for this layer's weight in a state_dict."""
        text = str(self.scheme).encode()
        scheme = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return {f"weight_{name}": tensor for name, tensor in to_canonical(self.qtensor).items()} | {
            "weight_scheme": scheme
        }

    def hold(self, trial: Tensor | None = None) -> None:
        """Keep the dequantized weight, or a `trial` one (out, in), until `release`, for many calls in a row."""
        self._held = self.weight if trial is None else self.arranged(trial).to(self.dtype)

    def arranged(self, weight: Tensor) -> Tensor:
        """Return a weight (out, in) in the shape of the float module's."""
        return weight

    def release(self) -> None:
        """Dequantize at every call again."""
        self._held = None

    def extra_repr(self) -> str:
        """Return shape and notation, for `print(model)`."""
        bias = ", bias=int32" if "bias_codes" in self._buffers else ""
        return f"{self.shape[1]} -> {self.shape[0]}, weight={self.scheme}{bias}"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `half()` and its kin convert no integer buffer, so a probe tells the type that floats have from now on.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self._ready = {}
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": {}}

    def _packed(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"packed_{name}") for name in self._packed_names}

    def _pack(self, qtensor: QTensor) -> None:
        tensors = packed(qtensor)
        if self.sparing:
            tensors["codes"] = dense(qtensor.codes, self.scheme)
        self._ready = {}
        self._packed_names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(f"packed_{name}", tensor, persistent=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.canonical().items():
            destination[prefix + name] = tensor

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
        own = prefix + self.PREFIX
        found = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(own)}
        others = {key: value for key, value in state_dict.items() if not key.startswith(own)}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        expected = self.canonical()
        missing = [prefix + name for name in expected if name not in found]
        missing_keys += missing
        unexpected_keys += [prefix + name for name in found if name not in expected]
        if missing:
            return
        if not torch.equal(found["weight_scheme"].cpu(), expected["weight_scheme"]):
            stored = bytes(found["weight_scheme"].cpu().tolist()).decode(errors="replace")
            error_msgs.append(f"{prefix}weight is stored as {stored!r}, the layer has {str(self.scheme)!r}")
            return
        for name in expected:
            if name != "weight_scheme" and found[name].shape != expected[name].shape:
                error_msgs.append(
                    f"{prefix}{name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}"
                )
                return
        device = self._probe().device
        tensors = {name.removeprefix(self.PREFIX): tensor.to(device) for name, tensor in found.items()}
        self._pack(from_canonical(tensors, self.scheme, self.shape))


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear`, and transformers' `Conv1D`, with a quantized weight."""

    def __init__(self, qtensor: QTensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(qtensor, dtype)
        self._parameters["bias"] = bias  # `register_parameter` refuses the name of a property
        self.out_features, self.in_features = qtensor.shape
        self._number = opaque.numbered(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch's own layers
        """Return the output for `input (..., in)` as (..., out), both rounded where that is asked for."""
        # A trial weight is multiplied by whatever comes, also under autocast.
        if self._held is not None and (self._held.dtype == input.dtype or self._held.requires_grad):
            return super().forward(input)
        output = opaque.linear(input, self._number, self.out_features) if self._hidden(input) else self.product(input)
        return output if self.output is None else self.output(output)

    def product(self, inputs: Tensor) -> Tensor:
        """Return what the kernel makes of inputs, which it rounds."""
        activation = self.input.activation if self.input is not None else None
        if self.sparing and self.training:
            return Dequantize().apply(inputs, Deferred(lambda: self.qtensor), self.bias, activation)
        kernel, prepared, rounded = self.kernel(inputs.dtype)
        return kernel.apply(inputs, prepared, self.bias if rounded is None else rounded, activation)

    def _hidden(self, inputs: Tensor) -> bool:
        """Whether a compiler looks on that cannot see through the kernel, or none was selected yet."""
        if (
            not torch.compiler.is_compiling()
            or self.input is None
            or (self.sparing and self.training)
            or wants_gradient(inputs, self._parameters.get("bias"))
        ):
            return False
        ready = self._ready.get((inputs.dtype, None))
        return ready is None or ready[0].name in opaque.UNTRACED

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = opaque.numbered(self)

    def compute(self, inputs: Tensor) -> Tensor:
        """Return `inputs @ weight.T + bias` by the weight that is held."""
        assert self._held is not None
        return nn.functional.linear(inputs, self._held, self.bias)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield the quantized layers of `model` under every name that they have."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLayer):
            yield name, module


def quantized_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of tensors that stand for quantized layers begin with in a state_dict."""
    return tuple(f"{name}.{part}" for name, layer in quantized_layers(model) for part in layer.PREFIXES)
