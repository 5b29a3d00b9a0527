"""`fp16` and `bf16` as schemes: no scale anywhere, in notation, in bits, in a QTensor."""

import ml_dtypes
import numpy as np
import pytest

from fewbit.errors import SchemeError
from fewbit.formats import cast
from fewbit.qtensor import fake_quantize, quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.schemes.casts import BF16, CASTS, FP16
from fewbit.schemes.granularity import PerChannel
from fewbit.schemes.notation import input_scheme_to_text, parse_input_scheme, parse_scheme
from fewbit.schemes.scheme import Scheme

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize(("name", "scheme"), [("fp16", FP16), ("bf16", BF16)])
def test_a_cast_is_one_word_for_weights_inputs_and_outputs(name, scheme):
    assert parse_scheme(name) == parse_input_scheme(name) == scheme
    assert str(scheme) == input_scheme_to_text(scheme) == name
    assert not scheme.scaled
    assert scheme.stored_as("bfloat16") == scheme


@pytest.mark.parametrize("word", ["g64", "channel", "asym", "static", "minmax"])
def test_a_cast_takes_no_further_word(word):
    with pytest.raises(SchemeError, match=f"fp16 is a whole scheme and takes no further word; drop '{word}'"):
        parse_input_scheme(f"fp16 {word}")


@pytest.mark.parametrize(("changes", "message"), [
    ({"granularity": PerChannel()}, "fp16 is a cast: without a scale there is no granularity, range or static"),
    ({"range_method": AbsMax()}, "no granularity, range or static"),
    ({"static": True}, "no granularity, range or static"),
    ({"scale_type": "float16"}, "fp16 is a cast and has no scale; leave out its type"),
    ({"scale_scheme": parse_scheme("e4m3 tensor")}, "fp16 is a cast and has no scale; leave out its type"),
    ({"symmetric": False}, "fp16 takes no zero point"),
])  # fmt: skip
def test_a_cast_with_what_only_scales_have_is_refused(changes, message):
    with pytest.raises(SchemeError, match=message):
        Scheme(format=cast.FP16, **changes)


@pytest.mark.parametrize("name", CASTS)
def test_sixteen_bits_a_number_and_not_one_more(name):
    assert parse_scheme(name).bits_per_weight((3, 5)) == 16


@pytest.mark.parametrize("shape", [(3, 5), (7,), (2, 3, 4)])
@pytest.mark.parametrize("name", CASTS)
def test_a_quantized_tensor_is_the_cast_one(name, shape, xp):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    quantized = quantize(xp.from_numpy(values), parse_scheme(name))
    expected = values.astype(TYPES[name])
    np.testing.assert_array_equal(xp.to_numpy(quantized.codes), expected.view(np.uint16), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(quantized.dequantize()), expected.astype(np.float32), strict=True)
    assert xp.to_numpy(quantized.scale).tolist() == np.ones((1,) * len(shape)).tolist()
    assert quantized.zero_point is None
    fake = fake_quantize(xp.from_numpy(values), parse_scheme(name))
    np.testing.assert_array_equal(xp.to_numpy(fake), expected.astype(np.float32))


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_of_what_was_cast_changes_nothing(name):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    once = quantize(values, parse_scheme(name))
    np.testing.assert_array_equal(quantize(once.dequantize(), parse_scheme(name)).codes, once.codes)


def test_importance_and_slices_do_not_matter():
    values = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)  # more than one slice
    codes = quantize(values, FP16, importance=np.ones(500, np.float32)).codes
    np.testing.assert_array_equal(codes, values.astype(np.float16).view(np.uint16))


def test_an_empty_tensor_has_nothing_to_cast():
    with pytest.raises(SchemeError, match="holds no numbers to quantize; keep it"):
        quantize(np.zeros((0, 4), np.float32), FP16)
