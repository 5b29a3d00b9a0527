"""A Llama out of a GGUF file is bit for bit the model, and has the tokenizer, that transformers reads out of it."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer

from fewbit.checkpoints.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from fewbit.errors import SourceError
from fewbit.sources import open_source
from fewbit.sources.gguf import _is_decoded
from fewbit.sources.gguf_llama import is_llama
from fewbit.sources.gguf_numbers import read_numbers

WIDTH, INNER, WORDS, HEADS, KEY_HEADS = 256, 512, 320, 8, 2
KEYS = {
    "block_count": 2, "context_length": 64, "embedding_length": WIDTH, "feed_forward_length": INNER,
    "attention.head_count": HEADS, "attention.head_count_kv": KEY_HEADS, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": WIDTH // HEADS, "rope.freq_base": 5e4, "vocab_size": WORDS,
}  # fmt: skip
OUTSIDE = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,)}
INSIDE = {
    "attn_norm.weight": (WIDTH,), "attn_q.weight": (WIDTH, WIDTH), "attn_k.weight": (WIDTH // 4, WIDTH),
    "attn_v.weight": (WIDTH // 4, WIDTH), "attn_output.weight": (WIDTH, WIDTH), "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (INNER, WIDTH), "ffn_up.weight": (INNER, WIDTH), "ffn_down.weight": (WIDTH, INNER),
}  # fmt: skip
SHAPES = OUTSIDE | {f"blk.{block}.{name}": shape for block in (0, 1) for name, shape in INSIDE.items()}


def write(path, *, architecture="llama", name=None, keys=None, shapes=None, kind=Kind.F32, bos=1):
    """Write a Llama of random numbers, its matrices of type `kind`; `None` leaves a key or tensor out."""
    writer, draw = gguf.GGUFWriter(path, architecture), np.random.default_rng(0)
    if name:
        writer.add_name(name)
    for key, value in (KEYS | (keys or {})).items():
        if value is not None:
            kinds = {float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
            kinds[type(value)](f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{n}" for n in range(WORDS)])
    writer.add_token_merges(["w 1"])
    if bos is not None:
        writer.add_bos_token_id(bos)
    for tensor, shape in (SHAPES | (shapes or {})).items():
        if shape is not None:
            numbers = draw.normal(size=shape).astype(np.float32)
            form = kind if len(shape) == 2 else Kind.F32
            writer.add_tensor(tensor, gguf.quantize(numbers, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def require_equal(path, source, tokens):
    """Compare everything that `source` reads with what transformers reads out of the file."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    ours = source.load()
    assert type(ours) is type(theirs)
    for part in ("state_dict", "named_buffers"):
        expected, found = dict(getattr(theirs, part)()), dict(getattr(ours, part)())
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    tied = ours.lm_head.weight is ours.model.embed_tokens.weight
    assert tied == (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == ours.config.tie_word_embeddings
    configuration = theirs.config.to_dict()
    # The type, its class and how it was loaded are what transformers adds while it loads.
    for key in ("architectures", "quantization_config", "dtype", "_name_or_path", "_model_name_or_path"):
        configuration.pop(key, None)
    found = dict(source.configuration())
    assert (found.pop("architectures"), found.pop("dtype", None)) == ([type(theirs).__name__], None)
    assert found == configuration
    return ours


KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.TQ1_0, Kind.TQ2_0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_of_every_type_that_can_be_written_equal_those_of_transformers(tmp_path, kind):
    path = write(tmp_path / "m.gguf", kind=kind)
    assert is_llama(read_gguf_header(path))
    require_equal(path, open_source(path), torch.arange(40)[None])


CASES = {
    "a head of its own": {"shapes": {"output.weight": (WORDS, WIDTH)}},
    "as many key heads as heads": {
        "keys": {"attention.head_count_kv": HEADS},
        "shapes": {f"blk.{block}.attn_{part}.weight": (WIDTH, WIDTH) for block in (0, 1) for part in "kv"},
    },
    "keys left out": {"keys": dict.fromkeys(("rope.freq_base", "rope.dimension_count", "vocab_size"))},
    "no first token": {"bos": None},
    "a name": {"name": "tiny llama"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_configurations_of_every_kind_equal_those_of_transformers(tmp_path, case):
    path = write(tmp_path / "m.gguf", **CASES[case])
    assert is_llama(read_gguf_header(path))
    require_equal(path, open_source(path), torch.arange(40)[None])


def test_rows_of_q_and_k_are_put_in_another_order_and_no_others(tmp_path):
    path = write(tmp_path / "m.gguf")
    header = read_gguf_header(path)
    stored = {tensor.name: torch.from_numpy(read_numbers(path, header, tensor)) for tensor in header.tensors}
    attention = open_source(path).load().model.layers[1].self_attn
    for part, heads in (("q", HEADS), ("k", KEY_HEADS)):
        rows = stored[f"blk.1.attn_{part}.weight"].reshape(heads, -1, WIDTH)
        expected = torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1).reshape(-1, WIDTH)
        assert torch.equal(getattr(attention, f"{part}_proj").weight, expected)
        assert not torch.equal(rows.reshape(-1, WIDTH), expected)
    assert torch.equal(attention.v_proj.weight, stored["blk.1.attn_v.weight"])


OTHERS = {
    "factors for the angles": {"shapes": {"rope_freqs.weight": (WIDTH // HEADS // 2,)}},
    "a bias": {"shapes": {"blk.0.attn_q.bias": (WIDTH,)}},
    "a list of head counts": {"keys": {"attention.head_count_kv": [2, 2]}},
    "another architecture": {
        "architecture": "qwen2",
        "shapes": {f"blk.{block}.attn_{part}.bias": (WIDTH if part == "q" else WIDTH // 4,)
                   for block in (0, 1) for part in "qkv"},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_left_to_transformers(tmp_path, case):
    assert not is_llama(read_gguf_header(write(tmp_path / "m.gguf", **OTHERS[case])))


def test_what_is_left_to_transformers_is_loaded_by_it(tmp_path):
    path = write(tmp_path / "m.gguf", **OTHERS["another architecture"])
    require_equal(path, open_source(path), torch.arange(40)[None])


DECODED = [kind for kind in gguf.GGML_QUANT_SIZES if _is_decoded(kind.name)]


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_numbers_decoded_in_pieces_are_those_decoded_at_once(tmp_path, kind):
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    # Two pieces of 2^17 numbers and a shorter one, at a byte that is not the first.
    shape = (3, (1 << 17) // 256 * 250)
    raw = np.random.default_rng(0).integers(0, 256, (3, shape[1] // block * block_bytes), np.uint8)
    (tmp_path / "raw").write_bytes(bytes(96) + raw.tobytes() + bytes(7))
    tensor = GgufTensor("t", shape, kind.name, 32, raw.size)
    found = read_numbers(tmp_path / "raw", GgufHeader(3, {}, (tensor,), 64), tensor)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), shape)
    with np.errstate(all="ignore"):  # random scales overflow
        expected = gguf.dequantize(raw, kind)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf")
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(SourceError, match=r"ended while blk\.1\.ffn_down\.weight was read; is it being written\?"):
        source.load()


@pytest.mark.slow
def test_smollm2_is_bit_for_bit_what_transformers_reads(tmp_path):
    source = open_source("smollm2")
    text = "The Seine flows through Paris, the capital of France; 3 x 7 = 21, naïve café.\n\n\tdef f(x): return x"
    theirs = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf, local_files_only=True)
    ours = source.tokenizer()
    assert type(ours) is type(theirs)
    assert ours(text).input_ids == theirs(text).input_ids
    chat = [{"role": "user", "content": text}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        tokenizer.save_pretrained(tmp_path / name)
    for file in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes(), file.name
    require_equal(source.path, source, theirs(text, return_tensors="pt").input_ids)
