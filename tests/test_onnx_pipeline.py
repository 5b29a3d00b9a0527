"""`fewbit.quantize` on ONNX models, end to end in memory."""

import ast
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError, PlanError, RecipeError

CNN = """(float[n, 3, 16, 16] x) => (float[n, 10] y) {
    c1 = Conv<pads=[1, 1, 1, 1]>(x, "conv1.weight")
    n1 = BatchNormalization(c1, gain, shift, mean, variance)
    r1 = Relu(n1)
    c2 = Conv<pads=[1, 1, 1, 1], strides=[2, 2], group=8>(r1, "conv2.weight", "conv2.bias")
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, "fc.weight", "fc.bias")
}"""
SHAPES = {
    "conv1.weight": (8, 3, 3, 3), "conv2.weight": (16, 1, 3, 3), "conv2.bias": (16,),
    "fc.weight": (10, 16), "fc.bias": (10,), "shift": (8,), "mean": (8,),
    "gain": np.linspace(0.5, 1.5, 8, dtype=np.float32), "variance": np.linspace(0.5, 1.5, 8, dtype=np.float32),
}  # fmt: skip


def images(count=3):
    random = np.random.default_rng(1)
    return [random.normal(size=(4, 3, 16, 16)).astype(np.float32) for _ in range(count)]


@pytest.fixture
def cnn(onnx_model, tmp_path):
    onnx.save(onnx_model(CNN, SHAPES), tmp_path / "cnn.onnx")
    return tmp_path / "cnn.onnx"


#: Least SQNR in dB of the output: by 8 bits about 40, by 4 bits about 20, by the 3 bits of e4m3's mantissa about 25.
#: Casts have 11 and 8 bits of mantissa, the first of them unsaid.
LEAST = {
    "w8a16": 35, "w8a8": 35, "w8a8-static": 32, "w4a16": 14, "w4a8": 14, "fp8a16": 22, "fp8": 20, "fp8-static": 20,
    "fp16": 60, "bf16": 45,
}  # fmt: skip


@pytest.mark.parametrize("recipe", LEAST)
def test_a_preset_gives_a_result_that_runs_and_is_measured(cnn, recipe):
    batches = images()
    result = fb.quantize(str(cnn), recipe, calibration=batches, evaluation=batches)
    assert result.report.output_sqnr > LEAST[recipe]
    assert [layer.name for layer in result.report.layers] == ["conv1", "conv2", "fc"]
    assert all(layer.output_sqnr > 12 for layer in result.report.layers)
    before = fb.quantize(str(cnn), fb.Recipe([fb.Rule("fc", weight="int8")])).source.load()
    signal = noise = 0.0
    for batch in batches:
        y = fb.Result(model=before, plan=result.plan, report=None, source=result.source).run(batch)["y"].astype(float)
        signal += (y**2).sum()
        noise += ((result.run(batch)["y"] - y) ** 2).sum()
    # BatchNorm is folded into the model that was measured, which moves the last bits.
    assert result.report.output_sqnr == pytest.approx(10 * np.log10(signal / noise), abs=0.01)


def test_the_file_is_left_as_it_is_and_the_report_says_what_was_done(cnn):
    before = cnn.read_bytes()
    result = fb.quantize(cnn, "w8a8-static", calibration=images(), evaluation=images())
    assert cnn.read_bytes() == before
    assert "1 BatchNorm was folded into the layer before it" in result.report.remarks
    assert result.report.calibration == "the given batches: 3 batches"
    text = str(result.plan)
    assert "int8 channel, input int8 tensor asym static" in text
    assert "hint" not in text  # nothing is slow for lack of a kernel
    assert result.report.layers[0].kernel.startswith("simulated in float; the file that is saved runs")


def test_a_model_in_memory_is_quantized_and_left_as_it_is(onnx_model):
    proto = onnx_model(CNN, SHAPES)
    before = proto.SerializeToString()
    for model in (proto, ir.from_proto(proto)):
        result = fb.quantize(model, "w8a8-static", calibration=images(), evaluation=images())
        assert result.report.output_sqnr > LEAST["w8a8-static"]
        assert result.plan.model == "main"
    assert proto.SerializeToString() == before


def test_layers_that_a_cast_would_overflow_stay_float(onnx_model):
    numbers = {**SHAPES, "conv2.weight": np.full((16, 1, 3, 3), 7e4, np.float32)}
    with_bias = {**SHAPES, "fc.bias": np.full(10, 1e5, np.float32)}
    plan = fb.plan(onnx_model(CNN, numbers), "fp16")
    assert [row.overflow for row in plan.rows] == [None, "its weights reach 70,000, and fp16 ends at 65,504", None]
    result = fb.quantize(onnx_model(CNN, with_bias), "fp16", evaluation=images())
    assert [layer.becomes for layer in result.report.layers] == ["fp16, input fp16"] * 2 + ["float"]
    assert "its outputs reach 100,00" in result.report.layers[2].overflow
    loud = fb.quantize(onnx_model(CNN, SHAPES), "fp16", evaluation=[1e5 * image for image in images()])
    assert "its inputs reach " in loud.report.layers[0].overflow
    infinite = images()
    infinite[0][0, 0, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="conv1: its input holds NaN or infinity before quantization"):
        fb.quantize(onnx_model(CNN, SHAPES), "fp16", evaluation=infinite)


LINEAR = '(float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, "l.weight") }'
FORMS = {
    "MatMul": (LINEAR, {"l.weight": (64, 32)}, (64,)),
    "Gemm": (
        '(float[n, 64] x) => (float[n, 32] y) { y = Gemm<transB=1>(x, "l.weight", b) }',
        {"l.weight": (32, 64), "b": (32,)}, (64,),
    ),
    "Conv": (
        '(float[n, 16, 8, 8] x) => (float[n, 32, 3, 3] y) { y = Conv<strides=[2, 2]>(x, "l.weight") }',
        {"l.weight": (32, 16, 3, 3)}, (16, 8, 8),
    ),
}  # fmt: skip


def correlated(shape, count=4):
    """Inputs that share a few causes, as those of real layers do."""
    random = np.random.default_rng(2)
    mix = random.normal(size=(6, shape[0]))
    causes = [random.normal(size=(64, *shape[1:], 6)) @ mix for _ in range(count)]
    noise = 0.1 * random.normal(size=(count, 64, *shape[1:], shape[0]))
    return [np.moveaxis(own, -1, 1).astype(np.float32) for own in np.asarray(causes) + noise]


@pytest.mark.parametrize("form", FORMS)
def test_gptq_beats_nearest_rounding_in_the_output_while_the_weight_is_further_off(onnx_model, form):
    text, constants, shape = FORMS[form]
    model = onnx_model(text, constants)
    *calibration, held_out = correlated(shape)

    def quantized(algorithm):
        recipe = fb.Recipe([fb.Rule(".*", weight="int4 channel", algorithm=algorithm)])
        return fb.quantize(model, recipe, calibration=calibration, evaluation=[held_out]).report

    nearest, gptq = quantized("nearest"), quantized("gptq")
    assert gptq.output_sqnr > nearest.output_sqnr + 2.0  # dB
    assert gptq.layers[0].weight_sqnr < nearest.layers[0].weight_sqnr
    assert gptq.layers[0].solved_sqnr > gptq.layers[0].nearest_sqnr


def test_static_outputs_are_rounded_by_what_the_quantized_layers_put_out(cnn):
    recipe = fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static", output="int8 static channel")])
    result = fb.quantize(cnn, recipe, calibration=images(), evaluation=images())
    assert result.report.output_sqnr > 30
    output = result.model.layers["conv2"].activations.output
    assert output.scale.shape == (16,)
    step = result.model.layers["fc"].activations.output.scale
    codes = result.run(images()[0])["y"] / step
    assert np.allclose(codes, np.round(codes), rtol=0, atol=1e-3)


def test_biases_in_int32_are_simulated(onnx_model):
    recipe = fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static", bias="int32")])
    result = fb.quantize(onnx_model(CNN, SHAPES), recipe, calibration=images(), evaluation=images())
    assert result.report.output_sqnr > 30
    assert [layer.name for layer, own in zip(result.report.layers, result.model.layers.values(), strict=True)
            if own.bias is not None] == ["conv2", "fc"]  # fmt: skip


def test_tied_weights_are_told_and_untied_by_quantizing_one(onnx_model):
    text = """(int64[n, t] ids) => (float[n, t, 300] y) {
        h = Gather("words.weight", ids)
        turned = Transpose<perm=[1, 0]>("words.weight")
        y = MatMul(h, turned)
    }"""
    model = onnx_model(text, {"words.weight": (300, 32)})
    made = fb.plan(model, fb.Recipe([fb.Rule(kind="head", weight="int8")]))
    assert [(row.layer.kind, row.layer.tied != ()) for row in made.rows] == [("embedding", True), ("head", True)]
    assert made.rows[0].bytes_before == 300 * 32 * 4
    assert made.rows[1].bytes_before == 0
    assert made.unties
    batches = [np.random.default_rng(0).integers(0, 300, (2, 12))]
    result = fb.quantize(model, fb.Recipe([fb.Rule(kind="head", weight="int8")]), evaluation=batches)
    assert any(remark.startswith("no longer tied") for remark in result.report.remarks)
    # Token ids in and scores of tokens out: it is measured as a language model.
    assert 0 < result.report.after.kl_divergence < 0.01
    assert result.report.after.predictions == 22


def test_measuring_as_a_language_model_agrees_with_torch_on_the_same_logits():
    import torch

    from fewbit.evaluation.quality import compare

    random = np.random.default_rng(0)
    tokens = random.integers(0, 50, (3, 200))
    first, second = (random.normal(size=(3, 200, 50)).astype(np.float32) for _ in range(2))
    ours = compare(lambda _: first, lambda _: second, [tokens])
    theirs = compare(lambda _: torch.from_numpy(first), lambda _: torch.from_numpy(second), [torch.from_numpy(tokens)])
    for own, other in zip(ours, theirs, strict=True):
        assert own.perplexity == pytest.approx(other.perplexity, rel=1e-6)
        assert own.top1_agreement == other.top1_agreement
        assert own.kl_divergence == pytest.approx(other.kl_divergence, rel=1e-6) if other.kl_divergence else True


def test_everything_wrong_is_a_plan_error_before_any_work(onnx_model, cnn):
    with pytest.raises(PlanError, match=r"the model writes no text; give calibration=\[batch, ...\]"):
        fb.quantize(cnn, "w8a8-static")
    with pytest.raises(CalibrationError, match=r"input 'x' takes shape \(n, 3, 16, 16\) and is given \(4, 3, 16\)"):
        fb.quantize(cnn, "w8a8-static", calibration=[images()[0][..., 0]])
    with pytest.raises(RecipeError, match="device 'cuda' cannot be used: ONNX models run on the CPU"):
        fb.quantize(cnn, "w8a16", options=fb.Options(device="cuda"))
    with pytest.raises(PlanError, match=r"int8 token asym mse: a graph does not search for its range while it runs"):
        fb.quantize(cnn, fb.Recipe([fb.Rule(".*", weight="int8", input="int8 mse")]))
    with pytest.raises(PlanError, match="a graph has the types that the model computes in"):
        fb.plan(cnn, "w8a16", dtype="float16").require_sound()
    with pytest.raises(RecipeError, match=r"unknown checkpoint format 'onnx'; known: .*ort-cpu"):
        fb.plan(cnn, "w8a16", to="onnx")


def test_layers_in_a_branch_take_what_needs_no_statistics(onnx_model):
    text = """(float[n, 8] x, bool deep) => (float[n, 8] y) {
        y = If (deep) <
            then_branch = deeper () => (float[n, 8] z) { z = MatMul(x, "inner.weight") },
            else_branch = flat () => (float[n, 8] z2) { z2 = Relu(x) }
        >
    }"""
    model = onnx_model(text, {"inner.weight": (8, 8)})
    batches = [{"x": np.ones((2, 8), np.float32), "deep": np.asarray(True)}]
    result = fb.quantize(model, "w8a8", evaluation=batches)
    assert result.report.output_sqnr > 25
    assert result.report.layers[0].output_sqnr is None
    for recipe in ("w8a8-static", "w4a16"):
        with pytest.raises(PlanError, match="inner: it is inside of a branch or a loop, whose values onnxruntime"):
            fb.quantize(model, recipe, calibration=batches)


@pytest.mark.parametrize(("place", "message"), {
    "fc.weight": "fc: 1 of 160 weights are NaN or infinite",
    "fc.bias": "fc.bias: 1 of its numbers are NaN or infinite; repair them, or keep the layer",
    "shift": "shift: 1 of its numbers are NaN; repair them",
}.items())  # fmt: skip
def test_nan_in_a_constant_is_named(onnx_model, place, message):
    random = np.random.default_rng(0)
    values = random.normal(size=SHAPES[place]).astype(np.float32)
    values[(0,) * values.ndim] = np.nan
    with pytest.raises(NonFiniteError, match=message):
        fb.quantize(onnx_model(CNN, SHAPES | {place: values}), "w8a16")


def test_infinity_that_masks_is_no_error(onnx_model):
    text = '(float[n, 8] x) => (float[n, 8] y) { m = MatMul(x, "l.weight")  y = Max(m, low) }'
    model = onnx_model(text, {"l.weight": (8, 8), "low": np.asarray([-np.inf], np.float32)})
    batches = [np.ones((2, 8), np.float32)]
    assert fb.quantize(model, "w8a16", evaluation=batches).report.output_sqnr > 30


def test_what_is_quantized_already_is_refused(onnx_model):
    text = """(float[n, 8] x) => (float[n, 4] y) {
        w = DequantizeLinear(q, s)
        y = MatMul(x, w)
    }"""
    model = onnx_model(text, {"q": np.ones((8, 4), np.int8), "s": np.asarray(0.1, np.float32)})
    with pytest.raises(PlanError, match="is quantized already: it holds 1 DequantizeLinear; start from the float"):
        fb.plan(model, "w8a16")


def test_it_works_where_torch_is_not_installed(cnn):
    code = f"""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    sys.meta_path.insert(0, Absent())
    import numpy as np, fewbit as fb
    batches = [np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)]
    result = fb.quantize({str(cnn)!r}, "w8a8-static", calibration=batches, evaluation=batches)
    print(result.report.adaptations)
    print(result.report.output_sqnr > 30, result.run(batches[0])["y"].shape, len(result.report.files()) > 0)
    try:
        fb.quantize({str(cnn)!r}, "w4a16", calibration=batches)
    except fb.FewbitError as error:
        print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    told, found, refused = run.stdout.splitlines() or [run.stderr] * 3
    assert "conv1 and 1 more: rounded to nearest; pip install 'fewbit[torch]' for gptq" in ast.literal_eval(told)
    assert found == "True (2, 10) True"
    assert refused == "conv1: gptq needs torch; pip install 'fewbit[torch]'"
