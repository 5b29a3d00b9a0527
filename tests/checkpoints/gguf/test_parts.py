"""A model in several GGUF files: every part as llama.cpp wants it, read as one, complete or not there at all."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.checkpoints.gguf_parts import read_gguf
from fewbit.errors import CheckpointError, NotYetError, RecipeError, SourceError
from fewbit.evaluation.size import bytes_on_disk
from fewbit.part_names import part_of
from fewbit.sources import open_source

SIZE = 20_000


@pytest.fixture(scope="module")
def result(language_model):
    """A small quantized model."""
    return fb.quantize(language_model("llama"), "q8_0", to="gguf", dtype="float32")


@pytest.fixture
def first(result, tmp_path):
    """The first part of it in several files."""
    return result.save(tmp_path / "m.gguf", shard_size=SIZE)


def parts(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".gguf")


def bits(tensors):
    return {own.name: (own.tensor_type, own.data.tobytes()) for own in tensors}


def test_the_parts_are_named_and_numbered_and_hold_every_tensor_once(result, first, tmp_path):
    found = parts(tmp_path)
    count = len(found)
    assert count > 3
    assert found == [part_of(tmp_path / "m.gguf", number, count) for number in range(count)]
    assert first == found[0]
    whole = gguf.GGUFReader(result.save(tmp_path / "whole" / "m.gguf"))
    together = {}
    for number, path in enumerate(found):
        reader = gguf.GGUFReader(path)
        for key, value, kind in (("no", number, "UINT16"), ("count", count, "UINT16"),
                                 ("tensors.count", len(whole.tensors), "INT32")):  # fmt: skip
            field = reader.fields[f"split.{key}"]
            assert (field.contents(), field.types[0].name) == (value, kind)
        told = {key for key in reader.fields if not key.startswith(("GGUF.", "split."))}
        assert (told == {"general.architecture"}) == (number > 0)
        assert not together.keys() & bits(reader.tensors).keys()
        together |= bits(reader.tensors)
        sizes = [own.n_bytes for own in reader.tensors]
        assert sum(sizes) <= SIZE or len(sizes) == 1
    assert together == bits(whole.tensors)
    assert bytes_on_disk(first) == sum(path.stat().st_size for path in found)


def test_the_first_part_is_read_as_the_whole_model(result, first, tmp_path):
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = fb.load(result.save(tmp_path / "whole" / "m.gguf")).model(tokens).logits
        assert torch.equal(fb.load(first).model(tokens).logits, expected)
        floats = open_source(first).load()(tokens).logits
    assert (floats - expected).abs().max() < 1e-4 * expected.abs().max()  # the order of sums


def test_parts_convert_to_a_folder_and_a_folder_to_parts(first, tmp_path):
    fb.convert(first, tmp_path / "folder", "compressed-tensors", shard_size="50kB")
    assert len(list((tmp_path / "folder").glob("model-*.safetensors"))) > 2
    done = fb.convert(tmp_path / "folder", tmp_path / "again.gguf", "gguf", shard_size=SIZE)
    assert done.lossy == ()
    assert done.path.name.startswith("again-00001-of-0000")
    before, after = (fb.load(path).model.state_dict() for path in (first, done.path))
    assert all(torch.equal(before[name], after[name]) for name in before if ".layers." in name)


def test_a_model_that_fits_is_one_file(result, tmp_path):
    assert result.save(tmp_path / "m.gguf", shard_size="1GB") == tmp_path / "m.gguf"
    assert "split.count" not in read_gguf(tmp_path / "m.gguf").values


def test_the_report_stands_beside_under_the_name_of_the_model(first, tmp_path):
    assert {"m.report.json", "m.report.html"} <= {path.name for path in tmp_path.iterdir()}


def damaged(first, change):
    found = parts(first.parent)
    change(found)
    return found


def swapped(found):
    second, third = found[1].read_bytes(), found[2].read_bytes()
    found[1].write_bytes(third)
    found[2].write_bytes(second)


def renamed(found):
    for path in found:
        path.rename(path.with_name(path.name.replace("m-", "part-").replace("-of-", "_of_")))


DAMAGES = {
    "a part that is missing": (lambda found: found[2].unlink(), "and m-00003-of-0000"),
    "parts in another order": (swapped, "says it is part 2 of "),
    "a part twice": (lambda found: found[1].write_bytes(found[2].read_bytes()), "it belongs to another model"),
    "a part cut off": (lambda found: found[1].write_bytes(found[1].read_bytes()[:-1000]), "is the download complete?"),
    "a part that is none": (lambda found: found[1].write_bytes(b"GGML"), "is not a GGUF file"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_parts_that_do_not_belong_together_are_refused(first, case):
    change, message = DAMAGES[case]
    damaged(first, change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        fb.load(first)
    with pytest.raises(SourceError, match=re.escape(message)):
        open_source(first)


def test_another_than_the_first_part_and_other_names_are_refused(first):
    second = parts(first.parent)[1]
    with pytest.raises(CheckpointError, match=r"is not the first of \d parts \(split.no = 1\); give that one"):
        fb.load(second)
    renamed(parts(first.parent))
    with pytest.raises(CheckpointError, match=r"by its name the others are not found; call it part-00001_of_0000\d-"):
        fb.load(parts(first.parent)[0])


@pytest.mark.parametrize(("name", "message"), [
    ("other.weight", r"says that its parts hold \d+ tensors, and they hold \d+; they are not of one model"),
    ("token_embd.weight", r"tensor token_embd.weight is in m-00001-of-\d+.gguf and in .*; which counts is not said"),
])  # fmt: skip
def test_a_part_with_other_tensors_is_refused(first, name, message):
    last = parts(first.parent)[-1]
    number = len(parts(first.parent))
    writer = gguf.GGUFWriter(last, "llama")
    writer.add_uint16("split.no", number - 1)
    writer.add_uint16("split.count", number)
    writer.add_tensor(name, np.zeros((2, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(CheckpointError, match=message):
        fb.load(first)


def test_all_parts_appear_or_none(result, tmp_path, monkeypatch):
    before, moves = Path.replace, []

    def failing(self, target):
        moves.append(target)
        if len(moves) == 3:
            raise OSError(5, "Input/output error")
        return before(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        result.save(tmp_path / "m.gguf", shard_size=SIZE)
    assert len(moves) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_first_part_gets_its_name_last(result, tmp_path, monkeypatch):
    before, moves = Path.replace, []
    monkeypatch.setattr(Path, "replace", lambda self, target: moves.append(target) or before(self, target))
    first = result.save(tmp_path / "m.gguf", shard_size=SIZE)
    assert [path for path in moves if path.suffix == ".gguf"] == parts(tmp_path)[::-1]
    assert first == parts(tmp_path)[0]


def test_a_part_that_is_there_stays_unless_it_may_go(result, first, tmp_path):
    content = [path.read_bytes() for path in parts(tmp_path)]
    with pytest.raises(CheckpointError, match="exists; choose another name or pass overwrite"):
        result.save(tmp_path / "m.gguf", shard_size=SIZE)
    result.save(tmp_path / "m.gguf", shard_size=SIZE, overwrite=True)
    assert [path.read_bytes() for path in parts(tmp_path)] == content


@pytest.mark.parametrize(("path", "size", "message"), [
    ("m.gguf", "2 apples", "'2 apples' is no size; write 2GB, 500MB or a number of bytes"),
    ("m.gguf", 0, "0 is no size"), ("m.onnx", "2GB", "an ONNX file is not written in parts"),
])  # fmt: skip
def test_sizes_that_are_none_are_refused(result, tmp_path, path, size, message):
    with pytest.raises(RecipeError, match=message):
        result.save(tmp_path / path, shard_size=size)


def test_other_families_in_parts_are_loaded_and_not_read_as_floats(tmp_path, language_model):
    made = fb.quantize(language_model("qwen2"), "q8_0", to="gguf", dtype="float32")
    first = made.save(tmp_path / "m.gguf", shard_size=SIZE)
    assert np.isfinite(fb.load(first).model(torch.arange(5)[None]).logits.detach().numpy()).all()
    with pytest.raises(NotYetError, match=r"is the first of \d parts, and transformers, which reads models other than"):
        open_source(first)
