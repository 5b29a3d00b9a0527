"""What is mapped and unchanged is given back and comes again; what is not of a file, or was written into, stays."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewbit.frontends.torch.resident_memory import give_back, read_by_turns, trim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="madvise and the page map are Linux's")
#: 16 MiB: what the allocator and Python do beside it is far below.
SIZE = 1 << 22


def resident(kind):
    """Return resident memory of the process in bytes: `RssFile` or `RssAnon`."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


@pytest.fixture
def mapped(tmp_path):
    save_file({"weight": torch.arange(SIZE, dtype=torch.float32)}, tmp_path / "model.safetensors")
    tensor = load_file(tmp_path / "model.safetensors")["weight"]
    before = resident("RssFile")
    assert tensor.sum() > 0
    if resident("RssFile") - before < SIZE * 3:
        pytest.skip("this safetensors maps no files")
    return tensor


def test_a_mapped_weight_is_given_back_and_read_again(mapped):
    before = resident("RssFile")
    give_back([mapped])
    assert before - resident("RssFile") > SIZE * 3  # of its 4 bytes a number; the first and last page may stay
    assert torch.equal(mapped, torch.arange(SIZE, dtype=torch.float32))


@pytest.mark.parametrize("where", [0, SIZE // 2, SIZE - 1])
def test_a_mapped_weight_that_was_written_into_stays(mapped, where):
    mapped[where] = -5.0
    give_back([mapped])
    assert mapped[where] == -5.0


def test_memory_of_no_file_stays():
    own = torch.arange(SIZE, dtype=torch.float32)
    give_back([own, own[5:], own[:0], torch.empty(3), torch.empty(4, device="meta")])
    assert torch.equal(own, torch.arange(SIZE, dtype=torch.float32))


def test_weights_are_there_for_one_module_at_a_time(mapped):
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4)))
    for module, weight in zip(model, mapped.reshape(4, 1024, 1024), strict=True):
        module.weight = nn.Parameter(weight, requires_grad=False)
    before, rows = resident("RssFile"), torch.full((1, 1024), 1e-6)
    expected = model(rows)
    for _ in range(2):
        with read_by_turns(list(model)):
            assert torch.equal(model(rows), expected)
            assert before - resident("RssFile") > SIZE * 2.5  # three of four were given back, but for their edges
            assert torch.equal(model[3](rows), nn.functional.linear(rows, mapped.reshape(4, 1024, 1024)[3]))
    assert not any("forward" in vars(module) for module in model)


def test_trimming_gives_freed_chunks_back():
    # Chunks too small to be mapped one by one, held apart by one that stays at the end of the heap.
    chunks = [torch.zeros(8192) for _ in range(512)]
    held = [torch.zeros(16) for _ in range(64)]
    before = resident("RssAnon")
    del chunks
    trim()
    assert before - resident("RssAnon") > 512 * 8192 * 4 // 2
    assert len(held) == 64


CHILD = """
import sys
import torch
from fewbit.frontends.torch.resident_memory import map_large_blocks

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

if sys.argv[1] == "mapped":
    map_large_blocks()
torch.ones(7 << 20)  # freed, 28 MiB raise the limit to as much, where that is left to the C library
before = resident()
blocks = [torch.ones(4 << 20) for _ in range(8)]
last = torch.ones(2 << 20)
del blocks
print(resident() - before)
"""


def test_large_blocks_are_given_back_as_they_are_freed_though_a_later_one_is_in_use():
    left = {}
    for mode in ("mapped", "as it was"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, mode], capture_output=True, text=True, check=True, timeout=120
        )
        left[mode] = int(done.stdout)
    assert left["mapped"] < 12 << 20  # the one that is in use has 8 MiB
    assert left["as it was"] > 100 << 20  # of 128 MiB that were freed below it
