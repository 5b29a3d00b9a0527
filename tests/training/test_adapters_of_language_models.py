"""Low-rank adapters of language models: trained by their loops, in the folders of PEFT, merged beside shared scales."""

import copy

import pytest
import torch

import fewbit as fb
from fewbit.errors import CheckpointError, PlanError


def tokens(count=4):
    return torch.randint(0, 100, (count, 16), generator=torch.Generator().manual_seed(3))


def recipe(scheme):
    return fb.Recipe([fb.Rule(kind="linear", weight=scheme)])


def train_on_tokens(model, steps=3, rate=1e-2):
    optimizer = torch.optim.AdamW([own for own in model.parameters() if own.requires_grad], rate)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def scores(model):
    return model(input_ids=tokens(), use_cache=False).logits


def test_a_language_model_loaded_from_its_folder_is_trained_and_saved(small_llama, tmp_path):
    fb.quantize(small_llama(vocab_size=100), "w4a16", calibration=[tokens()]).save(tmp_path / "base")
    result = fb.load(tmp_path / "base")
    model = fb.prepare_adapters(result, fb.Adapters(rank=4, match=r".*(q|v|down)_proj"))
    assert sum(own.numel() for own in model.parameters() if own.requires_grad) == sum(
        own.numel() for name, own in model.named_parameters() if "adapter" in name
    )
    losses = train_on_tokens(model, 5)
    assert losses[-1] < losses[0]
    with pytest.raises(CheckpointError, match="has an adapter beside its codes"):
        result.save(tmp_path / "both")
    merged = fb.merge_adapters(model)
    expected = scores(merged.model)
    merged.save(tmp_path / "merged")
    assert torch.equal(scores(fb.load(tmp_path / "merged").model), expected)


# Of transformers, which the peft of today asks by an older word.
_OLD_WORD = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@_OLD_WORD
def test_peft_computes_the_same_from_the_folder(small_llama, tmp_path):
    peft = pytest.importorskip("peft")
    float_model = small_llama(vocab_size=100)
    result = fb.quantize(copy.deepcopy(float_model), recipe("nf4 g32"))
    model = fb.prepare_adapters(result, fb.Adapters(rank=4, match=r".*(q|v|down)_proj"))
    train_on_tokens(model)
    expected = scores(model)
    fb.save_adapters(model, tmp_path / "adapters")
    # The base of few bits in float.
    with torch.no_grad():
        for name, layer in model.named_modules():
            if hasattr(layer, "qtensor"):
                float_model.get_submodule(name).weight.copy_(layer.weight)
    base = scores(float_model)
    theirs = peft.PeftModel.from_pretrained(float_model, tmp_path / "adapters").eval()
    assert torch.equal(scores(theirs), expected)
    assert not torch.equal(base, expected)  # they do change something


@_OLD_WORD
def test_adapters_of_peft_are_read(small_llama, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    float_model = small_llama(vocab_size=100)
    base = copy.deepcopy(float_model)
    settings = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_rslora=True,
                               init_lora_weights=False)  # fmt: skip
    theirs = peft.get_peft_model(float_model, settings)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = scores(theirs.eval())
    # Codes of 16 bits lose next to nothing.
    model = fb.load_adapters(fb.quantize(base, recipe("fp16")), tmp_path / "theirs")
    assert torch.allclose(scores(model), expected, atol=1e-3)
    assert not torch.allclose(scores(small_llama(vocab_size=100)), expected, atol=1e-2)


def test_a_head_gets_an_adapter_where_it_is_asked_for_and_its_weight_is_its_own(small_llama):
    def quantized(**settings):
        rules = [fb.Rule(kind=kind, weight="int8") for kind in ("embedding", "head", "linear")]
        return fb.quantize(small_llama(vocab_size=100, **settings), fb.Recipe(rules))

    model = fb.prepare_adapters(quantized())
    assert not hasattr(model.lm_head, "adapter")
    assert len([name for name, _ in model.named_modules() if name.endswith(".adapter")]) == 2 * 7
    model = fb.prepare_adapters(quantized(), fb.Adapters(match="lm_head"))
    assert [name for name, _ in model.named_modules() if name.endswith(".adapter")] == ["lm_head.adapter"]
    with pytest.raises(PlanError, match="lm_head: an adapter would part it from the layer that has the same weight"):
        fb.prepare_adapters(quantized(tie_word_embeddings=True), fb.Adapters(match="lm_head"))


def test_layers_that_share_a_global_scale_share_the_one_of_the_merged_weight(small_llama, tmp_path):
    result = fb.quantize(small_llama(vocab_size=100), recipe("nvfp4"), evaluation=[tokens()])
    model = fb.prepare_adapters(result, fb.Adapters(match=r".*q_proj"))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.adapter.up.normal_()
    result = fb.merge_adapters(model)
    assert result.report.remarks[0].startswith("adapters of 2 layers were merged and rounded again")
    assert result.report.remarks[0].endswith("; 4 that share a global scale with them were rounded again")
    expected = scores(result.model)
    for layer in result.model.model.layers:
        attention = layer.self_attn
        q, k, v = (own.qtensor.scale.scale for own in (attention.q_proj, attention.k_proj, attention.v_proj))
        assert q == k == v
    result.save(tmp_path / "out")
    assert torch.equal(scores(fb.load(tmp_path / "out").model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_has_adapters_in_float32(dtype, small_llama):
    model = fb.prepare_adapters(fb.quantize(small_llama(dtype, vocab_size=100), recipe("nf4 g32")))
    losses = train_on_tokens(model, 5)
    assert losses[-1] < losses[0]
    assert model.model.layers[0].mlp.down_proj.adapter.up.dtype == torch.float32
    assert scores(model).dtype == dtype


@pytest.mark.filterwarnings("ignore::UserWarning")  # the Trainer's, of pinned memory without an accelerator
def test_the_trainer_of_transformers_trains_them(small_llama, tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in tokens(8)]
    model = fb.prepare_adapters(fb.quantize(small_llama(vocab_size=100), recipe("nf4 g32")))
    before = {name: own.clone() for name, own in model.state_dict().items()}
    settings = TrainingArguments(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", learning_rate=1e-2,
    )  # fmt: skip
    Trainer(model, settings, train_dataset=rows).train()
    changed = {name for name, own in model.state_dict().items() if not torch.equal(own, before[name])}
    assert changed
    assert all(".adapter." in name for name in changed)
