"""A folder that a GGUF file was converted to has its tokenizer."""

import torch
from transformers import AutoTokenizer

import fewbit as fb

TEXTS = ("low lower lowest", "def f(a, b):\n    return a/b", "don't, won't")


def test_the_tokenizer_of_a_file_becomes_files_of_the_folder(tmp_path, language_model, tokenizer, files_of):
    language_model("llama", vocab_size=400).save_pretrained(tmp_path / "model")
    for name, content in files_of(tokenizer("gpt-2")).items():
        (tmp_path / "model" / name).write_bytes(content)
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="q4_0")])
    fb.quantize(str(tmp_path / "model"), recipe, to="gguf", dtype="float32").save(tmp_path / "m.gguf")
    fb.convert(tmp_path / "m.gguf", tmp_path / "folder", "gptq")
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "folder"))
    assert [after(text)["input_ids"] for text in TEXTS] == [before(text)["input_ids"] for text in TEXTS]
    assert after.eos_token == "<|end|>"
    assert after.chat_template == "{{ messages }}"
    loaded = fb.load(tmp_path / "folder")
    assert loaded.source.tokenizer()(TEXTS[0])["input_ids"] == before(TEXTS[0])["input_ids"]
    assert torch.isfinite(loaded.model(torch.tensor([before(TEXTS[0])["input_ids"]])).logits).all()
