"""Tokenizers of every split that has a word in GGUF, trained on a few texts."""

import io
import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fewbit.checkpoints.gguf.pre_tokenizers import _CASED, _CL100K, _ENDINGS

TEXTS = [
    "The quick brown fox jumps over the lazy dog. I'm sure they'll DON'T we've 12345 apples, 6.7 pears!\n\n  x = y[3];",
    "naïve façade — 漢字かな 😀 Straße ÉCOLE camelCaseWords XMLHttpRequest\t\ttabs   and  spaces \r\n end",
    "def f(a, b):\n    return a/b  # comment\n\n\nclass Foo: pass 1000000 2,000 3rd",
] * 4


def _split(expression):
    return pre_tokenizers.Split(Regex(expression), "isolated")


_BYTES = {"add_prefix_space": False}
SPLITS = {
    "gpt-2": (pre_tokenizers.ByteLevel(**_BYTES), False),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**_BYTES)]),
        False,
    ),
    "llama-bpe": (_CL100K % "{1,3}", True),
    "dbrx": (_CL100K % "{1,3}", False),
    "qwen2": (_CL100K % "", False),
    "tekken": (_CASED % ("", "", ""), True),
    "gpt-4o": (_CASED % (_ENDINGS, _ENDINGS, "{1,3}"), False),
}


@pytest.fixture(scope="session")
def tokenizer():
    """Make a byte-level BPE with the split that a word of GGUF stands for."""

    def made(word, rows=400):
        split, whole = SPLITS[word]
        own = Tokenizer(models.BPE(ignore_merges=whole))
        if isinstance(split, str):
            split = pre_tokenizers.Sequence([_split(split), pre_tokenizers.ByteLevel(use_regex=False, **_BYTES)])
        own.pre_tokenizer = split
        own.decoder = decoders.ByteLevel()
        if word == "qwen2":
            own.normalizer = normalizers.NFC()
        special = ["<|begin|>", "<|end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=rows, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        own.train_from_iterator(TEXTS, trainer)
        if word == "llama-bpe":
            own.post_processor = processors.TemplateProcessing(
                single="<|begin|> $A", special_tokens=[("<|begin|>", own.token_to_id("<|begin|>"))]
            )
        return own

    return made


@pytest.fixture(scope="session")
def files_of():
    """Return a tokenizer as the files of a folder."""

    def files(own, **settings):
        said = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages }}", **settings}
        return {"tokenizer.json": own.to_str().encode(), "tokenizer_config.json": json.dumps(said).encode()}

    return files


@pytest.fixture(scope="session")
def texts():
    """Return texts that every split cuts in another way."""
    return [
        *TEXTS[:3],
        "it's IT'S It'S 1 22 333 4444 a1b2",
        " leading",
        "trailing ",
        "\n\n\n",
        "a\u00a0b",
        "x!!??/\n/y",
    ]


@pytest.fixture(scope="session")
def sentencepiece_model():
    """Return what trains a model of SentencePiece."""

    def made(**options):
        """Train a SentencePiece model on a few words and return its bytes."""
        spm = pytest.importorskip("sentencepiece")
        out = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(["low lower lowest new newer newest wide wider widest"] * 20), model_writer=out,
             byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
            **{"model_type": "bpe", "vocab_size": 290, "user_defined_symbols": ["<user>"], **options},
        )  # fmt: skip
        return out.getvalue()

    return made
