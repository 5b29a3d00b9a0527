"""Damaged and lying GGUF files: each is loaded or refused by an error of fewbit, and none takes much memory."""

import random
import tracemalloc

import gguf
import numpy as np
import pytest

import fewbit as fb
from fewbit.checkpoints.gguf.arrays import read_values
from fewbit.checkpoints.gguf.reader import read_checkpoint
from fewbit.checkpoints.gguf_header import read_gguf_header
from fewbit.errors import CheckpointError, FewbitError, NotYetError

CASES, MEMORY = 300, 64 << 20
NAN = float("nan")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory, language_model):
    path = tmp_path_factory.mktemp("genuine") / "m.gguf"
    return fb.quantize(language_model("llama"), "q8_0", to="gguf").save(path)


def read_all(path):
    """Read configuration, arrays and every tensor of a file."""
    checkpoint = read_checkpoint(path)
    header = read_gguf_header(path)
    read_values(path, header, "tokenizer.")
    return {name: value.shape for name, value in checkpoint.tensors()}, checkpoint


def test_mutated_headers_are_read_or_refused(tmp_path, genuine):
    content, path = genuine.read_bytes(), tmp_path / "m.gguf"
    start = read_gguf_header(genuine).data_start
    wanted, _ = read_all(genuine)
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    for number in range(CASES):
        rng = random.Random(number)
        own = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            place = rng.randrange(4, start)
            own[place] = rng.choice([0, 1, 255, own[place] ^ (1 << rng.randrange(8)), rng.randrange(256)])
        path.write_bytes(own[: rng.randrange(len(own))] if rng.random() < 0.1 else own)
        try:
            found, _ = read_all(path)
        except FewbitError:
            outcomes["refused"] += 1
        else:
            assert sum(np.prod(shape) for shape in found.values()) <= sum(np.prod(shape) for shape in wanted.values())
            outcomes["read"] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY
    assert min(outcomes.values()) > CASES // 20  # both happen, so that neither claim is empty


KINDS = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT64, str: gguf.GGUFValueType.STRING,
         bool: gguf.GGUFValueType.BOOL}  # fmt: skip


def written(path, values=(), tensors=(("token_embd.weight", (8, 32)),)):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 8, "embedding_length": 32, "block_count": 1, "attention.head_count": 2, **dict(values)
    }.items():  # fmt: skip
        kind = gguf.GGUFValueType.INT32 if type(value) is int and value < 0 else KINDS[type(value)]
        writer.add_key_value(f"llama.{key}", value, kind)
    for name, shape in tensors:
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("values", "tensors", "error", "message"),
    [
        ({"block_count": 10**9}, None, CheckpointError, "says it has 1000000000 blocks, and holds 1 tensors"),
        ({"attention.head_count": "two"}, None, NotYetError, "head_count = 'two', where one number is read"),
        ({"attention.head_count": 0}, None, CheckpointError, "llama.attention.head_count = 0"),
        ({"attention.head_count": -2}, None, CheckpointError, "head_count = -2, which has to be a whole number"),
        ({"attention.head_count_kv": 0.5}, None, CheckpointError, "head_count_kv = 0.5, which has to be a whole num"),
        ({"embedding_length": 0}, None, CheckpointError, "llama.embedding_length = 0, which has to be a whole number"),
        ({"attention.layer_norm_rms_epsilon": NAN}, None, CheckpointError, "epsilon = nan, which has to be a number f"),
        ({"attention.layer_norm_rms_epsilon": 1e300}, None, CheckpointError, r"epsilon = 1e\+300, which has to be a n"),
        ({"rope.freq_base": 0.0}, None, CheckpointError, "rope.freq_base = 0.0, which has to be a number above 0"),
        ({"rope.freq_base": NAN}, None, CheckpointError, "rope.freq_base = nan, which has to be a number above 0"),
        ({"rope.freq_base": True}, None, CheckpointError, "rope.freq_base = True, which has to be a number above 0"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
            None,
            CheckpointError,
            "rope.scaling.original_context_length = None",
        ),
        ({}, [("a.weight", (1, 32))], CheckpointError, "holds no token_embd.weight"),
        ({}, [("token_embd.weight", (8, 32)), ("blk.7.attn_q.weight", (2, 32))], NotYetError, "has no place for here"),
        (
            {},
            [("token_embd.weight", (8, 32)), ("blk.0.attn_q.weight", (3, 32))],
            CheckpointError,
            "3 rows, which are no 2 heads",
        ),
    ],
)
def test_lies_are_named(tmp_path, values, tensors, error, message):
    path = written(tmp_path / "m.gguf", values, *([tensors] if tensors else []))
    with pytest.raises(error, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("shape", [(8 * 34,), (2, 4, 34)])
def test_blocks_that_are_no_matrix_are_named(tmp_path, shape):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"context_length": 8, "embedding_length": 32, "block_count": 1, "attention.head_count": 2}
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros(shape, np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"token_embd.weight the shape .*, which is that of no matrix"):
        read_checkpoint(path)


def test_a_scale_that_is_no_number_is_refused_with_its_tensor(tmp_path, genuine):
    header = read_gguf_header(genuine)
    own = next(tensor for tensor in header.tensors if tensor.name == "blk.1.attn_q.weight")
    content = bytearray(genuine.read_bytes())
    place = header.data_start + own.offset
    content[place : place + 2] = np.float16(np.inf).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight: 1 of its Q8_0 scales are NaN or infinite"):
        fb.load(path)


def test_an_array_where_a_special_token_should_be_is_none(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"embedding_length": 32, "block_count": 1, "attention.head_count": 2}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_array("tokenizer.ggml.bos_token_id", [3, 4, 5])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 7)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    configuration = read_checkpoint(path).configuration
    assert (configuration["bos_token_id"], configuration["eos_token_id"]) == (None, 7)
