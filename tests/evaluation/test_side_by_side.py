"""What `fewbit.quantize` measures on batches, against direct computation with both models."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import RecipeError

# A ratio of float64 sums, in dB; the implementation may add in another order.
SUMS = 1e-9


class TinyLanguageModel(nn.Module):
    """Token ids (sequences, length) to logits (sequences, length, vocabulary)."""

    def __init__(self, *, wrapped=False):
        super().__init__()
        self.wrapped = wrapped
        self.words = nn.Embedding(300, 32)
        self.mix = nn.Linear(32, 32)
        self.scores = nn.Linear(32, 300)

    def forward(self, input_ids):
        logits = 4 * self.scores(self.mix(self.words(input_ids)).tanh())
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))


def nearest(scheme):
    return fb.Recipe([fb.keep(kind="head", optional=True), fb.keep(kind="embedding", optional=True),
                      fb.Rule(kind="linear", weight=scheme)], adapts=True)  # fmt: skip


FOUR_BITS, TWO_BITS = nearest("int4 g128"), nearest("int2 g128")


def language_model(**options):
    torch.manual_seed(0)
    return TinyLanguageModel(**options)


def by_formula(x, q):
    x, q = x.detach().double().numpy(), q.detach().double().numpy()
    return 10 * math.log10((x**2).sum() / ((x - q) ** 2).sum())


def test_a_module_is_measured_by_the_sqnr_of_its_output_over_all_batches():
    model = two_layers()
    reference = copy.deepcopy(model)
    batches = list(torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)))
    report = fb.quantize(model, FOUR_BITS, evaluation=fb.Evaluation(batches=batches, name="noise")).report
    with torch.no_grad():
        outputs = [torch.cat([m(batch) for batch in batches]) for m in (reference, model)]
    assert report.output_sqnr == pytest.approx(by_formula(*outputs), abs=SUMS)
    assert (report.before, report.after, report.text) == (None, None, "noise")


def test_each_layer_is_measured_on_the_float_models_inputs_of_the_first_batch():
    model = two_layers()
    reference = copy.deepcopy(model)
    batches = list(torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)))
    report = fb.quantize(model, FOUR_BITS, evaluation=batches).report
    x = batches[0]
    with torch.no_grad():
        for layer in report.layers:
            at = int(layer.name)
            inputs = reference[:at](x)
            direct = by_formula(reference[at](inputs), model[at](inputs))
            # The sums of the probe are float32.
            assert layer.output_sqnr == pytest.approx(direct, abs=1e-4)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 8)

    def forward(self, features, scale=1.0):
        return {"scores": [self.inner(features) * scale], "scale": scale}


@pytest.mark.parametrize("scale", [1.0, -2.0])  # powers of two: the SQNR stays the same to the bit
@pytest.mark.parametrize("form", [tuple, dict])
def test_a_batch_may_be_arguments_or_keywords_and_an_output_may_be_nested(form, scale):
    def measured(batch):
        torch.manual_seed(0)
        return fb.quantize(Scaled(), "w8a16", evaluation=[batch]).report.output_sqnr

    named = {"features": torch.ones(2, 64), "scale": scale}
    assert measured(named if form is dict else tuple(named.values())) == measured(torch.ones(2, 64))


def test_batches_may_come_from_a_generator():
    batches = list(torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)))
    reports = [fb.quantize(two_layers(), FOUR_BITS, evaluation=b).report for b in (batches, (b for b in batches))]
    assert reports[0].output_sqnr == reports[1].output_sqnr


def test_an_output_without_a_tensor_is_refused():
    class Words(Scaled):
        def forward(self, features):
            self.inner(features)
            return "words"

    with pytest.raises(RecipeError, match="the model returned str, which has no array to compare"):
        fb.quantize(Words(), "w8a16", evaluation=[torch.ones(2, 64)])


@pytest.mark.parametrize("axis", [1, 2])
def test_whole_numbers_alone_make_no_language_model(axis):
    class Averages(TinyLanguageModel):
        def forward(self, input_ids):
            return super().forward(input_ids).mean(axis)

    report = fb.quantize(Averages(), "w8a16", evaluation=[torch.arange(10)[None]]).report
    assert report.before is None
    assert report.output_sqnr is not None


def test_a_model_that_gives_each_token_fewer_numbers_than_there_are_tokens_is_no_language_model():
    torch.manual_seed(0)
    tagger = nn.Sequential(nn.Embedding(1000, 64), nn.Linear(64, 17))
    first, second = torch.arange(10)[None], torch.arange(990, 1000)[None]  # the first alone would not tell
    report = fb.quantize(tagger, "w8a16", evaluation=[first, second]).report
    assert report.before is None
    assert report.output_sqnr > 30


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
def test_a_language_model_is_measured_by_perplexity_divergence_and_agreement(wrapped, as_dict):
    model = language_model(wrapped=wrapped)
    reference = copy.deepcopy(model)
    tokens = torch.randint(300, (4, 20), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": piece} if as_dict else piece for piece in tokens.split(2)]
    report = fb.quantize(model, TWO_BITS, evaluation=batches).report

    def log_probabilities(m):
        with torch.no_grad():
            output = m(tokens)
        logits = (output.logits if wrapped else output)[:, :-1].double()
        return (logits - logits.logsumexp(-1, keepdim=True)).numpy()

    p, q = log_probabilities(reference), log_probabilities(model)
    following = tokens[:, 1:, None].numpy()
    # log_softmax runs in float32 (2^-24 of numbers up to 10), so does the matrix product, cut into other batches here.
    close = {"rel": 1e-5, "abs": 1e-6}
    assert report.before.perplexity == pytest.approx(math.exp(-np.take_along_axis(p, following, -1).mean()), **close)
    assert report.after.perplexity == pytest.approx(math.exp(-np.take_along_axis(q, following, -1).mean()), **close)
    assert report.after.kl_divergence == pytest.approx(float((np.exp(p) * (p - q)).sum(-1).mean()), **close)
    assert report.after.top1_agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert 0 < report.after.top1_agreement < 1
    assert (report.after.predictions, report.output_sqnr) == (76, None)
