"""Fields of protobuf messages, beside the library that writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from fewbit.protobuf_wire import fields, varint


@given(st.integers(0, 2**63 - 1), st.text(max_size=300), st.binary(max_size=40))
def test_the_fields_are_those_that_the_library_wrote(version, producer, raw):
    content = ModelProto(ir_version=version, producer_name=producer).SerializeToString()
    found = {own.number: own.whole if own.wire == 0 else content[own.begin : own.end] for own in fields(content)}
    wanted = {1: version, 2: producer.encode()}
    assert found == {number: wanted[number] for number in found}
    assert (1 in found, 2 in found) == (True, True)
    tensor = TensorProto(raw_data=raw, float_data=[1.5]).SerializeToString()
    assert raw in [tensor[own.begin : own.end] for own in fields(tensor)]


def test_a_message_inside_of_another_is_read_where_it_stands():
    outer = ModelProto()
    outer.graph.name = "inner"
    content = outer.SerializeToString()
    place = next(own for own in fields(content) if own.number == 7)
    inner = next(fields(content, place.begin, place.end))
    assert content[inner.begin : inner.end] == b"inner"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a\x05abc", "field 1 of wire type 2 at byte 1 reaches beyond the end"),
        (b"\x0d\0\0", "field 1 of wire type 5 at byte 1 reaches beyond the end"),
        (b"\x0b", "field 1 of wire type 3 at byte 1 reaches beyond the end"),
        (b"\x08\x80", "a number goes on behind byte 2, the last one"),
        (b"\x08" + b"\xff" * 11, "a number of more than 64 bits at byte 11"),
    ],
)
def test_what_is_no_message_is_an_error_that_says_where(content, message):
    with pytest.raises(ValueError, match=message):
        list(fields(content))


def test_a_number_ends_with_its_message():
    assert varint(b"\x96\x01\x01", 0, 2) == (150, 2)
    with pytest.raises(ValueError, match="goes on behind byte 1"):
        varint(b"\x96\x01", 0, 1)
