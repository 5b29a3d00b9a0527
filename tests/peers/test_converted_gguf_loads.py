"""transformers with compressed-tensors loads what a GGUF file was converted to as the weights that the file holds."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import fewbit as fb

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.mark.parametrize("weight", ["q4_0", "q8_0", "q5_0", "q6_k", "q3_k", "iq4_nl"])
def test_every_weight_and_every_logit_is_that_of_the_file(tmp_path, language_model, weight):
    rules = [fb.Rule(kind="linear", weight=weight), fb.Rule(kind="embedding", weight="q8_0")]
    model = language_model("llama tied", **SIZES)
    path = fb.quantize(model, fb.Recipe(rules), to="gguf", dtype="float32").save(tmp_path / "m.gguf")
    fb.convert(path, tmp_path / "folder", "compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = theirs(tokens).logits  # the first forward decompresses
        assert torch.equal(logits, fb.load(tmp_path / "folder").model(tokens).logits)
    stored = {own.name: own for own in gguf.GGUFReader(path).tensors}
    for name, module in {"ffn_up": "up_proj", "ffn_down": "down_proj"}.items():
        own = stored[f"blk.0.{name}.weight"]
        found = theirs.get_submodule(f"model.layers.0.mlp.{module}").weight.detach().numpy()
        assert np.array_equal(found, gguf.dequantize(own.data, own.tensor_type))
    if weight == "q4_0":  # the sign of a scale counts: the search gives half of them a minus
        scales = own.data.reshape(-1, 18)[:, :2].copy().view(np.float16)
        assert 0.2 < (scales < 0).mean() < 0.8
