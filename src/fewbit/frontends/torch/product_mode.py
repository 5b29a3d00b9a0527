"""Watch what torch computes while a module runs, and hand the products of its attention to whoever asks for them.

Marks follow the data. What parameters and buffers alone went into is a weight, until a layer has applied one to
something; what scores went into stands for probabilities. No table of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import FunctionType
from typing import Any, Self
from weakref import ReferenceType, ref

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fewbit.frontends.torch.attention_product import AttentionProduct, Role, probabilities_value, query_key
from fewbit.frontends.torch.calls import Call, tensors_in
from fewbit.frontends.torch.matrix_product import MatrixProduct, matrix_product
from fewbit.frontends.torch.scaled_dot_product import ScaledDotProduct

#: What computes the products of each role in float32; torch computes those of any other.
Takes = Mapping[Role, Callable[[AttentionProduct], Tensor]]

#: Functions that apply a weight. What comes of them is an activation also where all that went in are parameters: the
#: queries that a model has learned.
_LAYERS = frozenset({"linear", "embedding", "conv1d", "conv2d", "conv3d"})


class ProductMode(TorchFunctionMode):
    """The mode for one call of `module`; products of a module inside that has a mode of its own are left to that."""

    def __init__(self, module: nn.Module, takes: Takes) -> None:
        super().__init__()
        self._takes = takes
        self._buffers = {id(buffer) for buffer in module.buffers()}
        self._weights, self._scores = _Marks(), _Marks()
        self._entered: list[Token[ProductMode | None]] = []

    def __enter__(self) -> Self:
        self._entered.append(_INNERMOST.set(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _INNERMOST.reset(self._entered.pop())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what `func` returns, its products computed by those who take them."""
        call = Call(args, kwargs or {})
        if func is functional.multi_head_attention_forward:
            with self:  # for what the function calls in its turn
                return _undispatched(func)(*call.args, **call.kwargs)
        if _INNERMOST.get() is self:
            product = matrix_product(func, call)
            if product and not (self._is_weight(product.left.tensor) or self._is_weight(product.right.tensor)):
                return self._multiplied(product, func, call)
            if func is functional.scaled_dot_product_attention and self._takes:
                return ScaledDotProduct(*call.args, **call.kwargs).computed(self._taken)
        outcome = func(*call.args, **call.kwargs)
        self._mark(func, call, outcome)
        return outcome

    def _multiplied(self, product: MatrixProduct, func: Any, call: Call) -> Tensor:
        left, right = (operand.tensor in self._scores for operand in (product.left, product.right))
        named = probabilities_value(product, probabilities_left=left) if left or right else query_key(product)
        if named.role not in self._takes:
            outcome: Tensor = func(*call.args, **call.kwargs)
        else:
            outcome = self._takes[named.role](named).to(product.left.tensor.dtype)
            outcome = outcome if product.into is None else product.into.copy_(outcome)
        self._note(outcome, scores=named.role == "query_key", weight=False)
        return outcome

    def _taken(self, product: AttentionProduct) -> Tensor:
        return self._takes.get(product.role, AttentionProduct.plain)(product)

    def _is_weight(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor) in self._buffers or tensor in self._weights

    def _mark(self, func: Any, call: Call, outcome: Any) -> None:
        name = getattr(func, "__name__", "")
        found = list(tensors_in(call.args[0] if name == "__setitem__" else outcome))
        if not found:
            return
        given = [tensor for value in call.arguments().values() for tensor in tensors_in(value)]
        scores = any(tensor in self._scores for tensor in given)
        weight = name not in _LAYERS and all(self._is_weight(tensor) for tensor in given)
        for tensor in found:
            self._note(tensor, scores=scores, weight=weight)

    def _note(self, tensor: Tensor, *, scores: bool, weight: bool) -> None:
        """Note what a tensor is from now on; it may have been something else before it was written into."""
        self._scores.note(tensor, known=scores)
        self._weights.note(tensor, known=weight)


#: The mode of the innermost module that runs under one.
_INNERMOST: ContextVar[ProductMode | None] = ContextVar("_INNERMOST", default=None)


def mark_weight(tensor: Tensor) -> None:
    """Say that `tensor` is a weight, although other things than weights went into it: a table of levels."""
    mode = _INNERMOST.get()
    if mode is not None:
        mode._note(tensor, scores=False, weight=True)


class _Marks:
    """Tensors that are known, none of them kept alive."""

    def __init__(self) -> None:
        self._known: dict[int, ReferenceType[Tensor]] = {}

    def note(self, tensor: Tensor, *, known: bool) -> None:
        if known:
            self._known[id(tensor)] = ref(tensor)
        else:
            self._known.pop(id(tensor), None)

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known() is tensor


def _undispatched(function: Any) -> FunctionType:
    """Return a function of torch without its first question, whether a mode wants it as a whole."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
