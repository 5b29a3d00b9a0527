"""Whether the forward of a convolution's subclass does no more than to put zeros around its input, and how many.

So TensorFlow's "same" padding is written for torch. It is watched on tensors without numbers, on which nothing can
depend: what was seen holds for every input of the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fewbit.frontends.torch.convolution_call import ARGUMENTS, FUNCTIONS, each

#: Zeros before and behind each spatial axis.
Padding = tuple[tuple[int, int], ...]
#: Stride, dilation and groups.
Steps = tuple[tuple[int, ...], tuple[int, ...], int]
#: Arguments of `pad`.
_PAD = ("input", "pad", "mode", "value")


def own_padding(
    forward: Callable[[Tensor], Any], inputs: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps
) -> Padding | None:
    """Return the zeros that `forward` puts around its input before it convolves, all tensors being on the device meta.

    `None` where it does anything else, or convolves by other steps.
    """
    watch = _Watch(inputs, weight, bias)
    try:
        with watch:
            output = forward(inputs)
    except Exception:  # it wants numbers, or whatever else is not there
        return None
    simple = watch.result is not None and output is watch.result and not watch.strange
    return watch.padding if simple and watch.steps == steps else None


class _Watch(TorchFunctionMode):
    """Sees every function of torch that is called on the input, the weight and the bias."""

    def __init__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.axes = weight.ndim - 2
        #: The input with zeros around it, as often as that was made.
        self.padded: list[tuple[Tensor, Padding]] = [(inputs, ((0, 0),) * self.axes)]
        #: What the convolution returned, by what steps, and the zeros that it added up.
        self.result: Tensor | None = None
        self.steps: Steps | None = None
        self.padding: Padding | None = None
        #: Whether something else was done.
        self.strange = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in FUNCTIONS and self.result is None:
            self._convolved(result, dict(zip(ARGUMENTS, args, strict=False)) | kwargs)
        elif func is functional.pad and self._zeros(args[0] if args else kwargs["input"]) is not None:
            self._pad(result, dict(zip(_PAD, args, strict=False)) | kwargs)
        elif result is None or any(isinstance(part, Tensor) for part in pytree.tree_leaves(result)):
            # Something is made of a tensor, or done to it in place.
            known = [self.weight, self.bias, self.result, *(tensor for tensor, _ in self.padded)]
            parts = pytree.tree_leaves((args, kwargs))
            self.strange |= any(part is tensor for part in parts if part is not None for tensor in known)
        return result

    def _zeros(self, tensor: Tensor) -> Padding | None:
        return next((own for known, own in self.padded if known is tensor), None)

    def _pad(self, result: Tensor, call: Mapping[str, Any]) -> None:
        pad, mode, value = call["pad"], call.get("mode", "constant"), call.get("value")
        before, sides = self._zeros(call["input"]), [*pad, *[0] * (2 * self.axes - len(pad))]
        assert before is not None  # the caller has looked
        self.strange |= mode != "constant" or bool(value) or len(sides) > 2 * self.axes or min(sides) < 0
        pairs = reversed([(sides[at], sides[at + 1]) for at in range(0, 2 * self.axes, 2)])  # from the last axis on
        self.padded.append((result, _sum(before, tuple(pairs))))

    def _convolved(self, result: Tensor, call: Mapping[str, Any]) -> None:
        before, padding = self._zeros(call["input"]), call.get("padding", 0)
        known = call["weight"] is self.weight and call.get("bias") is self.bias
        if before is None or not known or isinstance(padding, str):
            self.strange = True
            return
        self.result = result
        stride, dilation = (each(call.get(name, 1), self.axes) for name in ("stride", "dilation"))
        self.steps = stride, dilation, call.get("groups", 1)
        self.padding = _sum(before, tuple((size, size) for size in each(padding, self.axes)))


def _sum(one: Padding, other: Padding) -> Padding:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(one, other, strict=True))
