"""Quantizing while loading: the same bits as loading and then quantizing, and one float layer in memory at a time."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewbit as fb
from fewbit import loading
from fewbit.errors import NonFiniteError, NotYetError, PlanError, SourceError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a small Llama, head and embedding tied or not, in one file or several."""

    def write(*, tied=True, dtype=torch.bfloat16, shard="1GB"):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=128, tie_word_embeddings=tied, attention_bias=True,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).to(dtype)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_()
        model.save_pretrained(tmp_path / "model", max_shard_size=shard)
        return tmp_path / "model"

    return write


def state(result):
    return {name: tensor for name, tensor in result.model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def same_state(one, other):
    """Whether two results store the same tensors, to the bit."""
    first, second = state(one), state(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("recipe", ["nf4", "w8a16", "w8a8", "fp8", "mxfp8", "bf16", "fp16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_quantized_while_loading_has_the_bits_of_one_quantized_afterwards(folder, recipe, tied):
    path = folder(tied=tied)
    loaded, whole = fb.load(path, recipe=recipe), fb.quantize(str(path), recipe)
    assert same_state(loaded, whole)
    assert [str(row) for row in loaded.plan.rows] == [str(row) for row in whole.plan.rows]
    assert loaded.report.remarks == whole.report.remarks
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, whole.model(tokens).logits)


def test_shards_and_a_tied_head_that_is_quantized_come_out_alike(folder):
    path = folder(shard="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    recipe = fb.Recipe([fb.Rule(kind="head", weight="int8"), fb.Rule(kind="linear", weight="int4 g32")])
    loaded, whole = fb.load(path, recipe=recipe), fb.quantize(str(path), recipe)
    assert same_state(loaded, whole)
    assert any("no longer tied: lm_head" in remark for remark in loaded.report.remarks)


def test_one_float_layer_is_in_memory_at_a_time(folder, monkeypatch):
    path, held = folder(), {}
    solve = loading.solve

    def counting(model, made, *others):
        floats = [parameter for parameter in model.parameters() if not parameter.is_meta]
        (row,) = made.rows
        held[row.layer.name] = [parameter.numel() for parameter in floats if parameter.dim() == 2], row.layer.shape
        return solve(model, made, *others)

    monkeypatch.setattr(loading, "solve", counting)
    fb.load(path, recipe="nf4")
    assert len(held) == 3 * 7
    assert all(counts == [shape[0] * shape[1]] for counts, shape in held.values())


def test_what_was_loaded_is_saved_and_read_back(folder, tmp_path):
    loaded = fb.load(folder(), recipe="w8a16")
    again = fb.load(loaded.save(tmp_path / "out"))
    assert same_state(loaded, again)


@pytest.mark.parametrize(("recipe", "why"), [("w4a16", "gptq"), ("w8a8-static", "ranges from data")])
def test_a_recipe_that_needs_data_is_refused_with_what_needs_it(folder, recipe, why):
    with pytest.raises(PlanError, match=rf"recipe {recipe} has {why}; take one without, such as nf4"):
        fb.load(folder(), recipe=recipe)


def test_transforms_run_the_model_and_are_refused(folder):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8")], transforms=["rotation"])
    with pytest.raises(PlanError, match="rotation; take one without"):
        fb.load(folder(), recipe=recipe)


def test_a_tensor_that_is_missing_or_not_finite_is_named(folder):
    path = folder()
    file, name = path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    save_file({own: tensor for own, tensor in tensors.items() if own != name}, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=f"lacks {name}"):
        fb.load(path, recipe="nf4")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj"):
        fb.load(path, recipe="nf4")


@pytest.mark.slow
def test_the_demo_model_is_read_tensor_by_tensor_too():
    loaded, whole = fb.load("smollm2", recipe="w8a16"), fb.quantize("smollm2", "w8a16")
    assert same_state(loaded, whole)


def test_what_has_to_be_read_as_a_whole_says_so(folder):
    with pytest.raises(NotYetError, match=r"smollm2-rotated is rotated when all of it is there; use fewbit\.quantize"):
        fb.load("smollm2-rotated", recipe="nf4")
    with pytest.raises(PlanError, match="leave out into"):
        fb.load(folder(), recipe="nf4", into=torch.nn.Linear(2, 2))
