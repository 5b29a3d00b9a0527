"""Mutates quantized checkpoints of every format and puts each through its reader and into a model: a program.

    python tests/fuzz/mutated_checkpoints.py --cases 10000

Half of the cases hold one lie that contradicts the rest, which has to be refused; the others suffered at random, and
are refused or stand for the numbers that the tables of the format say. Every case follows from the seed and its number.
Any other exception, more memory than a bound, and another number are findings (--first N --cases 1 repeats one).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plain_decoders
from folder_lies import LIES
from genuine_checkpoints import Files, folders, gguf_models, legacy, legacy_entries, matrices, module
from gguf_lies import LEGACY, MATRIX, MODEL
from mutated_headers import limit_memory
from mutations import BLIND, MUTATIONS, flipped

from fewbit.checkpoints.gguf.importance_matrix import read_importance_matrix
from fewbit.checkpoints.gguf.tensor_names import origins
from fewbit.errors import FewbitError
from fewbit.qtensor import QTensor
from fewbit.sources.checkpoint import CheckpointFolder

#: Bytes that reading one of these files, none above 70 KB, may take beyond what is there when the first case begins.
MEMORY = 64 << 20
KINDS = ("gptq", "awq", "compressed-tensors", "gguf", "matrix", "legacy")
FOLDERS = KINDS[:3]
_WORD = re.compile(r"'[^']*'?|\"[^\"]*\"?|tensor \S+|\[.*?\]|/\S+|-?\d+|[^ -~]+")


@dataclass(frozen=True, slots=True)
class Case:
    """A mutated checkpoint."""

    kind: str
    #: What contradicts the rest; `None`: it suffered at random.
    lie: str | None
    #: Contents by name; what is one file is called `m.gguf`.
    files: Files


@dataclass(slots=True)
class Tally:
    """What became of the cases."""

    kinds: Counter[str] = field(default_factory=Counter)
    lies: Counter[str] = field(default_factory=Counter)
    #: Read, to what the plain decoders find, and those of them that a model took.
    accepted: Counter[str] = field(default_factory=Counter)
    loaded: Counter[str] = field(default_factory=Counter)
    #: Refused cases by error, without names and numbers.
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    #: Seconds of the processor.
    slowest: float = 0.0


class Cases:
    """The genuine checkpoints, and what becomes of them by number."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._folders = {method: folders(method) for method in FOLDERS}
        self._texts = {"gguf": gguf_models(), "matrix": matrices()}

    def __getitem__(self, number: int) -> Case:
        rng = random.Random(f"checkpoints {self._seed} {number}")
        kind = KINDS[number % len(KINDS)]
        return self._lying(rng, kind) if rng.random() < 0.5 else self._suffered(rng, kind)

    def genuine(self) -> list[Case]:
        """Return what was not mutated."""
        whole = [Case(kind, None, files) for kind, own in self._folders.items() for files in own]
        whole += [Case(kind, None, {"m.gguf": text.written()}) for kind, own in self._texts.items() for text in own]
        return [*whole, Case("legacy", None, {"m.gguf": legacy(legacy_entries())})]

    def _lying(self, rng: random.Random, kind: str) -> Case:
        if kind in FOLDERS:
            name = rng.choice(list(LIES))
            return Case(kind, f"{kind}: {name}", LIES[name](rng, rng.choice(self._folders[kind])))
        if kind == "legacy":
            name = rng.choice(list(LEGACY))
            return Case(kind, f"legacy: {name}", {"m.gguf": LEGACY[name](rng)})
        lies = MODEL if kind == "gguf" else MATRIX
        name, text = rng.choice(["truncated", *lies]), copy.deepcopy(rng.choice(self._texts[kind]))
        if name != "truncated":
            lies[name](rng, text)
        content = text.written()
        # The last tensor may be followed by up to 31 bytes of nothing.
        whole = content[: rng.randrange(len(content) - 31)] if name == "truncated" else content
        return Case(kind, f"{kind}: {name}", {"m.gguf": whole})

    def _suffered(self, rng: random.Random, kind: str) -> Case:
        if kind in FOLDERS:
            files, other = dict(rng.choice(self._folders[kind])), rng.choice(self._folders[kind])
        else:
            known = [own.files for own in self._genuine_of(kind)]
            files, other = dict(rng.choice(known)), rng.choice(known)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            name = rng.choice(list(files))
            known = [own for own in MUTATIONS["gguf" if name == "m.gguf" else "safetensors"] if own not in BLIND]
            # Blind ones leave little JSON to read.
            mutation = rng.choice(known if rng.random() < 0.6 else BLIND)
            try:
                files[name] = _mutated(mutation, rng, name, files, other) or b"\0"
            # No object, or no string, is left to mutate.
            except (ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError):
                files[name] = flipped(rng, files[name] or b"\0", b"")
        return Case(kind, None, files)

    def _genuine_of(self, kind: str) -> list[Case]:
        if kind == "legacy":
            return [Case(kind, None, {"m.gguf": legacy(legacy_entries())})]
        return [Case(kind, None, {"m.gguf": text.written()}) for text in self._texts[kind]]


def _mutated(mutation: Any, rng: random.Random, name: str, files: Files, other: Files) -> bytes:
    beside = other.get(name, files[name])
    if not name.endswith(".json"):
        return mutation(rng, files[name], beside)
    # What knows JSON expects the length of it in front, as in a header.
    framed = [len(content).to_bytes(8, "little") + content for content in (files[name], beside)]
    return mutation(rng, *framed)[8:]


# What has to hold of a case that is read.


def check(case: Case, root: Path) -> bool:
    """Read a case, see that its numbers are those of the plain decoders, and return whether a model takes them."""
    if case.kind in ("matrix", "legacy"):
        return _check_matrix(case, root / "m.gguf")
    path = root / "m.gguf" if case.kind == "gguf" else root
    opened = CheckpointFolder(path).checkpoint
    stored = sum(map(len, case.files.values()))
    weights = {}
    for name, value in opened.tensors():
        if isinstance(value, QTensor):
            assert value.codes.size <= 16 * stored
            weights[name] = np.asarray(value.dequantize())
            assert np.isfinite(weights[name]).all(), f"{name} has numbers that are none"
        elif isinstance(value, np.ndarray):
            assert value.nbytes <= 4 * stored
    opened.caches()
    try:
        CheckpointFolder(path, None if case.kind == "gguf" else module()).load()
    except FewbitError:
        return False
    finally:
        if case.lie is None:  # what a lie stands for is not said
            _compare(weights, _plain(case, path, opened.configuration))
    return True


def _plain(case: Case, path: Path, configuration: Any) -> dict[str, np.ndarray]:
    if case.kind == "gguf":
        return plain_decoders.gguf_tensors(path)
    tensors = plain_decoders.tensors_of(path)
    said = json.loads((path / "config.json").read_bytes())
    decode = {"gptq": plain_decoders.gptq, "awq": plain_decoders.awq}.get(case.kind, plain_decoders.compressed)
    quantized = decode(tensors, said["quantization_config"]) if said.get("quantization_config") else {}
    return quantized | plain_decoders.casts(tensors, said)


def _compare(weights: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, found in weights.items():
        place = name if name in expected else _name_in_gguf(name)
        own = expected.get(place, expected.get("token_embd.weight"))  # a head without a weight has that one
        assert np.array_equal(found, own), f"{name} stands for other numbers"


def _name_in_gguf(name: str) -> str:
    from fewbit.checkpoints.gguf.architecture import ARCHITECTURES

    sizes = {"num_hidden_layers": 8, "num_attention_heads": 1}
    known = {own: place for place, (own, _) in origins(ARCHITECTURES["llama"], sizes).items()}
    return known[f"{name}.weight"]


def _check_matrix(case: Case, path: Path) -> bool:
    found = read_importance_matrix(path)
    for name, sums in found.sums.items():
        assert sums.nbytes <= path.stat().st_size
        assert np.isfinite(found.mean_squares(name)).all()
        assert (found.mean_squares(name) >= 0).all()
    if case.kind == "matrix" and case.lie is None:
        expected = plain_decoders.matrix(path)
        for name, sums in found.sums.items():
            assert np.array_equal(sums.ravel(), expected[f"{name}.in_sum2"].ravel())
    return True


def believe(case: Case, root: Path) -> bool:
    """Take a case at its word: the negative control."""
    if case.kind == "matrix":
        plain_decoders.matrix(root / "m.gguf")
    elif case.kind == "gguf":
        plain_decoders.gguf_tensors(root / "m.gguf")
    elif case.kind == "legacy":
        np.zeros(int.from_bytes(case.files["m.gguf"][4:8], "little"), np.uint8)
    else:
        _plain(case, root, {})
    return True


def run(cases: Cases, first: int, count: int, *, believing: bool = False) -> Tally:
    """Put the cases through the readers, or through ones that believe."""
    tally = Tally()
    for number in range(first, first + count):
        case = cases[number]
        tally.kinds[case.kind] += 1
        tally.lies[case.lie or f"{case.kind} at random"] += 1
        with tempfile.TemporaryDirectory() as root:
            for name, content in case.files.items():
                (Path(root) / name).write_bytes(content)
            started, full = time.process_time(), False
            try:
                taken = (believe if believing else check)(case, Path(root))
                tally.accepted[case.kind] += 1
                tally.loaded[case.kind] += taken
                if case.lie and taken:
                    tally.findings.append(f"case {number}: accepted though it lies: {case.lie}")
            except FewbitError as error:
                tally.refused[" ".join(_WORD.sub("#", str(error)).split()[:8])] += 1
            except MemoryError:
                full = True  # said below: what filled the memory is held until here
            except Exception:
                tally.findings.append(f"case {number} ({case.lie}): {traceback.format_exc(limit=-4)}")
            if full:
                tally.findings.append(f"case {number} ({case.lie}): more than {MEMORY} bytes of memory")
            tally.slowest = max(tally.slowest, time.process_time() - started)
    return tally


def main() -> None:
    """Run from the command line and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--believing", action="store_true", help="the negative control: readers that do not check")
    given = parser.parse_args()
    cases = Cases(given.seed)
    with tempfile.TemporaryDirectory() as root:  # libraries take what they take for themselves
        for number, case in enumerate(cases.genuine()):
            own = Path(root) / str(number)
            own.mkdir()
            for name, content in case.files.items():
                (own / name).write_bytes(content)
            assert check(case, own) or "attn.k_scale" in str(case.files), case.kind
    limit_memory(MEMORY)
    started = time.perf_counter()
    tally = run(cases, given.first, given.cases, believing=given.believing)
    summary = {
        "cases": given.cases, "seed": given.seed, "kinds": tally.kinds, "lies": tally.lies,
        "accepted": tally.accepted, "loaded": tally.loaded, "refused": sum(tally.refused.values()),
        "findings": tally.findings, "slowest": round(tally.slowest, 3),
        "seconds": round(time.perf_counter() - started, 1), "reasons": dict(tally.refused.most_common()),
    }  # fmt: skip
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
