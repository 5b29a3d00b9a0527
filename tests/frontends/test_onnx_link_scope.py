"""SmoothQuant, AWQ and equalization on ONNX files: less error, the same float graph, and everything back on failure."""

import numpy as np
import onnx
import onnxruntime
import pytest

import fewbit as fb
from fewbit.errors import PlanError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.onnx.link_scope import LinkScope
from fewbit.sources import open_source
from fewbit.transforms.smoothquant import factors_of

FRONTEND = OnnxFrontend()
STATIC = "int8 tensor asym static"


def _graph(blocks):
    lines = [
        f"""h{n} = LayerNormalization(x{n}, "{n}.norm.weight", "{n}.norm.bias")
        u{n} = MatMul(h{n}, "{n}.up.weight")  v{n} = Add(u{n}, "{n}.up.bias")  r{n} = Relu(v{n})
        d{n} = MatMul(r{n}, "{n}.down.weight")  e{n} = Add(d{n}, "{n}.down.bias")  x{n + 1} = Add(x{n}, e{n})"""
        for n in range(blocks)
    ]
    return f"(float[n, 64] x0) => (float[n, 64] x{blocks}) {{ {' '.join(lines)} }}"


def _constants(blocks):
    draw, found = np.random.default_rng(0), {}
    for n in range(blocks):
        gain = draw.uniform(0.5, 1.5, 64).astype(np.float32)
        gain[:3] = 30.0  # outlier channels behind the norm
        found[f"{n}.norm.weight"] = gain
        for name, width in {"norm": 64, "up": 96, "down": 64}.items():
            found[f"{n}.{name}.bias"] = (draw.normal(size=width) / 10).astype(np.float32)
        for name, shape in {"up": (64, 96), "down": (96, 64)}.items():
            found[f"{n}.{name}.weight"] = (draw.normal(size=shape) / np.sqrt(3 * shape[0])).astype(np.float32)
    return found


@pytest.fixture
def outliers(onnx_model):
    """Two blocks with outlier channels, and batches."""
    batches = [np.random.default_rng(n).normal(size=(16, 64)).astype(np.float32) for n in range(4)]
    return onnx_model(_graph(2), _constants(2)), batches


def _recipe(*transforms, weight="int8", given=STATIC, **more):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight, input=given)], transforms=list(transforms), **more)


def _left(outliers, recipe):
    proto, batches = outliers
    return fb.quantize(proto, recipe, to="ort-cpu", calibration=batches[:3], evaluation=batches[3:])


def test_smoothquant_keeps_more_of_a_graph_with_outlier_channels(outliers, tmp_path):
    plain, smooth = _left(outliers, _recipe()), _left(outliers, _recipe("smoothquant"))
    assert smooth.report.output_sqnr > plain.report.output_sqnr + 5
    told = "smoothquant: 4 links were rescaled, alpha 0.50 for 4: norm -> up 2, up -> down 2"
    assert told in smooth.report.remarks
    # The file computes what was simulated, on a session of its own.
    path = smooth.save(tmp_path / "m.onnx")
    onnx.checker.check_model(path, full_check=True)
    batch = outliers[1][3]
    (made,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x0": batch})
    (expected,) = smooth.run(batch).values()
    # A few codes that lie amid two.
    assert np.abs(made - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("transform", "recipe", "gain"),
    [
        ({"name": "smoothquant", "alpha": "search"}, {}, 5.0),
        ("awq", {"weight": "int4 g32", "given": None}, 0.1),
    ],
)
def test_searched_factors_help_too(outliers, transform, recipe, gain):
    plain, moved = _left(outliers, _recipe(**recipe)), _left(outliers, _recipe(transform, **recipe))
    assert moved.report.output_sqnr > plain.report.output_sqnr + gain


def test_equalization_evens_out_rows_that_differ(onnx_model):
    constants = _constants(1)
    spread = np.geomspace(1, 100, 96, dtype=np.float32)
    constants["0.up.weight"], constants["0.up.bias"] = constants["0.up.weight"] * spread, np.zeros(96, np.float32)
    constants["0.down.weight"] = constants["0.down.weight"] / spread[:, None]
    batches = [np.random.default_rng(n).normal(size=(16, 64)).astype(np.float32) for n in range(2)]
    both = onnx_model(_graph(1), constants), [*batches, *batches]
    rules = [fb.Rule(kind="linear", weight="int8 tensor")]
    plain, even = (_left(both, fb.Recipe(rules, transforms=own)) for own in ([], ["equalization"]))
    assert even.report.output_sqnr > plain.report.output_sqnr + 5


def test_the_float_graph_computes_what_it_did_and_its_factors_are_those_of_the_paper(outliers):
    proto, batches = outliers
    plain, smooth = open_source(proto).load(), _left(outliers, _recipe("smoothquant")).model
    smooth.layers.clear()
    smooth.values.clear()
    (before,), (after,) = (FRONTEND.run(own, batches[3]).values() for own in (plain, smooth))
    # Weights that are divided and multiplied are rounded to float32 once more.
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    gain, changed = (
        own.graph.graph.initializers["0.norm.weight"].const_value.numpy().astype(np.float64) for own in (plain, smooth)
    )
    normed = np.concatenate([own - own.mean(1, keepdims=True) for own in batches[:3]])
    normed /= np.sqrt((normed**2).mean(1, keepdims=True) + 1e-5)
    shift = plain.graph.graph.initializers["0.norm.bias"].const_value.numpy()
    inputs = np.abs(normed * gain + shift).max(0)
    columns = np.abs(plain.found["0.up"].weight.const_value.numpy()).max(1)
    # Gains are such that 8 bits hold them.
    assert np.allclose(gain / changed, factors_of(inputs, columns, 0.5), rtol=2**-7)


def test_a_run_that_fails_gives_every_constant_back(outliers, monkeypatch):
    proto, batches = outliers
    seen = []

    def fails(model, *_):
        seen.append((model, {name: own.const_value.numpy() for name, own in model.graph.graph.initializers.items()}))
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbit.pipeline.round_products", fails)
    with pytest.raises(KeyboardInterrupt):
        fb.quantize(proto, _recipe("smoothquant"), calibration=batches)
    ((model, changed),) = seen
    before = {own.name: onnx.numpy_helper.to_array(own) for own in proto.graph.initializer}
    assert not np.array_equal(changed["0.norm.weight"], before["0.norm.weight"])
    for name, value in model.graph.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), before[name])


def test_the_callers_own_model_stays_as_it_is(outliers):
    proto, _ = outliers
    before = proto.SerializeToString(deterministic=True)
    _left(outliers, _recipe("smoothquant"))
    assert proto.SerializeToString(deterministic=True) == before


def test_bias_correction_and_smoothquant_go_together(outliers):
    corrected = _left(outliers, _recipe("smoothquant", corrections=["bias"]))
    alone = _left(outliers, _recipe(corrections=["bias"]))
    assert corrected.report.output_sqnr > alone.report.output_sqnr + 5


def test_magnitudes_of_a_scope_are_those_of_rows_and_of_input_channels(onnx_model):
    text = """(float[n, 4, 6, 6] x) => (float[n, 6, a, b] y) { h = Conv<group=2>(x, "a.weight")
        y = ConvTranspose<group=2>(h, "b.weight") }"""
    model = open_source(onnx_model(text, {"a.weight": (4, 2, 3, 3), "b.weight": (4, 3, 2, 2)})).load()
    scope = LinkScope(model, FRONTEND.layers(model), [np.zeros((1, 4, 6, 6), np.float32)])
    first, second = (np.abs(model.found[name].weight.const_value.numpy()) for name in "ab")
    assert np.array_equal(scope.output_magnitudes("a"), first.max((1, 2, 3)))
    # Group g of a convolution reads channels 2 g and 2 g + 1.
    assert np.array_equal(scope.input_magnitudes("a"), first.reshape(2, 2, 2, 9).max((1, 3)).ravel())
    assert np.array_equal(scope.input_magnitudes("b"), second.max((1, 2, 3)))


def test_what_a_graph_cannot_have_is_an_error_of_the_plan(outliers):
    proto, _ = outliers
    with pytest.raises(PlanError, match="no rule rounds an input to a scale"):
        _left(outliers, _recipe("smoothquant", given=None))
    with pytest.raises(PlanError, match="needs calibration data"):
        fb.quantize(proto, _recipe("equalization", given="int8 tensor asym"))
