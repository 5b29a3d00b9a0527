"""What a graph is fed with: every wrong batch is refused with the fact and the remedy."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fewbit.errors import CalibrationError
from fewbit.frontends.onnx.batches import feeds_of


@pytest.fixture(scope="module")
def graph(onnx_model):
    text = "(float[n, 4] x, int64[n] ids) => (float[n, 4] y) { g = Gather(t, ids)  y = Add(x, g) }"
    return ir.from_proto(onnx_model(text, {"t": (8, 4)})).graph


X, IDS = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)


def test_a_dict_a_tuple_and_tensors_feed_the_same(graph):
    for batch in ({"x": X, "ids": IDS}, (X, IDS), (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))):
        feeds = feeds_of(graph, batch)
        assert list(feeds) == ["x", "ids"]
        assert all(isinstance(array, np.ndarray) for array in feeds.values())
        assert np.array_equal(feeds["x"], X)


WRONG = {
    "missing": ({"x": X}, r"has no 'ids'; the inputs of the model are 'x', 'ids'"),
    "unknown": ({"x": X, "ids": IDS, "z": X}, "holds 'z', which the model does not know"),
    "both": ({"x": X, "id": IDS}, "has no 'ids' and holds 'id', which the model does not know"),
    "one array of two": (X, "a batch of 1 arrays does not fit a model with the inputs 'x', 'ids'; give a dict"),
    "three of two": ((X, IDS, X), "a batch of 3 arrays does not fit"),
    "type": ((X.astype(np.float64), IDS), r"input 'x' takes float32 and is given float64; .*astype\('float32'\)"),
    "indices of another type": ((X, IDS.astype(np.int32)), "input 'ids' takes int64 and is given int32"),
    "size": ((X[:, :3], IDS), r"input 'x' takes shape \(n, 4\) and is given \(2, 3\); reshape it"),
    "rank": ((X[None], IDS), r"input 'x' takes shape \(n, 4\) and is given \(1, 2, 4\)"),
    "no array": (([[1.0]], IDS), "input 'x' is given a list, which is no array; wrap it in numpy.asarray"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_that_does_not_fit_is_refused_with_what_does(graph, case):
    batch, message = WRONG[case]
    with pytest.raises(CalibrationError, match=message):
        feeds_of(graph, batch)


def test_an_array_without_axes_stays_one(onnx_model):
    model = ir.from_proto(onnx_model("(float x) => (float y) { y = Neg(x) }", {}))
    assert feeds_of(model.graph, np.float32(3.0)[()].reshape(()))["x"].shape == ()
