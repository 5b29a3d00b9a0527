"""What metrics see of a layer: one whose outputs are amplified downstream is the planted case."""

from statistics import median

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.allocation.metrics import METRICS, scored
from fewbit.allocation.subject import by_layer
from fewbit.errors import PlanError, RecipeError

PLANTED = "layers.2"
SEEING = [name for name in METRICS if name != "weight_error"]


@pytest.mark.parametrize("language", [True, False], ids=["language", "numbers"])
@pytest.mark.parametrize("metric", SEEING)
def test_the_amplified_layer_is_ranked_first(metric, language, planted):
    model, batches = planted(language)
    found = fb.sensitivity(model, "int3 g32,int4 g32", metrics=metric, calibration=batches, algorithm="nearest")
    assert found.ranked(metric, "int3 g32")[0] == PLANTED
    assert found.ranked(metric, "int4 g32")[0] == PLANTED


@pytest.mark.parametrize("metric", SEEING)
def test_without_the_gain_it_is_one_of_four(metric, planted):
    # The negative control: the first place comes from the gain, by far.
    model, batches = planted(language=False, gain=1.0)
    own = fb.sensitivity(model, "int4 g32", metrics=metric, calibration=batches, algorithm="nearest").scores[metric]
    rest = [score for (name, _), score in own.items() if name != PLANTED]
    assert own[PLANTED, "int4 g32"] < 3 * max(rest)


def test_the_weight_error_cannot_see_it(planted):
    scores = [
        fb.sensitivity(model, "int4 g32", metrics="weight_error", calibration=batches).scores["weight_error"]
        for model, batches in (planted(language=False), planted(language=False, gain=1.0))
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("metric", METRICS)
def test_fewer_bits_score_worse(metric, llama, opening):
    model, batches = llama
    with opening(model, batches, keep=(r"model\.layers\.[12]\..*",)) as place:
        own = scored(metric, place.subject, place.subject.pairs)
    for name in by_layer(own):
        # Queries and keys of a random model hardly matter; their curvature is below its own noise, which counts as 0.
        assert own[name, "int3 g32"] >= own[name, "int8 g32"], name
    assert all(score >= 0 for score in own.values())


def test_fisher_scores_are_near_the_measured_divergence(llama, opening):
    model, batches = llama
    with opening(model, batches) as place:
        subject = place.subject
        pairs = [pair for pair in subject.pairs if pair[1] == "int4 g32"]
        fisher, measured = (scored(name, subject, pairs) for name in ("fisher", "kl_divergence"))
    loud = [pair for pair in pairs if measured[pair] > 1e-4]
    assert len(loud) > 6
    # To second order, from two draws of labels, of errors that are taken to be independent of one token to another:
    # behind the attention of a random model, which mixes all tokens evenly, they are not, and add up.
    assert all(0.1 < fisher[pair] / measured[pair] < 3.0 for pair in loud)
    assert 0.4 < median(fisher[pair] / measured[pair] for pair in loud) < 2.0


def test_the_trace_is_exact_where_each_input_is_a_unit_vector():
    # v^T H v = sum over inputs of |V e_i|^2, which for signs is the same in every draw.
    from fewbit.frontends.torch.frontend import TorchFrontend
    from fewbit.frontends.torch.weight_curvature import WeightCurvature

    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    run = WeightCurvature(model, TorchFrontend().layers(model), [torch.eye(8)], labelled=False, draws=3)
    assert len(list(run)) == 1
    assert run.traces["0"] == pytest.approx(8 * 4, rel=1e-6)  # float32 sums


def test_a_convolutional_network_is_scored_by_its_gradients(opening):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    batches = [torch.randn(4, 3, 6, 6) for _ in range(2)]
    with opening(model, batches, "int3 channel,int8 channel") as place:
        subject = place.subject
        fisher, measured = (scored(name, subject, subject.pairs) for name in ("fisher", "kl_divergence"))
    assert set(fisher) == set(measured)
    # For squared errors the prediction is exact but for the draws and the correlations between outputs.
    assert all(0.3 < fisher[pair] / measured[pair] < 3.0 for pair in fisher)


def test_the_model_is_left_as_it_was(llama):
    model, batches = llama
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asking = [own.requires_grad for own in model.parameters()]
    fb.sensitivity(model, "int4 g32", metrics=list(METRICS), calibration=batches, keep=[r"model\.layers\.[12]\..*"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [own.requires_grad for own in model.parameters()] == asking
    assert not any(isinstance(own, fb.QTensor) for own in vars(model.model.layers[0].mlp.up_proj).values())


def test_an_unknown_metric_is_refused_with_those_that_there_are(planted):
    model, batches = planted(language=False)
    with pytest.raises(RecipeError, match="unknown metric 'fischer'; did you mean 'fisher'"):
        fb.sensitivity(model, "int4 g32", metrics="fischer", calibration=batches)


class Cut(nn.Module):
    """No gradient comes through it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x):
        return (self.layers[0](x) + 30 * self.layers[1](x)).detach()


def test_a_model_without_gradients_is_allocated_by_own_outputs_and_measured_divergences():
    own = fb.allocate(
        Cut(),
        6.2,
        "int3 g32,int8 g32",
        calibration=[torch.randn(64, 32)],
        algorithm="nearest",
        dtype="float16",
        rounds=0,
    )
    assert [row.scheme for row in own.rows] == ["int3 g32", "int8 g32"]
    assert own.report.metric == "output_error, refined by kl_divergence"
    assert any("layers were scored by the errors of their own outputs" in note for note in own.report.notes)


def test_a_model_without_gradients_is_refused_with_what_needs_none():
    with pytest.raises(
        PlanError, match="fisher: the output of the model has no gradient; use output_error or kl_diverg"
    ):
        fb.sensitivity(Cut(), "int4 g32", calibration=[torch.randn(4, 32)])


def test_records_have_a_row_for_each_pair_and_a_column_for_each_metric(planted):
    model, batches = planted(language=False)
    found = fb.sensitivity(model, "int3 g32,int4 g32", metrics=["weight_error", "fisher"], calibration=batches)
    records = found.records()
    assert len(records) == 8
    assert set(records[0]) == {"layer", "candidate", "weight_error", "fisher"}
    assert "layers.2" in found._repr_html_()
    assert str(found).count("layers.2") == 2
