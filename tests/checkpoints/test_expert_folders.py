"""Folders with experts under the names that checkpoints have for them; transformers' own reader is the oracle."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open

import fewbit as fb
from fewbit.errors import PlanError
from fewbit.frontends.torch.stored_experts import Projection, stored_experts
from fewbit.streaming import quantize_folder

_SHAPE = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "num_experts_per_tok": 2,
}  # fmt: skip
#: What makes a small one, and the projections of an expert in files: the first two are one parameter of the model.
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
}
PROJECTIONS = {"mixtral": ["w1", "w3", "w2"], "qwen3_moe": ["gate_proj", "up_proj", "down_proj"]}
TOKENS = torch.arange(3, 43)[None]
#: Sums in another order. transformers multiplies codes by scales in the type of these: folders here are in float32.
CLOSE = {"rtol": 0.0, "atol": 2e-5}


def float_model(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SHAPE, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model.half()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    float_model(request.param).save_pretrained(path)
    return path


def recipe(scheme="int4 g32", **options):
    return fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight=scheme, **options)])


def batches(count=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 256, (2, 64), generator=generator) for _ in range(count)]


def in_transformers(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def projections(folder):
    return PROJECTIONS[json_of(folder)["model_type"]]


def json_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("scheme", ["int4 g32", "int3 g32", "int8 channel", "int8", "e4m3 channel"])
def test_transformers_reads_the_experts(folder, tmp_path, scheme):
    result = fb.quantize(folder, recipe(scheme), to="compressed-tensors", dtype="float32")
    result.save(tmp_path / "out")
    own = result.run(TOKENS).logits
    theirs = in_transformers(tmp_path / "out")(TOKENS).logits
    torch.testing.assert_close(theirs, own, **CLOSE)
    # The negative control: what rounding has changed is far more than that.
    assert (in_transformers(folder)(TOKENS).logits - own).abs().max() > 10 * CLOSE["atol"]
    assert torch.equal(fb.load(tmp_path / "out").run(TOKENS).logits, own)


def test_transformers_refuses_asymmetric_experts_as_the_docs_say(folder, tmp_path):
    fb.quantize(folder, recipe("int4 g32 asym"), to="compressed-tensors").save(tmp_path / "out")
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        in_transformers(tmp_path / "out")


def test_names_in_the_folder_are_those_of_separate_experts(folder, tmp_path):
    fb.quantize(folder, recipe(), to="compressed-tensors").save(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        names = set(file.keys())
    for number in range(4):
        for own in projections(folder):
            assert f"model.layers.1.mlp.experts.{number}.{own}.weight_packed" in names
    assert not any("gate_up" in name for name in names)


def test_routers_that_are_no_linear_layers_are_ignored_by_name(folder, tmp_path):
    fb.quantize(folder, recipe(), to="compressed-tensors").save(tmp_path / "out")
    ignored = json_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert {"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"} == set(ignored)


def test_the_plan_of_a_folder_lists_the_experts_without_loading_a_number(folder):
    made = fb.plan(folder, "w4a16")
    rows = {row.layer.name: row for row in made.rows if row.layer.expert}
    assert len(rows) == 2 * 4 * 3
    assert all(row.becomes in ("int4 g32", "int4 g64") for row in rows.values())
    assert not any("stays float" in said for said in made.adaptations)


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq", "awq"])
def test_from_disk_to_disk_the_bytes_are_the_same(folder, tmp_path, to):
    asked = recipe("int4 g32 asym" if to == "awq" else "int4 g32", algorithm="gptq")
    quantize_folder(folder, tmp_path / "streamed", asked, to=to, calibration=batches(), memory="4GB")
    result = fb.quantize(folder, asked, to=to, calibration=batches())
    result.save(tmp_path / "whole", to=to)
    streamed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("streamed", "whole"))
    assert streamed == whole
    assert torch.equal(fb.load(tmp_path / "streamed").run(TOKENS).logits, result.run(TOKENS).logits)


def test_quantized_while_loading_they_are_as_in_memory(folder):
    loaded, whole = fb.load(folder, recipe="w8a16"), fb.quantize(folder, "w8a16")
    assert [layer.name for layer in loaded.report.layers] == [layer.name for layer in whole.report.layers]
    assert torch.equal(loaded.run(TOKENS).logits, whole.run(TOKENS).logits)


def test_a_loaded_folder_is_saved_and_converted_to_the_bit(folder, tmp_path):
    fb.quantize(folder, recipe(), to="compressed-tensors").save(tmp_path / "out")
    loaded = fb.load(tmp_path / "out")
    loaded.save(tmp_path / "again")
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == again
    fb.convert(tmp_path / "out", tmp_path / "gptq", to="gptq")
    assert torch.equal(fb.load(tmp_path / "gptq").run(TOKENS).logits, loaded.run(TOKENS).logits)


@pytest.mark.parametrize("kept", [".*experts.*", r".*layers\.0\.mlp\.experts.*"])
def test_experts_that_stay_float_are_one_parameter_in_the_folder(folder, tmp_path, kept):
    asked = fb.Recipe([fb.keep(kept), fb.keep(kind="head"), fb.Rule(kind="linear", weight="int8 channel")])
    result = fb.quantize(folder, asked, to="compressed-tensors", dtype="float32")
    result.save(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert "model.layers.0.mlp.experts.gate_up_proj" in file.keys()  # noqa: SIM118
    torch.testing.assert_close(in_transformers(tmp_path / "out")(TOKENS).logits, result.run(TOKENS).logits, **CLOSE)
    assert torch.equal(fb.load(tmp_path / "out").run(TOKENS).logits, result.run(TOKENS).logits)


def gpt_oss():
    torch.manual_seed(0)
    own = {"num_local_experts": 4, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**_SHAPE, **own)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_experts_that_files_keep_in_one_parameter_cannot_be_stored_apart(tmp_path):
    model = gpt_oss()
    names = list(model.state_dict())
    shapes = {name: tuple(own.shape) for name, own in model.named_parameters() if own.ndim == 3}
    assert len(shapes) == 4
    assert stored_experts(model, shapes) == {}
    with pytest.raises(
        PlanError, match=r"experts\.gate_up_proj\.0 and 15 more: .* keeps the experts of this architecture in one"
    ):
        fb.quantize(model, "w8a16", to="compressed-tensors")
    assert list(model.state_dict()) == names
    asked = fb.Recipe([fb.keep(".*experts.*"), fb.Rule(kind="linear", weight="int8 channel")])
    result = fb.quantize(model, asked, to="compressed-tensors")
    result.save(tmp_path / "out")
    torch.testing.assert_close(in_transformers(tmp_path / "out")(TOKENS).logits, result.run(TOKENS).logits, **CLOSE)


def test_rows_of_every_projection_are_told_by_marks(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    parameter = model.get_parameter(name)
    found = stored_experts(model, {name: tuple(parameter.shape)})[name]
    half = parameter.shape[1] // 2
    assert found.outputs_first
    first, second, _ = projections(folder)
    assert found.projections == (Projection(first, 0, half), Projection(second, half, 2 * half))
    with safe_open(folder / "model.safetensors", "pt") as file:
        for number in range(4):
            stored = file.get_tensor(f"{found.names[f'{number}.{second}']}.weight")
            assert torch.equal(stored, parameter[number, half:])
