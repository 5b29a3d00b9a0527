"""Statistics of a graph: what onnxruntime shows, in bounded memory, each node run once."""

import resource
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.frontends.onnx import calibration, stages
from fewbit.frontends.onnx.calibration import CalibrationRun
from fewbit.frontends.onnx.flow import Flow
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.onnx_graph.live import OnnxModel
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

BRANCHES = """(float[n, 8] x) => (float[n, 8] y) {
    a = MatMul(x, "a.weight")
    b = MatMul(x, "b.weight")
    r = Relu(a)
    s = Add(r, b)
    c = MatMul(s, "c.weight")
    d = Add(c, x)
    y = MatMul(d, "d.weight")
}"""
WEIGHTS = {f"{name}.weight": (8, 8) for name in "abcd"}
EVERY = dict.fromkeys("abcd", ("second_moment", "extremes"))


def live(model):
    return OnnxModel.of(ir.from_proto(model), "test")


def batches_of(*shape, count=3):
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype(np.float32) for _ in range(count)]


def walked(model, wanted, batches, *, sequential, install=None):
    """Return the names by part, and the statistics of every layer; `install` is called with each layer's name."""
    layers = OnnxFrontend().layers(model)
    names, statistics = [], {}
    for stage in CalibrationRun(model, layers, wanted, batches, sequential=sequential):
        for part in stage:
            names.append([layer.name for layer in part.layers])
            statistics |= part.statistics
            for layer in part.layers if install else ():
                install(layer)
    return names, statistics


def test_statistics_are_those_of_the_float_model(onnx_model):
    model = live(onnx_model(BRANCHES, WEIGHTS))
    batches = batches_of(5, 8)
    names, statistics = walked(model, EVERY, batches, sequential=False)
    assert names == [["a", "b", "c", "d"]]
    a, b, c, _ = (own.weight.const_value.numpy() for own in model.found.values())
    x = np.concatenate(batches)
    s = np.maximum(x @ a, 0) + x @ b
    for name, rows in {"a": x, "c": s, "d": s @ c + x}.items():
        moment = statistics[name]["second_moment"]
        assert moment.count == 15
        # Sums of 15 products of numbers about 1, in another order.
        assert np.allclose(moment.result(), rows.T @ rows / 15, rtol=0, atol=1e-5)
        assert np.allclose(statistics[name]["extremes"].high, rows.max(0), rtol=0, atol=1e-5)


def test_layers_that_read_one_value_share_its_statistics(onnx_model):
    _, statistics = walked(live(onnx_model(BRANCHES, WEIGHTS)), EVERY, batches_of(5, 8), sequential=True)
    assert statistics["a"]["second_moment"] is statistics["b"]["second_moment"]
    assert statistics["a"]["second_moment"] is not statistics["c"]["second_moment"]


def test_in_sequential_order_each_layer_is_measured_behind_the_quantized_ones(onnx_model):
    model = live(onnx_model(BRANCHES, WEIGHTS))
    frontend, batches = OnnxFrontend(), batches_of(5, 8)
    scheme = parse_scheme("int2 channel")

    def install(layer):
        frontend.replacement(model, layer, quantize(frontend.weight(model, layer), scheme)).install()

    names, statistics = walked(model, EVERY, batches, sequential=True, install=install)
    assert names == [["a", "b"], ["c"], ["d"]]
    a, b, *_ = (rounded.qtensor.dequantize().T for rounded in model.layers.values())
    x = np.concatenate(batches)
    s = np.maximum(x @ a, 0) + x @ b
    assert np.allclose(statistics["c"]["second_moment"].result(), s.T @ s / 15, rtol=1e-5, atol=1e-5)
    # The control: the float model gives something else.
    _, plain = walked(live(onnx_model(BRANCHES, WEIGHTS)), EVERY, batches, sequential=True)
    assert not np.allclose(plain["c"]["second_moment"].result(), s.T @ s / 15, rtol=1e-2)


def test_without_sequential_order_what_is_installed_on_the_way_plays_no_part(onnx_model, monkeypatch):
    batches, frontend = batches_of(5, 8), OnnxFrontend()
    _, expected = walked(live(onnx_model(BRANCHES, WEIGHTS)), EVERY, batches, sequential=False)
    monkeypatch.setattr(calibration, "ALIVE", 1)
    model = live(onnx_model(BRANCHES, WEIGHTS))

    def install(layer):
        scheme = parse_scheme("int2 channel")
        frontend.replacement(model, layer, quantize(frontend.weight(model, layer), scheme)).install()

    names, found = walked(model, EVERY, batches, sequential=False, install=install)
    assert names == [["a", "b"], ["c"], ["d"]]  # one value at a time
    for name in "abcd":
        ours, theirs = (own[name]["second_moment"].result() for own in (found, expected))
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # onnxruntime may fuse other nodes


def test_no_node_runs_in_two_stages(onnx_model):
    flow = Flow.of(live(onnx_model(BRANCHES, WEIGHTS)).graph.graph)
    found = stages.stages_of(flow, [["x"], ["s"], ["d"]])
    places = [place for stage in found for place in stage.places]
    assert sorted(places) == places == list(range(6))  # the last MatMul is behind the last input
    assert [stage.leaves for stage in found] == [(), ("s",), ()]
    assert [set(stage.drops) for stage in found] == [set(), set(), {"x", "s"}]


CONVOLUTIONS = """(float[n, 4, 9, 9] x) => (
    float[n, 8, 3, 3] y, float[n, 6, 7, 7] b, float[n, 8, 7, 7] c, float[n, 5, 18, 18] t
) {
    a = Conv<pads=[1, 1, 1, 1]>(x, "a.weight")
    b = Conv(x, "b.weight")
    c = Conv<group=4>(x, "c.weight")
    t = ConvTranspose<strides=[2, 2]>(x, "t.weight")
    m = Conv(a, "m.weight")
    y = Conv<strides=[3, 3]>(m, "n.weight")
}"""
KERNELS = {
    "a.weight": (6, 4, 3, 3), "b.weight": (6, 4, 3, 3), "c.weight": (8, 1, 3, 3), "t.weight": (4, 5, 2, 2),
    "m.weight": (7, 6, 1, 1), "n.weight": (8, 7, 1, 1),
}  # fmt: skip


def test_convolutions_have_patches_for_moments_and_channels_for_extremes(onnx_model):
    model = live(onnx_model(CONVOLUTIONS, KERNELS))
    wanted = dict.fromkeys(model.found, ("second_moment", "extremes"))
    _, statistics = walked(model, wanted, batches_of(2, 4, 9, 9), sequential=True)
    assert statistics["a"]["second_moment"].width == 36
    assert statistics["a"]["second_moment"].count == 3 * 2 * 81
    assert statistics["b"]["second_moment"].count == 3 * 2 * 49  # it pads nothing, so it has patches of its own
    assert statistics["a"]["extremes"] is statistics["b"]["extremes"] is statistics["t"]["extremes"]
    assert statistics["a"]["extremes"].width == 4
    assert list(statistics["t"]) == ["extremes"]  # no row of its input makes an output
    groups = statistics["c"]["second_moment"]
    assert (groups.groups, groups.width, groups.count) == (4, 9, 3 * 2 * 49)
    # The channels of b's patches, without what one has to do with another.
    whole = statistics["b"]["second_moment"].result().reshape(4, 9, 4, 9)
    for channel, found in enumerate(groups.result()):
        assert np.allclose(found, whole[channel, :, channel], rtol=0, atol=1e-5)


def test_what_is_not_finite_names_its_layer(onnx_model):
    batches = batches_of(5, 8)
    batches[1][2, 3] = np.inf
    with pytest.raises(NonFiniteError, match="a: histogram: its inputs hold NaN or infinity"):
        walked(live(onnx_model(BRANCHES, WEIGHTS)), {"a": ("histogram",)}, batches, sequential=True)


def test_values_are_measured_by_name(onnx_model):
    model = live(onnx_model(BRANCHES, WEIGHTS))
    batches = batches_of(5, 8)
    found = OnnxFrontend().value_statistics(model, {"s": "extremes", "r": "histogram", "x": "extremes"}, batches)
    x = np.concatenate(batches)
    assert float(found["x"].high[0]) == x.max()
    assert found["r"].low == 0.0
    assert found["s"].count == x.size
    with pytest.raises(CalibrationError, match="no value 'nowhere' in the graph of test"):
        OnnxFrontend().value_statistics(model, {"nowhere": "extremes"}, batches)


def test_memory_does_not_grow_with_the_number_of_batches(onnx_model):
    model = live(onnx_model(BRANCHES.replace("8", "64"), dict.fromkeys(WEIGHTS, (64, 64))))
    batch = batches_of(512, 64, count=1)[0]

    def peak(count):
        tracemalloc.start()
        walked(model, EVERY, [batch] * count, sequential=True)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(8), peak(80)
    # 80 batches carry 20 MiB and 8 batches 2 MiB, of which 4 MiB stay in memory; the rest is bookkeeping.
    assert many < few + (3 << 20)


def chain(onnx_model, count):
    nodes, last = [], "x"
    for number in range(count):
        nodes.append(f'g{number} = Gemm<transB=1>({last}, "l{number}.weight")  r{number} = Relu(g{number})')
        last = f"r{number}"
    text = f"(float[n, 16] x) => (float[n, 16] {last}) {{ {' '.join(nodes)} }}"
    return onnx_model(text, {f"l{number}.weight": (16, 16) for number in range(count)})


@pytest.mark.slow
def test_quantizing_takes_time_in_proportion_to_the_layers(onnx_model):
    import fewbit as fb

    batches = batches_of(4, 16)

    def seconds(model, recipe):
        started = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        fb.quantize(model, recipe, calibration=batches, evaluation=batches)
        return sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - started

    few, many = chain(onnx_model, 100), chain(onnx_model, 800)
    for recipe in ("w8a8-static", "w8a16"):
        seconds(few, recipe)  # compiles and loads what is needed once
        assert seconds(many, recipe) <= 2 * 8 * seconds(few, recipe)
