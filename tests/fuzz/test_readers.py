"""Every reader under the limits of the fuzzer: its seeds are read, what once crashed it and mutations are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MUTATIONS = 150


@pytest.fixture(scope="module")
def found():
    """What became of every kept input, and of mutations of it, by reader."""
    command = [sys.executable, str(HERE / "replayed.py"), "--mutations", str(MUTATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_seed_is_read_and_what_once_crashed_a_reader_is_read_or_refused(found):
    assert {own.name for own in CORPUS.iterdir()} == found.keys()
    for name, own in found.items():
        assert own["seeds"].keys() == {file.name for file in (CORPUS / name).iterdir()}
        for seed, ended in own["seeds"].items():
            assert ended in ({"read", "refused"} if seed.startswith("crash-") else {"read"}), f"{name}/{seed}"


def test_every_mutation_is_read_or_refused_within_a_second_and_16_times_its_size_and_64_mib(found):
    assert {name: own["crashes"] for name, own in found.items()} == {name: {} for name in found}
    assert all(own["executions"] == len(own["seeds"]) + MUTATIONS for own in found.values())
    # Of a kind that tests something: some are refused, for several reasons, and not all.
    assert all(own["refused"] > MUTATIONS // 10 for own in found.values())
    assert sum(own["reasons"] for own in found.values()) > 15 * len(found)
    assert sum(own["read"] for own in found.values()) > 20 * len(found)


def test_the_corpus_is_small():
    sizes = [file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()]
    assert max(sizes) <= 64 << 10
    assert sum(sizes) <= 400 << 10


GREEDY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import executions, readers
def trusting(folder):
    content = (folder / "m").read_bytes()
    bytearray(int.from_bytes(content, "little"))
    [][0]
readers.READERS["trusting"] = readers.Reader(lambda: trusting, "m", 1)
run = executions.Executions("trusting", Path(sys.argv[2]))
run.prepare([])
for size in (1 << 20, 63 << 20, 65 << 20):
    print(run.run(size.to_bytes(4, "little")))
"""


def test_a_reader_that_takes_a_length_at_its_word_or_stumbles_is_found_out_and_its_input_kept(tmp_path):
    program = tmp_path / "greedy.py"
    program.write_text(GREEDY)
    done = subprocess.run(
        [sys.executable, program, HERE, tmp_path / "kept"], capture_output=True, text=True, check=True
    )
    place = "IndexError at greedy.py:trusting:[][0]"
    assert done.stdout.splitlines() == [place, place, "more memory than it may take"]
    kept = [file.read_bytes() for file in (tmp_path / "kept").iterdir() if not file.suffix]
    assert sorted(kept) == sorted([(1 << 20).to_bytes(4, "little"), (65 << 20).to_bytes(4, "little")])
