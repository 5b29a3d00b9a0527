"""Layers that a runtime fuses share one global scale: that of the largest magnitude in any of them."""

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.interfaces import Layer
from fewbit.qtensor import quantize
from fewbit.shared_scales import ALONE

WIDTH = 32
RECIPE = fb.Recipe([fb.Rule(kind="linear", weight="nvfp4")])
FUSED = {
    "0.attention.q": {"k", "v"},
    "0.attention.k": {"q", "v"},
    "0.attention.v": {"q", "k"},
    "0.attention.o": set(),
    "0.gate": {"up"},
    "0.up": {"gate"},
    "0.down": set(),
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x):
        scores = torch.softmax(self.q(x) @ self.k(x).mT / WIDTH**0.5, -1)
        return self.o(scores @ self.v(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = Attention()
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def model():
    torch.manual_seed(0)
    made = nn.Sequential(Block())
    with torch.no_grad():
        made[0].attention.k.weight *= 30.0  # so that sharing is not the same as each for itself
        made[0].gate.weight *= 0.1
    return made


def batches():
    return list(torch.randn(3, 4, 8, WIDTH, generator=torch.Generator().manual_seed(1)))


def globals_of(result):
    """Return the float above the scales of each layer."""
    return {name: float(result.model.get_submodule(name).qtensor.scale.scale) for name in FUSED}


def rules(**options):
    return fb.Recipe([fb.Rule(kind="linear", weight="nvfp4", **options)])


def test_the_plan_names_the_partners_of_each_layer():
    plan = fb.plan(model(), RECIPE, batch=batches()[0])
    rows = {row.layer.name: row for row in plan.rows}
    assert {name: {other.rpartition(".")[2] for other in rows[name].fused} for name in FUSED} == FUSED
    assert rows["0.attention.q"].notes == ("one global scale with k and v",)
    assert "one global scale with up" in str(plan)


@pytest.mark.parametrize("algorithm", ["nearest", {"name": "nearest", "weighted": True}, "gptq"])
def test_partners_get_the_scale_of_the_largest_magnitude_among_them(algorithm):
    float_model = model()
    largest = {name: float(float_model.get_submodule(name).weight.detach().abs().max()) for name in FUSED}
    result = fb.quantize(float_model, rules(algorithm=algorithm), calibration=batches())
    for name, others in FUSED.items():
        parent = name.rpartition(".")[0]
        amax = max(largest[own] for own in (name, *(f"{parent}.{other}" for other in others)))
        assert globals_of(result)[name] == 2.0 ** np.ceil(np.log2(amax / 6 / 448))
        assert str(result.model.get_submodule(name).qtensor.scheme) == "nvfp4"
    notes = {row.name: row.notes for row in result.report.layers}
    assert notes["0.attention.v"] == ("one global scale with q and k",)
    # q is 30 times as small as k, and its groups still have scales of their own; erased it would be at 0 dB.
    assert min(row.weight_sqnr for row in result.report.layers) > 12.0


def test_another_scheme_is_no_partner():
    recipe = fb.Recipe([fb.Rule(".*k", weight="int4 g16"), *RECIPE.rules])
    rows = {row.layer.name: row for row in fb.plan(model(), recipe, batch=batches()[0]).rows}
    assert rows["0.attention.q"].fused == ("0.attention.v",)
    assert rows["0.attention.k"].fused == ()


def test_without_a_run_each_has_its_own_and_the_plan_says_so():
    rows = fb.plan(model(), RECIPE).rows
    assert all(row.notes == (ALONE,) and row.fused == () for row in rows)
    result = fb.quantize(model(), RECIPE)
    for name in FUSED:
        own = quantize(model().get_submodule(name).weight.detach(), fb.parse_scheme("nvfp4"))
        assert globals_of(result)[name] == float(own.scale.scale)


def test_schemes_without_a_global_scale_ask_for_no_run():
    for text in ("mxfp4", "nf4-double", "int4 g32"):
        recipe = fb.Recipe([fb.Rule(kind="linear", weight=text)])
        assert all(row.fused == row.notes == () for row in fb.plan(model(), recipe).rows)


def test_scales_follow_weights_that_a_transform_has_changed():
    recipe = fb.Recipe(rules(algorithm="gptq").rules, transforms=["awq"])
    result = fb.quantize(model(), recipe, calibration=batches())
    found = globals_of(result)
    assert found["0.attention.q"] == found["0.attention.k"] == found["0.attention.v"]
    assert found["0.gate"] == found["0.up"] != found["0.down"]


def test_a_state_dict_with_shared_scales_loads_back():
    result = fb.quantize(model(), RECIPE, calibration=batches())
    other = fb.quantize(model(), RECIPE, calibration=[own * 2 for own in batches()])
    with torch.no_grad():
        other.model.load_state_dict(result.model.state_dict())
    x = batches()[0]
    torch.testing.assert_close(other.model(x), result.model(x), rtol=0, atol=0)


def test_zeros_among_partners_stay_zeros():
    made = model()
    for name in ("gate", "up"):
        nn.init.zeros_(getattr(made[0], name).weight)
    nn.init.zeros_(made[0].attention.q.weight)
    result = fb.quantize(made, RECIPE, calibration=batches())
    for name in ("0.gate", "0.up", "0.attention.q"):
        assert not result.model.get_submodule(name).weight.any()
    assert globals_of(result)["0.attention.q"] == globals_of(result)["0.attention.k"]


def test_layers_of_a_graph_that_read_one_value_share_too(tmp_path):
    onnx = pytest.importorskip("onnx")
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 32] x) => (float[n, 32] y) {
        a = MatMul(x, wa)
        b = MatMul(x, wb)
        h = Add(a, b)
        y = MatMul(h, wc)
    }"""
    graph = onnx.parser.parse_model(text)
    for name in ("wa", "wb", "wc"):
        values = np.random.default_rng(len(graph.graph.initializer)).standard_normal((32, 32)).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = tmp_path / "m.onnx"
    onnx.save(graph, path)
    rows = {row.layer.name: row for row in fb.plan(str(path), RECIPE).rows}
    assert {name: row.fused for name, row in rows.items()} == {
        "MatMul:a": ("MatMul:b",),
        "MatMul:b": ("MatMul:a",),
        "MatMul:y": (),
    }


def test_a_run_that_shows_nothing_is_no_error():
    from fewbit.frontends.torch.shared_inputs import shared_inputs

    layer = Layer("0", "linear", (8, 8), "Linear")
    assert shared_inputs(nn.Sequential(nn.Linear(8, 8)), [layer], torch.ones(1, 5)) is None
    assert shared_inputs(nn.Sequential(nn.Linear(8, 8)), [layer], torch.ones(1, 8)) == []
