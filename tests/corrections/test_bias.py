"""Bias correction: outputs of quantized layers have the means of the float model, in modules and graphs alike."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.corrections import parse_correction
from fewbit.corrections.bias import CorrectBias
from fewbit.errors import PlanError, RecipeError
from fewbit.statistics.mean import Mean

#: Float32 sums of a few hundred products, as a share of outputs about 1 in size.
SUMS = 2e-5


class Net(nn.Module):
    """Convolutions, one of them depthwise, and linear layers, one without a bias; ReLU makes inputs positive."""

    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.bare, self.out = nn.Linear(4, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x):
        x = self.up(self.deep(self.wide(x).relu()).relu()).relu().mean((2, 3))
        return self.out(self.bare(x).relu())


def net():
    torch.manual_seed(0)
    return Net().eval()


BATCHES = [torch.rand(8, 3, 13, 13, generator=torch.Generator().manual_seed(seed)) + 1 for seed in range(3)]
CORRECTED = ["wide", "deep", "out"]


def means(model):
    found = {}

    def hook(name, axes):
        def take(_, __, output):
            found[name] = found.get(name, 0) + output.double().mean(axes) / len(BATCHES)

        return take

    handles = [
        getattr(model, name).register_forward_hook(hook(name, (0, 2, 3) if name != "out" else 0)) for name in CORRECTED
    ]
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    for handle in handles:
        handle.remove()
    return found


def quantized(weight="int3 channel", corrections=("bias",), **further):
    rules = [fb.Rule(kind=kind, weight=weight, **further) for kind in ("conv", "linear")]
    return fb.quantize(net(), fb.Recipe(rules, corrections=corrections), calibration=BATCHES, evaluation=BATCHES)


def test_outputs_keep_their_means_and_without_it_they_do_not():
    expected = means(net())
    for corrections, kept in ((("bias",), True), ((), False)):
        found = means(quantized(corrections=corrections).model)
        for name in CORRECTED:
            assert torch.allclose(found[name], expected[name], rtol=0, atol=SUMS) == kept


def test_it_leaves_less_noise_at_the_output_of_the_model():
    plain, own = (quantized(corrections=given).report.output_sqnr for given in ((), ("bias",)))
    assert own > plain + 3  # inputs that are all positive: most of the noise is a shift


def test_the_float_model_keeps_its_biases_and_the_report_says_what_moved():
    result = quantized()
    assert "correction bias: biases of 3 layers moved, so that outputs keep their means" in result.report.remarks
    notes = {row.name: row.notes for row in result.report.layers}
    assert "it has no bias to correct" in notes["bare"]
    assert "no correction applies to it" in notes["up"]  # its output is no row of its input times the weight
    assert notes["wide"] == ()


def test_a_corrected_bias_may_be_in_int32():
    expected, found = (
        means(net()),
        means(quantized("int8 channel", bias="int32", input="int8 tensor asym static").model),
    )
    plain = means(quantized("int8 channel", (), bias="int32", input="int8 tensor asym static").model)
    # What rounding the inputs shifts is not corrected: 8 bits of it.
    for name in CORRECTED:
        assert (found[name] - expected[name]).abs().max() < 0.02
        assert not torch.equal(found[name], plain[name])


def test_saving_and_loading_keeps_the_corrected_bias(tmp_path):
    def linear():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    rows = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    recipe = fb.Recipe([fb.Rule(".*", weight="int4 channel", algorithm="gptq")], corrections=["bias"])
    result = fb.quantize(linear(), recipe, calibration=[rows], dtype="bfloat16")
    again = fb.load(result.save(tmp_path / "net"), into=linear())
    assert torch.equal(again.model(rows), result.model(rows))
    assert not torch.equal(again.model[0].bias, linear()[0].bias.bfloat16().float())


GRAPH = """(float[n, 3, 9, 9] x) => (float[n, 5] y) {
    a = Conv(x, "a.weight", "a.bias")
    b = Relu(a)
    c = Conv<group=4>(b, "c.weight", "c.bias")
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    g = MatMul(f, "g.weight")
    y = Add(g, "g.bias")
}"""
SHAPES = {
    "a.weight": (4, 3, 3, 3), "a.bias": (4,), "c.weight": (4, 1, 3, 3), "c.bias": (4,),
    "g.weight": (4, 5), "g.bias": (5,),
}  # fmt: skip


def run(path, batches):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": batch})[0] for batch in batches])


def test_graphs_keep_their_means_too_and_so_do_their_files(onnx_model, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(onnx_model(GRAPH, SHAPES), path)
    batches = [np.random.default_rng(seed).uniform(1, 2, (4, 3, 9, 9)).astype(np.float32) for seed in range(3)]
    expected = run(path, batches)
    errors = []
    for corrections in ((), ("bias",)):
        rules = [fb.Rule(kind=kind, weight="int3 channel") for kind in ("conv", "linear")]
        result = fb.quantize(str(path), fb.Recipe(rules, corrections=corrections), to="ort-cpu", calibration=batches)
        out = result.save(tmp_path / f"{len(corrections)}.onnx")
        found = run(out, batches)
        errors.append(np.abs(found.mean(0) - expected.mean(0)).max())
    assert errors[1] < SUMS < 10 * SUMS < errors[0]


def test_the_mean_of_the_output_is_the_wanted_one_for_any_groups(xp):
    rng = np.random.default_rng(0)
    weight, rows = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(50, 12)).astype(np.float32) + 2
    target = rng.normal(size=(9, 6)).astype(np.float32)
    given, wanted = Mean.init(12, xp.from_numpy(rows)), Mean.init(6, xp.from_numpy(target))
    given.update(xp.from_numpy(rows))
    wanted.update(xp.from_numpy(target))
    bias = xp.to_numpy(CorrectBias()(xp.from_numpy(weight), given, wanted))
    outputs = np.einsum("rgk,gok->rgo", rows.reshape(50, 3, 4), weight.reshape(3, 2, 4)).reshape(50, 6) + bias
    np.testing.assert_allclose(outputs.mean(0), target.mean(0), rtol=0, atol=SUMS)


def test_a_layer_that_no_input_reaches_keeps_its_bias_and_the_report_says_so():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    model = Idle()
    bias = copy.deepcopy(model.idle.bias)
    recipe = fb.Recipe([fb.Rule(".*", weight="int8")], corrections=["bias"])
    result = fb.quantize(model, recipe, calibration=[torch.randn(5, 4)])
    assert torch.equal(result.model.idle.bias, bias)
    assert "idle: no calibration input reached it: correction bias is left out" in result.report.remarks


def test_recipes_name_corrections_in_toml():
    recipe = fb.Recipe.from_text('corrections = ["bias"]\n[[rules]]\nmatch = ".*"\nweight = "int8"')
    assert recipe.corrections == (CorrectBias(),)
    with pytest.raises(RecipeError, match=r"unknown correction 'bais'; did you mean 'bias'\?"):
        fb.Recipe.from_text('corrections = ["bais"]\n[[rules]]\nmatch = ".*"\nweight = "int8"')
    with pytest.raises(RecipeError, match="corrections = 'bias' is not a list of names"):
        fb.Recipe([fb.Rule(".*", weight="int8")], corrections="bias")
    with pytest.raises(RecipeError, match="3 is no correction; write for example"):
        parse_correction(3)


def test_a_correction_without_any_bias_is_a_problem_of_the_plan():
    recipe = fb.Recipe([fb.Rule(".*", weight="int8")], corrections=["bias"])
    with pytest.raises(PlanError, match="correction bias has no effect: no layer that is quantized has a bias"):
        fb.quantize(nn.Sequential(nn.Linear(4, 4, bias=False)), recipe, calibration=[torch.randn(5, 4)])
