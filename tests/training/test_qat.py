"""Training with rounding in the loop: what it computes is what comes out, and nothing of it stays behind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError, PlanError, RecipeError
from fewbit.training.gradients import GRADIENTS
from fewbit.training.schedule import STEP


def images(count=32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def labels(count=32):
    return torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(2))


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(model, steps, rate=1e-2):
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), labels()).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def outputs(model):
    return model(images())


RECIPES = ["w8a8-static", "w8a8", "w4a8", "w4a16-asym", "fp8-static", "nf4"]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_finished_model_has_the_numbers_that_training_has_seen(recipe, gradient):
    model = convolutional()
    fb.prepare_qat(model, recipe, training=fb.Training(gradient=gradient), batch=images())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, 4)
    after = dict(model.named_parameters())
    unmoved = [name for name, value in before.items() if value.requires_grad and torch.equal(after[name], value)]
    assert not unmoved
    seen = outputs(model)
    head = model[-1].weight.detach().clone()
    result = fb.finish_qat(model)
    assert torch.equal(result.model[-1].weight, head)
    # Folding a BatchNorm changes the last bits of what is summed, which may take an input to the next code.
    assert torch.allclose(outputs(result.model), seen, atol=1e-2 if result.plan.rows[0].input else 1e-6)
    assert not any(parametrize.is_parametrized(module) for module in result.model.modules())
    assert STEP not in dict(result.model.named_buffers())


@pytest.mark.parametrize(
    "scheme", ["q4_0", "q8_0", "mxfp4", "nvfp4", "int4 g32", "int2 g64 asym", "e2m1 channel", "ternary channel"]
)
def test_weights_of_every_kind_of_scheme_come_out_as_they_were_trained(scheme):
    model = perceptron()
    fb.prepare_qat(model, fb.Recipe([fb.keep("3"), fb.Rule(kind="linear", weight=scheme)]))
    train(model, 3)
    trained = model[1].weight.detach().clone()
    result = fb.finish_qat(model)
    assert str(result.plan.rows[0].scheme) == scheme
    assert torch.equal(result.model[1].qtensor.dequantize(), trained)


def test_an_output_and_a_bias_are_rounded_too():
    rule = fb.Rule(kind="linear", weight="int8", input="int8 static", output="int8 static", bias="int32")
    model = perceptron()
    fb.prepare_qat(model, fb.Recipe([rule]))
    train(model, 3)
    seen = outputs(model)
    result = fb.finish_qat(model)
    step = float(result.model[3].output.activation.scale)
    # A bias in int32 may move an output that lies between two levels by one of them.
    assert float((outputs(result.model) - seen).abs().max()) <= 1.001 * step
    assert result.model[3].integer_bias is not None


def test_training_in_the_loop_beats_rounding_afterwards_at_two_bits():
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int2 channel")])
    trained = train(perceptron(), 60)
    rounded, prepared = copy.deepcopy(trained), copy.deepcopy(trained)
    fb.quantize(rounded, recipe)
    fb.prepare_qat(prepared, recipe)
    train(prepared, 60)
    fb.finish_qat(prepared)

    def loss(model):
        return float(nn.functional.cross_entropy(outputs(model), labels()))

    assert loss(prepared) < 0.5 * loss(rounded)


def test_a_run_that_goes_on_from_a_state_dict_ends_in_the_same_numbers():
    def fresh():
        return fb.prepare_qat(convolutional(), "w8a8-static", training=fb.Training(delay=2), batch=images())

    whole, first, second = fresh(), fresh(), fresh()

    def go(model, optimizer, steps):
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images()), labels()).backward()
            optimizer.step()

    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (whole, first, second)]
    go(whole, optimizers[0], 6)
    go(first, optimizers[1], 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    go(second, optimizers[2], 3)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), second.parameters(), strict=True))
    assert int(getattr(second, STEP)) == 6


def test_a_copy_is_a_model_of_its_own():
    model = fb.prepare_qat(convolutional(), "w8a8-static", batch=images())
    other = copy.deepcopy(model)
    seen = outputs(model.eval())
    train(other, 3)
    assert torch.equal(outputs(model), seen)
    result = fb.finish_qat(other)
    assert result.model is other
    assert parametrize.is_parametrized(model[0])
    assert torch.allclose(outputs(fb.finish_qat(model).model), seen, atol=1e-6)  # folding, as above


def test_nothing_is_rounded_before_its_time():
    model = perceptron()
    expected = outputs(model)
    fb.prepare_qat(model, "w4a8", training=fb.Training(delay=2))
    model.train()
    with torch.no_grad():
        assert [torch.equal(model(images()), expected) for _ in range(4)] == [True, True, False, False]


def test_ranges_stay_once_they_are_frozen():
    training = fb.Training(gradient="straight-through", freeze_ranges=2)
    model = fb.prepare_qat(perceptron(), "w8a8-static", training=training)
    own = model[1].input_quantizer.range
    model.train()
    seen = []
    for factor in (1.0, 2.0, 3.0, 4.0):
        model(factor * images())
        seen.append(float(own.high))
    assert seen[0] < seen[1] == seen[2] == seen[3]


def test_learned_ranges_get_no_gradient_once_they_are_frozen():
    model = fb.prepare_qat(perceptron(), "w8a8-static", training=fb.Training(freeze_ranges=1))
    model.train()
    own = model[1].input_quantizer.range
    for moves in (True, False):
        model.zero_grad()
        model(images()).sum().backward()
        assert bool(own.scale.grad.abs().sum() > 0) is moves


def test_norms_keep_their_averages_once_they_are_frozen():
    model = fb.prepare_qat(convolutional(), "w8a8-static", training=fb.Training(freeze_norms=2), batch=images())
    seen = []
    for factor in (1.0, 2.0, 3.0, 4.0):
        model.train()
        model(factor * images())
        seen.append(model[1].running_mean.clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_weights_in_front_of_a_norm_are_rounded_as_they_will_be_folded():
    model = convolutional()
    train(model, 3)
    fb.prepare_qat(model, "w4a8", batch=images())
    norm = model[1]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (model[0].weight * gain[:, None, None, None]).detach()
    result = fb.finish_qat(model)
    levels = result.model[0].qtensor.dequantize()
    # Dividing by the gain and multiplying by it again rounds twice.
    assert torch.allclose(levels, folded.reshape(levels.shape), rtol=1e-6)
    assert isinstance(result.model[1], nn.Identity)


def test_ranges_begin_with_the_first_batch_of_the_training():
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    with pytest.raises(CalibrationError, match="1: no input has reached it yet"):
        outputs(model.eval())
    with pytest.raises(CalibrationError, match="1: no input has reached it yet"):
        fb.finish_qat(model)
    model.train()(images())
    assert torch.isfinite(outputs(model.eval())).all()


def test_a_weight_that_becomes_nan_stops_the_training_with_its_name():
    model = fb.prepare_qat(perceptron(), "w4a16")
    model.train()(images())
    with torch.no_grad():
        model[3].parametrizations.weight.original[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"3\.weight has become NaN or infinite.*lower the learning rate"):
        model(images())


def test_numbers_that_overflow_stop_the_training_with_the_name_of_the_layer():
    model = perceptron()
    model[1].weight.data *= 1000
    fb.prepare_qat(model, "w4a16")
    with pytest.raises(NonFiniteError, match="1 puts out NaN or infinity"):
        model.train()(images() * 5e37)


def test_weights_come_closer_to_their_levels_under_the_regularizer():
    model = fb.prepare_qat(perceptron(), "w4a16", training=fb.Training(gradient="straight-through"))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = float(fb.level_distance(model).detach())
    for _ in range(5):
        optimizer.zero_grad()
        (5.0 * fb.level_distance(model)).backward()
        optimizer.step()
    # Numbers spread evenly over a step are a twelfth of it away.
    assert before == pytest.approx(1 / 12, rel=0.1)
    assert float(fb.level_distance(model).detach()) < before


def test_the_regularizer_grows_with_the_steps():
    model = fb.prepare_qat(perceptron(), "w4a16")
    model.train()
    whole = float(fb.level_distance(model).detach())
    seen = []
    for _ in range(3):
        seen.append(float(fb.level_distance(model, anneal=2).detach()))
        model(images())
    assert seen == pytest.approx([0.0, whole / 2, whole])


def test_autocast_trains_and_what_comes_out_is_what_was_rounded():
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    model.train()
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images()), labels())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = model[1].weight.detach().clone()
    assert weight.dtype == torch.float32
    assert torch.equal(fb.finish_qat(model).model[1].weight, weight)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_step_computes_what_an_eager_one_does(gradient):
    found = []
    for compiled in (False, True):
        model = fb.prepare_qat(perceptron(), "w8a8-static", training=fb.Training(gradient=gradient), batch=images())
        own = torch.compile(model, backend="aot_eager") if compiled else model
        train(own, 3)
        found.append(outputs(model))
    # The compiler may sum gradients in another order.
    assert torch.allclose(*found, atol=1e-5)


def test_the_report_is_that_of_quantize():
    model = fb.prepare_qat(convolutional(), "w4a8", batch=images())
    train(model, 3)
    report = fb.finish_qat(model, evaluation=[images()]).report
    assert {layer.algorithm for layer in report.layers} == {"training, lsq"}
    assert report.output_sqnr > 5
    assert all(layer.weight_sqnr > 5 for layer in report.layers)
    assert "2 BatchNorms were folded into the layers before them after training" in report.remarks


def test_what_goes_straight_through_for_want_of_a_range_is_said():
    rules = [fb.Rule("1", weight="q4_0"), fb.Rule("3", weight="int4 g32")]
    model = fb.prepare_qat(perceptron(), fb.Recipe(rules))
    remarks = fb.finish_qat(model).report.remarks
    assert "1: no range to learn in q4_0, so that gradients went straight through" in remarks


def test_a_trained_model_is_saved_and_loaded(tmp_path):
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    train(model, 3)
    result = fb.finish_qat(model)
    result.save(tmp_path / "out")
    loaded = fb.load(tmp_path / "out", into=perceptron())
    assert torch.equal(outputs(loaded.model), outputs(result.model))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (fb.Recipe([fb.Rule(kind="linear", weight="int4 g32")], transforms=["smoothquant"]), "transform smoothquant"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int4 g32")], corrections=["bias"]), "correction bias"),
        (fb.Recipe([fb.Rule(kind="linear", weight="kmeans4")]), "learns its levels once"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int8", input="nvfp4 static")]), "training fixes no scale of scales"),
        (fb.Recipe([fb.Rule("other", weight="int4 g32")]), "other"),
    ],
)
def test_what_training_cannot_do_is_refused_and_the_model_stays_as_it_was(recipe, message):
    model = perceptron()
    with pytest.raises(PlanError, match=message):
        fb.prepare_qat(model, recipe, batch=images())
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_calls_in_the_wrong_order_are_refused():
    model = perceptron()
    with pytest.raises(PlanError, match="not prepared for training"):
        fb.finish_qat(model)
    with pytest.raises(PlanError, match="not prepared for training"):
        fb.level_distance(model)
    fb.prepare_qat(model, "w4a16")
    with pytest.raises(PlanError, match="prepared already"):
        fb.prepare_qat(model, "w4a16")
    with pytest.raises(RecipeError, match="takes a torch module in memory, not a str"):
        fb.prepare_qat("smollm2", "w4a16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": "often"}, "ranges 'often' are none of"),
        ({"ranges": "fixed"}, "lsq learns ranges"),
        ({"momentum": 0.0}, "momentum 0.0 is not in"),
        ({"delay": -1}, "delay -1 is no number of steps"),
        ({"freeze_norms": True}, "freeze_norms True is no number of steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        fb.Training(**options)


@pytest.mark.parametrize("scheme", ["int3 g32", "int3 g32 asym", "nf4 channel", "mxfp4"])
def test_training_begins_where_the_algorithms_of_the_recipe_end(scheme):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight=scheme, algorithm="gptq")])
    calibration = [images(256)]
    solved = fb.quantize(perceptron(), recipe, calibration=calibration)
    model = fb.prepare_qat(perceptron(), recipe, calibration=calibration)
    for place in (1, 3):
        assert torch.equal(model[place].weight, solved.model[place].weight)
    nearest = fb.prepare_qat(perceptron(), recipe)
    assert not torch.equal(nearest[1].weight, solved.model[1].weight)


def test_a_solved_start_is_that_of_the_folded_layer():
    recipe = fb.Recipe([fb.Rule(kind="conv", weight="int4 channel"), fb.keep(kind="linear")], transforms=["batchnorm"])
    trained = train(convolutional(), 3)
    solved = fb.quantize(copy.deepcopy(trained), recipe, calibration=[images()])
    model = fb.prepare_qat(trained, recipe, batch=images(), calibration=[images()])
    result = fb.finish_qat(model)
    for place in (0, 3):
        assert torch.equal(result.model[place].qtensor.codes, solved.model[place].qtensor.codes)
