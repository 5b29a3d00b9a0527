"""BatchNorm folded into what is before it in a graph; the output stays."""

import numpy as np
import onnx_ir as ir
import pytest

from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.batchnorm import FoldBatchNorm, folded

FRONTEND = OnnxFrontend()
GRAPH = """(float[n, 4, 8, 8] x) => (float[n, 6] y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, "a.weight")
    an = BatchNormalization(a, "1.weight", "1.bias", "1.mean", "1.variance")
    b = ConvTranspose<group=2>(an, "b.weight", "b.bias")
    bn = BatchNormalization<epsilon=0.1>(b, "1.weight", "1.bias", "1.mean", "1.variance")
    p = GlobalAveragePool(bn)
    f = Flatten(p)
    g = Gemm(f, "g.weight", "g.bias")
    y = BatchNormalization(g, "2.weight", "2.bias", "2.mean", "2.variance")
}"""
RANDOM = np.random.default_rng(7)


def norm(name, width):
    return {
        f"{name}.weight": RANDOM.uniform(0.5, 1.5, width).astype(np.float32),
        f"{name}.bias": RANDOM.normal(size=width).astype(np.float32),
        f"{name}.mean": RANDOM.normal(size=width).astype(np.float32),
        f"{name}.variance": RANDOM.uniform(0.5, 1.5, width).astype(np.float32),
    }


CONSTANTS = {
    "a.weight": (8, 4, 3, 3), "b.weight": (8, 4, 2, 2), "b.bias": (8,), "g.weight": (8, 6), "g.bias": (6,),
    **norm("1", 8), **norm("2", 6),
}  # fmt: skip


def live(model):
    return OnnxModel.of(ir.from_proto(model), "test")


@pytest.mark.parametrize("given", [True, False])
def test_norms_are_folded_and_the_output_stays(onnx_model, given):
    model = live(onnx_model(GRAPH, CONSTANTS))
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)
    before = FRONTEND.run(model, x)["y"]
    applied = FoldBatchNorm()(model, FRONTEND, x if given else None)
    assert applied.sentences == ("3 BatchNorms were folded into the layers before them",)
    assert "BatchNormalization" not in [node.op_type for node in model.graph.graph]
    assert list(model.found) == ["a", "b", "g"]
    after = FRONTEND.run(model, x)
    assert list(after) == ["y"]  # under the name that the norm had
    assert np.allclose(after["y"], before, rtol=0, atol=1e-5)  # roundings of the folded weights
    assert not np.array_equal(model.found["a"].weight.const_value.numpy(), 0)
    applied.restore()
    assert [node.op_type for node in model.graph.graph].count("BatchNormalization") == 3
    assert np.array_equal(FRONTEND.run(model, x)["y"], before)


def test_a_norm_whose_input_others_read_stays(onnx_model):
    text = """(float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
        a = Conv<pads=[1, 1, 1, 1]>(x, "a.weight")
        n = BatchNormalization(a, "1.weight", "1.bias", "1.mean", "1.variance")
        y = Add(n, a)
    }"""
    constants = {name: own for name, own in CONSTANTS.items() if name[0] in "a1"}
    model = live(onnx_model(text, constants))
    applied = FoldBatchNorm()(model, FRONTEND, None)
    assert applied.sentences == ("n: BatchNorm stays, no layer before it is read by it alone",)
    assert "BatchNormalization" in [node.op_type for node in model.graph.graph]


def test_a_fold_that_would_change_the_output_is_not_kept(onnx_model):
    model = live(onnx_model(GRAPH, CONSTANTS))

    def wrong_for_the_convolution(weight, bias, norm):
        right = folded(weight, bias, norm)
        return (right[0] * np.float32(2.0), right[1]) if weight.shape == (8, 36) else right

    applied = FRONTEND.fold_norms(model, None, wrong_for_the_convolution)
    assert applied.sentences == (
        "2 BatchNorms were folded into the layers before them",
        "an: BatchNorm stays, no layer before it is read by it alone",
    )


def test_a_model_that_random_inputs_do_not_fit_keeps_its_norms_and_says_so(onnx_model):
    text = GRAPH.replace("float[n, 4, 8, 8] x", "float[n, c, 8, 8] x")
    applied = FoldBatchNorm()(live(onnx_model(text, CONSTANTS)), FRONTEND, None)
    assert applied.sentences == (
        "an and 2 more: BatchNorm stays, the model does not run on random inputs; give calibration data",
    )


def test_a_model_without_norms_has_nothing_to_say(onnx_model):
    model = live(onnx_model("(float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }", {}))
    assert FoldBatchNorm()(model, FRONTEND, None).sentences == ()
