"""Scheme: what it fills in, what it refuses, what it costs."""

import pytest

from fewbit.errors import SchemeError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.scheme import Scheme


def test_a_range_method_left_out_follows_the_symmetry():
    assert Scheme(format=Int(4)).ranging == AbsMax()
    assert Scheme(format=Int(4), symmetric=False).ranging == MinMax()
    assert Scheme(format=Int(4), range_method=MinMax()).ranging == MinMax()


def test_spelling_out_the_usual_range_method_gives_an_equal_scheme():
    assert Scheme(format=Int(4)) == Scheme(format=Int(4), range_method=AbsMax())
    assert hash(Scheme(format=Int(4))) == hash(Scheme(format=Int(4), range_method=AbsMax()))


def test_a_float_takes_no_zero_point():
    with pytest.raises(SchemeError, match=r"^e4m3 takes no zero point; leave out 'asym'$"):
        Scheme(format=E4M3, symmetric=False)


def test_one_bit_is_asymmetric_only():
    with pytest.raises(SchemeError, match=r"^int1 symmetric has the levels -1 and 0 only; use 'int1 asym'$"):
        Scheme(format=Int(1))
    assert not Scheme(format=Int(1), symmetric=False).symmetric


def test_the_type_of_the_scale_is_settled_once():
    scheme = Scheme(format=Int(4))
    assert scheme.scale_type is None
    settled = scheme.stored_as("bfloat16")
    assert settled.scale_type == "bfloat16"
    assert settled.stored_as("float16") is settled


@pytest.mark.parametrize(
    ("scheme", "shape", "bits"),
    [
        (Scheme(format=Int(4), granularity=PerGroup(64)), (8, 128), 4 + 16 / 64),
        (Scheme(format=Int(4), granularity=PerGroup(64), symmetric=False), (8, 128), 4 + (16 + 4) / 64),
        (Scheme(format=Int(4), granularity=PerGroup(64)), (8, 100), 4 + 16 * 2 / 100),  # an uneven group costs as much
        (Scheme(format=Int(8), granularity=PerChannel()), (8, 128), 8 + 16 / 128),
        (Scheme(format=Int(8), granularity=PerChannel(), scale_type="float32"), (8, 128), 8 + 32 / 128),
        (Scheme(format=E4M3, granularity=PerTensor()), (8, 128), 8 + 16 / 1024),
    ],
    ids=str,
)
def test_bits_per_weight_count_codes_scales_and_zero_points(scheme, shape, bits):
    assert scheme.bits_per_weight(shape) == bits
