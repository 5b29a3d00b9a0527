"""More than a protobuf holds: over 2 GiB of constants go in and out of a process that may not hold as much."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fewbit.onnx_graph.live import OnnxModel

ROWS, WIDTH = 530_000, 1024
SHAPES = {"table.weight": (ROWS, WIDTH), "first.weight": (WIDTH, WIDTH), "second.weight": (WIDTH, WIDTH)}
#: Anonymous memory that the process may have: less than the constants, which are mapped from their file.
LIMIT = 1_500_000_000
START = f"""
import resource, sys
import numpy as np
import fewbit as fb
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))
"""
QUANTIZE = """
rules = [fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int8", algorithm="nearest")]
fb.quantize(Path(sys.argv[1]), fb.Recipe(rules), to="openvino").save(sys.argv[2])
"""
HOLD = f"np.ones(({ROWS}, {WIDTH}), np.float32)"


def _ran(code, *words):
    # Stacks of threads count too.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-c", START + code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})


def _written(folder):
    """Write a table and two layers, zeros in a sparse file but for the last row, of ones, and the diagonals."""
    tensors, offset = [], 0
    for name, shape in SHAPES.items():
        proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        size = 4 * int(np.prod(shape))
        for key, value in {"location": "in.data", "offset": offset, "length": size}.items():
            proto.external_data.add(key=key, value=str(value))
        tensors.append(proto)
        offset += size
    with (folder / "in.data").open("wb") as file:
        file.truncate(offset)
    numbers = np.memmap(folder / "in.data", np.float32, "r+")
    numbers[(ROWS - 1) * WIDTH : ROWS * WIDTH] = 1.0
    for start in (ROWS * WIDTH, (ROWS + WIDTH) * WIDTH):
        numbers[start : start + WIDTH * WIDTH : WIDTH + 1] = 1.0
    del numbers
    nodes = [
        helper.make_node("Gather", ["table.weight", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "first.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "second.weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "large", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    return offset


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and a limit on anonymous memory")
def test_more_than_two_gibibytes_go_in_and_out_and_are_never_held(tmp_path):
    assert _written(tmp_path) > 2**31 > LIMIT
    held = _ran(HOLD)
    assert held.returncode
    assert "MemoryError" in held.stderr  # the limit would stop a process that holds the table
    path = tmp_path / "out.onnx"
    made = _ran(QUANTIZE, tmp_path / "in.onnx", path)
    assert made.returncode == 0, made.stderr
    onnx.checker.check_model(path)
    assert path.stat().st_size < 1 << 16
    assert (tmp_path / "out.onnx.data").stat().st_size > 2**31
    read = OnnxModel.read(path).graph.graph.initializers
    assert read["table.weight"].const_value.shape.numpy() == (ROWS, WIDTH)
    assert read["first.codes"].const_value.numpy().dtype == np.int8
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first, last = session.run(None, {"ids": np.asarray([0, ROWS - 1])})[0]
    assert not first.any()
    # Codes of 1 in steps of 1 / 127.5 are 127, a little less than 1 in each of two layers; onnxruntime makes packed
    # products of them that round inputs to 8 bits too.
    assert np.allclose(last, (127 / 127.5) ** 2, rtol=1 / 255, atol=0)
