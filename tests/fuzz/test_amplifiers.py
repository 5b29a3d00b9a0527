"""Files of 12 MB that stand for hundreds: refused before more than 16 times their size and 64 MiB are taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("amplifiers.py")
#: Where the bound of memory itself is what refuses.
BOUNDED = {
    "json-lists": "of JSON would take", "json-objects": "of JSON would take", "json-keys": "of JSON would take",
    "index-keys": "of JSON would take", "tokenizer-keys": "of JSON would take", "tokenizer-lists": "of JSON would take",
    "adapter-lists": "of JSON would take", "safetensors-entries": "of JSON would take",
    "safetensors-lists": "of JSON would take", "onnx-nodes": "so many nodes and fields",
    "pieces": "more than 524288 pieces",
    "npz-samples": "the samples of a batch unpack to", "npz-labels": "its labels unpack to",
    "toml-tables": "tables, arrays and dots", "toml-parts": "tables, arrays and dots",
    "toml-lists": "tables, arrays and dots", "matrix-entries": "it claims 629145 entries",
}  # fmt: skip


@pytest.mark.slow
def test_no_file_takes_more_than_16_times_its_size_and_64_mib():
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"amplifier"')]
    assert len(found) > len(BOUNDED) + 5
    assert {own["amplifier"]: own["ended"] for own in found} == {own["amplifier"]: "refused" for own in found}
    said = {own["amplifier"]: own["said"] for own in found}
    assert {name for name, words in BOUNDED.items() if words not in said[name]} == set()
