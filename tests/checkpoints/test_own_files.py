"""Links in checkpoints: they lead to another file of the folder, or into a hub's cache, or are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewbit.checkpoints.adapter_folder import read_adapters
from fewbit.checkpoints.gguf_parts import read_gguf
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_folder import INDEX, ONE_FILE, files_of
from fewbit.errors import CheckpointError, SourceError
from fewbit.sources.huggingface import load_tokenizer
from fewbit.sources.model_folder import companion_files, read_configuration

PARTS = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
OUTSIDE = "is a link to .*, outside of its folder; put a copy of the file there if you trust it"
#: What reads a folder, with a file of it, and the error that it raises.
READING = {
    "weights": (files_of, ONE_FILE, CheckpointError),
    "the index": (files_of, INDEX, CheckpointError),
    "the configuration": (read_configuration, "config.json", SourceError),
    "a tokenizer's file that would be copied": (companion_files, "tokenizer.model", SourceError),
    "a template that would be copied": (companion_files, "chat_template.jinja", SourceError),
    "a tokenizer": (load_tokenizer, "vocab.txt", SourceError),
    "adapters": (read_adapters, "adapter_config.json", CheckpointError),
    "the second part": (lambda folder: read_gguf(folder / PARTS[0]), PARTS[1], CheckpointError),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    values = b"".join(
        len(key).to_bytes(8, "little") + key + (4).to_bytes(4, "little") + number.to_bytes(4, "little")
        for key, number in ((b"split.no", 0), (b"split.count", 2), (b"split.tensors.count", 0))
    )
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (3).to_bytes(8, "little")
    (made / PARTS[0]).write_bytes(head + values)
    return made


@pytest.mark.parametrize("what", READING)
def test_a_link_out_of_the_folder_is_refused_before_what_it_leads_to_is_read(folder, tmp_path, what):
    read, name, error = READING[what]
    secret = tmp_path / "secret"
    secret.write_text("the numbers of a card")
    (folder / name).symlink_to(secret)
    with pytest.raises(error, match=OUTSIDE) as caught:
        read(folder)
    assert "card" not in str(caught.value)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "./../model/../secret"])
def test_no_spelling_of_the_outside_passes(folder, target):
    (folder / "tokenizer.json").symlink_to(target)
    (folder.parent / "secret").write_text("{}")
    with pytest.raises(SourceError, match=OUTSIDE):
        companion_files(folder)


def test_links_inside_of_the_folder_and_folders_that_are_links_are_read(folder, tmp_path):
    save_file({"a": np.ones(2, np.float32)}, folder / "weights.safetensors")
    (folder / ONE_FILE).symlink_to("weights.safetensors")
    (tmp_path / "link").symlink_to(folder)
    assert files_of(tmp_path / "link") == [tmp_path / "link" / ONE_FILE]


def test_a_snapshot_of_the_hub_is_read_and_only_its_own_blobs(tmp_path):
    cached, other = tmp_path / "models--a--b", tmp_path / "models--c--d"
    for one in (cached, other):
        (one / "blobs").mkdir(parents=True)
        (one / "blobs" / "0f").write_text(json.dumps({"model_type": "llama"}))
        (one / "snapshots" / "main").mkdir(parents=True)
    folder = cached / "snapshots" / "main"
    (folder / "config.json").symlink_to("../../blobs/0f")
    assert read_configuration(folder) == {"model_type": "llama"}
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(other / "blobs" / "0f")
    with pytest.raises(CheckpointError, match=OUTSIDE):
        require_own(folder / "config.json")
