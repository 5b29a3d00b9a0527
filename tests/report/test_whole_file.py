"""A report's file appears whole or not at all."""

import os
import sys

import pytest

from fewbit.whole_file import write_whole


def names(folder):
    """What lies in the folder."""
    return [path.name for path in folder.iterdir()]


def test_a_file_is_written_over_what_stood_there_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["report.json"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "report.json")
    write_whole(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "report.json").read_bytes() == b"new"


def interrupted_at(line, path):
    """Write with an interrupt at the given number of executed lines; whether one came."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace if frame.f_code.co_filename.endswith("whole_file.py") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        write_whole(path, b"new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# An interrupt between the opening of a file and the `with` that closes it leaves that to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "report.json"
    line, seen = 0, set()
    while True:
        path.write_bytes(b"old")
        line += 1
        came = interrupted_at(line, path)
        seen.add(path.read_bytes())
        # The one line that cannot be saved is the removal itself: then a hidden file is left beside a whole one.
        assert len([name for name in names(tmp_path) if not name.startswith(".")]) == 1
        if not came:
            break
    assert line > 6
    assert seen == {b"old", b"new"}


def test_no_space_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["report.json"]
