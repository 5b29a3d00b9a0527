"""What the scripts of the peers share: schemes in fewbit's spelling, the float model, and the JSON line printed last.

Run: not by itself; `llmcompressor_oneshot.py`, `hqq_data_free.py` and others import it, each in its own environment.
Source: benchmarks/peers; needs torch, transformers, safetensors and psutil, which every peer brings.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class Scheme:
    """Integers of `bits` bits, `group` neighbours in a row sharing a scale; 0: all of the row."""

    text: str
    bits: int
    group: int
    symmetric: bool

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Return the scheme that `text` spells."""
        found = re.fullmatch(r"int([1-8]) (?:g([1-9]\d*)|channel)( asym)?", text)
        if not found:
            raise argparse.ArgumentTypeError(
                f"scheme '{text}' is not like 'int4 g64', 'int4 g64 asym' or 'int4 channel'"
            )
        return cls(text, int(found[1]), int(found[2] or 0), symmetric=not found[3])


def arguments(description: str | None, *, tokens: bool) -> argparse.Namespace:
    """Return the command line: `model`, `scheme`, `out`, and `tokens` where the peer calibrates."""
    return parsed(parser(description, tokens=tokens))


def parser(description: str | None, *, tokens: bool) -> argparse.ArgumentParser:
    """Return what reads that command line, for a peer that has options of its own."""
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    if tokens:
        words.add_argument("--tokens", type=Path, required=True, help="int64 (sequences, length), a .npy file")
    words.add_argument("--scheme", type=Scheme.parse, required=True, help="'int4 g64', 'int3 g64 asym', ...")
    words.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    return words


def parsed(words: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command line, checked."""
    given = words.parse_args()
    if not (given.model / "config.json").is_file():
        fail(f"{given.model} has no config.json; name a Hugging Face folder")
    if not given.out.parent.is_dir():
        fail(f"{given.out.parent} is not a folder; make it first")
    return given


def fail(message: str) -> NoReturn:
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def load(folder: Path) -> Any:
    """Return the causal language model of `folder` in the dtype of its files."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()


def read_tokens(path: Path, vocabulary: int) -> np.ndarray:
    """Return the token ids of a file, (sequences, length)."""
    tokens = np.load(path)
    if tokens.ndim != 2 or tokens.dtype != np.int64 or not tokens.size:
        fail(f"{path} is {tokens.dtype} {tokens.shape}; write int64 token ids of shape (sequences, length)")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        fail(f"{path} has ids {tokens.min()} to {tokens.max()}, the model {vocabulary} tokens; use its own tokenizer")
    return tokens


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Return every linear layer but the head by name."""
    head = model.get_output_embeddings()
    found = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head
    }
    if not found:
        fail(f"{type(model).__name__} has no torch.nn.Linear besides its head; name another --model")
    return found


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Do `work`; return its seconds, the seconds of all cores, and the most memory the process has held by its end."""
    started, used = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_memory() / 1e6}


def peak_memory(device: str = "cpu") -> int:
    """Return the most bytes that this process has held; where it ran on a GPU, the most that torch held there.

    On Linux not ru_maxrss: a process that was spawned begins with the figure of the one that spawned it.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def finish(
    weights: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Size],
    given: argparse.Namespace,
    others: Mapping[str, torch.Tensor] | None = None,
    **figures: Any,
) -> None:
    """Check that `weights` are finite and of the `shapes` of the layers, write them as float32, print the JSON line.

    `others` are parameters that stay float and that the peer may have changed.
    """
    if weights.keys() != shapes.keys():
        missing, unasked = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
        fail(f"the peer left out {missing} and quantized {unasked} unasked; mend this script")
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            fail(f"layer {name} came back as {tuple(weight.shape)}, not {tuple(shapes[name])}")
        if not torch.isfinite(weight).all():
            fail(f"layer {name} came back with NaN or infinity; the peer cannot do '{given.scheme}' here")
    parameters = {**(others or {}), **{f"{name}.weight": weight for name, weight in weights.items()}}
    save_file({name: values.float().contiguous() for name, values in parameters.items()}, given.out)
    started = psutil.Process().create_time()
    line = {"scheme": str(given.scheme), "layers": len(weights), **figures, "seconds_total": time.time() - started}
    print(json.dumps({key: round(value, 1) if isinstance(value, float) else value for key, value in line.items()}))


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of Python and `packages`."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
