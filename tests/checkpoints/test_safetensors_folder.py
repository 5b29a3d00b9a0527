"""Which files make up a folder: what index and headers agree on, and an error wherever they do not."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewbit.checkpoints.safetensors_folder import INDEX, ONE_FILE, files_of
from fewbit.errors import CheckpointError


def put(path, *names):
    save_file({name: np.zeros(2, np.float32) for name in names}, path)


def index(folder, **placed):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.fixture
def sharded(tmp_path):
    """Two shards of two tensors each and their index."""
    put(tmp_path / "one.safetensors", "a", "b")
    put(tmp_path / "two.safetensors", "c", "d")
    index(tmp_path, a="one.safetensors", b="one.safetensors", c="two.safetensors", d="two.safetensors")
    return tmp_path


def refused(folder, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        files_of(folder)


def test_an_index_says_which_files(sharded):
    put(sharded / "other.safetensors", "a")
    assert files_of(sharded) == [sharded / "one.safetensors", sharded / "two.safetensors"]


def test_without_index_the_usual_name_counts_and_files_beside_it_do_not(tmp_path):
    put(tmp_path / ONE_FILE, "a")
    put(tmp_path / "consolidated.safetensors", "a")
    assert files_of(tmp_path) == [tmp_path / ONE_FILE]


def test_without_index_and_usual_name_all_files_count(tmp_path):
    put(tmp_path / "y.safetensors", "a")
    put(tmp_path / "x.safetensors", "b")
    assert files_of(tmp_path) == [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]


def test_an_index_that_names_the_usual_file_only_is_fine_beside_it(tmp_path):
    put(tmp_path / ONE_FILE, "a")
    index(tmp_path, a=ONE_FILE)
    assert files_of(tmp_path) == [tmp_path / ONE_FILE]


def test_an_index_beside_another_whole_model_is_ambiguous(sharded):
    put(sharded / ONE_FILE, "a", "b", "c", "d")
    refused(sharded, f"holds both {ONE_FILE} and {INDEX}, which names other files; readers disagree on which counts")


def test_an_index_with_a_tensor_that_its_file_does_not_hold_is_an_error(sharded):
    put(sharded / "one.safetensors", "a")
    refused(sharded, "the index puts tensor 'b' into one.safetensors, which does not hold it (1 such)")


def test_a_file_with_a_tensor_that_the_index_does_not_name_is_an_error(sharded):
    put(sharded / "two.safetensors", "c", "d", "e")
    refused(sharded, "two.safetensors holds tensor e, but the index does not name it; make the index anew")


def test_a_tensor_in_two_files_is_an_error(sharded):
    put(sharded / "two.safetensors", "c", "d", "a")
    refused(sharded, f"tensor a is in one.safetensors and in {sharded / 'two.safetensors'}; which counts is not said")


def test_a_tensor_in_two_files_without_index_is_an_error(tmp_path):
    put(tmp_path / "x.safetensors", "a")
    put(tmp_path / "y.safetensors", "a")
    refused(tmp_path, f"tensor a is in x.safetensors and in {tmp_path / 'y.safetensors'}")


def test_a_tensor_that_moved_to_another_file_is_an_error(sharded):
    put(sharded / "one.safetensors", "a", "c")
    put(sharded / "two.safetensors", "b", "d")
    refused(sharded, "one.safetensors holds tensor c, but the index says two.safetensors; make the index anew")


def test_a_damaged_shard_is_named(sharded):
    (sharded / "two.safetensors").write_bytes(b"\xff" * 20)
    refused(sharded, f"{sharded / 'two.safetensors'} is not a readable safetensors file")


def test_an_index_that_names_a_missing_file_says_which(sharded):
    (sharded / "two.safetensors").unlink()
    refused(sharded, "names two.safetensors, which is not there; is the download complete?")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "..\\a.safetensors", "a.bin", "",
        ".hidden.safetensors", "..safetensors", "a.safetensors\n", ["a.safetensors"], None, 7,
    ],
)  # fmt: skip
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for there in (
        tmp_path / "secret.safetensors", folder / "sub" / "a.safetensors", folder / "a.bin",
        folder / ".hidden.safetensors",
    ):  # fmt: skip
        put(there, "t")  # so that only the name can be what is refused
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    refused(folder, f"puts 't' into the file {name!r}; only plain .safetensors names are read")


def test_an_index_whose_files_have_names_that_no_system_takes_or_go_round_in_links_is_incomplete(tmp_path):
    (tmp_path / "round.safetensors").symlink_to(tmp_path / "round.safetensors")
    for name in ("x" * 300 + ".safetensors", "round.safetensors"):
        index(tmp_path, a=name)
        refused(tmp_path, f"names {name[:80]}, which is not there; is the download complete?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("\x00", "is not valid JSON"),
        ("[]", "does not hold a JSON object but a list"),
        ("{}", "is not a safetensors index: its weight_map names no tensor"),
        ('{"weight_map": []}', "is not a safetensors index"),
        ('{"weight_map": {}}', "is not a safetensors index"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "names 'a' twice"),
        ('{"weight_map": ' + "[" * 100_000, "is not read: its JSON nests deeper than 64"),
    ],
)
def test_an_index_that_is_none_is_an_error(tmp_path, content, message):
    (tmp_path / INDEX).write_text(content)
    refused(tmp_path, f"{tmp_path / INDEX} {message}")


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("README.md", "holds no .safetensors file; is the download complete?"),
        ("pytorch_model.bin", "holds no .safetensors file but pytorch_model.bin: reading pickled weights can run code"),
        ("model.pt", "but model.pt: reading pickled weights can run code"),
        ("model.pth", "but model.pth: reading pickled weights can run code"),
        ("model.ckpt", "but model.ckpt: reading pickled weights can run code"),
        ("model-Q4_K_M.gguf", "but model-Q4_K_M.gguf; give that file as the model"),
    ],
)
def test_a_folder_without_weights_says_what_there_is_instead(tmp_path, beside, message):
    (tmp_path / beside).write_bytes(b"")
    refused(tmp_path, message)
