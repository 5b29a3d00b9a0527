"""`fewbit quantize --memory`, `--resume` and `fewbit verify` as a user sees them."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_tokenizer):
    """A float Llama of two blocks; `made` has one, which repeats nothing."""
    folder = tmp_path_factory.mktemp("two") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, dtype=torch.bfloat16, initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("options", [["--memory", "8GB"], ["--resume"]])
def test_a_folder_goes_from_disk_to_disk(run, model, made, tmp_path, options):
    code, out, err = run("quantize", model, "-o", tmp_path / "out", "--recipe", "w4a16", *options,
                         "--calibration", made / "text.txt", "--calibration-length", 16)  # fmt: skip
    assert code == 0, err
    assert "predicted: at most " in out
    assert f"written                {tmp_path / 'out'}" in out
    code, out, _ = run("verify", tmp_path / "out")
    assert (code, out.endswith("as they were written\n")) == (0, True)
    assert json.loads(run("verify", tmp_path / "out", "--json")[1])["files"] == len(list((tmp_path / "out").iterdir()))


def test_a_dry_run_says_what_it_would_take(run, made, tmp_path):
    code, out, _ = run("quantize", made / "model", "--recipe", "w8a16", "--memory", "8GB", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["predicted"].keys() == {"memory", "disk", "seconds"}
    assert json.loads(out)["predicted"]["memory"] < 8e9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "w4a16", "--memory", "8GB"], "needs calibration data, and a model that is read block by block"),
        (["--recipe", "w8a16", "--memory", "1MB"], "and --memory is 1,000,000"),
        (["--recipe", "w8a16", "--memory", "much"], "'much' is no size"),
        (["--recipe", "w8a16", "--memory", "8GB", "--text", "t"], "--text does not go with --memory and --resume"),
        (["--recipe", "w8a16", "--resume", "--data", "d"], "--data does not go with --memory and --resume"),
    ],
)
def test_what_cannot_be_is_one_line(run, model, tmp_path, options, message):
    code, out, err = run("quantize", model, "-o", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_verify_names_what_changed(run, made, tmp_path):
    assert run("quantize", made / "model", "-o", tmp_path / "out", "--recipe", "w8a16", "--memory", "8GB")[0] == 0
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "tokenizer.json").unlink()
    code, out, err = run("verify", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "config.json has 2 bytes" in err
    assert "tokenizer.json is missing" in err


def test_a_model_without_repeated_blocks_is_for_memory(run, made, tmp_path):
    code, _, err = run("quantize", made / "model", "-o", tmp_path / "out", "--memory", "8GB",
                       "--calibration", made / "text.txt")  # fmt: skip
    assert code == 2
    assert "the model has no repeated blocks, and recipe w4a16 needs data" in err
