"""Who quantizes ONNX files, each by a way of its own: from a model and batches to a file for onnxruntime on a CPU.

`write` returns the seconds where they cannot be taken around it. onnxruntime's models are prepared as its documentation
asks (`quant_pre_process`), which is part of its time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import quantization
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

import fewbit as fb
from fewbit.errors import FewbitWarning

Batch = dict[str, np.ndarray]
BYTES = quantization.QuantType.QUInt8
NNCF = Path(__file__).resolve().parent / "peers/nncf/bin/python"
METHODS = quantization.CalibrationMethod


class Reader(quantization.CalibrationDataReader):
    """Batches as onnxruntime asks for them."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


@dataclass(frozen=True)
class Fewbit:
    """fewbit with a preset, or with one form of static inputs."""

    label: str
    recipe: str | fb.Recipe

    tool = "fewbit"

    def write(self, model: Path, batches: Sequence[Batch], out: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewbitWarning)  # a layer left float is counted in the table
            result = fb.quantize(model, self.recipe, to="ort-cpu", calibration=batches)
            result.save(out)


@dataclass(frozen=True)
class OnnxruntimeStatic:
    """`quantize_static`."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    #: Whether the graph is optimized first, what folds BatchNorm.
    prepared: bool = True

    tool = "onnxruntime"

    def write(self, model: Path, batches: Sequence[Batch], out: Path) -> None:
        if self.prepared:
            model = _prepared(model, out)
        quantization.quantize_static(model, out, Reader(batches), **self.options)


@dataclass(frozen=True)
class OnnxruntimeDynamic:
    """`quantize_dynamic`."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)

    tool = "onnxruntime"

    def write(self, model: Path, _: Sequence[Batch], out: Path) -> None:
        quantization.quantize_dynamic(_prepared(model, out), out, **self.options)


@dataclass(frozen=True)
class OnnxruntimeWeights:
    """`MatMulNBitsQuantizer`: rounds to nearest, without data."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)

    tool = "onnxruntime"

    def write(self, model: Path, _: Sequence[Batch], out: Path) -> None:
        quantizer = MatMulNBitsQuantizer(str(model), **self.options)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))


@dataclass(frozen=True)
class Nncf:
    """`nncf.quantize` in its own environment, which benchmarks/peers/make.sh makes."""

    label: str
    options: tuple[str, ...] = ()

    tool = "NNCF"

    @property
    def installed(self) -> bool:
        """Whether its environment has been made."""
        return NNCF.exists()

    def write(self, model: Path, batches: Sequence[Batch], out: Path) -> float:
        """Write the file; return the seconds without those of loading the library."""
        data = out.with_suffix(".npz")
        np.savez(data, **{f"{at}/{name}": own for at, batch in enumerate(batches) for name, own in batch.items()})
        command = [NNCF, NNCF.parents[2] / "nncf_static.py", "--model", model, "--data", data, "--out", out]
        ran = subprocess.run([*map(str, command), *self.options], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"NNCF on {model.name}: exit code {ran.returncode}\n{ran.stderr[-2000:]}")
        return float(json.loads(ran.stdout.splitlines()[-1])["seconds"])


def _prepared(model: Path, out: Path) -> Path:
    model, path = model.resolve(), out.resolve().with_suffix(".prepared.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # it recommends what has just been done
    with contextlib.chdir(out.parent):  # where its shape inference fails it leaves files in the current folder
        try:
            quant_pre_process(model, path)
        except Exception as error:  # it raises this class itself: it does not know the shapes of all exported graphs
            print(f"onnxruntime prepares {model.name} without symbolic shapes: {error}", file=sys.stderr)
            quant_pre_process(model, path, skip_symbolic_shape=True)
    return path


Quantizer = Fewbit | OnnxruntimeStatic | OnnxruntimeDynamic | OnnxruntimeWeights | Nncf
USUAL = {"per_channel": True, "activation_type": BYTES}
STATIC: list[Quantizer] = [
    Fewbit("w8a8-static", "w8a8-static"),
    OnnxruntimeStatic("static, defaults"),
    OnnxruntimeStatic("static, uint8 inputs, per channel", USUAL),
    Nncf("static, defaults"),
]
BYTES_ALL = [fb.Rule(kind="embedding", weight="int8 channel", optional=True),
             fb.Rule(kind="linear", weight="int8 channel", input="int8 tensor asym")]  # fmt: skip
DYNAMIC: list[Quantizer] = [
    Fewbit("w8a8", "w8a8"),
    Fewbit("w8a8, embeddings int8 too", fb.Recipe(BYTES_ALL)),
    OnnxruntimeDynamic("dynamic, defaults"),
    OnnxruntimeDynamic("dynamic, per channel", {"per_channel": True}),
]
WEIGHTS: list[Quantizer] = [
    Fewbit("w4a16", "w4a16"),
    Fewbit("int4 g64, nearest", fb.Recipe([fb.Rule(kind="linear", weight="int4 g64")])),
    OnnxruntimeWeights("int4 g64, symmetric", {"block_size": 64, "is_symmetric": True, "accuracy_level": 1}),
]
TOOLS = {"static": STATIC, "dynamic": DYNAMIC, "weights": WEIGHTS}


def ranges(method: str) -> fb.Recipe:
    """Return w8a8-static with another method for ranges."""
    given = f"int8 tensor asym static {method}".strip()
    return fb.Recipe([fb.Rule(kind=kind, weight="int8 channel", input=given) for kind in ("conv", "linear")])


#: By the method that ranges are found with, for the figures of memory.
CALIBRATIONS: dict[str, Callable[[], Quantizer]] = {
    "fewbit minmax": lambda: Fewbit("minmax", ranges("")),
    "fewbit entropy": lambda: Fewbit("entropy", ranges("entropy")),
    "fewbit percentile": lambda: Fewbit("percentile", ranges("percentile")),
    "onnxruntime minmax": lambda: OnnxruntimeStatic("minmax", {"calibrate_method": METHODS.MinMax}),
    "onnxruntime entropy": lambda: OnnxruntimeStatic("entropy", {"calibrate_method": METHODS.Entropy}),
    "onnxruntime percentile": lambda: OnnxruntimeStatic("percentile", {"calibrate_method": METHODS.Percentile}),
}
