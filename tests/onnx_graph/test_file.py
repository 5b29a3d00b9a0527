"""ONNX files: what is wrong with one is said by name before anything is computed."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fewbit.errors import CheckpointError, SourceError
from fewbit.onnx_graph.file import checked_model, read_model, weight_bytes, write_model

TEXT = '(float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, "a.weight")  y = MatMul(h, "b.weight") }'
SHAPES = {"a.weight": (64, 64), "b.weight": (64, 64)}


@pytest.fixture
def proto(onnx_model):
    return onnx_model(TEXT, SHAPES)


@pytest.fixture
def path(proto, tmp_path):
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def with_external_data(proto, path):
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)


def test_what_is_written_reads_back_and_runs_no_second_time_over_it(path, tmp_path):
    model = read_model(path)
    assert weight_bytes(model) == 2 * 64 * 64 * 4
    written = write_model(model, tmp_path / "out.onnx")
    again = read_model(written)
    for name, value in model.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), again.graph.initializers[name].const_value.numpy())
    assert sorted(own.name for own in tmp_path.iterdir()) == ["m.onnx", "out.onnx"]
    with pytest.raises(CheckpointError, match=r"out\.onnx exists; choose another name, or overwrite it"):
        write_model(model, written)
    write_model(model, written, overwrite=True)
    with pytest.raises(CheckpointError, match=r"is a folder; give the name of a file"):
        write_model(model, tmp_path)


def test_many_weights_go_into_a_file_of_their_own(path, tmp_path, monkeypatch):
    monkeypatch.setattr("fewbit.onnx_graph.file.INLINE", 1000)
    written = write_model(read_model(path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size >= 2 * 64 * 64 * 4
    assert np.array_equal(
        read_model(written).graph.initializers["a.weight"].const_value.numpy(),
        read_model(path).graph.initializers["a.weight"].const_value.numpy(),
    )


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SourceError, match=r"is no ONNX file, or cut short: .*; fetch or export it again"):
        read_model(path)


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(SourceError, match=r"cannot read .*m\.onnx: No such file"):
        read_model(path)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match="holds no graph of operators; is it an ONNX model"):
        read_model(path)
    path.write_bytes(b"GGUF" * 100)
    with pytest.raises(SourceError, match="is no ONNX file, or cut short"):
        read_model(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SourceError, match="Is a directory"):
        read_model(path)


def test_external_data_has_to_be_there_whole_and_beside_the_model(proto, tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    with_external_data(proto, path)
    assert read_model(path).graph.initializers["b.weight"].const_value.numpy().shape == (64, 64)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"tensor 'b\.weight' lies in 'm\.data' up to byte \d+, but that has \d+"):
        read_model(path)
    data.unlink()
    with pytest.raises(SourceError, match=r"lies in 'm\.data', which is missing; put it beside the model"):
        read_model(path)


@pytest.mark.parametrize("place", ["../secret.data", "/etc/passwd", "", "\0.data"])
def test_external_data_elsewhere_are_not_read(proto, tmp_path, place):
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret.data").write_bytes(bytes(1 << 16))
    path = tmp_path / "inner" / "m.onnx"
    with_external_data(proto, path)
    model = onnx.load(path, load_external_data=False)
    for own in model.graph.initializer:
        own.external_data[0].value = place
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="outside of the model's folder; put both files into one folder"):
        read_model(path)


def test_external_data_of_a_negative_shape_are_refused(proto, tmp_path):
    path = tmp_path / "m.onnx"
    with_external_data(proto, path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = -(1 << 63)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"with the shape \[-9223372036854775808, 64\], which nothing has"):
        read_model(path)


def broken(proto, what):
    node = proto.graph.node
    if what == "cycle":
        node[0].input[0] = "y"
    elif what == "order":
        first = node[0].SerializeToString()
        del node[0]
        node.add().ParseFromString(first)
    elif what == "nothing makes it":
        node[0].input[0] = "nowhere"
    elif what == "made twice":
        node[1].output[0] = "h"
        proto.graph.output[0].name = "h"
    elif what == "no such operator":
        node[0].op_type = "MatMull"
    elif what == "too few inputs":
        del node[0].input[1]
    elif what == "data do not fill the shape":
        proto.graph.initializer[0].dims[0] = 65
    return proto


BROKEN = ["cycle", "order", "nothing makes it", "made twice", "no such operator", "too few inputs",
          "data do not fill the shape"]  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_graph_that_is_not_valid_is_refused(proto, tmp_path, what):
    (tmp_path / "m.onnx").write_bytes(broken(proto, what).SerializeToString())
    with pytest.raises(SourceError, match=r"m\.onnx is not valid ONNX: .*; export it again"):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"mine is not valid ONNX: .*; export it again") as caught:
        checked_model(proto, "mine")
    assert "Error calling" not in str(caught.value)  # of onnx-ir what is behind that


def test_a_cycle_or_a_wrong_order_in_memory_is_found(proto):
    for second_first in (True, False):
        model = ir.from_proto(proto)
        first, second = model.graph
        if second_first:
            model.graph.remove(first)
            model.graph.append(first)
        else:
            first.replace_input_with(0, second.outputs[0])
        with pytest.raises(SourceError, match="mine is not valid ONNX: its nodes form a cycle, or stand in no order"):
            checked_model(model, "mine")


def test_operators_of_old_versions_are_refused_with_the_tool_that_raises_them(onnx_model, tmp_path):
    model = onnx_model(TEXT, SHAPES, opset=12)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"of opset 12, older than 13; raise it with onnx\.version_converter"):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="mine is of opset 12"):
        checked_model(ir.from_proto(model), "mine")
