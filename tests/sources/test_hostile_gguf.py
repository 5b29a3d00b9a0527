"""GGUF files that are damaged, contradict themselves or are no model: a clear error through the API's own entry."""

import re

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import fewbit as fb
from fewbit.errors import FewbitError, NotYetError, SourceError
from fewbit.sources import open_source

WIDTH, INNER, WORDS = 64, 96, 320
KEYS = {
    "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.rope.dimension_count": 16, "llama.vocab_size": WORDS,
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,), "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ffn_norm.weight": (WIDTH,), "blk.0.attn_q.weight": (WIDTH, WIDTH), "blk.0.attn_k.weight": (32, WIDTH),
    "blk.0.attn_v.weight": (32, WIDTH), "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (INNER, WIDTH), "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER),
}  # fmt: skip


def write(path, *, architecture="llama", keys=None, shapes=None, kinds=None):
    """Write a small Llama; `keys` and `shapes` change it, `None` leaves out, and `kinds` are raw types of tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (KEYS | (keys or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint64(key, value) if value >= 2**32 else writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{n}" for n in range(WORDS)])
    writer.add_token_merges(["w 1"])
    for name, shape in (SHAPES | (shapes or {})).items():
        kind = (kinds or {}).get(name)
        if shape is not None:
            size = gguf.GGML_QUANT_SIZES[kind] if kind is not None else (1, 4)
            filled = np.full((*shape[:-1], shape[-1] // size[0] * size[1]), 1, np.uint8)
            writer.add_tensor(name, filled if kind is not None else np.full(shape, 0.1, np.float32), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path, message, kind=SourceError):
    before = sorted(path.parent.iterdir())
    with pytest.raises(FewbitError, match=re.escape(message)) as caught:
        fb.quantize(path, "w8a16")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


def test_the_file_of_these_tests_is_quantized_when_nothing_is_wrong(tmp_path):
    result = fb.quantize(write(tmp_path / "m.gguf"), "w8a16")
    assert result.model(torch.arange(8)[None]).logits.shape == (1, 8, WORDS)


DECODED = [kind for kind in gguf.GGML_QUANT_SIZES if kind not in (Kind.Q1_0, Kind.Q8_1, Kind.Q8_K)]


@pytest.mark.parametrize(
    "kind", [kind for kind in DECODED if gguf.GGML_QUANT_SIZES[kind][0] == 32], ids=lambda kind: kind.name
)
def test_files_of_quantized_types_are_read(tmp_path, kind):
    path = write(tmp_path / "m.gguf", kinds={"blk.0.ffn_up.weight": kind})
    weight = open_source(path).load().model.layers[0].mlp.up_proj.weight
    raw = np.ones((INNER, WIDTH // 32 * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    assert np.array_equal(weight.detach().numpy(), gguf.dequantize(raw, kind), equal_nan=True)


@pytest.mark.parametrize("kind", [Kind.I32, Kind.F64, Kind.Q8_1], ids=lambda kind: kind.name)
def test_types_that_are_not_decoded_are_refused_with_the_name_of_the_tensor(tmp_path, kind):
    path = write(tmp_path / "m.gguf", kinds={"blk.0.ffn_up.weight": kind})
    refused(path, f"tensor blk.0.ffn_up.weight is of type {kind.name}, which the gguf package cannot read", NotYetError)


NO_MODEL = {
    "an adapter": ({"keys": {"general.type": "adapter"}}, "holds no model: its general.type is 'adapter'"),
    "an importance matrix": ({"keys": {"general.type": "imatrix"}}, "holds no model: its general.type is 'imatrix'"),
    "a part": ({"keys": {"split.count": 3}}, "is not the first of 3 parts (split.no = None); give that one"),
    "a vocabulary": ({"shapes": dict.fromkeys(SHAPES)}, "holds no tensor; is it a file of vocabulary only?"),
    "an unknown architecture": ({"architecture": "lama"}, "transformers cannot read the configuration of"),
    "no width": ({"keys": {"llama.embedding_length": None}}, "describes a model of"),
    "no heads": ({"keys": {"llama.attention.head_count": 0}}, "transformers cannot"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_MODEL)
def test_a_file_that_holds_no_whole_model_is_refused(tmp_path, case):
    values, message = NO_MODEL[case]
    refused(write(tmp_path / "m.gguf", **values), message)


ABSURD = {
    "10^9 blocks": ({"llama.block_count": 10**9}, "says llama.block_count = 1000000000, but the files hold 11 tensors"),
    "2^40 blocks": ({"llama.block_count": 2**40}, f"says llama.block_count = {2**40}, but the files hold 11 tensors"),
    "a width of 10^12": ({"llama.embedding_length": 10**12}, "says llama.embedding_length = 1000000000000, but the"),
    "10^9 experts": ({"llama.expert_count": 10**9}, "says llama.expert_count = 1000000000, but the files hold 11"),
    "10^12 words": ({"llama.vocab_size": 10**12}, "says llama.vocab_size = 1000000000000, but the longest axis"),
    "a width that files could have": ({"llama.feed_forward_length": 10**6}, "describes a model of 192"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_size_is_refused_before_anything_is_allocated(tmp_path, case):
    keys, message = ABSURD[case]
    refused(write(tmp_path / "m.gguf", keys=keys), message)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    path = write(tmp_path / "m.gguf", shapes={"blk.0.ffn_up.weight": (INNER, WIDTH + 32)})
    message = "holds model.layers.0.mlp.up_proj.weight of shape [96, 96]; the model of its configuration has [96, 64]"
    refused(path, message)


def test_a_missing_tensor_is_never_filled_at_random(tmp_path):
    path = write(tmp_path / "m.gguf", shapes={"blk.0.ffn_up.weight": None})
    refused(path, "lacks model.layers.0.mlp.up_proj.weight (1 in all); is the download complete")


def test_a_block_more_than_the_file_says_is_never_left_out_in_silence(tmp_path):
    path = write(tmp_path / "m.gguf", shapes={"blk.1.ffn_up.weight": (INNER, WIDTH)})
    refused(path, "says llama.block_count = 1 and holds blk.1.ffn_up.weight; transformers would leave that tensor out")


def test_a_scale_that_transformers_would_leave_out_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf", shapes={"blk.0.ffn_up.scale": (1,)})
    refused(path, "blk.0.ffn_up.scale multiplies a weight, which transformers does not do", NotYetError)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 24, 100, 1000, 10_000, -1])
def test_a_truncated_file_is_refused_and_named(tmp_path, kept):
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not a GGUF file"), (b"GGML\3\0\0\0", "is not a GGUF file"), (b"GGUF\x09\0\0\0", "is GGUF of version 9")],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", message)
