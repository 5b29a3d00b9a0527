"""torch's ONNX exporter behind one door: in silence, its errors in fewbit's words, every constant as it was.

Its optimizer would fold norms and factors into weights and merge equal ones, so it stays off; `exported.py` tidies up.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.calls import Call, configured_without_cache, mapped, tensors_in
from fewbit.frontends.torch.exported import fixed_sizes, name_axes, name_outputs, output_names, tidy

#: What torch's exporter implements its operators in; it would convert to any other one afterwards.
_OPSET = 18
#: Roots of the names of loggers that report on an export.
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


def export(module: nn.Module, call: Call) -> ir.Model:
    """Return the graph of a float `module` for calls like `call`, with its parameters under their names.

    The first axis of each input, and every other one but those of a picture, has any size that the module allows.

    Raises:
        CheckpointError: the module does not run, or torch cannot export it.

    """
    name = type(module).__name__
    with configured_without_cache(module), _quiet(), _unfused(), torch.no_grad():
        example, output = _example(module, Call(mapped(call.args, Tensor.cpu), mapped(dict(call.kwargs), Tensor.cpu)))
        try:
            program: Any = torch.onnx.export(
                module,
                example.args,
                kwargs=dict(example.kwargs),
                dynamic_shapes=_axes(dict(example.kwargs) or example.args),
                opset_version=_OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise CheckpointError(
                f"torch cannot export {name} to ONNX: {_reason(error)}; change what it names, or export the float "
                "model yourself and quantize the .onnx file"
            ) from error
        graph: ir.Model = program.model
        name_axes(graph, fixed_sizes(program.exported_program))
        name_outputs(graph.graph, output_names(output))
        tidy(graph, {name for name, _ in module.named_parameters(remove_duplicate=False)})
    return graph


def _example(module: nn.Module, call: Call) -> tuple[Call, Any]:
    """Return the call to trace, and its output: of a single sample two of it, if the module takes them.

    torch would trace a size of 1 as a number that stays, whatever it is told.
    """
    if any(tensor.ndim and len(tensor) == 1 for tensor in tensors_in((call.args, call.kwargs))):
        twice = Call(mapped(call.args, _doubled), mapped(dict(call.kwargs), _doubled))
        with suppress(Exception):  # whatever the forward of someone else's module raises
            return twice, twice.copy().run(module)
    try:
        return call, call.copy().run(module)
    except Exception as error:
        name = type(module).__name__
        raise CheckpointError(f"{name} does not run on the example batch: {_reason(error)}") from error


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing through that is printed, logged or warned of."""
    loggers = [
        own
        for name, own in logging.root.manager.loggerDict.items()
        if isinstance(own, logging.Logger) and name.partition(".")[0] in _LOGGERS
    ]
    levels = [own.level for own in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for own in loggers:
                own.setLevel(logging.CRITICAL)
            yield
        finally:
            for own, level in zip(loggers, levels, strict=True):
                own.setLevel(level)


@contextmanager
def _unfused() -> Iterator[None]:
    """Let torch's encoder layers call the layers inside of them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _reason(error: BaseException) -> str:
    """Return the first line of what an error comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)


def _axes(value: Any) -> Any:
    """Return which axes of the tensors in `value` may have any size, as `torch.export` wants it.

    Where the module allows one size only, that of the example counts. So it does behind the first axis of a picture:
    what a runtime plans by it is worth more than other sizes.
    """
    if isinstance(value, Tensor):
        free = range(1) if value.is_floating_point() and value.ndim > 3 else range(value.ndim)
        return {axis: torch.export.Dim.AUTO for axis in free if value.shape[axis] != 1}
    if isinstance(value, Mapping):
        return {name: _axes(part) for name, part in value.items()}
    return type(value)(_axes(part) for part in value) if isinstance(value, (tuple, list)) else None
