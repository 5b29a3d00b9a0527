"""The text that quality is measured on, and how it is cut into sequences."""

import re

import pytest
import torch

from fewbit.errors import SourceError
from fewbit.evaluation.text import read_text, token_sequences


class Words:
    """A tokenizer of whole words: the n-th word of a text is token n."""

    def __call__(self, text, *, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": [int(word) for word in re.findall("[0-9]+", text)]}


def numbers(count):
    return " ".join(str(n) for n in range(count))


def test_sequences_are_the_first_pieces_of_the_text_in_order():
    pieces = token_sequences(Words(), numbers(100), sequences=3, length=4)
    assert [piece.tolist() for piece in pieces] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]]]
    assert {piece.dtype for piece in pieces} == {torch.int64}


def test_a_piece_that_is_not_full_is_dropped():
    assert len(token_sequences(Words(), numbers(11), sequences=5, length=4)) == 2
    assert len(token_sequences(Words(), numbers(12), sequences=5, length=4)) == 3


def test_a_text_of_exactly_one_sequence_is_enough():
    (piece,) = token_sequences(Words(), numbers(4), sequences=1, length=4)
    assert piece.tolist() == [[0, 1, 2, 3]]


def test_a_text_shorter_than_one_sequence_is_an_error_with_the_remedy():
    with pytest.raises(SourceError) as caught:
        token_sequences(Words(), numbers(3), sequences=2, length=4)
    said = "the text has 3 tokens, fewer than one sequence of 4; give more text, or shorter sequences"
    assert str(caught.value) == said


def test_a_text_of_long_words_is_not_cut_short():
    text = " ".join(f"{n:040}" for n in range(64))
    pieces = token_sequences(Words(), text, sequences=4, length=16)
    assert torch.cat(pieces).reshape(-1).tolist() == list(range(64))


def test_a_book_is_not_tokenized_whole_to_use_its_first_page():
    class Recording(Words):
        def __call__(self, text, **options):
            lengths.append(len(text))
            return super().__call__(text, **options)

    lengths = []
    book = numbers(200_000)
    token_sequences(Recording(), book, sequences=1, length=8)
    assert max(lengths) < len(book) / 10


def test_the_default_text_is_prose_that_python_carries():
    text, name = read_text(None)
    assert name.startswith("pydoc_data.topics of Python 3.")
    assert len(text) > 200_000
    assert read_text(None) == (text, name)


def test_a_text_file_is_read_as_utf8_and_named(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("Grüße, 世界\n".encode())
    assert read_text(path) == ("Grüße, 世界\n", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read text .*: No such file"), (b"a\xffb", "is not UTF-8: .* at byte 1"), (b" \n\t", "is empty")],
)
def test_a_text_that_cannot_be_used_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read_text(path)
    assert str(path) in str(caught.value)
