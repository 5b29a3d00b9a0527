"""`fewbit.quantize` on modules in memory: what it reports is so, and what it refuses it leaves alone."""

import json
import math

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError, PlanError, RecipeError
from fewbit.evaluation.level_histogram import level_histogram

# A mean of float64 sums; the implementation may add in another order.
SUMS = 1e-9


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))


def by_formula(x, q):
    x, q = x.detach().double().numpy(), q.detach().double().numpy()
    return 10 * math.log10((x**2).sum() / ((x - q) ** 2).sum())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        # Bytes, so that NaN equals itself.
        assert after[name].numpy().tobytes() == tensor.numpy().tobytes(), name


class Recorder:
    """A progress that remembers what it was told."""

    def __init__(self):
        self.tracked = []

    def track(self, items, description):
        self.tracked.append((description, len(items)))
        yield from items

    def phase(self, description):
        return fb.Options().progress.phase(description)


#: Calibration data for `two_layers`.
BATCHES = list(torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(5)))


# What it does.


def test_the_module_is_changed_in_place_and_runs():
    model = two_layers()
    result = fb.quantize(model, "w8a16")
    assert result.model is model
    assert [type(module).__name__ for module in model] == ["QuantizedLinear", "ReLU", "QuantizedLinear"]
    assert model(torch.ones(3, 64)).shape == (3, 16)
    assert result.recipe == result.plan.recipe


@pytest.mark.parametrize("recipe", ["w8a16", "w4a16", "w4a16-asym", "w3a16", "w2a16", "fp8a16"])
def test_the_sqnr_of_each_weight_is_what_its_dequantized_form_shows(recipe):
    model = two_layers()
    weights = {name: model.get_submodule(name).weight.clone() for name in ("0", "2")}
    report = fb.quantize(model, recipe, calibration=BATCHES).report
    for layer in report.layers:
        direct = by_formula(weights[layer.name], model.get_submodule(layer.name).weight)
        assert layer.weight_sqnr == pytest.approx(direct, abs=SUMS)
        assert layer.output_sqnr is None


def test_more_bits_lose_less():
    recipes = [fb.Recipe([fb.Rule(kind="linear", weight=text)]) for text in ("int2 g32", "int4 g32", "int8 channel")]
    levels = [fb.quantize(two_layers(), recipe).report.layers[0].weight_sqnr for recipe in recipes]
    assert levels == sorted(levels)
    assert levels[2] - levels[1] == pytest.approx(24, abs=6)  # 6 dB a bit; per channel instead of g32 costs a little


def test_quantizing_an_equal_model_twice_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("first", "second"):
        model = two_layers()
        torch.manual_seed(len(contents))  # the state of torch is no input
        path = fb.quantize(model, "w4a16", to="compressed-tensors", calibration=BATCHES).save(tmp_path / name)
        contents.append([(path / file).read_bytes() for file in ("model.safetensors", "config.json")])
    assert contents[0] == contents[1]


def test_the_report_is_that_of_the_plan():
    rules = [fb.keep("2"), fb.Rule(kind="linear", weight="int4 g32")]
    made = fb.plan(two_layers(), fb.Recipe(rules, name="mine"))
    report = fb.quantize(two_layers(), fb.Recipe(rules, name="mine"), options=fb.Options(seed=3, command="me")).report
    assert (report.model, report.recipe, report.storage_type) == ("Sequential", "mine", "float32")
    assert (report.bytes_before, report.bytes_after) == (made.bytes_before, made.bytes_after)
    assert report.rules == ("match '2': keep", "kind 'linear': int4 g32 by nearest")
    assert [(layer.becomes, layer.bytes_after, layer.notes) for layer in report.layers] == [
        (row.becomes, row.bytes_after, row.notes) for row in made.rows
    ]
    assert (report.seed, report.command) == (3, "me")
    assert set(report.seconds) == {"load", "solve"}
    assert set(report.peak_memory) == {"load", "solve"}
    assert 10**7 < report.peak_memory["load"] <= report.peak_memory["solve"]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("recipe", ["w4a16", "w8a16", "fp8a16"])
def test_the_report_counts_the_weights_of_every_quantized_layer(recipe):
    model = two_layers()
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in ("0", "2")}
    for layer in fb.quantize(model, recipe, calibration=BATCHES).report.layers:
        quantized = model.get_submodule(layer.name).qtensor
        assert layer.histogram == level_histogram(weights[layer.name], quantized)
        assert sum(layer.histogram.weights) == weights[layer.name].numel()
        assert layer.row_sqnr[0] <= layer.weight_sqnr <= layer.row_sqnr[1]


def test_the_report_says_what_was_adapted_what_fell_back_and_what_stayed_float():
    model = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    rules = [fb.keep("3"), fb.Rule(".*", weight="int4 g128", algorithm="gptq")]
    tokens = [torch.arange(40).reshape(2, 20)]
    report = fb.quantize(model, fb.Recipe(rules, adapts=True), calibration=tokens).report
    table, adapted, stays = report.layers
    assert (table.becomes, table.asked, table.states) == (
        "int4 g64",
        "int4 g128",
        ("quantized", "adapted", "fell back"),
    )
    assert table.remarks == ("there is no statistic of its input: rounded without data",)
    assert f"0: {table.remarks[0]}" in report.remarks
    assert (adapted.becomes, adapted.asked, adapted.states) == ("int4 g64", "int4 g128", ("quantized", "adapted"))
    assert (stays.asked, stays.histogram, stays.row_sqnr, stays.states) == (None, None, None, ("kept",))


def test_scales_that_no_16_bit_type_holds_are_a_fallback_of_their_layer():
    model = two_layers()
    with torch.no_grad():
        model[0].weight *= 1e-7
    report = fb.quantize(model, "w8a16", dtype="float16").report
    assert [layer.states for layer in report.layers] == [("quantized", "fell back"), ("quantized",)]
    assert report.layers[0].remarks == ("32 scales are too small or large for float16 and stay float32",)


def test_a_dtype_rounds_what_stays_float_and_says_how_much():
    model = two_layers()
    bias = model[0].bias.detach().clone()
    report = fb.quantize(model, "w8a16", dtype="bfloat16").report
    assert torch.equal(model[0].bias, bias.bfloat16().float())
    changed = int((model[0].bias != bias).sum())
    assert changed > 0
    assert any("float numbers were rounded to bfloat16" in remark for remark in report.remarks)
    assert report.storage_type == "bfloat16"


def test_progress_is_told_of_every_layer_and_every_batch():
    recorder = Recorder()
    fb.quantize(two_layers(), "w8a16", evaluation=[torch.ones(2, 64)] * 3, options=fb.Options(progress=recorder))
    assert recorder.tracked == [("quantize", 2), ("measure", 3)]


class TwoPlaces(nn.Module):
    """One layer that hangs at two places, as in ALBERT."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_a_layer_at_two_places_is_quantized_once_and_can_be_saved(tmp_path):
    torch.manual_seed(0)
    model = TwoPlaces()
    result = fb.quantize(model, "w8a16", to="compressed-tensors")
    assert model.first is model.second
    assert [row.layer.name for row in result.plan.rows] == ["first"]
    assert not any(tensor.name.endswith(".weight") for tensor in result.plan.rest)
    path = result.save(tmp_path / "out")
    loaded = fb.load(path, into=TwoPlaces()).model
    x = torch.ones(2, 64)
    assert torch.equal(loaded(x), model(x))


# What it refuses, and leaves alone.


def poisoned(value=math.nan):
    model = two_layers()
    with torch.no_grad():
        model[2].weight[3, 5] = value
    return model


@pytest.mark.parametrize("recipe", ["w8a16", "w4a16-asym", "fp8a16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named_and_the_model_left_untouched(value, recipe):
    model = poisoned(value)
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"^2: 1 of 512 weights are NaN or infinite; repair or keep it$"):
        fb.quantize(model, recipe, dtype="bfloat16", calibration=BATCHES)
    assert_same_state(model, before)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_plan_with_problems_leaves_the_model_untouched():
    model = two_layers()
    before = state(model)
    with pytest.raises(PlanError, match="in_features 64 is not a multiple of group size 48"):
        fb.quantize(model, fb.Recipe([fb.Rule(".*", weight="int4 g48")]), dtype="bfloat16")
    assert_same_state(model, before)
    assert type(model[0]) is nn.Linear


def test_an_activation_that_is_not_finite_is_named_and_the_model_stays_float():
    model = two_layers()
    before = state(model)
    batch = torch.ones(2, 64)
    batch[1, 7] = math.nan
    with pytest.raises(NonFiniteError, match=r"^0: its output holds NaN or infinity before quantization"):
        fb.quantize(model, "w8a16", evaluation=[batch])
    assert_same_state(model, before)
    assert not model[0]._forward_hooks


class BrokenModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("third call")
        return self.inner(x)


def test_an_exception_while_measuring_leaves_the_model_float():
    model = BrokenModel()
    with pytest.raises(ArithmeticError, match="third call"):
        fb.quantize(model, "w8a16", evaluation=[torch.ones(1, 8)] * 4)
    assert type(model.inner) is nn.Linear


def test_an_evaluation_without_batches_is_refused_before_anything_changes():
    model = two_layers()
    before = state(model)
    with pytest.raises(RecipeError, match="evaluation holds no batch; leave it out, or give some"):
        fb.quantize(model, "w8a16", dtype="bfloat16", evaluation=[])
    assert_same_state(model, before)


def test_a_kept_float_that_is_not_finite_is_named():
    model = poisoned()
    with pytest.raises(NonFiniteError, match=r"^2"):
        fb.quantize(model, fb.Recipe([fb.keep("2"), fb.Rule(kind="linear", weight="int8")]))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"recipe": "w4a61"}, RecipeError, "did you mean 'w4a16'"),
        ({"recipe": "w8a16", "to": "compressed-tensor"}, RecipeError, "did you mean 'compressed-tensors'"),
        ({"recipe": "w8a16", "dtype": "half"}, RecipeError, "dtype 'half' is none of auto, float32, float16, bfloat16"),
        ({"recipe": "w4a16", "calibration": []}, CalibrationError, "calibration holds no batch; give some"),
        ({"recipe": "w4a16"}, PlanError, "this recipe needs calibration data .* and the model writes no text"),
        ({"recipe": "w4a16", "calibration": "text.txt"}, CalibrationError, "Sequential has no tokenizer for text.txt"),
        ({"recipe": "w4a16", "calibration": torch.ones(2, 64)}, CalibrationError, "not one Tensor; wrap it in a list"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_remedy(arguments, kind, message):
    model = two_layers()
    with pytest.raises(kind, match=message):
        fb.quantize(model, **arguments)
    assert type(model[0]) is nn.Linear
