"""Integer convolutions on x86 processors by torch's oneDNN: inputs of 8 bits, weights of 7, with VNNI of 8.

conv(x, w) = s t (conv(c, v) - z sum(v)) for x = s (c - z), w = t v; c is padded with z, which stands for 0.
The operator takes any scale and zero point, but would work out the last term at every border anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.kernels import Request, integer_products
from fewbit.kernels.lines import Lines
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerChannel
from fewbit.schemes.scheme import Scheme

#: Packed forms of a weight that are kept; each shape of inputs may have its own.
_SHAPES = 4
_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONVOLVE: dict[int, Any] = {2: functional.conv2d, 3: functional.conv3d}
_PURPOSE = Purpose(
    device="cpu",
    dtypes=("float32",),
    rounds=True,
    convolves=True,
    products=(128, 48),
    needs="x86; weights of 8 bits need VNNI, of 7 bits do not",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A weight for oneDNN."""

    #: How many spatial axes the inputs have.
    axes: int
    #: With two of them at least.
    window: Window
    #: int8 (out, in / groups, *kernel).
    codes: Tensor
    #: float32 (out,), and the sums of the dequantized weight.
    scale: Tensor
    sums: Tensor
    #: Zeros (out,): float32 for a bias that there is none of, and the zero points that the operator asks for.
    nothing: Tensor
    zeros: Tensor
    #: How oneDNN lays the codes out for inputs of a shape; in another layout it would move them at every call.
    packed: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def packed_for(self, shape: tuple[int, ...]) -> Tensor:
        """Return the codes packed for padded inputs of `shape`."""
        found = self.packed.get(shape)
        if found is None:
            if len(self.packed) >= _SHAPES:
                self.packed.pop(next(iter(self.packed)), None)  # another thread may have been faster
            own, zeros = self.window, [0] * len(self.window.kernel)
            found = self.packed[shape] = torch.ops.onednn.qconv_prepack(
                self.codes, self.scale, 1.0, 0, own.stride, zeros, own.dilation, own.groups, shape
            )
        return found


@dataclass(frozen=True, slots=True)
class Onednn:
    """Integer convolutions of rounded inputs."""

    name: str = "onednn"
    purpose: Purpose = _PURPOSE

    def missing(self) -> str | None:
        """Return what the machine at hand lacks for it."""
        known = "onednn" in torch.backends.quantized.supported_engines
        return None if known else "torch has no oneDNN on this processor"

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        assert request.window is not None  # of its purpose
        if request.window.transposed:
            return "its convolutions are not transposed"
        if request.window.padding is None:
            return "its convolutions pad with zeros, and not in a forward of their own"
        return integer_products.refusal(request, saturates)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:
        """Return what a convolution is made from; it is packed when the shape of the inputs is known."""
        assert window is not None  # of its purpose
        whole = window.with_two_axes()
        scale = torch.broadcast_to(qtensor.scale_values().reshape(-1), qtensor.shape[:1]).contiguous()
        codes = qtensor.codes.to(torch.int8)
        sums = codes.sum(dim=1, dtype=torch.float32) * scale
        apart = codes.reshape(len(codes), -1, *whole.kernel)
        zeros = torch.zeros_like(sums), torch.zeros(len(sums), dtype=torch.long)
        return Prepared(len(window.kernel), whole, apart, scale, sums, *zeros)

    def apply(self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None) -> Tensor:
        """Return the convolution of rounded `inputs` ([samples,] channels, *spatial), of which there are some.

        Sums are integers. The output has the memory format of the input, unless the window says otherwise.
        """
        assert activation is not None  # of its purpose
        samples = inputs.detach()
        samples = samples if samples.ndim == prepared.axes + 2 else samples[None]
        samples = samples.unsqueeze(2) if prepared.axes == 1 else samples
        layout = _LAST[samples.ndim - 2]
        last = not samples.is_contiguous() and samples.is_contiguous(memory_format=layout)
        last = last or prepared.window.channels_last
        samples = samples.contiguous(memory_format=layout) if last else samples.contiguous()
        outputs = _convolved(samples, prepared, bias, activation, last=last)
        outputs = outputs.squeeze(2) if prepared.axes == 1 else outputs
        return outputs if inputs.ndim == prepared.axes + 2 else outputs[0]


def _convolved(
    samples: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation, *, last: bool
) -> Tensor:
    codes, scale, zero, reached = _codes(samples, prepared.window, activation, last=last)
    added = prepared.nothing if bias is None else bias.detach()
    if last and len(scale) == 1:
        own = added - float(scale[0]) * float(zero[0]) * prepared.sums
        outputs = _product(codes, float(scale[0]), prepared, own)
    else:
        sums = _product(codes, 1.0, prepared, prepared.nothing)
        outputs = _outputs(sums, (scale, zero), (prepared.sums.numpy(), added.numpy()), last=last)
    return _with_nan(outputs, samples, prepared) if reached else outputs


def _codes(samples: Tensor, window: Window, activation: Activation, *, last: bool) -> tuple[Tensor, Any, Any, bool]:
    """Return padded uint8 codes with the channels last, scale and zero point, and whether a fixed range met a NaN."""
    from fewbit.kernels.input_range import scale_and_zero
    from fewbit.kernels.rows_compiled import CodeRange, shared_out
    from fewbit.kernels.windows_compiled import to_bytes

    assert window.padding is not None  # `refusal` says so
    lines = Lines.of(tuple(samples.shape), window.padding, last=last)
    values = (samples.movedim(1, -1) if last else samples).numpy().reshape(-1, lines.length)
    threads = torch.get_num_threads()
    scale, zero = scale_and_zero(samples, values, activation, threads)
    low, high, *_ = CodeRange.of(activation.scheme.grid.integer, symmetric=activation.scheme.symmetric).numbers
    codes = np.empty((len(lines.places), lines.before + lines.length + lines.behind), np.uint8)
    marked, limits = scale.copy(), np.asarray([low, high, lines.before], np.float32)
    shared_out(to_bytes, threads, [codes, lines.places], values, marked, zero, limits)
    padded = torch.from_numpy(codes.reshape(lines.shape))
    padded = padded.movedim(-1, 1) if last else padded.contiguous(memory_format=_LAST[samples.ndim - 2])
    return padded, scale, zero - low, activation.scale is not None and bool(np.isnan(marked[0]))


def _product(codes: Tensor, scale: float, prepared: Prepared, bias: Tensor) -> Tensor:
    """Return the float32 convolution of padded codes, with the channels last."""
    own, zeros = prepared.window, [0] * len(prepared.window.kernel)
    run: Any = getattr(torch.ops.onednn, f"qconv{len(own.kernel)}d_pointwise")
    weight = (prepared.packed_for(tuple(codes.shape)), prepared.scale, prepared.zeros, bias)
    shape = (own.stride, zeros, own.dilation, own.groups)
    outputs: Tensor = run(codes, scale, 0, *weight, *shape, 1.0, 0, torch.float32, "none", [], "")
    return outputs


def _outputs(sums: Tensor, ranges: tuple[Any, Any], channels: tuple[Any, Any], *, last: bool) -> Tensor:
    """Return `s (sums - z weight_sum) + bias`, the channels last or before the positions.

    `ranges` are scale and zero point, of all samples or of each; `channels` the sums of the weight and the bias.
    """
    from fewbit.kernels.rows_compiled import shared_out, to_outputs
    from fewbit.kernels.windows_compiled import blocks_of, to_planes

    threads, moved = torch.get_num_threads(), sums.movedim(1, -1)
    rows = moved.numpy().reshape(len(sums), -1, moved.shape[-1])
    positions = rows.shape[1]
    if last:
        parts = [rows.reshape(-1, rows.shape[2]), *(np.repeat(number, positions) for number in ranges)]
        shared_out(to_outputs, threads, parts, *channels)
        return torch.from_numpy(rows.reshape(moved.shape)).movedim(-1, 1)
    planes = np.empty((len(rows), rows.shape[2], positions), np.float32)
    rest, blocks = (rows, planes, np.stack(ranges), np.stack(channels)), blocks_of(len(rows), positions)
    shared_out(to_planes, threads, [blocks], *rest, size=rows.size)
    return torch.from_numpy(planes.reshape(sums.shape))


def _with_nan(outputs: Tensor, samples: Tensor, prepared: Prepared) -> Tensor:
    """Return `outputs` with NaN wherever the window reaches one of `samples`."""
    window = prepared.window
    assert window.padding is not None  # `refusal` says so
    sides = [side for both in reversed(window.padding) for side in both]
    reached = functional.pad(torch.isnan(samples).float(), sides)
    ones, rest = torch.ones_like(prepared.codes, dtype=torch.float32), (window.stride, 0, window.dilation)
    found = _CONVOLVE[len(window.kernel)](reached, ones, None, *rest, window.groups)
    return outputs.masked_fill(found > 0, torch.nan)


@cache
def saturates() -> bool:
    """Whether this processor, or what oneDNN is allowed to use of it, adds pairs of products in 16 bits: tried out."""
    window = Window(kernel=(1, 1), stride=(1, 1), dilation=(1, 1), padding=((0, 0), (0, 0)), groups=1)
    scheme = Scheme(format=Int(8), granularity=PerChannel())
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    prepared = Onednn().prepare(QTensor(codes=codes, scale=torch.ones(16, 1), zero_point=None, scheme=scheme), window)
    inputs = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    return bool((_product(inputs, 1.0, prepared, prepared.nothing) != 255.0 * 127.0 * 64.0).any())
