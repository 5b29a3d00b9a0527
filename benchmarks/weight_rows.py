"""What the tables of weight-only quantization share: rows, each in a process of its own, cached; texts; quality.

Run: not by itself; `weight_only.py` and `language_models.py` say which rows there are. A row's command writes the
parameters that its model computes with and prints its costs as JSON; the float model with them in place is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_model

from fewbit.evaluation.quality import compare
from fewbit.evaluation.text import read_text, token_sequences
from fewbit.report.data import installed_versions, this_machine
from fewbit.schemes.notation import parse_scheme
from fewbit.sources import open_source
from kept_rows import KeptRow, keep, made_by

HERE = Path(__file__).resolve().parent
CACHE = HERE / "cache"
COSTS = {"seconds": "seconds", "CPU s": "cpu_seconds", "solving s": "solving_seconds", "peak MB": "peak_mb"}
TOPICS = "pydoc_data.topics"
#: Of a layer of smollm2: what bits a weight are counted for.
_SHAPE = (576, 576)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    tool: str
    scheme: str
    #: Options of the tool's script besides model, tokens, scheme and out.
    options: tuple[str, ...] = ()
    label: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells it from the others of a benchmark."""
        return (self.tool, self.scheme, *self.options)

    def command(self, folder: Path, tokens: Path, out: Path) -> list[str]:
        """Return the command line that makes the row's weights."""
        tool = TOOLS[self.tool]
        data = ["--tokens", str(tokens)] if tool.calibrates else []
        arguments = ["--model", str(folder), *data, "--scheme", self.scheme, "--out", str(out), *self.options]
        return [str(tool.python), str(HERE / tool.script), *arguments]


@dataclass(frozen=True)
class Tool:
    """A script that makes a row's weights."""

    script: str
    #: The environment that it runs in, below benchmarks/peers; `None` is this one.
    peer: str | None
    calibrates: bool = True

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return HERE / "peers" / self.peer / "bin/python" if self.peer else Path(sys.executable)


TOOLS = {
    "fewbit": Tool("fewbit_row.py", None),
    "llm-compressor": Tool("peers/llmcompressor_oneshot.py", "llmcompressor"),
    "GPTQModel": Tool("peers/gptqmodel_quantize.py", "gptqmodel"),
    "auto-round": Tool("peers/autoround_blocks.py", "llmcompressor"),
    "llama.cpp": Tool("peers/llamacpp_quantize.py", "llamacpp"),
    "torchao": Tool("peers/torchao_data_free.py", "torchao", calibrates=False),
    "HQQ": Tool("peers/hqq_data_free.py", "hqq", calibrates=False),
}


@dataclass(frozen=True)
class Text:
    """A text, and the piece of it to begin with."""

    #: `None` is pydoc_data.topics.
    path: str | None
    first: int = 0

    @classmethod
    def parse(cls, given: str) -> Text:
        """Return the text for `FILE` or `FILE:PIECE`."""
        path, _, first = given.rpartition(":")
        return cls(path, int(first)) if first.isdigit() and path else cls(given)

    def __str__(self) -> str:
        name = Path(self.path).name if self.path else TOPICS
        return f"{name} from piece {self.first}" if self.first else name


@dataclass
class Bench:
    """The model, the texts, and what has been measured on them."""

    model: str
    calibration: Text
    texts: list[Text]
    sequences: int = 8
    length: int = 512
    samples: int = 32
    _float: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        CACHE.mkdir(exist_ok=True)
        self.source = open_source(self.model)
        self.folder = CACHE / self.model
        if not (self.folder / "config.json").exists():
            self.folder.mkdir(exist_ok=True)
            save_model(self.source.load(), str(self.folder / "model.safetensors"), metadata={"format": "pt"})
            self.source.tokenizer().save_pretrained(self.folder)
            configuration = {**self.source.configuration(), "dtype": "float32"}
            (self.folder / "config.json").write_text(json.dumps(configuration))
        self.batches = {str(text): self._pieces(text, self.sequences) for text in self.texts}
        pieces = self._pieces(self.calibration, self.samples)
        self.tokens = CACHE / f"tokens-{self._digest(torch.cat(pieces).numpy())}.npy"
        np.save(self.tokens, torch.cat(pieces).numpy())

    def _pieces(self, text: Text, count: int) -> list[torch.Tensor]:
        words, _ = read_text(text.path)
        found = token_sequences(self.source.tokenizer(), words, sequences=text.first + count, length=self.length)
        return found[text.first :]

    @staticmethod
    def _digest(*parts: Any) -> str:
        made = hashlib.sha256()
        for part in parts:
            made.update(part if isinstance(part, np.ndarray) else json.dumps(part, sort_keys=True).encode())
        return made.hexdigest()[:16]

    def measure(self, row: Row) -> dict[str, Any]:
        """Return the figures of `row`, from the cache where nothing that they depend on has changed."""
        own = row.tool == "fewbit"
        return self.cached([asdict(row), self.model, TOOLS[row.tool].script], lambda: self._measured(row), own=own)

    def cached(self, key: Sequence[Any], make: Callable[[], dict[str, Any]], *, own: bool) -> dict[str, Any]:
        """Return what `make` does, or the cache where it was made of the same, by the same code of fewbit if `own`."""
        code = [path.read_text() for path in sorted((HERE.parent / "src").rglob("*.py"))] if own else ""
        evaluated = [torch.cat(batches).numpy() for batches in self.batches.values()]
        versions = installed_versions() if own else ""
        cached = CACHE / f"row-{self._digest(key, self.tokens.name, code, versions, *evaluated)}.json"
        if not cached.exists():
            partial = cached.with_suffix(".partial")
            partial.write_text(json.dumps(make()))
            partial.rename(cached)
        return dict(json.loads(cached.read_text()))

    def _measured(self, row: Row) -> dict[str, Any]:
        weights = CACHE / f"weights-{os.getpid()}.safetensors"  # several runs may share the cache
        figures = ran(row.command(self.folder, self.tokens, weights)) | self._quality(load_file(weights))
        weights.unlink()
        return figures

    def _quality(self, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return divergence, agreement and perplexity of the float model with `weights` in place, by text."""
        if self._float is None:
            self._float = open_source(self.folder).load()
            head = self._float.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach().clone())  # a rotation unties it
        parameters = dict(self._float.named_parameters())
        before = {name: parameters[name].detach().clone() for name in weights}

        @torch.no_grad()
        def forward(tokens: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
            for name, weight in own.items():
                parameters[name].data = weight
            return self._float(tokens, use_cache=False).logits

        found = {}
        for text, batches in self.batches.items():
            _, after = compare(lambda t: forward(t, before), lambda t: forward(t, weights), batches)
            found[text] = [after.kl_divergence, after.top1_agreement, after.perplexity]
        forward(batches[0][:, :1], before)
        return {"quality": found}


def ran(command: Sequence[str]) -> dict[str, Any]:
    """Run a script; return the JSON of the last line that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def fewbit_row(scheme: str, label: str, transforms: Sequence[Any] = (), **algorithm: Any) -> Row:
    """Return a row of fewbit; the algorithm is `gptq` unless its `name` says otherwise."""
    options = ["--algorithm", json.dumps({"name": "gptq", **algorithm})]
    if transforms:
        options += ["--transforms", json.dumps(list(transforms))]
    return Row("fewbit", scheme, tuple(options), label)


def table(description: str | None, rows: Iterable[Row]) -> None:
    """Read the command line, measure those of `rows` that it asks for, print a line for each, and keep it if told."""
    parser = _parser(description)
    parser.add_argument("--keep", action="store_true", help="write the rows to benchmarks/kept too")
    parser.add_argument("--device", help="where fewbit runs, such as cuda; peak MB are then those of the device")
    given = parser.parse_args()
    if given.keep and given.device:
        parser.error("--keep is for rows on the processor; leave out --device")
    if given.keep and len(given.text or []) != 1:
        parser.error("--keep needs one --text, since kept tables have that and pydoc_data.topics")
    bench, chosen = _bench_of(given)
    qualities = [f"{what}, {text}" for text in bench.batches for what in ("KL", "top-1", "perplexity")]
    print(line(["tool", "scheme", "bits", *qualities, *COSTS]))
    print(line(["---", "---", *["---:"] * (1 + len(qualities) + len(COSTS))]), flush=True)
    for row in (_on(given.device, row) for row in rows):
        if not re.search(chosen, f"{row.tool} {row.scheme} {row.label}"):
            continue
        if not TOOLS[row.tool].python.exists():
            print(f"{row.tool} is not installed: run benchmarks/peers/make.sh {TOOLS[row.tool].peer}", file=sys.stderr)
            continue
        found = bench.measure(row)
        quality = [f"{kl:.4f} | {top1:.3f} | {perplexity:.2f}" for kl, top1, perplexity in found["quality"].values()]
        cost = [f"{found.get(name, float('nan')):.0f}" for name in COSTS.values()]
        bits = found.get("bits") or parse_scheme(row.scheme).bits_per_weight(_SHAPE)
        if given.keep:
            keep(_kept(bench, row, {"bits": bits, **found}))
        print(line([f"{row.tool}, {row.label}", row.scheme, f"{bits:.2f}", *quality, *cost]), flush=True)


def _on(device: str | None, row: Row) -> Row:
    """Return a row with its device, if it is of fewbit; peers run where they do."""
    here = device is None or row.tool != "fewbit"
    return row if here else replace(row, options=(*row.options, "--device", device))


def _kept(bench: Bench, row: Row, found: dict[str, Any]) -> KeptRow:
    figures = {name: found[name] for name in ("bits", "quality", "seconds", "cpu_seconds", "peak_mb")}
    told = made_by(found, own=row.tool == "fewbit")
    return KeptRow(bench.model, str(bench.calibration), row.tool, row.scheme, row.label, row.options, figures, told)


def bench_of(description: str | None) -> tuple[Bench, str]:
    """Read the command line, say what is measured on what; return it, and what to choose rows by."""
    return _bench_of(_parser(description).parse_args())


def _bench_of(given: argparse.Namespace) -> tuple[Bench, str]:
    bench = Bench(given.model, given.calibration or Text(None, 8), [Text(None), *(given.text or [])])
    print(
        f"{given.model}; calibrated on {bench.samples} x {bench.length} tokens of {bench.calibration}, "
        f"evaluated on {bench.sequences} x {bench.length} of each text; {this_machine()}; "
        f"torch {installed_versions()['torch']}\n"
    )
    return bench, given.rows


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="smollm2 or smollm2-rotated")
    parser.add_argument("--calibration", type=Text.parse, help="UTF-8 text; default: pydoc_data.topics from piece 8")
    parser.add_argument("--text", type=Text.parse, action="append", help="text to evaluate on besides that")
    parser.add_argument("--rows", default="", help="only rows whose 'tool scheme label' holds this regular expression")
    return parser


def line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
