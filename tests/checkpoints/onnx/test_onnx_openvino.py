"""Files for OpenVINO in OpenVINO: what it computes is what the codes stand for, and it computes it in eight bits."""

import pytest
from openvino_models import compiled

from fewbit.runtimes import runtime_named
from fewbit.runtimes.processor import processor_flags
from fewbit.runtimes.saturation import saturates

RUNTIME = runtime_named("openvino")
#: Weights whose products are exact on the processor at hand.
EXACT = "int7 narrow" if saturates(processor_flags()) else "int8"
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}


def loaded(path):
    return compiled(path, OPTIONS)


def precisions(model, kind):
    """Return in which type each layer of a kind reads its input."""
    found = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    return [str(own["runtimePrecision"].value) for own in found if str(own["layerType"].value) == kind]


def test_a_cnn_runs_in_eight_bits_in_openvino(cnn, error, tmp_path):
    own = cnn().quantize(RUNTIME, weight=EXACT)
    own.write(RUNTIME, tmp_path / "m.onnx")
    model = loaded(tmp_path / "m.onnx")
    assert set(precisions(model, "Convolution")) == {"u8"}
    assert precisions(model, "FullyConnected") == ["u8"]
    expected = own.simulated()
    # Rounded sums of float32 on the edge of two codes may fall to either side.
    assert error(model(own.feeds)[0], expected) < 1e-2
    own.damaged().write(RUNTIME, tmp_path / "wrong.onnx")
    assert error(loaded(tmp_path / "wrong.onnx")(own.feeds)[0], expected) > 0.1


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
@pytest.mark.parametrize("given", ["int8 static", "int8 static sym"])
def test_single_layers_need_rounded_inputs_only(case, error, tmp_path, kind, given):
    image = '<ir_version: 8, opset_import: ["" : 13]> g (float[2,4,9,9] x) => (float[2,N,H,W] y) { %s }'
    rows = '<ir_version: 8, opset_import: ["" : 13]> g (float[5,64] x) => (float[5,N] y) { %s }'
    text, shapes, layer = {
        "Conv": (image % "c = Conv(x,w,b) y = Relu(c)", {"w": (6, 4, 3, 3), "b": (6,)}, "Convolution"),
        "ConvTranspose": (image % "y = ConvTranspose(x,w,b)", {"w": (4, 6, 3, 3), "b": (6,)}, "Deconvolution"),
        "MatMul": (rows % "m = MatMul(x,w) y = Add(m,b)", {"w": (64, 7), "b": (7,)}, "FullyConnected"),
        "Gemm": (rows % "y = Gemm<transB=1>(x,w,b)", {"w": (7, 64), "b": (7,)}, "FullyConnected"),
    }[kind]
    own = case(text, **shapes).quantize(RUNTIME, weight=EXACT, given=given)
    assert not own.model.values
    written = own.write(RUNTIME, tmp_path / "m.onnx")
    model = loaded(tmp_path / "m.onnx")
    integers = "float" not in next(iter(written.forms.values()))
    assert integers == (kind != "ConvTranspose")
    assert precisions(model, layer) == ["u8" if integers else "f32"]
    assert error(model(own.feeds)[0], own.simulated()) < 1e-5
    own.damaged().write(RUNTIME, tmp_path / "wrong.onnx")
    assert error(loaded(tmp_path / "wrong.onnx")(own.feeds)[0], model(own.feeds)[0]) > 0.3
