"""A model small enough to be made here, and a way to run a command line in this process."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fewbit.cli.application import main

WORDS = [f"w{number}" for number in range(1, 320)]


@pytest.fixture(scope="session")
def save_tokenizer():
    """Write a tokenizer that gives each of `WORDS` and of some more the number of its place, from 1 on."""

    def save(folder, *more):
        places = {"[UNK]": 0} | {word: place for place, word in enumerate([*WORDS, *more], 1)}
        tokenizer = Tokenizer(models.WordLevel(places, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def made(tmp_path_factory, save_tokenizer):
    """A folder with `model`, a float Llama with its tokenizer, and `text.txt`; tests must not change it."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, dtype=torch.bfloat16,
        initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    (folder / "text.txt").write_text(" ".join(WORDS[::7]), encoding="utf-8")
    return folder


@pytest.fixture
def run(capfd):
    """Run a command line; return its exit code, standard output and standard error, also of other libraries."""

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return left.value.code, printed.out, printed.err

    return call
