"""Saving is interrupted at every single line, and leaves the new model, the old one or none: never a part of one."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.checkpoints.folder import settle_all

PACKAGE = str(Path(fb.__file__).parent)
NEW = ["config.json", "model.safetensors", "report.html", "report.json"]
OLD = ["config.json", "old"]


class Interrupter:
    """Raises `KeyboardInterrupt` at one line of fewbit's own code, as a signal would."""

    def __init__(self, line):
        self.left = line

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupted(work, line):
    """Whether `work` was interrupted; else it ended before its `line`-th line."""
    before = sys.gettrace()
    sys.settrace(Interrupter(line))
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("existing", [False, True])
def test_at_every_line_of_saving_there_is_a_whole_model_or_none(tmp_path, monkeypatch, existing):
    torch.manual_seed(0)
    result = fb.quantize(nn.Sequential(nn.Linear(64, 8)), "w8a16", to="compressed-tensors")
    files = result.report.files()
    # The page is drawn before the folder is begun; drawn anew for every line it would take minutes.
    monkeypatch.setattr(type(result.report), "files", lambda self: files)
    line, seen = 0, set()
    while True:
        line += 1
        place = tmp_path / f"{line}"
        place.mkdir()
        if existing:
            (place / "out").mkdir()
            for name in OLD:
                (place / "out" / name).write_text("{}")
        broken = interrupted(lambda: result.save(place / "out", overwrite=existing), line)  # noqa: B023
        settle_all()
        left = names(place)
        assert left == ["out"] or (left == [] and not existing), f"line {line}: {left}"
        there = names(place / "out") if left else None
        assert there in ([OLD, NEW] if existing else [None, NEW]), f"line {line}: {there}"
        seen.add(str(there))
        if not broken:
            break
    assert line > 300
    assert there == NEW
    assert len(seen) == 2
    assert fb.load(place / "out", into=nn.Sequential(nn.Linear(64, 8))).model[0].qtensor.codes.shape == (8, 64)
