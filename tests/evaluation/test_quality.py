"""Perplexity, KL divergence and top-1 agreement against their formulas in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewbit.errors import NonFiniteError, SourceError
from fewbit.evaluation.divergence import kl_divergence, top1_agreements
from fewbit.evaluation.perplexity import negative_log_likelihood
from fewbit.evaluation.quality import compare

VOCABULARY = 50
# log_softmax runs in float32: it rounds numbers of up to about 10 by 2^-24 of them, 6e-7 a prediction and in the mean.
ROUNDING = 2e-6


def pair_of_models(*, spread=3.0, seed=0):
    """Two fixed functions from token ids to logits that depend on the token and its position, and differ a little."""
    generator = torch.Generator().manual_seed(seed)
    table = spread * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    places = torch.randn(400, VOCABULARY, generator=generator)
    shift = 0.3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)

    def reference(tokens):
        return table[tokens] + places[: tokens.shape[1]]

    def model(tokens):
        return reference(tokens) + shift[tokens]

    return reference, model


def some_tokens(sequences, length, seed=1):
    return torch.randint(VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(seed))


def by_formula(reference, model, tokens):
    """Perplexity of both, mean KL(reference || model) and share of equal first tokens, in float64 NumPy."""

    def log_probabilities(logits):
        logits = logits[:, :-1].double().numpy()
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_probabilities(reference(tokens)), log_probabilities(model(tokens))
    following = tokens[:, 1:].numpy()[..., None]
    return SimpleNamespace(
        before=math.exp(-np.take_along_axis(p, following, -1).mean()),
        after=math.exp(-np.take_along_axis(q, following, -1).mean()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        agreement=float((p.argmax(-1) == q.argmax(-1)).mean()),
    )


@pytest.mark.parametrize("length", [2, 9, 129, 130, 300])  # pieces of 128 positions: below, at and beyond
def test_the_measures_are_their_formulas(length):
    reference, model = pair_of_models()
    tokens = some_tokens(3, length)
    expected = by_formula(reference, model, tokens)
    before, after = compare(reference, model, [tokens])
    assert before.predictions == after.predictions == 3 * (length - 1)
    assert before.perplexity == pytest.approx(expected.before, rel=ROUNDING)
    assert after.perplexity == pytest.approx(expected.after, rel=ROUNDING)
    assert after.kl_divergence == pytest.approx(expected.divergence, abs=ROUNDING)
    assert after.top1_agreement == expected.agreement
    assert 0 < expected.agreement < 1 or length == 2


def test_a_model_alone_gets_a_perplexity_and_nothing_else():
    reference, model = pair_of_models()
    tokens = some_tokens(2, 40)
    alone, nothing = compare(model, None, [tokens])
    assert nothing is None
    assert (alone.kl_divergence, alone.top1_agreement) == (None, None)
    assert alone.perplexity == compare(reference, model, [tokens])[1].perplexity


@pytest.mark.parametrize("cut", [[1, 1, 1, 1, 1, 1], [2, 4], [5, 1]])
def test_how_sequences_are_batched_changes_nothing(cut):
    reference, model = pair_of_models()
    tokens = some_tokens(6, 140)
    before, after = compare(reference, model, [tokens])
    parts = compare(reference, model, tokens.split(cut))
    for whole, part in zip((before, after), parts, strict=True):
        # Equal, not close: sums run over positions in the same order.
        assert (part.predictions, part.perplexity) == (whole.predictions, whole.perplexity)
        assert (part.kl_divergence, part.top1_agreement) == (whole.kl_divergence, whole.top1_agreement)


def test_batches_may_come_from_a_generator_and_are_asked_for_one_at_a_time():
    reference, model = pair_of_models()
    alive = []

    def batches():
        for seed in range(3):
            alive.append(seed)
            yield some_tokens(1, 8, seed)

    def counted(tokens):
        seen.append(len(alive))
        return model(tokens)

    seen = []
    compare(reference, counted, batches())
    assert seen == [1, 2, 3]


def test_sequences_of_several_lengths_count_by_their_predictions():
    reference, model = pair_of_models()
    short, long = some_tokens(1, 5), some_tokens(1, 21)
    apart = [compare(reference, model, [tokens])[1] for tokens in (short, long)]
    together = compare(reference, model, [short, long])[1]
    assert together.predictions == 24
    # One product and one sum in float64 besides.
    assert together.kl_divergence == pytest.approx(
        (4 * apart[0].kl_divergence + 20 * apart[1].kl_divergence) / 24, rel=1e-12
    )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    alone, _ = compare(lambda tokens: torch.zeros(*tokens.shape, 32), None, [torch.zeros(1, 10, dtype=torch.int64)])
    # log 32 is rounded to float32 once.
    assert alone.perplexity == pytest.approx(32, rel=1e-6)


def test_equal_models_diverge_by_nothing():
    reference, _ = pair_of_models()
    before, after = compare(reference, lambda tokens: reference(tokens).clone(), [some_tokens(2, 30)])
    assert (after.kl_divergence, after.top1_agreement) == (0.0, 1.0)
    assert after.perplexity == before.perplexity


def test_a_model_that_returns_the_very_tensor_of_the_reference_scores_as_the_reference():
    logits = pair_of_models()[0](some_tokens(2, 30))
    before, after = compare(lambda tokens: logits, lambda tokens: logits, [some_tokens(2, 30)])
    assert after.perplexity == before.perplexity
    assert (after.kl_divergence, after.top1_agreement) == (0.0, 1.0)


def test_half_precision_logits_are_scored_in_float32():
    reference, model = pair_of_models()
    tokens = some_tokens(1, 20)
    rounded = (lambda t: reference(t).bfloat16(), lambda t: model(t).bfloat16())
    expected = by_formula(*(lambda t, f=f: f(t).float() for f in rounded), tokens)
    assert compare(*rounded, [tokens])[1].kl_divergence == pytest.approx(expected.divergence, abs=ROUNDING)


def test_a_hopeless_model_has_an_infinite_perplexity():
    def wrong(tokens):
        logits = torch.zeros(*tokens.shape, 4)
        logits[..., 0] = 1000.0  # the tokens that follow are never 0: 1000 nats each, and exp(1000) is no float64
        return logits

    alone, _ = compare(wrong, None, [torch.ones(1, 6, dtype=torch.int64)])
    assert alone.perplexity == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("who", ["the reference", "the quantized model"])
def test_logits_that_are_not_finite_are_an_error_that_says_whose(value, who):
    reference, model = pair_of_models()

    def broken(tokens):
        logits = reference(tokens).clone()
        logits[0, 3, 7] = value
        return logits

    models = (broken, model) if who == "the reference" else (reference, broken)
    with pytest.raises(NonFiniteError, match=f"the logits of {who} hold NaN or infinity"):
        compare(*models, [some_tokens(2, 10)])


def test_nothing_to_predict_is_an_error():
    reference, model = pair_of_models()
    with pytest.raises(SourceError, match="no tokens to evaluate on"):
        compare(reference, model, [])
    with pytest.raises(SourceError, match="sequences of 1 token predict nothing; use at least 2"):
        compare(reference, model, [some_tokens(3, 1)])


def test_seconds_are_those_of_each_models_own_forwards(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("fewbit.evaluation.quality.time.perf_counter", lambda: clock["now"])
    reference, model = pair_of_models()

    def taking(seconds, forward):
        def slow(tokens):
            clock["now"] += seconds
            return forward(tokens)

        return slow

    before, after = compare(taking(2.0, reference), taking(3.0, model), [some_tokens(1, 4), some_tokens(1, 4)])
    assert (before.seconds, after.seconds) == (4.0, 6.0)


def test_the_parts_are_sums_over_positions():
    # Probabilities that are powers of two; their logarithms in float32 are 6e-8 off, and so are their sums.
    p = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]).log()
    assert negative_log_likelihood(p, torch.tensor([0, 2])) == pytest.approx(math.log(2) + math.log(4), rel=1e-6)
    assert kl_divergence(p, q) == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert kl_divergence(q, q) == 0.0
    assert top1_agreements(p, q) == 1
