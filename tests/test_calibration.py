"""Calibration data: batches, texts, and what a model writes itself."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fewbit.calibration import SELF_SAMPLES, TEXT_LENGTH, Calibration, parse_calibration
from fewbit.errors import CalibrationError, SourceError
from fewbit.interfaces import Silent
from fewbit.synthetic.self_text import _GREEDY as GREEDY
from fewbit.synthetic.self_text import written_by

VOCABULARY = 300


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape)).eval()


class Words:
    """A tokenizer: a token for each word, its length."""

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


class Stub:
    """A source with a tokenizer, or without one."""

    name = "stub"

    def __init__(self, tokenizer=None):
        self._tokenizer = tokenizer

    def tokenizer(self):
        return self._tokenizer


def written(model, **options):
    given = {"sequences": 5, "length": 12, "seed": 0, "progress": Silent(), **options}
    return list(written_by(model, **given))


# What a user may say.


@pytest.mark.parametrize("nothing", [None, "none"])
def test_nothing_is_nothing(nothing):
    assert parse_calibration(nothing) is None


def test_words_paths_and_batches():
    assert parse_calibration("self") == Calibration(data="self")
    assert parse_calibration("a.txt").data == "a.txt"
    assert parse_calibration(Path("a.txt")).data == Path("a.txt")
    own = Calibration(data="self", samples=3)
    assert parse_calibration(own) is own
    batches = [torch.zeros(1, 4), torch.zeros(1, 4)]
    for given in (batches, tuple(batches), iter(batches)):
        assert [id(batch) for batch in parse_calibration(given).data] == [id(batch) for batch in batches]


@pytest.mark.parametrize("wrong", [{"input_ids": torch.zeros(1, 4)}, torch.zeros(2, 4), 5, 0.5])
def test_one_batch_is_not_a_list_of_them(wrong):
    with pytest.raises(CalibrationError, match=rf"not one {type(wrong).__name__}; wrap it in a list$"):
        parse_calibration(wrong)


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": -1}, {"length": 1}, {"length": 0}])
def test_counts_that_make_no_sense_are_refused(options):
    with pytest.raises(CalibrationError, match="give at least one sample of two tokens"):
        Calibration(data="self", **options)


# Batches.


def test_batches_are_handed_on_as_they_are(llama):
    batches = [torch.tensor([[0, VOCABULARY - 1]]), {"input_ids": torch.tensor([[5, 6]]), "attention_mask": None}]
    assert Calibration(data=batches).batches(llama, Stub()) == batches


def test_no_batch_is_refused(llama):
    with pytest.raises(CalibrationError, match="calibration holds no batch; give some, or leave it out"):
        Calibration(data=[]).batches(llama, Stub())


@pytest.mark.parametrize("wrong", [VOCABULARY, 10**6, -1])
@pytest.mark.parametrize("wrapped", [lambda ids: ids, lambda ids: {"input_ids": ids}])
def test_a_token_outside_the_vocabulary_is_named_with_its_batch(llama, wrong, wrapped):
    batches = [torch.tensor([[0, 1]]), wrapped(torch.tensor([[5, wrong, 7]]))]
    with pytest.raises(CalibrationError, match=f"^calibration batch 1: token {wrong} is outside the vocabulary of 300"):
        Calibration(data=batches).batches(llama, Stub())


def test_numbers_that_are_no_tokens_are_not_checked(llama):
    batches = [torch.full((2, 3), 1e6), {"inputs_embeds": torch.zeros(1, 2, 32)}, torch.zeros((0, 3), dtype=torch.long)]
    assert Calibration(data=batches).batches(llama, Stub()) is not None
    tokens = [torch.tensor([[10**6]])]
    assert Calibration(data=tokens).batches(nn.Linear(2, 2), Stub()) == tokens


# Texts.


def test_a_text_is_cut_into_sequences(llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one three four " * 10)
    batches = Calibration(data=text, samples=4, length=7).batches(llama, Stub(Words()))
    assert [batch.shape for batch in batches] == [(1, 7)] * 4
    assert torch.cat(batches, 1)[0].tolist() == ([3, 5, 4] * 10)[:28]
    assert len(Calibration(data=str(text), samples=40, length=7).batches(llama, Stub(Words()))) == 4


def test_a_text_needs_a_tokenizer_and_enough_of_it(llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one three four")
    with pytest.raises(CalibrationError, match=r"^stub has no tokenizer for .*text.txt; give batches of token ids"):
        Calibration(data=text).batches(llama, Stub())
    with pytest.raises(SourceError, match=f"the text has 3 tokens, fewer than one sequence of {TEXT_LENGTH}"):
        Calibration(data=text, length=TEXT_LENGTH).batches(llama, Stub(Words()))
    with pytest.raises(SourceError, match="cannot read text"):
        Calibration(data=tmp_path / "missing.txt").batches(llama, Stub(Words()))


# What a model writes.


def test_the_model_writes_sequences_from_stepped_starts(llama):
    texts = written(llama)
    assert [text.shape for text in texts] == [(1, 12)] * 5
    assert [int(text[0, 0]) for text in texts] == [0, 60, 120, 180, 240]
    assert all(text.dtype == torch.long and int(text.min()) >= 0 and int(text.max()) < VOCABULARY for text in texts)


def test_the_first_tokens_are_the_likeliest(llama):
    tokens = torch.cat(written(llama))
    with torch.no_grad():
        likeliest = llama(tokens).logits.argmax(-1)
    assert torch.equal(tokens[:, 1 : 1 + GREEDY], likeliest[:, :GREEDY])
    assert not torch.equal(tokens[:, 1 + GREEDY :], likeliest[:, GREEDY:-1])


def test_a_seed_decides_what_is_sampled(llama):
    one, same, other = written(llama, seed=3), written(llama, seed=3), written(llama, seed=4)
    assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_writing_leaves_no_trace(llama):
    llama.train()
    before, state = {name: part.clone() for name, part in llama.state_dict().items()}, torch.random.get_rng_state()
    written(llama, sequences=2, length=8)
    assert llama.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(part, before[name]) for name, part in llama.state_dict().items())
    llama.eval()


def test_more_sequences_than_are_written_at_once(llama):
    texts = written(llama, sequences=SELF_SAMPLES + 3, length=3)
    assert [int(text[0, 0]) for text in texts] == [i * VOCABULARY // 35 for i in range(35)]


def test_self_is_what_the_model_writes(llama):
    batches = Calibration(data="self", samples=3, length=10).batches(llama, Stub(), seed=7)
    expected = written(llama, sequences=3, length=10, seed=7)
    assert all(torch.equal(*pair) for pair in zip(batches, expected, strict=True))


def test_self_is_32_texts_of_256_tokens_unless_the_context_is_shorter(llama):
    assert {tuple(text.shape) for text in Calibration(data="self").batches(llama, Stub(), seed=0)} == {(1, 64)}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=512, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    texts = list(Calibration(data="self").batches(LlamaForCausalLM(config).eval(), Stub(), seed=0))
    assert [tuple(text.shape) for text in texts] == [(1, 256)] * 32


def test_what_the_model_writes_besides_follows_the_data_and_is_as_long(llama):
    given = [torch.arange(12)[None] + step for step in range(2)]
    calibration = Calibration(data=given, written=3)
    batches = calibration.batches(llama, Stub(), seed=7)
    expected = [*given, *written(llama, sequences=3, length=12, seed=7)]
    assert all(torch.equal(*pair) for pair in zip(batches, expected, strict=True))
    assert calibration.described(batches) == "the given batches: 2 batches, and 3 x 12 that the model wrote"
    masked = [{"attention_mask": torch.ones(1, 9, dtype=torch.int64), "input_ids": torch.arange(9)[None]}]
    assert [tuple(text.shape) for text in Calibration(data=masked, written=1).batches(llama, Stub())[1:]] == [(1, 9)]


def test_a_text_and_what_the_model_writes_besides_are_counted_apart(tmp_path, llama):
    (tmp_path / "own.txt").write_text("a few words " * 40)
    calibration = Calibration(data=tmp_path / "own.txt", samples=4, length=16, written=2)
    batches = calibration.batches(llama, Stub(Words()))
    assert [tuple(text.shape) for text in batches] == [(1, 16)] * 6
    assert calibration.described(batches) == "own.txt: 4 x 16 tokens, and 2 x 16 that the model wrote"


def test_writing_besides_needs_data_and_a_model_that_writes():
    with pytest.raises(CalibrationError, match="the model writes all sequences, not 2 besides; give samples instead"):
        Calibration(data="self", written=2)
    with pytest.raises(CalibrationError, match="-1 sequences that the model writes besides; give 0 or more"):
        Calibration(data="a.txt", written=-1)
    with pytest.raises(CalibrationError, match="Linear writes no text of its own besides the calibration data; leave"):
        Calibration(data=[torch.ones(1, 4)], written=2).batches(nn.Linear(4, 4), Stub())


def test_a_length_beyond_the_context_is_refused(llama):
    with pytest.raises(CalibrationError, match="calibration sequences of 65 tokens exceed the context of 64; use"):
        written(llama, length=65)


def test_a_module_that_is_no_language_model_writes_nothing():
    with pytest.raises(CalibrationError, match=r"^Linear writes no text of its own; give calibration batches, a text"):
        written(nn.Linear(4, 4))


def test_a_vocabulary_smaller_than_the_number_of_sequences_starts_from_all_of_it(llama):
    starts = [int(text[0, 0]) for text in written(llama, sequences=2 * VOCABULARY, length=2)]
    assert sorted(set(starts)) == list(range(VOCABULARY))
