"""BRECQ: roundings of a block learned together; below its start in the error of the output, the same by seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from residual_block import ResidualBlock, draw
from torch import nn

import fewbit as fb
from fewbit.algorithms.block import Block
from fewbit.algorithms.brecq import Brecq
from fewbit.errors import RecipeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

pytestmark = pytest.mark.usefixtures("one_thread")
NET = ResidualBlock(16, 24, (4, 5), "int3 channel")
WEIGHTS, inputs, forward, block = NET.weights, NET.inputs, NET.forward, NET.block
SCHEMES = ["int2 g8 asym", "int4 channel", "int4 tensor", "nf4 g8", "int2 g8 float-zero", "ternary channel"]


def error(qtensors, seed):
    """Return the mean squared error of the output, in float64, on rows of a seed."""
    dequantized = {name: own.dequantize() for name, own in qtensors.items()}
    off = [forward(dequantized, own) - forward(WEIGHTS, own) for own in inputs(seed)]
    return float(np.mean([own.double().square().mean() for own in off]))


def learned(seed=0, text="int3 channel", **options):
    return Brecq(**{"steps": 200, "start": "nearest", "precision": "float32"} | options).solve_block(block(text), seed)


# What it computes.


@pytest.mark.parametrize("text", SCHEMES)
def test_the_output_comes_nearer_also_on_other_inputs_while_the_weights_go_farther(text):
    found, start = learned(text=text), block(text).starts
    assert found.losses[1] < 0.7 * found.losses[0]
    assert found.losses[1] == pytest.approx(error(found.qtensors, 10), rel=1e-4)  # float32 sums
    assert error(found.qtensors, 500) < 0.9 * error(start, 500)
    for name, weight in WEIGHTS.items():
        far, near = ((own[name].dequantize() - weight).square().sum() for own in (found.qtensors, start))
        assert far > near
        assert torch.equal(found.qtensors[name].scale_values(), start[name].scale_values())


def test_every_code_is_the_one_below_or_above():
    found, start = learned(), block().starts
    for name, weight in WEIGHTS.items():
        place = weight * (1.0 / start[name].scale_values())
        codes = found.qtensors[name].codes.float()
        assert ((codes == place.floor().clamp(-4, 3)) | (codes == place.ceil().clamp(-4, 3))).all()


def test_no_step_is_the_start_and_the_seed_alone_decides():
    given = block()
    none = Brecq(steps=0, precision="float32").solve_block(given, 0)
    assert all(none.qtensors[name] is given.starts[name] for name in WEIGHTS)
    assert none.losses[0] == none.losses[1] == pytest.approx(error(given.starts, 10), rel=1e-4)
    one, again, other = (learned(seed, samples=1, steps=60) for seed in (3, 3, 4))
    for name in WEIGHTS:
        assert one.qtensors[name].codes.numpy().tobytes() == again.qtensors[name].codes.numpy().tobytes()
    assert any((one.qtensors[name].codes != other.qtensors[name].codes).any() for name in WEIGHTS)


def test_a_start_that_is_not_bettered_is_kept():
    """Roundings that are left half-way are worse than those to nearest."""
    given = block("int8 channel")
    found = Brecq(steps=2, reach=1000.0, warm=0.0).solve_block(given, 0)
    assert all(found.qtensors[name] is given.starts[name] for name in WEIGHTS)
    assert found.losses[0] == found.losses[1]


def test_a_weight_that_no_gradient_reaches_keeps_its_start_and_says_so():
    def cut(weights, rows):
        return rows + torch.relu(rows @ weights["up"].T).detach() @ weights["down"].T

    given = block(run=cut)
    found = Brecq(steps=100, start="nearest").solve_block(given, 0)
    assert found.qtensors["up"] is given.starts["up"]
    assert (found.qtensors["down"].codes != given.starts["down"].codes).any()
    assert found.remarks == {"up": ("no gradient reaches its weight: its start is kept",)}


def test_numbers_of_the_output_that_count_more_come_nearer():
    given, counts = block("int2 channel"), torch.cat([torch.full((8,), 1.0), torch.full((8,), 1e-3)])
    weighed = replace(given, curvature=lambda: [counts.expand_as(target) for target in given.targets])

    def far(qtensors, part):
        dequantized = {name: own.dequantize() for name, own in qtensors.items()}
        off = [forward(dequantized, own) - forward(WEIGHTS, own) for own in inputs(10)]
        return float(np.mean([own[:, part].double().square().mean() for own in off]))

    found, plain = (
        Brecq(steps=200, start="nearest", precision="float32", fisher=on).solve_block(weighed, 0)
        for on in (True, False)
    )
    assert far(found.qtensors, slice(8)) < 0.9 * far(plain.qtensors, slice(8))
    assert far(found.qtensors, slice(8, 16)) > far(plain.qtensors, slice(8, 16))
    assert not found.remarks


def test_where_no_curvature_is_known_all_count_alike_and_the_layers_say_so():
    found, plain = learned(fisher=True), learned()
    assert all(torch.equal(found.qtensors[name].codes, plain.qtensors[name].codes) for name in WEIGHTS)
    why = "no gradient at the output of its block is known: every number of it counts alike"
    assert found.remarks == dict.fromkeys(WEIGHTS, (why,))


def test_training_goes_on_from_the_codes_of_another_start():
    """With hardly any step the roundings are those of the start, not the nearest ones."""
    scheme, given = parse_scheme("int3 channel"), block()
    moved = learned().qtensors
    given = Block(forward=given.forward, targets=given.targets, weights=WEIGHTS, starts=moved)
    found = Brecq(steps=1, reach=0.1, regularization=0.0).solve_block(given, 0)
    for name, weight in WEIGHTS.items():
        assert torch.equal(found.qtensors[name].codes, moved[name].codes)
        assert not torch.equal(found.qtensors[name].codes, quantize(weight, scheme).codes)


# In a model.


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.deep = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        self.out, self.skip = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        return torch.relu(self.out(self.deep(x)) + self.skip(x))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 12), Residual(12, 12), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def images(count=8, seed=0):
    return [draw(4, 3, 8, 8, seed=seed + number).cumsum(3) / 2 for number in range(count)]


def run(algorithm, *, seed=0, **rule):
    recipe = fb.Recipe([fb.Rule(".*", weight="int3 channel", algorithm=algorithm, **rule)])
    return fb.quantize(network(), recipe, calibration=images(), options=fb.Options(seed=seed))


def left_over(result):
    reference = network()
    with torch.no_grad():
        return float(np.mean([float((result.model(own) - reference(own)).square().mean()) for own in images(seed=900)]))


QUICK = {"name": "brecq", "steps": 150, "start": "nearest"}


def test_a_convolutional_network_is_trained_unit_by_unit():
    found = run(QUICK)
    losses = {layer.name: layer.block_losses for layer in found.report.layers}
    assert losses["3.deep.0"] == losses["3.out"] == losses["3.skip"]
    assert len(set(losses.values())) == 4  # stem, two residual blocks, classifier
    assert all(after < before for before, after in losses.values())
    assert not any(layer.remarks for layer in found.report.layers)
    assert left_over(found) < 0.8 * left_over(run("nearest"))


def test_a_network_tells_what_the_numbers_between_its_units_count():
    found = run(QUICK | {"fisher": True})
    assert all(layer.block_losses[1] < layer.block_losses[0] for layer in found.report.layers)
    assert not any(layer.remarks for layer in found.report.layers)
    assert left_over(found) < 0.8 * left_over(run("nearest"))


def test_the_blocks_of_a_language_model_tell_it_too(small_llama):
    model = small_llama(vocab_size=100)
    rules = [fb.Rule(kind="linear", weight="int3 g16", algorithm=QUICK | {"steps": 20, "fisher": True}), fb.keep(".*")]
    batches = list(torch.randint(0, 100, (4, 2, 12), generator=torch.Generator().manual_seed(0)))
    report = fb.quantize(model, fb.Recipe(rules), calibration=batches).report
    trained = [layer for layer in report.layers if layer.block_losses]
    assert len(trained) == 2 * 7
    assert all(after < before for before, after in (layer.block_losses for layer in trained))
    assert not any(layer.remarks for layer in trained)
    # What lets the gradients come back is taken away again.
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_it_starts_from_adaround_unless_told_otherwise():
    found, expected = run({"name": "brecq", "steps": 0}), run({"name": "adaround", "asymmetric": False})
    assert torch.equal(found.model[0].qtensor.codes, expected.model[0].qtensor.codes)
    assert all(layer.block_losses[0] == layer.block_losses[1] for layer in found.report.layers)
    assert fb.Brecq().statistics == fb.AdaRound(asymmetric=False).statistics
    assert fb.Brecq(start="nearest").statistics == ("mean",)


def test_layers_behind_rounded_inputs_are_trained_too():
    found = run(QUICK | {"steps": 100}, input="int8")
    assert all(layer.block_losses[1] < layer.block_losses[0] for layer in found.report.layers)
    assert left_over(found) < 0.8 * left_over(run("nearest", input="int8"))


def test_a_graph_is_done_by_layers_and_the_plan_says_so(onnx_model):
    text = """(float[n, 3, 8, 8] x) => (float[n, 4, h, w] y) { a = Conv <kernel_shape = [3, 3]> (x, "first")
        r = Relu(a)  y = Conv <kernel_shape = [3, 3]> (r, "second") }"""
    made = onnx_model(text, {"first": (6, 3, 3, 3), "second": (4, 6, 3, 3)})
    batches = [own.numpy() for own in images()]
    rules = [fb.Rule(".*", weight="int3 channel", algorithm=own) for own in ("brecq", "adaround")]
    found = [fb.quantize(made, fb.Recipe([rule]), to="ort-cpu", calibration=batches) for rule in rules]
    assert found[0].plan.adaptations == (
        "Conv:a and 1 more: brecq trains each layer for its own output, as an onnx model gives no gradients",
    )
    for ours, theirs in zip(found[0].model.layers.values(), found[1].model.layers.values(), strict=True):
        assert ours.qtensor.codes.tobytes() == theirs.qtensor.codes.tobytes()
    assert all(layer.solved_sqnr > layer.nearest_sqnr for layer in found[0].report.layers)
    assert fb.Brecq(start={"name": "adaround", "warm": 0.1}).alone == fb.AdaRound(warm=0.1, asymmetric=False)
    assert fb.Brecq(start="nearest").alone == fb.AdaRound(asymmetric=False)


# What it refuses.


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": -1}, "steps -1 is no number of them"), ({"samples": 0}, "samples 0 is no number of them; 2 is usual"),
    ({"start": "gptq"}, "start = 'gptq' rounds to other codes than the two"),
    ({"warm": 2}, r"warm 2 is outside \[0, 0.9\]"), ({"relative": 1}, "relative = 1 is not true or false"),
    ({"precision": 16}, "precision 16 is none of auto, float32"), ({"fisher": 1}, "fisher = 1 is not true or false"),
    ({"fisher": True, "relative": True}, "fisher and relative weigh errors by different things; use one of them"),
])  # fmt: skip
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(RecipeError, match=f"^brecq: {message}"):
        Brecq(**options)


def test_a_scheme_of_more_than_8_bits_is_a_problem_of_the_plan():
    [problem] = fb.plan(network(), fb.Recipe([fb.Rule("0", weight="fp16", algorithm="brecq"), fb.keep(".*")])).problems
    assert "brecq learns between the levels of up to 8 bits, not of 'fp16'; use int8 or less, or nearest" in problem
