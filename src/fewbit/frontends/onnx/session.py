"""onnxruntime behind one door: a model made ready, run on the CPU, its errors in fewbit's words.

Numbers are handed over beside the model, in the memory where they are: no copy of them is serialized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fewbit.errors import CalibrationError, MissingExtraError, SourceError

Numbers = np.ndarray[Any, Any]
#: Bytes up to which a constant stays in the model, where shapes are inferred from it.
_SMALL = 1 << 10
#: What its messages begin with.
_CODES = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
#: A place in its source and the condition that did not hold, before what it has to say.
_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ .*? was false\. ?")
#: What it says of operators that came after it.
_NEWER = re.compile(r"support for domain (\S+) is till opset (\d+)")
#: They would multiply scales into weights: other roundings than those that are simulated.
_LEFT_OUT = ("ConvMulFusion", "MatMulScaleFusion", "DivMulFusion")


class Session:
    """A model that is ready to run."""

    def __init__(self, session: Any, name: str, held: object = None) -> None:
        """Take a session of onnxruntime; `name` is the model in messages, `held` what the session reads in place."""
        self._session, self._name, self._held = session, name, held
        self._outputs = [output.name for output in session.get_outputs()]

    @classmethod
    def of(
        cls, proto: onnx.ModelProto, numbers: Mapping[str, Numbers], name: str, *, as_it_is: bool = False
    ) -> Session:
        """Return `proto` ready to run, whose initializers are `numbers` beside its own.

        With `as_it_is` no node is fused and one thread runs it, which is sooner ready.

        Raises:
            SourceError: onnxruntime cannot run it.

        """
        options = _options()
        if as_it_is:
            options.graph_optimization_level = _onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = 1
        # Threads that wait by spinning take the cores from those that work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        apart = {key: own for key, own in numbers.items() if own.nbytes > _SMALL}
        held = {key: np.ascontiguousarray(own) for key, own in apart.items()}
        for key, own in numbers.items():
            proto.graph.initializer.append(_declared(key, own) if key in apart else _inside(key, own))
        values = [_onnxruntime().OrtValue.ortvalue_from_numpy(own) for own in held.values()]
        if values:
            options.add_external_initializers(list(held), values)
        session = _made(proto.SerializeToString(), name, options, disabled_optimizers=list(_LEFT_OUT))
        return cls(session, name, (held, values))

    @classmethod
    def of_file(cls, path: Path) -> Session:
        """Return the model in a file ready to run as its users run it, with all optimizations of onnxruntime.

        Raises:
            SourceError: onnxruntime cannot run it.

        """
        options = _options()
        # Between its runs it leaves the cores to the model that it takes turns with.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return cls(_made(str(path), str(path), options), str(path))

    def run(self, feeds: Mapping[str, Numbers], outputs: Sequence[str] | None = None) -> dict[str, Numbers]:
        """Return `outputs`, all of them if left out, by name.

        Raises:
            CalibrationError: onnxruntime fails on this data.

        """
        names = self._outputs if outputs is None else list(outputs)
        try:
            found = self._session.run(names, dict(feeds))
        except Exception as error:
            raise CalibrationError(f"onnxruntime fails to run {self._name} on this batch: {_told(error)}") from error
        return dict(zip(names, found, strict=True))


def _options() -> Any:
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = 4  # what is amiss is raised
    return options


def _made(model: str | bytes, name: str, options: Any, **further: Any) -> Any:
    try:
        return _onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"], **further)
    except Exception as error:  # its classes have no base of their own
        raise SourceError(f"onnxruntime cannot run {name}: {_told(error)}") from error


@cache
def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"ONNX models run in {error.name}; pip install 'fewbit[onnx]'") from error
    return onnxruntime


def _declared(name: str, numbers: Numbers) -> onnx.TensorProto:
    """Return an initializer whose numbers are handed over beside the model."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype)
    proto = onnx.TensorProto(name=name, data_type=kind, dims=numbers.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    where = proto.external_data.add()
    where.key, where.value = "location", "in-memory"
    return proto


def _inside(name: str, numbers: Numbers) -> onnx.TensorProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype)
    raw = np.ascontiguousarray(numbers).tobytes()
    return onnx.TensorProto(name=name, data_type=kind, dims=numbers.shape, raw_data=raw)


def _told(error: Exception) -> str:
    """Return what an error of onnxruntime says, without its codes and the places in its source."""
    text = " ".join(_CODES.sub("", str(error)).split())
    if newer := _NEWER.search(text):
        return (
            f"it is of an opset of {newer[1]} that onnxruntime {_onnxruntime().__version__} lacks, which ends with "
            f"{newer[2]}; update onnxruntime, or lower it with onnx.version_converter.convert_version"
        )
    return _PLACE.sub("", text) or type(error).__name__
