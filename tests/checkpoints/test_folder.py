"""An output folder appears whole or not at all, and nothing that is not a model is ever replaced."""

import os
import stat

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.checkpoints.folder import NewFolder
from fewbit.errors import CheckpointError, FewbitError


def model_folder(path, marker="old"):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / marker).write_text(marker)
    return path


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def small_result():
    torch.manual_seed(0)
    return fb.quantize(nn.Sequential(nn.Linear(64, 8)), "w8a16", to="compressed-tensors")


def test_the_folder_appears_only_when_it_is_complete(tmp_path):
    folder = NewFolder(tmp_path / "out")
    folder.write("a", b"content")
    assert not (tmp_path / "out").exists()
    assert folder.commit() == tmp_path / "out"
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_bytes() == b"content"


def test_it_is_written_beside_its_name_so_that_moving_it_is_a_rename(tmp_path):
    folder = NewFolder(tmp_path / "deep" / "er" / "out")
    assert folder.path.parent == tmp_path / "deep" / "er"
    folder.remove()
    assert names(tmp_path / "deep" / "er") == []


def test_remove_leaves_nothing(tmp_path):
    folder = NewFolder(tmp_path / "out")
    folder.write("a", b"content")
    folder.remove()
    assert names(tmp_path) == []


def test_others_may_read_it_as_any_new_folder(tmp_path):
    (tmp_path / "usual").mkdir()
    NewFolder(tmp_path / "out").commit()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "out")]
    assert modes[0] == modes[1]


def test_the_umask_is_heeded_and_left_alone(tmp_path):
    before = os.umask(0o077)
    try:
        path = NewFolder(tmp_path / "out").commit()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_not_overwritten_unless_asked(tmp_path, kind):
    path = tmp_path / "out"
    model_folder(path) if kind == "folder" else path.write_text("mine")
    with pytest.raises(CheckpointError, match=r"out exists; choose another name or pass overwrite \(--overwrite\)"):
        NewFolder(path)
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    folder = NewFolder(tmp_path / "out")
    model_folder(tmp_path / "out")
    with pytest.raises(CheckpointError, match="out exists"):
        folder.commit()
    folder.remove()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "old"]


def test_overwrite_replaces_the_whole_folder(tmp_path):
    folder = NewFolder(model_folder(tmp_path / "out"), overwrite=True)
    folder.write("new", b"new")
    assert names(tmp_path / "out") == ["config.json", "old"]  # until it is complete
    folder.commit()
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def test_overwrite_that_is_given_up_leaves_the_old_folder(tmp_path):
    folder = NewFolder(model_folder(tmp_path / "out"), overwrite=True)
    folder.write("new", b"new")
    folder.remove()
    assert names(tmp_path / "out") == ["config.json", "old"]
    assert names(tmp_path) == ["out"]


def test_overwrite_takes_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    folder = NewFolder(tmp_path / "out", overwrite=True)
    folder.write("new", b"new")
    folder.commit()
    assert names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwrite_refuses_what_is_no_model_folder(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a model folder and is not overwritten; remove it yourself"):
        NewFolder(path, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (path if kind == "file" else path / "thesis.tex").read_text() == "mine"


def test_overwriting_a_link_to_a_model_folder_leaves_no_debris(tmp_path):
    (tmp_path / "link").symlink_to(model_folder(tmp_path / "real"))
    folder = NewFolder(tmp_path / "link", overwrite=True)
    folder.write("new", b"new")
    folder.commit()
    assert names(tmp_path) == ["link", "real"]
    assert names(tmp_path / "link") == ["new"]


@pytest.mark.parametrize("name", ["../a", "a/b", "/etc/a", "..", ".", "", "a/"])
def test_a_file_name_with_path_parts_is_refused(tmp_path, name):
    folder = NewFolder(tmp_path / "out")
    with pytest.raises(CheckpointError, match="is not a plain name"):
        folder.write(name, b"")
    assert names(folder.path) == []
    assert names(tmp_path) == [folder.path.name]


def test_a_place_where_nothing_can_be_made_is_an_error_of_fewbit(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot create a folder beside .*out"):
        NewFolder(tmp_path / "file" / "out")


# The same through Result.save.


class BrokenOffError(Exception):
    """Stands for anything that may go wrong while tensors are written."""


@pytest.mark.parametrize("error", [BrokenOffError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_an_exception_while_saving_leaves_nothing_behind(tmp_path, monkeypatch, error, existing):
    from fewbit.frontends.torch.frontend import TorchFrontend

    whole = TorchFrontend.tensors

    def broken(self, model, storage_type):
        yield next(iter(whole(self, model, storage_type)))
        raise error

    result = small_result()
    if existing:
        model_folder(tmp_path / "out")
    monkeypatch.setattr(TorchFrontend, "tensors", broken)
    with pytest.raises(FewbitError if error is OSError else error):
        result.save(tmp_path / "out", overwrite=existing)
    assert names(tmp_path) == (["out"] if existing else [])
    assert not existing or names(tmp_path / "out") == ["config.json", "old"]


def test_a_saved_folder_holds_weights_configuration_and_report(tmp_path):
    path = small_result().save(tmp_path / "out")
    assert names(path) == ["config.json", "model.safetensors", "report.html", "report.json"]
    assert names(tmp_path) == ["out"]
