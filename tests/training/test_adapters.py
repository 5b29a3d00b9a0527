"""Low-rank adapters on a frozen base of few bits: only they move, and they come out merged or beside the base."""

import copy
import json

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, NonFiniteError, NotYetError, PlanError, RecipeError
from fewbit.qtensor import quantize

SCHEMES = ["nf4 g64", "int4 g32", "int4 g32 asym", "q4_0", "mxfp4", "nvfp4", "kmeans4", "int8 channel", "fp16"]


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


def wide(columns=256):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, columns), nn.ReLU(), nn.Linear(columns, 10))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_adapters_move_and_the_loss_falls(scheme, train, outputs, labels):
    result = fb.quantize(wide(), recipe(scheme))
    codes = result.model[1].qtensor.codes.clone()
    before = outputs(result.model)
    model = fb.prepare_adapters(result, fb.Adapters(rank=4))
    assert model is result.model
    assert torch.equal(outputs(model), before)  # B is 0
    frozen = {name: own.clone() for name, own in model.state_dict().items() if ".adapter." not in name}
    train(model, 20, rate=1e-1)
    assert [name for name, own in model.named_parameters() if own.grad is not None] == [
        f"{layer}.adapter.{part}" for layer in (1, 3) for part in ("down", "up")
    ]
    assert all(torch.equal(own, frozen[name]) for name, own in model.state_dict().items() if ".adapter." not in name)
    assert torch.equal(model[1].qtensor.codes, codes)
    loss = nn.functional.cross_entropy
    assert loss(outputs(model), labels()) < 0.9 * loss(before, labels())


def test_gradients_are_those_of_the_dequantized_weight(images, labels):
    result = fb.quantize(wide(), recipe("nf4 g64"))
    expected = wide()
    with torch.no_grad():
        for place in (1, 3):
            expected[place].weight.copy_(result.model[place].weight)
    found = []
    for model in (expected, result.model):
        inputs = images().requires_grad_()
        nn.functional.cross_entropy(model(inputs), labels()).backward()
        found.append((inputs.grad, model[1].bias.grad, model[3].bias.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_no_float_weight_is_kept_for_the_way_back(images):
    model = fb.prepare_adapters(fb.quantize(wide(), recipe("nf4 g64")))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: kept.append(own) or own, lambda own: own):
        model(images()).sum().backward()
    sizes = {tuple(own.shape) for own in kept}
    assert not sizes & {(256, 64), (64, 256), (10, 256), (256, 10)}
    assert (8, 256) in sizes  # that of the adapter is
    assert not model[1]._ready  # no unpacked codes either
    assert model[1].packed_codes.numel() == 256 * 64 // 2


def test_autocast_trains(images, labels):
    model = fb.prepare_adapters(fb.quantize(wide(), recipe("int4 g32")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(images().requires_grad_()), labels())
    loss.backward()
    assert bool(model[1].adapter.up.grad.abs().sum() > 0)


def test_a_compiled_step_computes_what_an_eager_one_does(train, outputs):
    found = []
    for compiled in (False, True):
        model = fb.prepare_adapters(fb.quantize(wide(), recipe("int4 g32")))
        train(torch.compile(model, backend="aot_eager") if compiled else model, 3)
        found.append(outputs(model))
    assert torch.allclose(*found, atol=1e-5)  # the compiler may sum in another order


def test_rounded_inputs_train_straight_through(train, outputs):
    model = fb.prepare_adapters(fb.quantize(wide(), "w8a8"))
    before = outputs(model)
    train(model, 3)
    assert not torch.equal(outputs(model), before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merging_rounds_the_sum_and_says_what_that_costs(scheme, train, outputs):
    result = fb.quantize(wide(), recipe(scheme))
    model = fb.prepare_adapters(result, fb.Adapters(rank=4, alpha=8))
    train(model, 20, rate=1e-1)
    layer = model[1]
    down, up = layer.adapter.down.detach(), layer.adapter.up.detach()
    sums = layer.qtensor.dequantize() + 2.0 * (up @ down)
    nearest = quantize(sums, layer.qtensor.scheme).dequantize()
    merged = fb.merge_adapters(model)
    found = merged.model[1].qtensor
    assert "adapters of 2 layers were merged and rounded again" in merged.report.remarks[0]
    error, other = ((own - sums).double().square().sum() for own in (found.dequantize(), nearest))
    # Groups keep the scale that they had where it is the better one.
    assert error < other if scheme in ("int4 g32", "int4 g32 asym", "nf4 g64") else error <= other
    ratio = 10 * torch.log10((2.0 * (up @ down)).double().square().sum() / error)
    assert any(
        f"adapter {round(float(ratio), 1) + 0.0:.1f} dB above its rounding" in note
        for note in merged.report.layers[0].notes
    )
    assert {own.algorithm for own in merged.report.layers} == {"training, low-rank"}
    assert not any(".adapter." in name for name in merged.model.state_dict())
    assert all(own.requires_grad for own in merged.model.parameters())
    assert torch.isfinite(outputs(merged.model)).all()


def test_a_merged_model_of_eight_bits_is_near_its_adapters(train, outputs, images):
    model = fb.prepare_adapters(fb.quantize(wide(), recipe("int8 channel")))
    train(model, 20, rate=1e-1)
    merged = fb.merge_adapters(model, evaluation=[images()])
    assert merged.report.output_sqnr > 30


def test_a_bias_in_int32_counts_in_the_scales_of_the_merged_weight(train, outputs, images):
    rule = fb.Rule(kind="linear", weight="int8", input="int8 static", bias="int32")
    model = fb.prepare_adapters(fb.quantize(wide(), fb.Recipe([rule]), calibration=[images()]))
    bias = model[1].bias.clone()
    train(model, 5)
    merged = fb.merge_adapters(model).model
    # Half a unit of the largest scale.
    assert torch.allclose(merged[1].bias, bias, atol=float(merged[1].integer_bias.scale.max()))


def test_what_was_not_changed_stays_to_the_bit(outputs):
    result = fb.quantize(wide(), recipe("int4 g32"))
    before = outputs(result.model)
    merged = fb.merge_adapters(fb.prepare_adapters(result))
    assert merged.report.remarks == ("adapters of 2 layers were merged, none of which changes anything",)
    assert torch.equal(outputs(merged.model), before)


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


def test_adapters_go_on_from_their_folder(train, outputs, tmp_path):
    model = fb.prepare_adapters(fb.quantize(wide(), recipe("int4 g32")))
    train(model, 3)
    written = fb.save_adapters(model, tmp_path / "a")
    assert json.loads((written / "adapter_config.json").read_text())["target_modules"] == ["1", "3"]
    again = fb.load_adapters(fb.quantize(wide(), recipe("int4 g32")), written)
    assert torch.equal(outputs(again), outputs(model))
    with pytest.raises(CheckpointError, match="exists"):
        fb.save_adapters(model, written)
    fb.save_adapters(again, written, overwrite=True)


def test_a_run_that_goes_on_from_a_state_dict_ends_in_the_same_numbers(train, outputs):
    def fresh():
        return fb.prepare_adapters(fb.quantize(wide(), recipe("int4 g32")), fb.Adapters(seed=5))

    first, second = train(fresh(), 3), fresh()
    second.load_state_dict(first.state_dict())
    assert torch.equal(outputs(second), outputs(first))
    other = copy.deepcopy(first)
    train(other, 2)
    assert not torch.equal(outputs(other), outputs(first))
    assert torch.equal(outputs(first), outputs(second))


def test_an_ambiguous_name_is_written_as_the_whole_name(tmp_path):
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(32, 32))
    model.add_module("inner", nn.Sequential())
    model.inner.add_module("fc", nn.Linear(32, 32))
    result = fb.quantize(model, fb.Recipe([fb.Rule("fc", weight="int8"), fb.keep(r"inner\.fc")]))
    written = fb.save_adapters(fb.prepare_adapters(result), tmp_path / "a")
    assert json.loads((written / "adapter_config.json").read_text())["target_modules"] == "fc"


def test_what_cannot_be_adapted_is_refused(perceptron, images):
    with pytest.raises(RecipeError, match=r"give what fewbit\.quantize or fewbit\.load returns"):
        fb.prepare_adapters(perceptron())
    with pytest.raises(PlanError, match=r"has no adapters; call fewbit\.prepare_adapters first"):
        fb.merge_adapters(perceptron())
    result = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(PlanError, match="of the quantized linear layers none matches 'x'; there are: 1 and 1 more"):
        fb.prepare_adapters(result, fb.Adapters(match="x"))
    fb.prepare_adapters(result)
    with pytest.raises(PlanError, match="has adapters already"):
        fb.prepare_adapters(result)
    rounded = fb.quantize(
        perceptron(),
        fb.Recipe([fb.Rule(kind="linear", weight="int8", input="int8 static", output="int8 static")]),
        calibration=[images()],
    )
    with pytest.raises(PlanError, match="the output is rounded, and an adapter is added to it"):
        fb.prepare_adapters(rounded)


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


def test_the_fused_encoder_of_torch_does_not_pass_them_by():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 1)
    sequences = torch.randn(4, 7, 32)
    model = fb.prepare_adapters(fb.quantize(encoder, fb.Recipe([fb.Rule(r".*linear\d", weight="int8")])))
    with torch.no_grad():
        model.layers[0].linear1.adapter.up.normal_()
        inside, outside = model.train()(sequences), model.eval()(sequences)
    # torch leaves its fused operator, which reads weights, alone where a layer has hooks. Sums in another order.
    assert torch.allclose(inside, outside, atol=1e-5)


def test_an_onnx_file_has_no_place_for_them(perceptron, images, tmp_path):
    result = fb.quantize(perceptron(), "w8a16", evaluation=[images()])
    fb.prepare_adapters(result)
    with pytest.raises(CheckpointError, match="1 has an adapter beside its codes"):
        result.save(tmp_path / "m.onnx")


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


def test_blocks_of_256_are_a_base_too(train, outputs):
    model = fb.prepare_adapters(fb.quantize(wide(), fb.Recipe([fb.Rule("3", weight="q4_k"), fb.keep("1")])))
    before = outputs(model)
    train(model, 10, rate=1e-1)
    beside = outputs(model)
    merged = fb.merge_adapters(model)
    assert str(merged.plan.rows[1].scheme) == "q4_k"
    difference = [(own - outputs(merged.model)).square().sum() for own in (beside, before)]
    assert difference[0] < 0.5 * difference[1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 is no rank"),
        ({"alpha": -1.0}, "alpha -1.0 is not above 0"),
        ({"dropout": 1.0}, r"dropout 1.0 is not in \[0, 1\)"),
        ({"match": "("}, "is no regular expression"),
        ({"seed": -1}, "seed -1 is no seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        fb.Adapters(**options)


def test_an_adapter_that_became_nan_is_named(perceptron, images, tmp_path):
    model = fb.prepare_adapters(fb.quantize(perceptron(), recipe("int8")))
    with torch.no_grad():
        model[3].adapter.up[0, 0] = float("nan")
    for stop in (lambda: fb.merge_adapters(model), lambda: fb.save_adapters(model, tmp_path / "a")):
        with pytest.raises(NonFiniteError, match="3: its adapter has become NaN or infinite"):
            stop()
    with pytest.raises(NonFiniteError, match=r"3\.adapter\.up has become NaN or infinite"):
        model.train()(images())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"use_dora": True}, NotYetError, "use_dora = True"),
        ({"bias": "all"}, NotYetError, "bias = 'all'"),
        ({"peft_type": "IA3"}, NotYetError, "peft_type = 'IA3'"),
        ({"r": "8"}, CheckpointError, "r = '8' is no rank"),
        ({"r": 3}, CheckpointError, "not of rank 3"),
        ({"lora_alpha": None}, CheckpointError, "lora_alpha = None is no such number"),
    ],
)
def test_folders_of_other_adapters_are_refused_and_the_model_stays(change, error, message, perceptron, tmp_path):
    model = fb.prepare_adapters(fb.quantize(perceptron(), recipe("int8")))
    written = fb.save_adapters(model, tmp_path / "a")
    config = written / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    other = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(error, match=message):
        fb.load_adapters(other, written)
    assert not hasattr(other.model[1], "adapter")


def test_adapters_of_other_layers_are_refused_and_the_model_stays_as_it_was(perceptron, tmp_path):
    written = fb.save_adapters(fb.prepare_adapters(fb.quantize(wide(), recipe("int8"))), tmp_path / "a")
    other = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(CheckpointError, match="the adapter of 1 is for 256 x 64, the layer has 64 x 64"):
        fb.load_adapters(other, written)
    assert not hasattr(other.model[1], "adapter")
    assert all(own.requires_grad for own in other.model.parameters())
