"""Small models of one structure share a session: each computes with its own constants, and nothing is mixed up."""

import numpy as np
import onnx
import pytest

from fewbit.errors import CalibrationError, SourceError
from fewbit.frontends.onnx import alike
from fewbit.frontends.onnx.alike import Alike, Sessions
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.onnx.session import Session
from fewbit.onnx_graph.live import OnnxModel
from fewbit.sources import open_source

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def model(body, types="float[n, 4] x"):
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> m ({types}) => (float[n, m] y) {{ {body} }}'
    )


def ready(sessions, body, x=X, **constants):
    return sessions.session(model(body), constants, "mine", [x])


def ones(*shape, times=1.0):
    return np.full(shape, times, np.float32)


def test_models_that_differ_in_names_and_floats_share_a_session():
    sessions = Sessions()
    first = ready(sessions, "a = Mul(x, s)  y = MatMul(a, w)", s=ones(times=2), w=ones(4, 2))
    second = ready(sessions, "other = Mul(x, scale)  y = MatMul(other, v)", scale=ones(times=3), v=ones(4, 2, times=5))
    assert isinstance(first, Alike)
    assert first.session is second.session
    for own, factor in ((first, 2), (second, 15), (first, 2)):
        expected = np.repeat(factor * X.sum(1, keepdims=True), 2, axis=1)
        # Sums of four float32 numbers about 1.
        assert np.allclose(own.run({"x": X})["y"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "other"),
    [
        ("y = Sub(x, c)", "y = Sub(c, x)"),
        ("y = Softmax<axis=0>(x)", "y = Softmax<axis=1>(x)"),
        ("a = Abs(x) y = Sub(x, a)", "a = Abs(x) y = Sub(a, x)"),
        ("y = Gather<axis=1>(x, i)", "y = Gather<axis=1>(x, j)"),
        ("y = Clip(x, c)", 'y = Clip(x, "", c)'),
    ],
)
def test_models_of_another_structure_have_sessions_of_their_own(body, other):
    constants = {"c": ones(times=0.25), "i": np.asarray([1, 2]), "j": np.asarray([3, 0])}
    sessions = Sessions()
    for text in (body, other):
        used = {name: own for name, own in constants.items() if name in text.replace("Clip", "").replace("axis", "")}
        expected = Session.of(model(text), used, "plain").run({"x": X})["y"]
        assert np.array_equal(ready(sessions, text, **used).run({"x": X})["y"], expected)
    assert len(sessions._ready) == 2


def test_what_is_large_or_holds_a_graph_is_made_ready_by_itself():
    sessions = Sessions()
    assert isinstance(ready(sessions, "y = MatMul(x, w)", w=ones(4, 10_000)), Session)
    assert isinstance(ready(sessions, "y = Neg(x)", x=ones(10_000, 4)), Session)
    inside = """c = ReduceMax<keepdims=0>(x)  b = Cast<to=9>(c)
        y = If(b) <then_branch = one () => (float[n, m] t) { t = Neg(x) },
                   else_branch = two () => (float[n, m] e) { e = Abs(x) }>"""
    assert isinstance(ready(sessions, inside), Session)
    assert not sessions._ready


def test_only_some_sessions_are_kept(monkeypatch):
    monkeypatch.setattr(alike, "_KEPT", 2)
    sessions = Sessions()
    for body in ("y = Neg(x)", "y = Abs(x)", "y = Neg(x)", "y = Exp(x)"):
        assert ready(sessions, body).run({"x": X})["y"].shape == X.shape
    assert len(sessions._ready) == 2
    assert "Abs" not in str(sessions._ready)


def test_an_error_speaks_of_the_node_that_the_user_knows():
    proto = model("y = MatMul(x, w)", "float[n, k] x")
    proto.graph.node[0].name = "projection"
    own = Sessions().session(proto, {"w": ones(4, 2)}, "mine", [X])
    assert isinstance(own, Alike)
    with pytest.raises(CalibrationError, match=r"onnxruntime fails to run mine on this batch: .*'projection'"):
        own.run({"x": ones(3, 5)})


def test_what_cannot_be_shared_is_made_ready_by_itself(monkeypatch):
    plain = Session.of.__func__

    def picky(cls, proto, numbers, name, *, as_it_is=False):
        if as_it_is:
            raise SourceError("this operator wants a constant")
        return plain(cls, proto, numbers, name)

    monkeypatch.setattr(Session, "of", classmethod(picky))
    assert isinstance(ready(Sessions(), "y = Neg(x)"), Session)
    with pytest.raises(SourceError, match=r"onnxruntime cannot run mine: .*Nag"):
        ready(Sessions(), "y = Nag(x)")


def test_a_calibration_has_the_same_numbers_with_and_without_sharing(onnx_model, monkeypatch):
    nodes = "\n".join(
        f'g{n} = Gemm<transB=1>(x{n}, "l{n}.weight", "l{n}.bias")  x{n + 1} = Relu(g{n})' for n in range(6)
    )
    shapes = {f"l{n}.weight": (8, 8) for n in range(6)} | {f"l{n}.bias": (8,) for n in range(6)}
    proto = onnx_model(f"(float[n, 8] x0) => (float[n, 8] x6) {{ {nodes} }}", shapes)
    batches = [np.random.default_rng(n).normal(size=(5, 8)).astype(np.float32) for n in range(3)]
    made = []
    plain = Session.of.__func__
    monkeypatch.setattr(Session, "of", classmethod(lambda *a, **k: made.append(1) or plain(*a, **k)))

    def gathered():
        made.clear()
        live: OnnxModel = open_source(proto).load()
        wanted = dict.fromkeys(live.found, ("second_moment", "extremes"))
        run = OnnxFrontend().calibrate(
            live, [own.layer for own in live.found.values()], wanted, batches, sequential=True
        )
        return {name: own for stage in run for part in stage for name, own in part.statistics.items()}, len(made)

    shared, few = gathered()
    monkeypatch.setattr(alike, "SMALL", 0)
    alone, many = gathered()
    assert (few, many) == (1, 5)  # the first layer reads the input itself
    assert list(shared) == list(alone) == [f"l{n}" for n in range(6)]
    for name, own in alone.items():
        assert np.array_equal(shared[name]["second_moment"].result(), own["second_moment"].result())
        assert np.array_equal(shared[name]["extremes"].result(), own["extremes"].result())
