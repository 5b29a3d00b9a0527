"""Mutates configurations, headers and numbers of GPTQ and AWQ folders and puts each through its reader: a program.

    python tests/fuzz/mutated_folders.py --cases 2500

Every case follows from the seed and its number. A folder is read to weights that its bytes can hold, or refused by an
error of fewbit; anything else is a finding, printed with the number that repeats it (--first N --cases 1). The memory
that the process may take beyond its libraries is limited, and the slowest case is reported.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from mutated_headers import MEMORY, Tally, limit_memory
from mutations import BLIND, MUTATIONS, flipped
from safetensors import deserialize
from safetensors.numpy import save

from fewbit.checkpoints.awq import Awq
from fewbit.checkpoints.gptq import Gptq
from fewbit.errors import FewbitError
from fewbit.qtensor import QTensor

READERS = {"gptq": Gptq(), "awq": Awq()}
Folder = dict[str, bytes]


def genuine() -> list[Folder]:
    """Return folders of several widths, one with a layer of its own form, one in act-order."""
    plain = {"quant_method": "gptq", "group_size": 32, "sym": False, "desc_act": False, "checkpoint_format": "gptq"}
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    other = {"dynamic": {"-:^b$": {}, "+:^a$": {"bits": 8, "group_size": -1}}}
    return [
        _folder(plain | {"bits": 4}, _gptq(4, 2)),
        _folder(plain | {"bits": 3, "checkpoint_format": "gptq_v2"}, _gptq(3, 2)),
        _folder(plain | {"bits": 2, "sym": True} | other, _gptq(8, 1)),
        _folder(plain | {"bits": 4, "desc_act": True}, _gptq(4, 2, np.tile(np.arange(2), 32))),
        _folder(awq, _awq()),
    ]


def _folder(quantization: dict, layer: dict[str, np.ndarray]) -> Folder:
    numbers = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float16)
    tensors = {f"a.{name}": array for name, array in layer.items()} | {"a.bias": numbers[0], "b.weight": numbers}
    configuration = {"hidden_size": 64, "quantization_config": quantization}
    return {"config.json": json.dumps(configuration).encode(), "model.safetensors": save(tensors, {"format": "pt"})}


def _gptq(bits: int, groups: int, index: np.ndarray | None = None) -> dict[str, np.ndarray]:
    words = np.random.default_rng(bits).integers(0, 2**28, (64 * bits // 32, 32), dtype=np.int32)
    index = np.arange(64) // (64 // groups) if index is None else index
    zeros = np.full((groups, bits), 0x11111111, np.int32)
    return {"qweight": words, "qzeros": zeros, "scales": np.ones((groups, 32), np.float16), "g_idx": index.astype("i4")}


def _awq() -> dict[str, np.ndarray]:
    words = np.random.default_rng(0).integers(0, 2**31, (64, 4), dtype=np.int32)
    return {"qweight": words, "qzeros": words[:2].copy(), "scales": np.ones((2, 32), np.float16)}


def case(number: int, seed: int = 0) -> Folder:
    """Return one mutated folder."""
    rng = random.Random(f"folders {seed} {number}")
    folders = genuine()
    folder, other = dict(rng.choice(folders)), rng.choice(folders)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        file = rng.choice(["config.json", "config.json", "model.safetensors"])
        # Blind ones leave little JSON to read.
        known = [own for own in MUTATIONS["safetensors"] if own not in BLIND]
        mutation = rng.choice(known if rng.random() < 0.7 else BLIND)
        try:
            folder[file] = _mutated(mutation, rng, file, folder, other)
        # No object, or no string, is left to mutate.
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
            folder[file] = flipped(rng, folder[file] or b"\0", b"")
    return folder


def _mutated(mutation, rng: random.Random, file: str, folder: Folder, other: Folder) -> bytes:
    if file == "model.safetensors":
        return mutation(rng, folder[file], other[file]) or b"\0"
    # What knows JSON expects the length of it in front, as in a header.
    framed = [struct.pack("<Q", len(content[file])) + content[file] for content in (folder, other)]
    return mutation(rng, *framed)[8:]


def check(path: Path, method: str) -> None:
    """Read everything, and see that it is no more than the bytes can hold."""
    stored = (path / "model.safetensors").stat().st_size
    for _, value in READERS[method].read(path).tensors():
        if isinstance(value, QTensor):
            assert value.codes.size <= 16 * stored
            assert value.dequantize().shape == value.shape
            assert np.isfinite(value.scale).all()
        else:
            assert value.nbytes <= stored


def believe(path: Path, method: str) -> None:
    """Take the configuration at its word: the negative control."""
    quantization = json.loads((path / "config.json").read_bytes())["quantization_config"]
    tensors = {name: entry["shape"] for name, entry in deserialize((path / "model.safetensors").read_bytes())}
    bits, size = quantization["bits"], quantization["group_size"]
    rows, columns = tensors["a.qweight"]
    width, out = (rows * 32 // bits, columns) if method == "gptq" else (rows, columns * 8)
    np.broadcast_to(np.zeros((width // size, 1), np.float32), tuple(tensors["a.scales"]))
    np.zeros((out, width), np.int8)


def run(first: int, count: int, seed: int = 0, *, believing: bool = False) -> Tally:
    """Put the cases through the readers, or through one that believes."""
    tally, methods = Tally(), Counter()
    with tempfile.TemporaryDirectory() as root:
        for number in range(first, first + count):
            folder = case(number, seed)
            for name, content in folder.items():
                (Path(root) / name).write_bytes(content)
            method = "awq" if b'"awq"' in folder["config.json"] else "gptq"
            methods[method] += 1
            started = time.perf_counter()
            try:
                (believe if believing else check)(Path(root), method)
                tally.accepted += 1
            except FewbitError as error:
                said = re.sub(r"'[^']*'?|\"[^\"]*\"?|tensor \S+|\[.*?\]|/\S+|-?\d+|[^ -~]+", "#", str(error))
                tally.refused[" ".join(said.split()[:8])] += 1
            except MemoryError:
                tally.findings.append(f"case {number}: more than {MEMORY} bytes of memory")
            except Exception:
                tally.findings.append(f"case {number}: {traceback.format_exc(limit=-4)}")
            tally.slowest = max(tally.slowest, time.perf_counter() - started)
    return tally


def main() -> None:
    """Run from the command line and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2_500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--believing", action="store_true", help="the negative control: a reader that does not check")
    given = parser.parse_args()
    run(given.first, min(given.cases, 50), given.seed)  # libraries take what they take for themselves
    limit_memory(MEMORY)
    started = time.perf_counter()
    tally = run(given.first, given.cases, given.seed, believing=given.believing)
    summary = {
        "cases": given.cases, "seed": given.seed, "accepted": tally.accepted, "refused": sum(tally.refused.values()),
        "findings": tally.findings, "slowest": round(tally.slowest, 3),
        "seconds": round(time.perf_counter() - started, 1), "reasons": dict(tally.refused.most_common()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
