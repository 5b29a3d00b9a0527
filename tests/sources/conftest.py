"""A small float Llama with its tokenizer, made once, and copies of it to break."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(1, 320)]


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """The folder of the model; tests must not change it."""
    folder = tmp_path_factory.mktemp("made") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, dtype=torch.float32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {w: i for i, w in enumerate(WORDS, 1)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture
def model(llama, tmp_path):
    """A copy of that folder, the only thing in `tmp_path`."""
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture
def configure(model):
    """Change values of a JSON file of the copy; `None` removes a key."""

    def change(file="config.json", /, **values):
        path = model / file
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return model

    return change
