"""A streamed run that is killed, refused or damaged at any step ends in the right bytes or in a clear error."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fewbit as fb
from fewbit.errors import CheckpointError, FewbitError

sys.path.insert(0, str(Path(__file__).parent))
from faults import points, refusing
from tiny_run import BATCHES, RECIPE, quantize

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a model of two blocks, and what a run without faults makes of it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model", max_shard_size="9KB")
    quantize(folder / "model", folder / "whole")
    return folder


@pytest.fixture(scope="module")
def killed_at(tiny):
    """A function that runs in a forked child, which is killed at a point, and returns its exit code."""
    command = [sys.executable, str(Path(__file__).parent / "tiny_run.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(output, point, **options):
            asked = {"model": str(tiny / "model"), "output": str(output), "point": point, "options": options}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("report.")}


def number_of_points(tiny, output):
    with points(lambda number: None) as seen:
        quantize(tiny / "model", output)
    return list(seen)


def require_right(tiny, output):
    """The output is whole, and nothing is beside it."""
    assert content(output) == content(tiny / "whole")
    fb_verify(output)
    assert not output.with_name(f"{output.name}.partial").exists()


def fb_verify(output):
    from fewbit.checkpoints.hashes import verify

    return verify(output)


def chosen(count, random_ones, step):
    """Every `step`-th point, and some between."""
    places = set(range(1, count + 1, step))
    return sorted(places | set(random.Random(0).sample(range(1, count + 1), random_ones)))


def test_killed_at_any_step_it_resumes_to_the_same_bytes(tiny, tmp_path, killed_at, pytestconfig):
    seen = number_of_points(tiny, tmp_path / "counted")
    steps = [place for place, name in enumerate(seen, 1) if name == "before write_whole"]
    assert len(steps) > 5
    further = random.Random(0).sample(range(1, len(seen) + 1), pytestconfig.getoption("--kill-points"))
    moments = sorted({*steps, len(seen) - 1, *further})
    for point in moments:
        output = tmp_path / f"{point}"
        assert killed_at(output, point) == -signal.SIGKILL, seen[point - 1]
        assert not output.exists() or content(output) == content(tiny / "whole"), seen[point - 1]
        done = []
        quantize(tiny / "model", output, resume=True, overwrite=True, options=fb.Options(progress=Counting(done)))
        require_right(tiny, output)
    assert {"before write_at", "before rename", "after rmtree"} <= set(seen)


class Counting(fb.interfaces.Silent):
    """A progress that notes how many parts were gone through."""

    def __init__(self, done):
        self.done = done

    def track(self, items, description):
        for item in items:
            self.done.append(description)
            yield item


def test_killed_again_and_again_it_gets_there(tiny, tmp_path, killed_at):
    seen = number_of_points(tiny, tmp_path / "counted")
    steps = [place for place, name in enumerate(seen, 1) if name == "after write_whole"]
    # Far enough for one step at a time, and for its end.
    enough = max(after - before for before, after in zip([0, *steps], [*steps, len(seen)], strict=True)) + 20
    output, kills = tmp_path / "out", 0
    while killed_at(output, enough, resume=True) == -signal.SIGKILL:
        kills += 1
        assert kills < 10
    assert kills > 1
    require_right(tiny, output)


def test_a_resumed_run_does_not_do_finished_blocks_again(tiny, tmp_path, killed_at):
    seen = number_of_points(tiny, tmp_path / "counted")
    # The steps are: run, wiring, a block, a block, the rest.
    third = [place for place, name in enumerate(seen, 1) if name == "after write_whole"][2]
    assert killed_at(tmp_path / "out", third) == -signal.SIGKILL
    done = []
    quantize(tiny / "model", tmp_path / "out", resume=True, options=fb.Options(progress=Counting(done)))
    blocks = done.count("calibrate and quantize")
    whole = []
    quantize(tiny / "model", tmp_path / "other", options=fb.Options(progress=Counting(whole)))
    assert blocks == whole.count("calibrate and quantize") - 1
    require_right(tiny, tmp_path / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_is_an_error_and_the_run_goes_on_afterwards(tiny, tmp_path, code):
    seen = number_of_points(tiny, tmp_path / "counted")
    for point in chosen(len(seen), 1, len(seen) // (6 if code == errno.ENOSPC else 2)):
        output = tmp_path / f"{code}-{point}"
        try:
            with points(refusing(point, code)):
                quantize(tiny / "model", output)
        except CheckpointError as error:
            assert os.strerror(code) in str(error), seen[point - 1]  # noqa: PT017  # some end well: at the very end
        quantize(tiny / "model", output, resume=True, overwrite=True)
        require_right(tiny, output)


def half_done(tiny, tmp_path, killed_at):
    """Return an output with one block finished, and the folder of its run."""
    seen = number_of_points(tiny, tmp_path / "counted")
    third = [place for place, name in enumerate(seen, 1) if name == "after write_whole"][2]
    assert killed_at(tmp_path / "out", third) == -signal.SIGKILL
    return tmp_path / "out", tmp_path / "out.partial"


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_no_bit_of_what_a_run_has_left_can_change_unnoticed(tiny, tmp_path, killed_at):
    output, partial = half_done(tiny, tmp_path, killed_at)
    draw, told = random.Random(0), 0
    for path in sorted(own for own in partial.rglob("*") if own.is_file() and own.stat().st_size):
        whole = path.read_bytes()
        for place in draw.sample(range(len(whole)), min(2, len(whole))):
            flip(path, place)
            try:
                quantize(tiny / "model", tmp_path / "out", resume=True)
            except FewbitError as error:
                told += 1
                assert str(partial) in str(error)  # noqa: PT017
            else:  # what is not yet finished is written anew
                require_right(tiny, output)
                output.rename(tmp_path / "taken")
                output, partial = half_done_again(tiny, tmp_path, killed_at)
            path.write_bytes(whole)
    assert told > 8


def half_done_again(tiny, tmp_path, killed_at):
    import shutil

    for name in ("taken", "counted"):
        shutil.rmtree(tmp_path / name)
    return half_done(tiny, tmp_path, killed_at)


@pytest.mark.parametrize("damage", ["cut", "flipped header"])
def test_a_damaged_shard_of_the_model_is_an_error(tiny, tmp_path, damage):
    import shutil

    shutil.copytree(tiny / "model", tmp_path / "model")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-7])
    else:
        flip(shard, 3)
    with pytest.raises(FewbitError, match=shard.name):
        quantize(tmp_path / "model", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_run_of_something_else_is_refused_with_the_difference(tiny, tmp_path, killed_at, monkeypatch):
    import shutil

    output, _ = half_done(tiny, tmp_path, killed_at)
    other = tmp_path / "model"
    shutil.copytree(tiny / "model", other)
    shard = sorted(other.glob("*.safetensors"))[0]
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"model, {shard.name}: [0-9a-f]{{12}}... then, [0-9a-f]{{12}}... now"):
        quantize(other, output, resume=True)
    changed = fb.Recipe([*RECIPE.rules[:2], fb.Rule(kind="linear", weight="int4 g16 mse")], name="tiny")
    with pytest.raises(CheckpointError, match="calibration, batches: 2 then, 0 now"):  # that needs none
        quantize(tiny / "model", output, changed, resume=True)
    changed = fb.Recipe([*RECIPE.rules[:2], fb.Rule(kind="linear", weight="int4 g16 clip", algorithm="gptq")])
    with pytest.raises(CheckpointError, match=r"rule 3, algorithm: Nearest\(.*\) then, Gptq\("):
        quantize(tiny / "model", output, changed, resume=True)
    with pytest.raises(CheckpointError, match="calibration, content"):
        quantize(tiny / "model", output, resume=True, calibration=BATCHES[::-1])
    with pytest.raises(CheckpointError, match="output, shard size: 4000 then, 5000 now"):
        quantize(tiny / "model", output, resume=True, shard_size="5KB")
    with monkeypatch.context() as patched:
        patched.setattr("fewbit.execution.identity.installed_versions", lambda: {"fewbit": "9.9", "torch": "1"})
        with pytest.raises(CheckpointError, match=r"versions, fewbit: 0\.1\.0 then, 9\.9 now"):
            quantize(tiny / "model", output, resume=True)
    with pytest.raises(CheckpointError, match="--resume goes on with it, --overwrite begins anew"):
        quantize(tiny / "model", output)
    quantize(tiny / "model", output, overwrite=True)
    require_right(tiny, output)


def test_resuming_where_nothing_was_begun_begins(tiny, tmp_path):
    quantize(tiny / "model", tmp_path / "out", resume=True)
    require_right(tiny, tmp_path / "out")


def test_two_runs_do_not_write_one_output(tiny, tmp_path):
    from fewbit.execution.journal import Journal

    first = Journal(tmp_path / "out")
    first.begin({})
    with pytest.raises(CheckpointError, match="another process writes"):
        quantize(tiny / "model", tmp_path / "out", overwrite=True)
    first.close()


def test_sigterm_of_a_scheduler_leaves_a_run_to_resume(tiny, tmp_path):
    data = tmp_path / "tokens.npy"
    import numpy as np

    np.save(data, np.arange(24).reshape(2, 12))
    command = [sys.executable, "-m", "fewbit", "quantize", str(tiny / "model"), "-o", str(tmp_path / "out"), "-q",
               "--weight", "int4 g16 clip", "--calibration", str(data), "--batch-size", "1"]  # fmt: skip
    with subprocess.Popen([*command, "--memory", "8GB"], stderr=subprocess.PIPE, text=True) as process:
        steps = tmp_path / "out.partial" / "journal" / "00000.json"
        while not steps.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert not (tmp_path / "out").exists()
    assert json.loads(steps.read_text().splitlines()[1])["kind"] == "run"
    done = subprocess.run([*command, "--resume"], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    fb_verify(tmp_path / "out")
