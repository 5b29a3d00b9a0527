"""GGUF's block formats as schemes: bits, notation, what is refused, and how good their searches are."""

import numpy as np
import pytest

from fewbit.adaptation import require_divisible
from fewbit.errors import GroupSizeError, RecipeError, SchemeError
from fewbit.formats.integer import Int
from fewbit.qtensor import QTensor, fake_quantize, quantize
from fewbit.rule import Rule
from fewbit.schemes.gguf import FALLBACKS, GGUF_FORMATS, KINDS, kind_of, scheme_of
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

BITS = {
    "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5, "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5,
    "q5_k": 5.5, "q6_k": 6.5625, "iq4_nl": 4.5, "iq4_xs": 4.25,
}  # fmt: skip


def normals(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize(("text", "bits"), BITS.items())
def test_bits_are_those_of_the_blocks(text, bits):
    assert parse_scheme(text).bits_per_weight((8, 512)) == bits


@pytest.mark.parametrize("kind", KINDS)
def test_types_and_schemes_name_each_other(kind):
    scheme = scheme_of(kind)
    assert kind_of(scheme) == kind
    assert str(scheme) == kind.lower()
    assert parse_scheme(str(scheme)) == scheme


def test_a_type_without_a_scheme_is_named():
    with pytest.raises(SchemeError, match="GGUF type 'IQ2_XXS' has no scheme; those that have one are Q4_0, Q4_1"):
        scheme_of("IQ2_XXS")


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_parameters_have_the_promised_shapes(text):
    scheme = parse_scheme(text)
    quantized = quantize(normals(3, 512), scheme)
    parts = [part for part in (quantized.scale, quantized.minimum) if part is not None]
    assert len(parts) == 1 + scheme.minimum
    size = scheme.granularity.size
    for part in parts:
        values = part.dequantize() if isinstance(part, QTensor) else part
        assert values.shape == (3, 512 // size)
        floats = part.scale if isinstance(part, QTensor) else part
        assert floats.shape == (3, 512 // scheme.span)
        np.testing.assert_array_equal(floats.astype(np.float16).astype(np.float32), floats, strict=True)


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_leading_axes_and_other_frameworks_change_nothing(text):
    import torch

    weight = normals(2, 2, 256)
    flat, stacked = quantize(weight.reshape(4, 256), parse_scheme(text)), quantize(weight, parse_scheme(text))
    np.testing.assert_array_equal(stacked.dequantize(), flat.dequantize().reshape(2, 2, 256))
    moved = quantize(torch.from_numpy(weight), parse_scheme(text))
    np.testing.assert_array_equal(moved.dequantize().numpy(), stacked.dequantize())


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_weighting_lowers_the_weighted_error_and_raises_the_plain_one(text):
    weight, scheme = normals(16, 512), parse_scheme(text)
    importance = np.exp(2 * np.random.default_rng(1).standard_normal(512)).astype(np.float32)
    plain, weighted = (quantize(weight, scheme, own).dequantize() - weight for own in (None, importance))
    assert (weighted**2 * importance).sum() < (plain**2 * importance).sum()
    assert (plain**2).sum() < (weighted**2).sum()


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_an_importance_of_ones_is_none(text):
    weight, scheme = normals(2, 256), parse_scheme(text)
    found = quantize(weight, scheme, np.full(256, 3.0, np.float32)).dequantize()
    np.testing.assert_array_equal(found, quantize(weight, scheme).dequantize())


@pytest.mark.parametrize("text", [text for text in GGUF_FORMATS if text not in ("q2_k", "q4_k", "q5_k", "q6_k")])
def test_rounding_again_changes_nothing(text):
    scheme = parse_scheme(text)
    start = quantize(normals(4, 256), scheme).dequantize()
    again = quantize(start, scheme).dequantize()
    assert (again == start).reshape(-1, 16).all(axis=1).mean() > 0.95


@pytest.mark.parametrize("text", FALLBACKS)
def test_a_width_that_spans_do_not_divide_is_refused_with_what_fits(text):
    scheme = parse_scheme(text)
    with pytest.raises(
        GroupSizeError, match=f"576 is not a multiple of 256, the span of {text}; use {FALLBACKS[text]}"
    ):
        require_divisible(576, scheme)
    require_divisible(576, parse_scheme(FALLBACKS[text]))
    with pytest.raises(SchemeError, match="in_features 576 is not a multiple of 256"):
        quantize(normals(2, 576), scheme)


def test_weights_beyond_float16_scales_are_refused():
    with pytest.raises(SchemeError, match="largest float16, and 'q4_0' stores nothing wider"):
        quantize(np.full((1, 32), 1e7, np.float32), parse_scheme("q4_0"))


def test_inputs_stochastic_rounding_and_further_words_are_refused():
    with pytest.raises(RecipeError, match="GGUF's grids are for weights"):
        Rule("x", weight="q4_0", input="q8_0")
    with pytest.raises(SchemeError, match="q4_k rounds to nearest only"):
        quantize(normals(1, 256), parse_scheme("q4_k"), seed=1)
    with pytest.raises(SchemeError, match="q4_k is a whole scheme and takes no further word"):
        parse_scheme("q4_k mse")


def test_a_minimum_needs_unsigned_codes_and_its_search():
    with pytest.raises(SchemeError, match="a float minimum belongs to uint codes"):
        Scheme(format=Int(4), granularity=PerGroup(32), symmetric=False, minimum=True)
    with pytest.raises(SchemeError, match="found by SpanSearch"):
        Scheme(format=Int(4, signed=False), granularity=PerGroup(32), symmetric=False, minimum=True)


def test_fake_quantization_gives_the_grid_and_passes_gradients():
    import torch

    weight = torch.from_numpy(normals(2, 256)).requires_grad_()
    found = fake_quantize(weight, parse_scheme("q4_k"))
    torch.testing.assert_close(found, quantize(weight.detach(), parse_scheme("q4_k")).dequantize(), rtol=0, atol=0)
    found.sum().backward()
    assert (weight.grad == 1).all()
