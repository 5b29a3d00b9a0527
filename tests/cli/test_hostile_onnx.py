"""Broken ONNX models and data through the command line: exit code 2, one line that names what is wrong, no file."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

TEXT = "(float[n, 8] x) => (float[n, 4] y) { s = Mul(x, c)  h = MatMul(s, w)  y = Add(h, b) }"
CONSTANTS = {"c": (8,), "w": (8, 4), "b": (4,)}


def replaced(model, name, numbers):
    own = next(own for own in model.graph.initializer if own.name == name)
    own.CopyFrom(numpy_helper.from_array(np.asarray(numbers, np.float32), name))


def spoiled(name, shape):
    numbers = np.ones(shape, np.float32)
    numbers.flat[1] = np.nan
    return lambda model: replaced(model, name, numbers)


def elsewhere(model):
    own = next(own for own in model.graph.initializer if own.name == "w")
    own.ClearField("raw_data")
    own.data_location = onnx.TensorProto.EXTERNAL
    own.external_data.add(key="location", value="gone.data")


def cyclic(model):
    model.graph.node[0].input[0] = "y"


def foreign(model):
    model.graph.node[2].CopyFrom(onnx.helper.make_node("Quux", ["h", "b"], ["y"], domain="my.own"))
    model.opset_import.append(onnx.helper.make_opsetid("my.own", 1))


def newer(model):
    model.opset_import[0].version = 10_000


def newer_form(model):
    model.ir_version = 999


def misshapen(model):
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Reshape", ["x", "three"], ["s"]))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([3, 8]), "three"))


#: What becomes of a model, and the line that it has to give.
MODELS = {
    "external data that are missing": (elsewhere, "tensor 'w' lies in 'gone.data', which is missing; put it beside"),
    "a cycle": (cyclic, "is not valid ONNX: Nodes in a graph must be topologically sorted"),
    "data that do not fill a shape": (
        lambda model: model.graph.initializer[1].dims.__setitem__(0, 1 << 40), "is too small for the declared shape"),
    "an operator that nobody knows": (foreign, "onnxruntime cannot run "),
    "an opset that onnxruntime lacks": (newer, "it is of an opset of ai.onnx that onnxruntime "),
    "a form of a later onnx": (newer_form, "is not valid ONNX: Your model ir_version 999 is higher than the checker's"),
    "NaN in a weight": (spoiled("w", (8, 4)), "MatMul:h: 1 of 32 weights are NaN or infinite; repair or keep it"),
    "NaN in a bias": (spoiled("b", (4,)), "MatMul:h.bias: 1 of its numbers are NaN or infinite; repair them"),
    "NaN in a constant": (spoiled("c", (8,)), "c: 1 of its numbers are NaN; repair them"),
    "a weight that does not fit its input": (
        lambda model: replaced(model, "w", np.ones((7, 4))),
        "MatMul:h: its input has shape (8, 8) and its weight takes 7 numbers along axis -1; the graph does not fit"),
    "a shape that data do not fill": (
        misshapen, "The input tensor cannot be reshaped to the requested shape. Input shape:{8,8}, requested"),
}  # fmt: skip
#: Data that do not go with the model.
DATA = {
    "too narrow": (np.ones((8, 7), np.float32), "input 'x' takes shape (n, 8) and is given (1, 7); reshape it"),
    "of another type": (np.ones((8, 8), np.int64), "input 'x' takes float32 and is given int64; convert it with"),
    "with NaN": (np.full((8, 8), np.nan, np.float32), "holds NaN in sample 0; repair it, or leave it out"),
}


@pytest.fixture
def quantize(run, tmp_path, onnx_model):
    """Quantize a model on data through the command line; return the error line."""

    def call(content, data):
        (tmp_path / "m.onnx").write_bytes(content)
        np.save(tmp_path / "x.npy", data)
        code, _, err = run(
            "quantize", tmp_path / "m.onnx", "--recipe", "w8a8-static", "-o", tmp_path / "out.onnx",
            "--calibration", tmp_path / "x.npy", "--batch-size", "8",
        )  # fmt: skip
        assert code == 2
        lines = [line for line in err.splitlines() if line.startswith("fewbit: ")]
        assert len(lines) == 1
        assert "Traceback" not in err
        assert not any(own.name.startswith("out") for own in tmp_path.iterdir())
        return lines[0]

    return call


@pytest.mark.parametrize("case", MODELS)
def test_a_broken_model_is_refused_with_what_is_wrong(quantize, onnx_model, case):
    spoil, message = MODELS[case]
    model = onnx_model(TEXT, CONSTANTS)
    spoil(model)
    said = quantize(model.SerializeToString(), np.ones((8, 8), np.float32))
    assert message in said
    assert "onnxruntime_src" not in said


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_file_that_is_cut_short_is_refused(quantize, onnx_model, share):
    whole = onnx_model(TEXT, CONSTANTS).SerializeToString()
    said = quantize(whole[: int(share * len(whole))], np.ones((8, 8), np.float32))
    assert "is no ONNX file, or cut short" in said
    assert said.endswith("fetch or export it again")


@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_go_with_the_model_are_refused(quantize, onnx_model, case):
    data, message = DATA[case]
    assert message in quantize(onnx_model(TEXT, CONSTANTS).SerializeToString(), data)
