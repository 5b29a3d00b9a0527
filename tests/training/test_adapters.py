"""Low-rank adapters on a frozen base of few bits: only they move, and they come out merged or beside the base."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.qtensor import quantize

SCHEMES = ["nf4 g64", "int4 g32", "int4 g32 asym", "q4_0", "mxfp4", "nvfp4", "kmeans4", "int8 channel", "fp16"]


def recipe(scheme):
    return fb.Recipe([fb.Rule(kind="linear", weight=scheme)])


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


def test_blocks_of_256_are_a_base_too(train, outputs):
    model = fb.prepare_adapters(fb.quantize(wide(), fb.Recipe([fb.Rule("3", weight="q4_k"), fb.keep("1")])))
    before = outputs(model)
    train(model, 10, rate=1e-1)
    beside = outputs(model)
    merged = fb.merge_adapters(model)
    assert str(merged.plan.rows[1].scheme) == "q4_k"
    difference = [(own - outputs(merged.model)).square().sum() for own in (beside, before)]
    assert difference[0] < 0.5 * difference[1]
