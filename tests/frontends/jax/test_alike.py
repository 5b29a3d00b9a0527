"""Codes, scales and zero points are those of the PyTorch front end to the bit, for every scheme and kind of layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from torch import nn

import fewbit as fb
from fewbit.errors import SchemeError
from fewbit.formats import FORMATS, LEARNED
from fewbit.qtensor import QTensor
from fewbit.schemes.notation import WHOLE, parse_scheme

GRANULARITIES = ("tensor", "channel", "g64", "tile4x128")


def parsed(text):
    try:
        return parse_scheme(text)
    except SchemeError:
        return None


FORMS = [f"{form} {own}{zero}" for form in FORMATS for own in GRANULARITIES for zero in ("", " asym", " float-zero")]
RANGED = [f"int4 g64 {method}" for method in ("mse", "lsq", "percentile", "entropy")] + [
    "int3 channel asym mse",
    "nvfp4 mse",
]
SCHEMES = [text for text in [*FORMS, *(f"{own} channel" for own in LEARNED), *WHOLE, *RANGED] if parsed(text)]
WIDTH = 256  # a span of q4_k
SIZE = (6, WIDTH)


def arrays_of(qtensor: QTensor):
    """Yield every array of a QTensor as NumPy, with what it is."""
    for name in ("codes", "scale", "zero_point", "codebook", "minimum"):
        part = getattr(qtensor, name)
        if isinstance(part, QTensor):
            yield from ((f"{name}.{inner}", own) for inner, own in arrays_of(part))
        elif part is not None:
            yield name, np.asarray(part)


def assert_same(ours: QTensor, theirs: QTensor, what: str):
    mine, others = dict(arrays_of(ours)), dict(arrays_of(theirs))
    assert mine.keys() == others.keys(), what
    for name, want in others.items():
        np.testing.assert_array_equal(mine[name], want, err_msg=f"{what}: {name}", strict=True)
    assert ours.scheme == theirs.scheme


def weights(dtype=torch.float32):
    torch.manual_seed(0)
    return [(torch.randn(SIZE) * 0.05).to(dtype) for _ in SCHEMES]


class Parallel(nn.Module):
    """Every layer on the same input."""

    def __init__(self, given):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, SIZE[0], bias=False, dtype=own.dtype) for own in given)
        for layer, own in zip(self.layers, given, strict=True):
            layer.weight.data = own

    def forward(self, x):
        return [layer(x) for layer in self.layers]


def all_products(p, x):
    return [x @ own for own in p]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def both(request):
    """The same layers quantized by both front ends."""
    given = weights(request.param)
    rules = [(f"{number}", scheme) for number, scheme in enumerate(SCHEMES)]
    model = fb.quantize(Parallel(given), fb.Recipe([fb.Rule(f"layers.{at}", weight=own) for at, own in rules])).model
    kernels = [jnp.asarray(own.float().numpy()).astype(str(own.dtype).removeprefix("torch.")).T for own in given]
    named = [fb.Rule(at, weight=own) for at, own in rules]
    _, quantized = fb.jax.quantize(all_products, kernels, named, jax.ShapeDtypeStruct((2, WIDTH), kernels[0].dtype))
    return model, quantized, kernels, named


def test_every_scheme_has_the_bits_of_pytorch(both):
    model, quantized, *_ = both
    for scheme, layer, packed in zip(SCHEMES, model.layers, quantized, strict=True):
        assert_same(packed.map(np.asarray).qtensor(), layer.qtensor, scheme)


def test_codes_of_few_bits_are_packed(both):
    _, quantized, *_ = both
    for scheme, packed in zip(SCHEMES, quantized, strict=True):
        bits = parse_scheme(scheme).format.bits
        assert packed.arrays["codes"].nbytes == SIZE[0] * -(-WIDTH * bits // 8), scheme


def test_shapes_alone_are_those_of_the_numbers(both):
    _, quantized, kernels, named = both
    shapes = [jax.ShapeDtypeStruct(own.shape, own.dtype) for own in kernels]
    _, abstract = fb.jax.quantize(all_products, shapes, named, jax.ShapeDtypeStruct((2, WIDTH), kernels[0].dtype))
    assert jax.tree.structure(abstract) == jax.tree.structure(quantized)
    for want, got in zip(jax.tree.leaves(quantized), jax.tree.leaves(abstract), strict=True):
        assert (want.shape, want.dtype) == (got.shape, got.dtype)


STATIC = ["int8 static", "int8 sym static", "int8 static mse", "int8 static percentile", "int8 static entropy",
          "int8 static average", "int8 channel static", "e4m3 static", "nvfp4 static"]  # fmt: skip


@pytest.mark.parametrize(
    "algorithm", ["nearest", fb.Nearest(weighted=True), fb.Gptq()], ids=["nearest", "weighted", "gptq"]
)
def test_the_same_data_gives_the_same_ranges_and_codes(algorithm):
    torch.manual_seed(0)
    batches = [torch.randn(64, WIDTH) * torch.linspace(0.1, 3.0, WIDTH) for _ in range(2)]
    model = Parallel(weights()[: len(STATIC)])
    kernels = [jnp.asarray(layer.weight.detach().numpy().T) for layer in model.layers]
    rules = [
        (f"{at}", fb.Rule(f".*{at}", weight="int4 g64", input=own, algorithm=algorithm))
        for at, own in enumerate(STATIC)
    ]
    result = fb.quantize(model, fb.Recipe([rule for _, rule in rules]), calibration=fb.Calibration(data=batches))
    data = [jnp.asarray(own.numpy()) for own in batches]
    _, quantized = fb.jax.quantize(all_products, kernels, [rule for _, rule in rules], data[0], calibration=data)
    for scheme, layer, packed in zip(STATIC, result.model.layers, quantized, strict=True):
        own = packed.map(np.asarray)
        given, theirs = own.activation(), layer.input.activation
        np.testing.assert_array_equal(given.scale, theirs.scale.numpy(), err_msg=scheme, strict=True)
        if theirs.zero_point is not None:
            np.testing.assert_array_equal(given.zero_point, theirs.zero_point.numpy(), err_msg=scheme, strict=True)
        if algorithm == "nearest":
            assert_same(own.qtensor(), layer.qtensor, scheme)
        else:
            # NumPy and torch add up second moments in another order, which decides a code that lies between two.
            same = np.asarray(own.qtensor().codes) == layer.qtensor.codes.numpy()
            assert same.mean() > 0.99, scheme


def test_convolutions_and_embeddings_have_the_bits_of_pytorch():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(8, 6, 3), "depthwise": nn.Conv2d(6, 6, 3, groups=6), "table": nn.Embedding(9, 64)}
    )
    own = {name: jnp.asarray(layer.weight.detach().numpy()) for name, layer in model.items()}
    for name in ("conv", "depthwise"):
        own[name] = own[name].transpose(2, 3, 1, 0)
    rules = [
        fb.Rule("table", weight="int4 g16"),
        fb.Rule("conv", weight="int4 g24"),
        fb.Rule("depthwise", weight="int8 asym"),
    ]
    result = fb.quantize(model, fb.Recipe(rules))

    def run(p, x, ids):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers)
        x = lax.conv_general_dilated(
            x, p["depthwise"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=6
        )
        return x, p["table"][ids]

    _, quantized = fb.jax.quantize(run, own, rules, jnp.ones((1, 5, 5, 8)), jnp.asarray([0, 1]))
    for name, packed in quantized.items():
        assert_same(packed.map(np.asarray).qtensor(), result.model[name].qtensor, name)


@pytest.mark.parametrize("given", ["int8", "int8 static", "e4m3", None])
def test_outputs_are_those_of_pytorch_within_rounding(given):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    batches = [torch.randn(16, 64)]
    own = [
        {"w": jnp.asarray(model[at].weight.detach().numpy()), "b": jnp.asarray(model[at].bias.detach().numpy())}
        for at in (0, 2)
    ]

    def run(p, x):
        return jax.nn.relu(x @ p[0]["w"].T + p[0]["b"]) @ p[1]["w"].T + p[1]["b"]

    rules = [fb.Rule(kind="linear", weight="int8", input=given)]
    x = jnp.asarray(batches[0].numpy())
    quantized_run, quantized = fb.jax.quantize(run, own, rules, x, calibration=[x])
    result = fb.quantize(model, fb.Recipe(rules), calibration=fb.Calibration(data=batches, sequential=False))
    with torch.no_grad():
        want = result.model(batches[0]).numpy()
    # A number of the hidden layer that lies between two codes may go to either: one step of one of 32 inputs.
    atol = 1e-5 if given is None else 0.02
    np.testing.assert_allclose(quantized_run(quantized, x), want, atol=atol)
