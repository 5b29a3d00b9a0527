"""The hashes at the end of a report: every file that changed, is missing or was added is named."""

import hashlib
import json
import shutil

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.checkpoints.hashes import verify
from fewbit.errors import CheckpointError


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    return fb.quantize(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8)), "w8a16")


@pytest.fixture(scope="module")
def kept(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("kept") / "out")


@pytest.fixture
def out(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "out")


def test_the_report_lists_what_hashlib_says_of_every_file(out):
    told = json.loads((out / "report.json").read_text())["files"]
    assert sorted(told) == sorted(path.name for path in out.iterdir())
    for name in told.keys() - {"report.json"}:
        content = (out / name).read_bytes()
        assert told[name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_an_output_as_it_was_written_is_told_so(out):
    found = verify(out)
    assert (found.files, found.path) == (4, out)
    assert str(found) == f"{out}: 4 files, {found.nbytes:,} bytes, as they were written"


def test_every_flipped_bit_is_found(out):
    for path in sorted(out.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=str(out)):
                verify(out)
        path.write_bytes(whole)
    verify(out)


def test_all_problems_come_at_once(out):
    (out / "config.json").unlink()
    (out / "more.txt").write_text("more")
    (out / "deep").mkdir()
    (out / "deep" / ".hidden").touch()
    with (out / "report.html").open("ab") as file:
        file.write(b" ")
    shards = out / "model.safetensors"
    raw = bytearray(shards.read_bytes())
    raw[-1] ^= 1
    shards.write_bytes(raw)
    with pytest.raises(CheckpointError) as raised:
        verify(out)
    for text in ("config.json is missing", "more.txt was not written with it", "deep/.hidden was not written with it",
                 "model.safetensors has changed", "report.html has "):  # fmt: skip
        assert text in str(raised.value)


def test_a_report_cannot_name_files_elsewhere(out):
    path = out / "report.json"
    table = json.loads(path.read_text())
    table["files"]["../secret"] = {"sha256": "0", "bytes": 1}
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="its list of files is none"):
        verify(out)


def test_what_has_no_report_says_so(out, tmp_path):
    with pytest.raises(CheckpointError, match="give a folder or a file"):
        verify(tmp_path / "nothing")
    table = json.loads((out / "report.json").read_text())
    del table["files"]
    (out / "report.json").write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="lists no hashes"):
        verify(out)
    (out / "report.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be verified: no report\.json"):
        verify(out)


def test_a_file_is_verified_by_the_report_beside_it(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 8))
    data = [torch.randn(4, 64)]
    result = fb.quantize(module, "w8a8-static", to="ort-cpu", calibration=data)
    path = result.save(tmp_path / "m.onnx")
    assert verify(path).files == 3
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(CheckpointError, match=r"m\.onnx has"):
        verify(path)
