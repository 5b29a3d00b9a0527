"""Any text is a scheme that prints and parses to itself, or an error that names the word at fault."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbit.errors import SchemeError
from fewbit.formats import FORMATS
from fewbit.ranges import RANGES
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.notation import parse_scheme

KNOWN = [
    *FORMATS, *BLOCK_FORMATS, *RANGES, "sym", "asym", "float-zero", "narrow", "tensor", "channel", "token", "static",
    "g64", "g1", "g0", "g999999", "g1000000", "g-1", "g٣", "channel:1", "channel:9x4", "channel:0x0", "tile128x128",
    "tile0x1", "tile1x", "int9", "int16", "uint16", "q4_k",
]  # fmt: skip
SPACES = st.text(" \t\n\r\x0b\x1c\u2003\xa0", min_size=1, max_size=3)
WORDS = st.one_of(st.sampled_from(KNOWN), st.sampled_from(KNOWN).map(str.upper), st.text(max_size=12))


@st.composite
def phrases(draw):
    """Known words and others, apart by spaces of all kinds."""
    words = draw(st.lists(WORDS, max_size=6))
    return "".join(word + draw(SPACES) for word in words)


@st.composite
def misspelt(draw):
    """A scheme with one character changed, left out or put in."""
    text = " ".join(draw(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=4)))
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.text(max_size=1)) + text[place + draw(st.integers(0, 1)) :]


def repeated(word):
    """The word as messages repeat it: escaped, and cut when it is long."""
    return repr(word)[1:-1][:30]


@settings(max_examples=3000)
@given(st.one_of(phrases(), misspelt(), st.text(max_size=300)))
@example("")
@example("\0")
@example("int4 g64\0")
@example("int4 \ud800")
@example("int4 " + "g" * 195)
@example("x" * 201)
def test_any_text_is_a_scheme_or_an_error_that_names_the_word(text):
    try:
        scheme = parse_scheme(text)
    except SchemeError as error:
        message = str(error)
        words = text.split()
        assert message.isprintable()
        assert len(message) < 800
        assert (
            message.startswith(("an empty scheme", "a scheme of "))
            or any(repeated(word) in message for word in words)
            # A group size or a tile is named by its numbers.
            or any(word.startswith(("g", "tile", "channel")) and word.strip("gtilechan:") in message for word in words)
        )
        assert words or message.startswith("an empty scheme")
    else:
        assert parse_scheme(str(scheme)) == scheme
