"""Where models come from: modules, folders, GGUF files; and what is refused."""

import json

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fewbit as fb
from fewbit.errors import NotYetError, SourceError
from fewbit.sources import open_source


def save_llama(folder, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, dtype=dtype,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder)
    return model


def test_a_folder_gives_the_same_model_in_float32_and_remembers_its_type(tmp_path):
    model = save_llama(tmp_path)
    source = open_source(tmp_path)
    assert source.storage_type == "bfloat16"
    loaded = source.load()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name


def test_a_skeleton_has_the_plan_of_the_loaded_model_without_reading_weights(tmp_path):
    save_llama(tmp_path)
    whole = fb.plan(open_source(tmp_path).load(), "w4a16", dtype="bfloat16")
    source = open_source(tmp_path)
    skeleton = source.skeleton()
    assert {tensor.device.type for tensor in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    planned = fb.plan(tmp_path, "w4a16")
    assert [row.becomes for row in planned.rows] == [row.becomes for row in whole.rows]
    assert planned.bytes_after == whole.bytes_after


@pytest.mark.parametrize("preset", ["w4a16", "w4a16-asym", "fp8a16"])
def test_a_quantized_folder_loads_back_equal_and_saves_to_the_same_bytes(tmp_path, preset):
    save_llama(tmp_path / "float")
    result = fb.quantize(tmp_path / "float", preset, to="compressed-tensors")
    result.save(tmp_path / "first")
    loaded = fb.load(tmp_path / "first")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, result.model(tokens).logits)
    loaded.save(tmp_path / "second")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert [row.becomes for row in loaded.plan.rows] == [row.becomes for row in result.plan.rows]


def test_a_quantized_folder_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = save_llama(tmp_path / "float")
    fb.quantize(model, "w4a16").save(tmp_path / "quantized")
    file = tmp_path / "quantized" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(fb.FewbitError, match=r"lacks model\.norm\.weight; the folder is incomplete"):
        fb.load(tmp_path / "quantized")


def test_gpt2_runs_quantized_and_its_fused_layers_are_named_when_saving_is_refused(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=16)).eval()
    result = fb.quantize(model, "w8a16")
    assert {row.becomes for row in result.plan.rows if row.layer.kind == "linear"} == {"int8 channel"}
    assert result.model(torch.arange(8)[None]).logits.shape == (1, 8, 300)
    with pytest.raises(fb.FewbitError, match=r"transformer\.h\.0\.attn\.c_attn: .* class Conv1D; keep it"):
        result.save(tmp_path / "out")


def test_a_home_made_module_is_quantized_by_rules_saved_loaded_and_runs_the_same(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(64, 32), nn.Linear(64, 32, bias=False)
            self.norm, self.out = nn.BatchNorm1d(64), nn.Linear(64, 5)

        def forward(self, x):
            return self.out(self.norm(torch.cat([self.left(x).relu(), self.right(x)], dim=-1)))

    torch.manual_seed(0)
    model, inputs = Branches().eval(), torch.randn(9, 64)
    recipe = fb.Recipe([fb.keep("out"), fb.Rule("left", weight="int4 g32 asym"), fb.Rule("right", weight="e4m3")])
    result = fb.quantize(model, recipe)
    expected = model(inputs)
    result.save(tmp_path / "out")
    torch.manual_seed(1)
    loaded = fb.load(tmp_path / "out", into=Branches().eval())
    assert torch.equal(loaded.model(inputs), expected)
    with pytest.raises(fb.FewbitError, match="saved from a module of your own; build it and call"):
        fb.load(tmp_path / "out")
    with pytest.raises(fb.FewbitError, match="holds left of shape"):
        fb.load(tmp_path / "out", into=nn.Sequential(nn.Linear(64, 32)))


def write_config(folder, **values):
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path):
    with pytest.raises(SourceError, match="no model 'nowhere': no such folder or file"):
        open_source("nowhere")
    with pytest.raises(SourceError, match=r"not a model folder: config\.json cannot be read"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"cannot read m\.onnx: No such file"):
        open_source("m.onnx").load()
    with pytest.raises(SourceError, match=r"torch\.nn\.Module, an ONNX model or a path, not dict"):
        open_source({})
    with pytest.raises(NotYetError, match="quantized by 'hqq'"):
        open_source(write_config(tmp_path, model_type="llama", quantization_config={"quant_method": "hqq"}))
    with pytest.raises(SourceError, match=r"holds no \.safetensors file; is the download complete\?"):
        open_source(write_config(tmp_path, model_type="llama")).load()
    with pytest.raises(NotYetError, match=r"quantized by \['gptq'\]"):
        open_source(write_config(tmp_path, quantization_config={"quant_method": ["gptq"]}))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="not valid JSON"):
        open_source(tmp_path)
