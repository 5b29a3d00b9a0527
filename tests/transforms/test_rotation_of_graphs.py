"""Rotations of ONNX graphs: the same outputs in onnxruntime, reasons where there is no stream, and outliers spread."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

import fewbit as fb
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.onnx.residual_stream import ResidualStream
from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.exporter import export
from fewbit.onnx_graph.live import OnnxModel
from fewbit.transforms.rotation import Rotation, orthogonal

pytestmark = pytest.mark.usefixtures("one_thread")
FRONTEND = OnnxFrontend()
_SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
_MODELS = {
    "Llama": ("LlamaForCausalLM", {"vocab_size": 300, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "ViT": ("ViTForImageClassification", {"image_size": 16, "patch_size": 8, "num_labels": 5}),
}


def exported(name):
    """Return the graph of a tiny model of transformers whose gains and biases are none of 1 and 0, and two batches."""
    torch.manual_seed(0)
    kind, own = _MODELS[name]
    module = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**_SHAPE, **own)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    texts = "vocab_size" in own
    batches = [torch.randint(3, 300, (2, 24)) if texts else torch.randn(2, 3, 16, 16) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        graph = export(module, Call.of({"input_ids": batches[0]} if texts else batches[0]))
    return OnnxModel.of(graph, Path(name)), [batch.numpy() for batch in batches]


@pytest.fixture(scope="module", params=list(_MODELS))
def model(request):
    return request.param, *exported(request.param)


def rotate(model, batch, **options):
    return Rotation(**options)(model, FRONTEND, batch)


def run(model, batch):
    return next(iter(FRONTEND.run(model, batch).values()))


def test_the_rotated_graph_puts_out_the_same_and_can_be_taken_back(model):
    name, live, (batch, other) = model
    expected, names = run(live, other), list(live.found)
    weights = {own: live.found[own].weight.const_value.numpy().copy() for own in names}
    applied = rotate(live, batch)
    # Every weight is rounded to float32 once more.
    np.testing.assert_allclose(run(live, other), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    mean = "" if name == "Llama" else ", its mean kept"
    assert applied.sentences == (
        f"rotation: the residual stream of 48 channels was rotated{mean}: 3 norms read it, 3 layers write it",
        "rotation: values inside the heads of 1 layer were rotated",
    )
    assert list(live.found) == names
    for own, before in weights.items():
        assert not np.allclose(live.found[own].weight.const_value.numpy(), before, rtol=0, atol=1e-3)
    assert not any(own.layer.tied for own in live.found.values())
    applied.restore()
    np.testing.assert_array_equal(run(live, other), expected)
    assert any(own.layer.tied for own in live.found.values()) == (name == "Llama")
    for own, before in weights.items():
        np.testing.assert_array_equal(live.found[own].weight.const_value.numpy(), before)


#: A layer that is scaled by channel, a sum that a LayerNorm reads; its reader gets two tokens side by side.
SCALED = """(float[n, 2, 8] x) => (float[n, 5] y) {
    a = MatMul(x, "a.weight")  b0 = MatMul(x, "b.weight")  b1 = Add(b0, "b.bias")  b = Mul(b1, gains)  s = Add(a, b)
    h = LayerNormalization(s, "norm.weight", "norm.bias")  p = Reshape(h, pairs)  y = MatMul(p, "c.weight")
}"""
SCALES = {
    "a.weight": (8, 16), "b.weight": (8, 16), "b.bias": (16,), "gains": np.linspace(0, 3, 16, dtype=np.float32),
    "norm.weight": np.linspace(1, 2, 16, dtype=np.float32), "norm.bias": (16,), "pairs": np.asarray([0, 32]),
    "c.weight": (32, 5),
}  # fmt: skip


def live_of(onnx_model, text, constants, **options):
    return OnnxModel.of(ir.from_proto(onnx_model(text, constants, **options)), Path("test"))


def test_factors_of_channels_go_into_the_layer_before_them_and_a_reader_may_get_two_tokens(onnx_model):
    live = live_of(onnx_model, SCALED, SCALES)
    batch, other = np.random.default_rng(1).normal(size=(2, 6, 2, 8)).astype(np.float32)
    expected = run(live, other)
    applied = rotate(live, batch)
    assert applied.sentences[0].endswith("16 channels was rotated, its mean kept: 1 norm reads it, 2 layers write it")
    np.testing.assert_allclose(run(live, other), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    factors = live.graph.graph.initializers["gains"].const_value.numpy()
    np.testing.assert_array_equal(factors, np.ones(16, np.float32))


#: Patches of a picture with positions that are resized to it, a LayerNorm, and a head that makes a picture again.
PICTURE = """(float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
    c = Conv<kernel_shape=[2, 2], strides=[2, 2]>(x, "patch.weight", "patch.bias")
    p = Resize<mode="linear">(places, roi, scales)  s = Add(c, p)
    r = Reshape(s, tokens)  t = Transpose<perm=[0, 2, 1]>(r)
    h = LayerNormalization(t, "norm.weight", "norm.bias")
    u = Transpose<perm=[0, 2, 1]>(h)  w = Reshape(u, map)  y = ConvTranspose<strides=[2, 2]>(w, "head.weight")
}"""
PICTURES = {
    "patch.weight": (16, 3, 2, 2), "patch.bias": (16,), "places": (1, 16, 2, 2), "roi": np.zeros(0, np.float32),
    "scales": np.asarray([1, 1, 2, 2], np.float32), "tokens": np.asarray([0, 0, -1]), "map": np.asarray([0, 0, 4, 4]),
    "norm.weight": np.linspace(1, 2, 16, dtype=np.float32), "norm.bias": (16,), "head.weight": (16, 2, 2, 2),
}  # fmt: skip


def test_convolutions_write_and_read_the_stream_and_positions_may_be_resized(onnx_model):
    live = live_of(onnx_model, PICTURE, PICTURES)
    batch, other = np.random.default_rng(1).normal(size=(2, 3, 3, 8, 8)).astype(np.float32)
    expected = run(live, other)
    applied = rotate(live, batch)
    assert applied.sentences[0].endswith("16 channels was rotated, its mean kept: 1 norm reads it, 1 layer writes it")
    np.testing.assert_allclose(run(live, other), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    grouped = PICTURE.replace("<kernel_shape=[2, 2], strides=[2, 2]>(x", "<group=2, strides=[2, 2]>(z").replace(
        "c = Conv", "z = Concat<axis=1>(x, x)  c = Conv"
    )
    applied = rotate(live_of(onnx_model, grouped, PICTURES), batch)
    assert applied.sentences[0].endswith("as it was: patch writes it, and is a convolution of several groups")


def test_a_norm_behind_the_sum_leaves_no_stream(onnx_model):
    text = SCALED.replace("(float[n, 5] y)", "(float[n, 5] y, float[n, 2, 16] z)").replace(
        "y = ", "z = Add(h, s)  y = "
    )
    live = live_of(onnx_model, text, SCALES)
    batch = np.random.default_rng(1).normal(size=(6, 2, 8)).astype(np.float32)
    before = live.graph
    applied = rotate(live, batch)
    assert applied.sentences == ("rotation: the residual stream is as it was: no norm feeds linear layers alone",)
    assert live.graph is before


#: Token ids, an embedding that is scaled, a norm of plain operators, an MLP, a norm with a shift, a tied head.
TEXT = """(int64[n, 4] ids) => ({outputs}float[n, 4, 300] y) {{
    e = Gather(table, ids)  x0 = Mul(e, six)  x = Add(x0, places)  {between}
    u = Pow(x1, two)  m = ReduceMean(u, last)  me = Add(m, eps)  r = Sqrt(me)  d = Div(x1, r)
    h = Mul(d, "norm.weight")  g = MatMul(h, "up.weight")  a = Relu(g)  w = MatMul(a, "down.weight")  z = Add(x1, w)
    k = RMSNormalization(z, "last.weight")  t = Transpose<perm=[1, 0]>(table)  y = MatMul(k, t)
}}"""
CONSTANTS = {
    "table": (300, 16), "places": (4, 16), "norm.weight": np.linspace(0.5, 2, 16, dtype=np.float32),
    "last.weight": np.linspace(2, 0.5, 16, dtype=np.float32), "up.weight": (16, 24), "down.weight": (24, 16),
    "six": np.asarray(6.0, np.float32), "two": np.asarray(2.0, np.float32), "eps": np.asarray(1e-5, np.float32),
    "last": np.asarray([-1]), "gains": np.linspace(0.5, 2, 16, dtype=np.float32),
}  # fmt: skip
IDS = np.arange(12, dtype=np.int64).reshape(3, 4)
PLAIN = "x1 = Identity(x)"


def written(onnx_model, between=PLAIN, outputs="", constants=CONSTANTS):
    return live_of(onnx_model, TEXT.format(between=between, outputs=outputs), constants, opset=23)


def test_a_scaled_embedding_with_positions_writes_and_a_tied_head_gets_a_weight_of_its_own(onnx_model):
    live = written(onnx_model)
    (embedding, head) = (own for own in live.found.values() if own.layer.tied)
    expected = run(live, IDS)
    applied = rotate(live, IDS)
    assert applied.sentences == (
        "rotation: the residual stream of 16 channels was rotated: 2 norms read it, 2 layers write it",
    )
    np.testing.assert_allclose(run(live, IDS + 12), run(written(onnx_model), IDS + 12), rtol=0, atol=1e-4)
    after = [live.found[own.layer.name] for own in (embedding, head)]
    assert not any(own.layer.tied for own in after)
    table = embedding.weight.const_value.numpy().astype(np.float64)
    np.testing.assert_allclose(after[0].weight.const_value.numpy(), table @ orthogonal(16, 0), atol=1e-6)
    gained = table * CONSTANTS["last.weight"]
    np.testing.assert_allclose(after[1].weight.const_value.numpy().T, gained @ orthogonal(16, 0), atol=1e-6)
    applied.restore()
    np.testing.assert_array_equal(run(live, IDS), expected)


@pytest.mark.parametrize(
    ("between", "outputs", "reason"),
    [
        ("x1 = Mul(x, gains)", "", "Mul x1 multiplies channels of it by different numbers"),
        ("x1 = Relu(x)", "", "Relu x1 writes it"),
        ("x1 = Identity(x)  s = Sigmoid(x1)", "float[n, 4, 16] s, ", "Sigmoid s reads it, and is no norm in front of"),
        ("x1 = Neg(x)  ", "", "Neg x1 writes it"),
        ("x1 = Add(x, six)", "", "a constant of one number is added to it by Add x1"),
        ("c = Cast<to=1>(x)  x1 = Dropout(c)", "float[n, 4, 16] c, ", "c is an output of the graph"),
    ],
)
def test_what_does_not_turn_with_the_stream_is_the_reason_to_leave_it(onnx_model, between, outputs, reason):
    live = written(onnx_model, between, outputs)
    before, found = live.graph, live.found
    expected = FRONTEND.run(live, IDS)
    applied = rotate(live, IDS)
    assert applied.sentences[0].startswith(f"rotation: the residual stream is as it was: {reason}")
    assert (live.graph, live.found) == (before, found)
    assert sum(bool(own.layer.tied) for own in live.found.values()) == 2
    for name, own in FRONTEND.run(live, IDS).items():
        np.testing.assert_array_equal(own, expected[name])


def test_a_matrix_that_is_not_orthogonal_or_does_not_keep_the_mean_is_found_by_the_run(onnx_model, monkeypatch):
    live = written(onnx_model)
    skewed = FRONTEND.rotate(live, IDS, lambda width, **_: np.eye(width) + 0.1, heads=False)
    assert skewed.sentences[0].endswith("as it was: the rotated graph puts out something else")
    text = """(float[n, 8] x) => (float[n, 5] y) { a = MatMul(x, "a.weight")
        n = LayerNormalization(a, "norm.weight", "norm.bias")  y = MatMul(n, "b.weight") }"""
    shapes = {"a.weight": (8, 16), "norm.weight": np.full(16, 2, np.float32), "norm.bias": (16,), "b.weight": (16, 5)}
    batch = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)

    def sentence():
        return rotate(live_of(onnx_model, text, shapes), batch).sentences[0]

    assert sentence().endswith("was rotated, its mean kept: 1 norm reads it, 1 layer writes it")
    monkeypatch.setattr(ResidualStream, "centred", False)
    assert sentence().endswith("as it was: the rotated graph puts out something else")


def test_without_data_the_graph_is_run_on_random_inputs(onnx_model):
    assert "was rotated: 2 norms" in rotate(written(onnx_model), None).sentences[0]


def outlying(onnx_model):
    """A stream of which a channel is read with weights that are far larger than the others."""
    up = np.random.default_rng(1).normal(size=(16, 24)).astype(np.float32)
    up[5] *= 20.0
    return written(onnx_model, constants={**CONSTANTS, "table": (np.float32(0.1) * table()), "up.weight": up})


def table():
    return np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)


def test_a_quantized_graph_loses_less_when_it_is_rotated_and_its_file_says_so(onnx_model, tmp_path):
    rules = [fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int4 channel")]
    graph = ir.to_proto(outlying(onnx_model).graph)
    plain, turned = (
        fb.quantize(graph, fb.Recipe(rules, transforms=own), calibration=[IDS], evaluation=[IDS + 12, IDS + 24])
        for own in ([], ["rotation"])
    )
    assert turned.report.after.kl_divergence < 0.5 * plain.report.after.kl_divergence
    path = turned.save(tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"ids": IDS})
    (simulated,) = turned.run(IDS).values()
    # MatMulNBits of 4 bits computes in float32.
    np.testing.assert_allclose(found, simulated, rtol=0, atol=1e-4 * np.abs(simulated).max())


def test_readers_of_channels_in_another_order_are_named(onnx_model, monkeypatch):
    live = written(onnx_model)
    right = ResidualStream.of

    def shuffled(model, folds):
        folds = [replace(own, link=replace(own.link, channels=own.link.channels[::-1])) for own in folds]
        return right(model, folds)

    monkeypatch.setattr(ResidualStream, "of", shuffled)
    assert rotate(live, IDS).sentences[0].endswith("as it was: up reads the channels in another order")
