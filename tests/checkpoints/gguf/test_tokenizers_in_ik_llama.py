"""ik_llama.cpp cuts texts into the tokens that the tokenizer of the model gives, for every split that fewbit knows."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fewbit.checkpoints.gguf.container import Container, Entry
from fewbit.checkpoints.gguf.pre_tokenizers import WORDS
from fewbit.checkpoints.gguf.tokenizer import tokenizer_values

ENGINE = Path(__file__).parents[2] / "peers" / "ik_llama.py"
pytestmark = pytest.mark.skipif(find_spec("ik_llama_cpp") is None, reason="needs ik-llama-cpp-python, Linux on x86-64")
SIZES = {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
         "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 16}  # fmt: skip
SHAPES = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32),
          "attn_output": (32, 32), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}  # fmt: skip


def tokens_in_engine(folder, values, texts):
    """Return the tokens that the engine gives of each text, under a model of zeros with this tokenizer."""
    rows = len(values["tokenizer.ggml.tokens"])
    entries = [Entry("token_embd.weight", "F32", (rows, 32)), Entry("output_norm.weight", "F32", (32,))]
    entries += [Entry(f"blk.0.{name}.weight", "F32", shape) for name, shape in SHAPES.items()]
    values = {"general.type": "model", **{f"llama.{key}": value for key, value in SIZES.items()}, **values}
    made = Container(folder / "m.gguf", "llama", values, entries, overwrite=False)
    for own in entries:
        made.put(own.name, np.zeros(own.nbytes, np.uint8))
    made.close()
    (folder / "texts.json").write_text(json.dumps(texts))
    arguments = [folder / "m.gguf", folder / "texts.json", folder / "tokens.json"]
    done = subprocess.run(
        [sys.executable, ENGINE, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "tokens.json").read_text())


@pytest.mark.parametrize("word", WORDS)
def test_a_byte_level_bpe_gives_the_same_tokens(tmp_path, tokenizer, files_of, texts, word):
    own = tokenizer(word, rows=700)
    # For these two llama.cpp tells upper and lower case of ASCII only.
    texts = [text for text in texts if text.isascii() or word not in ("tekken", "gpt-4o")]
    values = tokenizer_values(files_of(own), {"vocab_size": own.get_vocab_size()})
    expected = [own.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokens_in_engine(tmp_path, values, texts) == expected


def test_a_wrong_word_gives_other_tokens(tmp_path, tokenizer, files_of, texts):
    own = tokenizer("gpt-2", rows=700)
    values = tokenizer_values(files_of(own), {"vocab_size": own.get_vocab_size()}, pre="smollm")
    expected = [own.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokens_in_engine(tmp_path, values, texts) != expected


def test_sentencepiece_gives_the_same_tokens(tmp_path, sentencepiece_model):
    spm = pytest.importorskip("sentencepiece")
    content = sentencepiece_model()
    theirs = spm.SentencePieceProcessor(model_proto=content)
    values = tokenizer_values({"tokenizer.model": content}, {"vocab_size": theirs.vocab_size()})
    texts = ["lowest new wider", "a newest low", "naive 漢 x", "lower lower"]
    assert tokens_in_engine(tmp_path, values, texts) == [theirs.encode(text) for text in texts]
