"""The text notation of schemes: reads back what it prints, and says what is wrong with anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.catalogue import lookup
from fewbit.errors import SchemeError
from fewbit.formats import FORMATS
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.ranges import RANGES
from fewbit.ranges.minmax import MinMax
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor, PerTile, PerToken
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

NARROW = [Int(bits, narrow=True) for bits in (*range(2, 9), 16)]
SIZES = st.integers(1, 999_999)
GRANULARITIES = st.one_of(
    st.sampled_from([PerTensor(), PerToken(), PerChannel()]),
    st.builds(PerGroup, SIZES),
    st.builds(PerTile, SIZES, SIZES),
    st.builds(PerChannel, st.integers(0, 9), SIZES),
)


@st.composite
def schemes(draw):
    form = draw(st.sampled_from([*(lookup(FORMATS, name, what="number format") for name in FORMATS), *NARROW]))
    asymmetric = form == Int(1) or (form.takes_zero_point and draw(st.booleans()))
    method = draw(st.sampled_from([None, *RANGES]))
    return Scheme(
        format=form,
        granularity=draw(GRANULARITIES),
        symmetric=not asymmetric,
        range_method=method and lookup(RANGES, method, what="range method")(),
    )


@given(schemes())
def test_parsing_undoes_printing(scheme):
    assert parse_scheme(str(scheme)) == scheme


@given(schemes(), st.randoms(use_true_random=False))
def test_words_after_the_format_come_in_any_order(scheme, random):
    head, *rest = str(scheme).split()
    random.shuffle(rest)
    assert parse_scheme("  ".join([head, *rest])) == scheme


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_whole_schemes_have_one_word(name):
    scheme = parse_scheme(name)
    assert scheme == lookup(BLOCK_FORMATS, name, what="scheme")
    assert str(scheme) == name


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("int1 asym", "int1 g128 asym"),
        ("int2", "int2 g128"),
        ("int4", "int4 g128"),
        ("int4 sym", "int4 g128"),
        ("int4 g64 asym", "int4 g64 asym"),
        ("int4 absmax", "int4 g128"),
        ("int4 minmax", "int4 g128 minmax"),
        ("int4 asym absmax", "int4 g128 asym absmax"),
        ("int4 asym minmax", "int4 g128 asym"),
        ("int5", "int5 channel"),
        ("int8", "int8 channel"),
        ("int8 tensor narrow", "int8 narrow tensor"),
        ("int8 g032", "int8 g32"),
        ("int8 channel:0", "int8 channel"),
        ("int8 channel:1x1", "int8 channel:1"),
        ("e4m3", "e4m3 channel"),
        ("e4m3 tensor", "e4m3 tensor"),
        ("e4m3 tile128x128", "e4m3 tile128x128"),
    ],
)
def test_words_left_out_are_the_usual_ones(text, printed):
    assert str(parse_scheme(text)) == printed
    assert parse_scheme(printed) == parse_scheme(text)


def test_text_means_these_values():
    assert parse_scheme("int4 g64 asym") == Scheme(format=Int(4), granularity=PerGroup(64), symmetric=False)
    assert parse_scheme("int7 channel narrow") == Scheme(format=Int(7, narrow=True), granularity=PerChannel())
    assert parse_scheme("e4m3 tensor minmax") == Scheme(format=E4M3, granularity=PerTensor(), range_method=MinMax())
    assert parse_scheme("int8 channel:1x4").granularity == PerChannel(1, 4)


# What is known grows with the catalogues; up to there the messages are exact.
BAD = {
    "": "an empty scheme; write for example 'int4 g64' or 'int8 channel'",
    "  ": "an empty scheme; write for example 'int4 g64' or 'int8 channel'",
    "int9": "unknown number format 'int9'; did you mean 'int8'? known: bf16, binary, e2m1,",
    "INT4": "unknown number format 'INT4'; known: bf16, binary, e2m1,",
    "g64 int4": "unknown number format 'g64'; known: bf16, binary, e2m1,",
    "e4m4": "unknown number format 'e4m4'; did you mean 'e4m3'? known: bf16, binary, e2m1,",
    "int4 g64 assym": "unknown word in scheme 'int4 g64 assym': 'assym'; did you mean 'asym'? known: absmax, asym,",
    "int4 int8": "unknown word in scheme 'int4 int8': 'int8'; known: absmax, asym,",
    "int4 g": "unknown word in scheme 'int4 g': 'g'; did you mean 'gN'? known: absmax, asym,",
    "int4 g-64": "unknown word in scheme 'int4 g-64': 'g-64'; known: absmax, asym,",
    "int4 g64x": "unknown word in scheme 'int4 g64x': 'g64x'; known: absmax, asym,",
    "int4 g0": "group size 0 is not positive; 128, 64 and 32 are usual",
    "int4 tile0x8": "tile 0x8 is empty; 128x128 is usual",
    "int4 g64 channel": "scheme 'int4 g64 channel' names two granularities, g64 and channel; drop one",
    "int4 g64 g32": "scheme 'int4 g64 g32' names two granularities, g64 and g32; drop one",
    "int4 absmax minmax": "scheme 'int4 absmax minmax' names two range methods, absmax and minmax; drop one",
    "int4 sym asym": "scheme 'int4 sym asym' names two symmetries, sym and asym; drop one",
    "e4m3 asym": "e4m3 takes no zero point; leave out 'asym'",
    "e4m3 narrow": "e4m3 has no narrow range; only integers do",
    "int1": "int1 symmetric has the levels -1 and 0 only; use 'int1 asym'",
    "int1 narrow asym": "int1 narrow has a single level; use int1 asym or int2 narrow",
    "uint4 narrow": "uint4 has no narrow range: it has no negative code to leave out",
    "mxfp4 g64 asym": "mxfp4 is a whole scheme and takes one further word, mse or lsq; drop 'g64 asym'",
    "nvfp4 entropy": "nvfp4 is a whole scheme and takes one further word, mse, lsq or static; drop 'entropy'",
    "fp16 mse": "fp16 is a whole scheme and takes no further word; drop 'mse'",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_notation_says_what_is_wrong_and_what_to_write(text):
    with pytest.raises(SchemeError) as caught:
        parse_scheme(text)
    message = str(caught.value)
    assert message.startswith(BAD[text]) if BAD[text].endswith(",") else message == BAD[text]


@pytest.mark.parametrize("word", ["narrow", "asym", "g64", "tensor", "minmax"])
def test_a_word_given_twice_is_refused(word):
    with pytest.raises(SchemeError, match=f"{word} and {word}; drop one$"):
        parse_scheme(f"int4 {word} {word}")


def test_a_scheme_that_is_no_text_or_too_long_is_refused_in_few_words():
    with pytest.raises(SchemeError, match="a scheme is text such as 'int4 g64', not 4"):
        parse_scheme(4)
    with pytest.raises(SchemeError, match="a scheme of 100000 characters, beginning 'xxxx") as caught:
        parse_scheme("x" * 100_000)
    assert len(str(caught.value)) < 200
