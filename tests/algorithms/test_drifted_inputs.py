"""GPTQ and AdaRound for the output of the float model: nearer to it on inputs that have drifted."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms.adaround import AdaRound
from fewbit.algorithms.drifted_inputs import corrected, output_error
from fewbit.algorithms.gptq import Gptq
from fewbit.errors import PlanError
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.input_drift import InputDrift
from fewbit.statistics.second_moment import SecondMoment

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = draw(24, 32)
FLOATS = draw(600, 32, seed=1) @ draw(32, 32, seed=2) / 5
#: What a quantized layer before may make of them: a part that depends on them is lost, and noise comes in.
ROWS = FLOATS @ (torch.eye(32) * 0.8 + draw(32, 32, seed=3) * 0.04) + draw(600, 32, seed=4) * 0.1


def statistics(rows=ROWS, floats=FLOATS):
    moment, drift = SecondMoment.init(32, rows), InputDrift.init(32, rows)
    moment.update(rows)
    drift.update(rows, floats)
    return {"second_moment": moment, "input_drift": drift}


def gptq(**options):
    return Gptq(relative=False, asymmetric=True, **options)


def left(values, rows=ROWS, floats=FLOATS):
    """Return the mean squared error of the output beside the float layer's on its own inputs, in float64."""
    off = rows.double() @ values.double().T - floats.double() @ WEIGHT.double().T
    return float(off.square().sum(1).mean())


def test_the_corrected_weight_is_that_of_least_squares():
    seen = statistics()
    found = corrected(WEIGHT, seen["second_moment"].result(), seen["input_drift"].result(), 1e-9)
    expected = torch.linalg.lstsq(ROWS.double(), FLOATS.double() @ WEIGHT.double().T).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)  # a float32 system of condition 1e3


def test_the_error_is_that_of_the_output_but_for_a_constant():
    seen = [own.result() for own in statistics().values()]
    constant = left(WEIGHT)
    for seed in range(3):
        values = WEIGHT + draw(24, 32, seed=10 + seed) * 0.1
        assert output_error(WEIGHT, values, *seen) + constant == pytest.approx(left(values), rel=1e-4)


@pytest.mark.parametrize("text", ["int4 g16", "int2 g16 asym", "nf4 g16", "int3 channel", "int4 tensor", "mxfp4"])
def test_it_leaves_less_of_the_float_output_than_plain_gptq(text):
    scheme = parse_scheme(text)
    found, plain = (Gptq(relative=False, asymmetric=on)(WEIGHT, statistics(), scheme) for on in (True, False))
    assert left(found.qtensor.dequantize()) < 0.9 * left(plain.qtensor.dequantize())
    assert found.remarks == ()


def test_inputs_that_have_not_drifted_make_no_difference():
    seen = statistics(floats=ROWS)
    found, plain = (Gptq(relative=False, asymmetric=on)(WEIGHT, seen, parse_scheme("int4 g16")) for on in (True, False))
    assert torch.equal(found.qtensor.codes, plain.qtensor.codes)
    assert torch.equal(found.qtensor.scale, plain.qtensor.scale)
    assert found.remarks == ()


def test_a_correction_that_measures_no_better_is_left_out_and_reported(monkeypatch):
    from fewbit.algorithms import drifted_inputs

    monkeypatch.setattr(drifted_inputs, "corrected", lambda weight, *_: -weight)
    found, plain = (
        gptq()(WEIGHT, statistics(), parse_scheme("int4 g16")),
        Gptq(relative=False)(WEIGHT, statistics(), parse_scheme("int4 g16")),
    )
    assert torch.equal(found.qtensor.codes, plain.qtensor.codes)
    assert found.remarks == ("correcting for the drift of its inputs measured no better: it is left out",)


def test_without_the_drift_it_is_plain_gptq_and_says_so():
    seen = {"second_moment": statistics()["second_moment"]}
    found, plain = (
        gptq()(WEIGHT, seen, parse_scheme("int4 g16")),
        Gptq(relative=False)(WEIGHT, seen, parse_scheme("int4 g16")),
    )
    assert torch.equal(found.qtensor.codes, plain.qtensor.codes)
    assert found.remarks == ("the drift of its inputs could not be measured: it is not corrected",)


@pytest.mark.parametrize("text", ["int4 g16", "int2 g16 asym", "nf4 g16", "int3 channel", "int4 tensor", "mxfp4"])
def test_adaround_leaves_less_of_the_float_output_too(text):
    scheme = parse_scheme(text)
    found, plain = (AdaRound(asymmetric=on)(WEIGHT, statistics(), scheme) for on in (True, False))
    assert left(found.qtensor.dequantize()) < 0.95 * left(plain.qtensor.dequantize())
    assert torch.equal(found.qtensor.scale_values(), plain.qtensor.scale_values())
    assert found.remarks == ()


def test_adaround_without_drift_is_the_plain_one_and_says_what_it_does_not_know():
    scheme, plain = parse_scheme("int4 g16"), AdaRound(asymmetric=False)(WEIGHT, statistics(), parse_scheme("int4 g16"))
    still = AdaRound()(WEIGHT, statistics(floats=ROWS), scheme)
    unknown = AdaRound()(WEIGHT, {"second_moment": statistics()["second_moment"]}, scheme)
    assert torch.equal(still.qtensor.codes, plain.qtensor.codes)
    assert torch.equal(unknown.qtensor.codes, plain.qtensor.codes)
    assert (still.remarks, unknown.remarks) == (
        (),
        ("the drift of its inputs could not be measured: it is not corrected",),
    )


def test_numpy_in_numpy_out():
    seen = statistics(ROWS.numpy(), FLOATS.numpy())
    found = gptq()(WEIGHT.numpy(), seen, parse_scheme("int4 g16")).qtensor
    assert isinstance(found.codes, np.ndarray)
    assert left(torch.from_numpy(found.dequantize())) < left(WEIGHT)


# In a model.


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, rows):
        return rows + self.down(torch.relu(self.up(rows)))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(Residual() for _ in range(3)), nn.Linear(32, 4)

    def forward(self, rows):
        for layer in self.layers:
            rows = layer(rows)
        return self.head(rows)


def run(algorithm, *, sequential=True):
    recipe = fb.Recipe([fb.Rule(r"layers\..*", weight="int2 g16 asym", algorithm=algorithm), fb.keep(".*")])
    data = fb.Calibration(data=[draw(4, 16, 32, seed=n) for n in range(8)], sequential=sequential)
    return fb.quantize(Stack(), recipe, calibration=data)


def test_a_model_comes_nearer_to_the_float_one():
    rows = draw(64, 32, seed=500)
    with torch.no_grad():
        errors = [
            float((run({"name": "gptq", "asymmetric": on}).model(rows) - Stack()(rows)).square().mean())
            for on in (True, False)
        ]
    assert errors[0] < 0.9 * errors[1]


def test_a_convolutional_network_comes_nearer_too_and_layers_in_groups_say_what_is_not_known():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(),
        nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 5),
    ).eval()  # fmt: skip
    batches = [draw(4, 3, 8, 8, seed=n).cumsum(3) / 2 for n in range(60)]
    images, left_over = draw(64, 3, 8, 8, seed=500).cumsum(3) / 2, []
    for on in (True, False):
        recipe = fb.Recipe([fb.Rule(".*", weight="int3 tensor", algorithm=AdaRound(asymmetric=on, steps=300))])
        found = fb.quantize(copy.deepcopy(model), recipe, calibration=batches)
        with torch.no_grad():
            left_over.append(float((found.model(images) - model(images)).square().mean()))
        unknown = [layer.name for layer in found.report.layers if layer.remarks]
        assert unknown == (["2"] if on else [])
    assert left_over[0] < 0.8 * left_over[1]


def test_layers_measured_apart_from_the_float_model_say_so():
    report = run({"name": "gptq", "asymmetric": True}, sequential=False).report
    assert report.layers[0].remarks == ("the drift of its inputs could not be measured: it is not corrected",)


@pytest.mark.parametrize("algorithm", [Gptq(asymmetric=True), AdaRound(asymmetric=True)], ids=["gptq", "adaround"])
def test_a_graph_has_no_float_model_beside_it(onnx_model, algorithm):
    model = onnx_model("(float[n, 16] x) => (float[n, 8] y) { y = MatMul(x, w) }", {"w": (16, 8)})
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 channel", algorithm=algorithm)])
    with pytest.raises(PlanError, match=r"without the float one beside it; leave out `asymmetric`, or quantize the Py"):
        fb.quantize(model, recipe, calibration=[{"x": np.zeros((4, 16), np.float32)}])


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ("int4", {}, True), ("int3 tensor static", {}, True), ("int8", {}, None), (None, {}, None),
        ("int4", {"asymmetric": False}, False), ("int4", {"guided": True}, None),
    ],
)  # fmt: skip
def test_where_inputs_are_coarse_a_plan_has_gptq_aim_at_the_float_model(given, options, expected):
    rule = fb.Rule(".*", weight="int4 channel", input=given, algorithm=fb.Gptq(**options))
    made = fb.plan(Stack(), fb.Recipe([rule]))
    assert {row.algorithm.asymmetric for row in made.rows} == {expected}
    assert any("gptq for the output of the float model" in text for text in made.adaptations) == (
        expected is True and not options
    )


def test_in_a_graph_adaround_does_without_and_the_plan_says_so(onnx_model):
    model = onnx_model("(float[n, 16] x) => (float[n, 8] y) { y = MatMul(x, w) }", {"w": (16, 8)})
    made = fb.plan(model, fb.Recipe([fb.Rule(kind="linear", weight="int4 channel", algorithm="adaround")]))
    assert not made.problems
    assert made.rows[0].algorithm == AdaRound(asymmetric=False)
    assert made.adaptations == (
        "MatMul:y: adaround for the inputs at hand alone, since no float model runs beside the quantized one",
    )


def test_a_graph_has_no_gradients(onnx_model):
    model = onnx_model("(float[n, 16] x) => (float[n, 8] y) { y = MatMul(x, w) }", {"w": (16, 8)})
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 channel", algorithm=fb.Gptq(guided=True))])
    with pytest.raises(PlanError, match="computes no gradients; leave out `guided`, or quantize the PyTorch module"):
        fb.quantize(model, recipe, calibration=[{"x": np.zeros((4, 16), np.float32)}])
