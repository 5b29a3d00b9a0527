"""AutoRound: below its start in the error of the block's output, exactly its start without steps, the same by seed."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from residual_block import ResidualBlock, draw
from torch import nn

import fewbit as fb
from fewbit.algorithms import ALGORITHMS
from fewbit.algorithms.autoround import AutoRound
from fewbit.algorithms.block import Block
from fewbit.catalogue import lookup
from fewbit.errors import RecipeError, SchemeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

pytestmark = pytest.mark.usefixtures("one_thread")
GUIDED = {"name": "gptq", "guided": True}
NET = ResidualBlock(32, 48, (6, 7), "int2 g16 asym")
WEIGHTS, inputs, forward, block = NET.weights, NET.inputs, NET.forward, NET.block


def error(qtensors, seed):
    """Return the relative squared error of the output, in float64, on rows of a seed."""
    dequantized = {name: own.dequantize() for name, own in qtensors.items()}
    found = [(forward(dequantized, own) - forward(WEIGHTS, own), forward(WEIGHTS, own)) for own in inputs(seed)]
    return float(np.mean([(off.square().mean(-1) / kept.square().mean(-1)).mean().double() for off, kept in found]))


def trained(seed=0, text="int2 g16 asym", **options):
    usual = {"steps": 60, "start": "nearest", "reach": 0.5, "precision": "float32"}
    return AutoRound(**usual | options).solve_block(block(text), seed)


# What it computes.


@pytest.mark.parametrize(
    "text", ["int2 g16 asym", "int4 g16", "int3 channel asym", "int2 g16 float-zero", "int4 tensor"]
)
def test_training_lowers_the_error_of_the_output_also_on_inputs_that_it_has_not_seen(text):
    found = trained(text=text)
    assert found.losses[1] < 0.8 * found.losses[0]
    assert found.losses[1] == pytest.approx(error(found.qtensors, 10), rel=1e-4)  # float32 sums
    assert error(found.qtensors, 500) < 0.9 * error(block(text).starts, 500)
    assert {name: str(own.scheme) for name, own in found.qtensors.items()} == {name: str(parse_scheme(text))
                                                                                for name in WEIGHTS}  # fmt: skip


def test_the_weights_go_farther_while_the_output_comes_nearer():
    found, start = trained(), block().starts
    for name, weight in WEIGHTS.items():
        far, near = ((own[name].dequantize() - weight).square().sum() for own in (found.qtensors, start))
        assert far > near


def test_200_steps_of_4_samples_are_usual():
    assert (AutoRound().steps, AutoRound().samples) == (200, 4)


def test_no_step_is_the_start():
    given = block()
    found = AutoRound(steps=0, precision="float32").solve_block(given, 0)
    assert found.qtensors.keys() == given.starts.keys()
    assert all(found.qtensors[name] is given.starts[name] for name in WEIGHTS)
    assert found.losses[0] == found.losses[1] == pytest.approx(error(given.starts, 10), rel=1e-4)


def test_a_start_that_cannot_be_improved_is_kept():
    grid = {name: quantize(weight, parse_scheme("int2 g16 asym")) for name, weight in WEIGHTS.items()}
    exact = {name: own.dequantize() for name, own in grid.items()}
    rows = inputs(10)
    given = Block(
        forward=lambda weights, sample: forward(weights, rows[sample]),
        targets=[forward(exact, own) for own in rows], weights=exact, starts=grid,
    )  # fmt: skip
    found = AutoRound(steps=10, start="nearest", precision="float32").solve_block(given, 0)
    assert all(found.qtensors[name] is grid[name] for name in WEIGHTS)
    assert found.losses == (0.0, 0.0)


def test_the_seed_alone_decides():
    one, again, other = (trained(seed, samples=2) for seed in (3, 3, 4))
    for name in WEIGHTS:
        assert one.qtensors[name].codes.numpy().tobytes() == again.qtensors[name].codes.numpy().tobytes()
        assert one.qtensors[name].scale.numpy().tobytes() == again.qtensors[name].scale.numpy().tobytes()
    assert any((one.qtensors[name].codes != other.qtensors[name].codes).any() for name in WEIGHTS)


def test_ranges_are_trained_unless_told_otherwise():
    start = block().starts
    assert any((own.scale != start[name].scale).any() for name, own in trained(ranges=0.3).qtensors.items())
    fixed = trained(ranges=0.0)
    assert all(torch.equal(own.scale, start[name].scale) for name, own in fixed.qtensors.items())
    assert fixed.losses[1] < fixed.losses[0]


def test_relative_errors_let_small_rows_count():
    """One row a hundred times as large as the others decides alone otherwise."""
    rows = [torch.cat([own[:1] * 100.0, own[1:]]) for own in inputs(10)]
    given = Block(
        forward=lambda weights, sample: forward(weights, rows[sample]),
        targets=[forward(WEIGHTS, own) for own in rows], weights=WEIGHTS, starts=block().starts,
    )  # fmt: skip
    left = []
    for relative in (True, False):
        algorithm = AutoRound(steps=60, start="nearest", reach=0.5, relative=relative)
        left.append(error(algorithm.solve_block(given, 0).qtensors, 500))
    assert left[0] < left[1]


@pytest.mark.parametrize("relative", [True, False])
def test_guided_errors_let_rows_count_by_their_weights(relative):
    """Of the first two rows of each sample the guide knows that they count, of the others that they do not."""
    rows = inputs(10)
    guide = torch.zeros(rows[0].shape[:-1]).flatten()
    guide[:2] = len(guide) / 2
    targets, starts = [forward(WEIGHTS, own) for own in rows], block().starts
    given = partial(Block, forward=lambda weights, sample: forward(weights, rows[sample]), targets=targets)
    parts = [given(weights=WEIGHTS, starts=starts, row_weights=guides) for guides in ([guide] * len(rows), None)]
    algorithm = AutoRound(steps=60, start=GUIDED, reach=0.5, relative=relative, guided=True)
    guided, unguided = (algorithm.solve_block(own, 0) for own in parts)

    def on_those(found):
        weights = {name: own.dequantize() for name, own in found.qtensors.items()}
        return sum(float((forward(weights, own) - to).flatten(0, -2)[:2].square().sum()) for own, to in
                   zip(rows, targets, strict=True))  # fmt: skip

    # Two rows of many instead of all: far less is asked of as many offsets, so that 0.8 leaves room.
    assert on_those(guided) < 0.8 * on_those(unguided)
    assert not guided.remarks
    why = "no gradient at the output of its block is known: rows count as without `guided`"
    assert unguided.remarks == dict.fromkeys(WEIGHTS, (why,))


def test_a_weight_that_no_gradient_reaches_keeps_its_start_and_says_so():
    def cut(weights, rows):
        return rows + torch.relu(rows @ weights["up"].T).detach() @ weights["down"].T

    given = block(run=cut)
    found = AutoRound(steps=20, start="nearest", reach=0.5).solve_block(given, 0)
    assert torch.equal(found.qtensors["up"].codes, given.starts["up"].codes)
    assert (found.qtensors["down"].codes != given.starts["down"].codes).any()
    assert found.remarks == {"up": ("no gradient reaches its weight: its start is kept",)}


def test_products_in_bfloat16_train_about_as_well():
    exact, halved = (trained(precision=precision).losses[1] for precision in ("float32", "bfloat16"))
    assert halved < 1.5 * exact
    assert halved != exact  # so that they were taken in it


# In a model.


class Residual(nn.Module):
    """A block as language models have them."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, rows):
        return rows + self.down(torch.relu(self.up(self.norm(rows))))


class Stack(nn.Module):
    """Three of them."""

    def __init__(self, width=32):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Residual(width) for _ in range(3)), nn.Linear(width, 4)

    def forward(self, rows):
        for layer in self.layers:
            rows = layer(rows)
        return self.head(rows)


def stack():
    torch.manual_seed(0)
    return Stack()


def batches(seed=0, count=8):
    return [draw(4, 16, 32, seed=seed + number) for number in range(count)]


def run(algorithm, model=None, *, text="int2 g16 asym", seed=0, **rule):
    recipe = fb.Recipe([fb.Rule(r"layers\..*", weight=text, algorithm=algorithm, **rule), fb.keep(".*", optional=True)])
    return fb.quantize(model or stack(), recipe, calibration=batches(), options=fb.Options(seed=seed))


def left_over(result):
    with torch.no_grad():
        rows, reference = batches(900), stack()
        return float(np.mean([float((result.model(own) - reference(own)).square().mean()) for own in rows]))


@pytest.mark.parametrize("start", ["nearest", "gptq", {"name": "gptq", "sweeps": 0}])
def test_without_steps_a_model_is_that_of_the_start(start):
    found, expected = run({"name": "autoround", "steps": 0, "start": start}), run(start)
    for (name, own), other in zip(found.model.state_dict().items(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(own, other), name


@pytest.mark.parametrize(("start", "reach"), [("nearest", 0.5), ("gptq", 0.15)])
def test_a_model_comes_nearer_than_with_its_start(start, reach):
    found = run({"name": "autoround", "steps": 60, "start": start, "reach": reach})
    assert left_over(found) < left_over(run(start))
    trained = [layer for layer in found.report.layers if not layer.kept]
    for layer in trained:
        assert layer.algorithm == "autoround"
        assert layer.block_losses[1] <= layer.block_losses[0]  # a block may be best where it starts
        assert layer.solved_sqnr is None  # its own output is not what is trained for
        assert layer.seconds > 0
    assert any(layer.block_losses[1] < layer.block_losses[0] for layer in trained)
    losses = [layer.block_losses for layer in found.report.layers if layer.name.endswith("up")]
    assert len(set(losses)) == 3  # one for each block
    assert "trained by block       6 layers, mean loss " in str(found.report)
    assert json.loads(found.report.files()["report.json"])["layers"][0]["block_losses"] == list(losses[0])


def test_gradients_at_the_outputs_of_blocks_reach_it():
    found = run({"name": "autoround", "steps": 20, "start": GUIDED, "guided": True})
    assert not any(layer.remarks for layer in found.report.layers)
    plain = run({"name": "autoround", "steps": 20, "start": GUIDED})
    codes = [torch.cat([own.model.get_submodule(f"layers.{k}.up").qtensor.codes for k in range(3)]) for own in
             (found, plain)]  # fmt: skip
    assert not torch.equal(*codes)


FAR = {"name": "autoround", "steps": 40, "start": "nearest", "reach": 0.5}


def test_the_seed_of_the_run_reaches_it():
    one, again, other = (run({**FAR, "samples": 2}, seed=seed) for seed in (1, 1, 2))
    codes = [torch.cat([own.model.get_submodule(f"layers.{k}.up").qtensor.codes for k in range(3)]) for own in
             (one, again, other)]  # fmt: skip
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_a_module_without_blocks_is_trained_whole():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int2 g16", algorithm=FAR)])
    report = fb.quantize(model, recipe, calibration=[draw(32, 32, seed=n) for n in range(6)]).report
    assert {layer.block_losses for layer in report.layers} == {report.layers[0].block_losses}
    assert report.layers[0].block_losses[1] < 0.8 * report.layers[0].block_losses[0]


def test_layers_behind_rounded_inputs_are_trained_too():
    found = run(FAR, text="int4 g16", input="int8")
    assert all(not layer.remarks and layer.block_losses[1] < layer.block_losses[0]
               for layer in found.report.layers if not layer.kept)  # fmt: skip
    assert left_over(found) < left_over(run("nearest", text="int4 g16", input="int8"))


def test_convolutions_are_trained():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 3))
    recipe = fb.Recipe([fb.Rule(kind="conv", weight="int3 channel", algorithm=FAR)])
    report = fb.quantize(model, recipe, calibration=[draw(2, 3, 10, 10, seed=n) for n in range(6)]).report
    assert report.layers[0].block_losses[1] < 0.9 * report.layers[0].block_losses[0]


def test_layers_of_other_algorithms_in_a_block_stay_theirs():
    recipe = fb.Recipe([
        fb.Rule(r"layers\..*\.up", weight="int2 g16", algorithm={"name": "autoround", "steps": 20, "reach": 0.15}),
        fb.Rule(r"layers\..*\.down", weight="int4 g16", algorithm="gptq"), fb.keep(".*"),
    ])  # fmt: skip
    report = {layer.name: layer for layer in fb.quantize(stack(), recipe, calibration=batches()).report.layers}
    assert report["layers.1.up"].block_losses is not None
    assert report["layers.1.down"].block_losses is None
    assert report["layers.1.down"].solved_sqnr is not None


def test_a_run_that_fails_leaves_the_float_model(monkeypatch):
    model, calls = stack(), []
    before = {name: own.clone() for name, own in model.state_dict().items()}

    def failing(self, given, seed):
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve_block(self, given, seed)

    solve_block = AutoRound.solve_block
    monkeypatch.setattr(AutoRound, "solve_block", failing)
    with pytest.raises(KeyboardInterrupt):
        run({"name": "autoround", "steps": 2}, model)
    assert {name: own.tolist() for name, own in model.state_dict().items()} == {
        name: own.tolist() for name, own in before.items()
    }
    assert all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith(("up", "down")))


# What it refuses.


@pytest.mark.parametrize("text", ["nf4 g16", "int1 g16 asym", "int16 channel", "mxfp4", "e4m3 channel"])
def test_a_scheme_that_is_not_of_integers_of_2_to_8_bits_is_a_problem_of_the_plan(text):
    recipe = fb.Recipe([fb.Rule(r"layers\..*", weight=text, algorithm="autoround"), fb.keep(".*")])
    problems = fb.plan(stack(), recipe).problems
    assert problems == (
        f"layers.0.up and 5 more: autoround trains integers of 2 to 8 bits, not '{parse_scheme(text)}'; use a scheme "
        "such as 'int4 g64', or gptq",
    )
    with pytest.raises(SchemeError, match="autoround trains integers"):
        AutoRound()(WEIGHTS["up"], None, parse_scheme(text))


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": -1}, "steps -1 is no number of them; 200 is usual"), ({"samples": 0}, "samples 0 is no number"),
    ({"reach": -0.1}, r"reach -0.1 is outside \[0, 10\]; 0.15 is usual"), ({"reach": True}, "reach True is outside"),
    ({"ranges": "a"}, "ranges 'a' is outside"), ({"relative": 1}, "relative = 1 is not true or false"),
    ({"guided": 1, "start": GUIDED}, "guided = 1 is not true or false"),
    ({"guided": True}, "guided = true takes the gradients that its start asks for, and gptq asks for none"),
    ({"precision": "half"}, "precision 'half' is none of auto, float32, bfloat16"),
    ({"start": "autoround"}, "start = 'autoround' trains blocks itself; use gptq or nearest"),
])  # fmt: skip
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(RecipeError, match=f"^autoround: {message}"):
        AutoRound(**options)


def test_recipes_name_it_with_its_options():
    text = '[[rules]]\nkind = "linear"\nweight = "int2 g64 asym"\n'
    options = 'algorithm = { name = "autoround", steps = 100, start = { name = "gptq", sweeps = 0 } }'
    [rule] = fb.Recipe.from_text(text + options).rules
    assert rule.algorithm == fb.AutoRound(steps=100, start=fb.Gptq(sweeps=0))
    assert rule.algorithm.statistics == fb.Gptq().statistics
    assert fb.AutoRound(start="nearest").statistics == ("mean",)  # which counts the tokens of an expert
    assert lookup(ALGORITHMS, "autoround", what="algorithm") is fb.AutoRound
