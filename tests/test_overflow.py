"""Layers that a cast would overflow stay float, for the number that plan and report name; nothing becomes infinite."""

import math

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import NonFiniteError

CAST = fb.Recipe([fb.Rule(".*", weight="fp16", input="fp16")])


def net(weight=1.0, bias=0.0):
    """Two layers; the weights of the second are multiplied, and its biases moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = weight
        model[1].bias[0] = bias
    return model


def draw(largest=1.0):
    rows = torch.rand(10, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    rows[3, 5] = largest
    return rows


def becomes(plan):
    return [row.becomes for row in plan.rows]


def test_a_weight_that_the_cast_does_not_hold_is_known_to_the_plan():
    plan = fb.plan(net(weight=-70_000.0), CAST)
    assert becomes(plan) == ["fp16, input fp16", "float"]
    row = plan.rows[1]
    assert row.overflow == "its weights reach 70,000, and fp16 ends at 65,504"
    assert row.notes == (f"kept float: {row.overflow}",)
    assert (row.algorithm, row.input, row.output) == (None, None, None)
    assert plan.adaptations == (f"1: kept float, {row.overflow}",)
    assert row.bytes_after == row.bytes_before == 4 * 8 * 4
    assert plan.problems == ()


@pytest.mark.parametrize("weight", [65_504.0, 65_505.0])
def test_the_largest_number_of_the_type_is_the_limit(weight):
    assert (becomes(fb.plan(net(weight), CAST))[1] == "float") is (weight > 65_504.0)


def test_bf16_reaches_as_far_as_float32_and_keeps_nothing():
    recipe = fb.Recipe([fb.Rule(".*", weight="bf16", input="bf16")])
    result = fb.quantize(net(weight=1e20), recipe, evaluation=[draw(1e10)])
    assert becomes(result.plan) == ["bf16, input bf16"] * 2
    assert result.report.remarks == ()
    assert torch.isfinite(result.model(draw(1e10))).all()


@pytest.mark.parametrize("how", ["calibration", "evaluation"])
def test_inputs_and_outputs_that_overflow_on_the_data_keep_their_layer(how):
    with torch.no_grad():
        reference = net(bias=100_000.0)(draw(70_000.0))
    result = fb.quantize(net(bias=100_000.0), CAST, **{how: [draw(), draw(70_000.0)]})
    assert becomes(result.plan) == ["float", "float"]
    first, second = result.plan.rows
    assert first.overflow == "its inputs reach 70,000, and fp16 ends at 65,504"
    assert second.overflow == f"its outputs reach {float(reference.abs().max()):,.6g}, and fp16 ends at 65,504"
    assert [layer.overflow for layer in result.report.layers] == [first.overflow, second.overflow]
    assert ("kept float", f"0: {first.overflow}, and 1 more") in result.report.summary()
    with torch.no_grad():
        assert torch.equal(result.model(draw(70_000.0)), reference)


def test_what_data_does_not_show_is_said_and_saturates():
    model = net()
    result = fb.quantize(model, CAST)
    assert becomes(result.plan) == ["fp16, input fp16"] * 2
    assert result.report.remarks == (
        "0 and 1 more: inputs and outputs were not checked for overflow, there was no data; "
        "give calibration or evaluation batches",
    )
    with torch.no_grad():
        assert torch.isfinite(model(draw(1e30))).all()
        assert not torch.isfinite(net().half()(draw(1e30).half())).all()  # what plain casting does


def test_a_layer_that_no_batch_reaches_was_not_checked():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(16, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    result = fb.quantize(Beside(), CAST, evaluation=[draw()])
    assert result.report.remarks == ("idle: inputs and outputs were not checked for overflow, no batch came there",)


@pytest.mark.parametrize(("rule", "overflows"), [
    ({"weight": "fp16"}, False),  # what goes in and comes out stays float
    ({"weight": "fp16", "input": "fp16"}, True),
    ({"weight": "int8", "input": "fp16"}, False),
    ({"weight": "bf16", "output": "fp16"}, True),
    ({"weight": "fp16", "input": "bf16"}, False),
])  # fmt: skip
def test_an_output_counts_where_it_is_cast_or_the_layer_computes_in_the_type(rule, overflows):
    result = fb.quantize(net(bias=1e5), fb.Recipe([fb.Rule("1", **rule)]), evaluation=[draw()])
    assert (becomes(result.plan)[1] == "float") is overflows
    assert torch.isfinite(result.model(draw())).all()


def test_no_forward_is_spent_on_what_cannot_overflow():
    calls = []
    for rule in ({"weight": "fp16"}, {"weight": "bf16", "input": "bf16"}, {"weight": "fp16", "input": "fp16"}):
        model = net()
        model[0].register_forward_hook(lambda *_: calls.append(1))
        fb.quantize(model, fb.Recipe([fb.Rule("1", **rule)]), calibration=[draw()])
    assert len(calls) == 1


def test_infinite_activations_are_named():
    with pytest.raises(NonFiniteError, match="0: its input holds NaN or infinity before quantization; look upstream"):
        fb.quantize(net(), CAST, evaluation=[draw(math.inf)])


def test_a_kept_layer_that_its_files_cannot_hold_is_an_error():
    with pytest.raises(NonFiniteError, match=r"1.weight: 1 of its numbers are not finite in float16"):
        fb.quantize(net(weight=1e5), CAST, dtype="float16")


def test_weights_that_are_shared_are_counted_once_when_they_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(300, 8), nn.Linear(8, 300, bias=False)
            self.head.weight = self.embedding.weight
            with torch.no_grad():
                self.embedding.weight[7, 3] = 1e5

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    recipe = fb.Recipe([fb.Rule(kind="embedding", weight="fp16"), fb.Rule(kind="head", weight="fp16")])
    plan = fb.plan(Tied(), recipe)
    assert [row.bytes_after for row in plan.rows] == [300 * 8 * 4, 0]
    assert plan.bytes_after == plan.bytes_before
    assert not plan.unties
    assert all("untied" not in note for row in plan.rows for note in row.notes)


def test_a_plan_without_numbers_says_that_weights_are_checked_later():
    from fewbit.frontends.torch.frontend import TorchFrontend
    from fewbit.overflow import without_large_weights
    from fewbit.planning import resolve

    model, frontend = net(weight=1e5).to("meta"), TorchFrontend()
    made = resolve("toy", frontend.layers(model), frontend.floats(model), CAST, storage_type="float32")
    plan = without_large_weights(made, frontend, model)
    assert plan.rows == made.rows
    assert plan.hints == ("0 and 1 more: kept float if its weights overflow the cast, which shows when they are read",)


def test_operands_of_attention_that_overflow_stay_float():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(16, 48)

        def forward(self, x):
            query, key, value = self.project(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(query, key, value)

    def model(bias):
        torch.manual_seed(0)
        made = Attention().eval()
        with torch.no_grad():
            made.project.bias[40] = bias  # of the values
        return made

    recipe, tokens = fb.Recipe([fb.Rule(kind="attention", input="fp16")]), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model(1e5)(tokens)
    result = fb.quantize(model(1e5), recipe, evaluation=[tokens])
    assert becomes(result.plan)[1:] == ["operands fp16", "float"]
    assert result.plan.rows[2].overflow.startswith("its operands reach 100,00")
    assert result.plan.rows[2].overflow.endswith(", and fp16 ends at 65,504")
    with torch.no_grad():
        # Scores of queries and keys in fp16, the values as they were.
        torch.testing.assert_close(result.model(tokens), expected, rtol=1e-3, atol=2e-3)
    fine = fb.quantize(model(1.0), recipe, evaluation=[tokens])
    assert becomes(fine.plan)[1:] == ["operands fp16"] * 2
    assert b"levels of a 16-bit float" not in fine.report.files()["report.html"]  # no product has a weight
    cast = fb.quantize(net(), fb.Recipe([fb.Rule(".*", weight="fp16")]))
    assert b"levels of a 16-bit float" in cast.report.files()["report.html"]


def test_folded_norms_are_checked_behind_the_folding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    model[1].running_var.fill_(1e-8)
    model[1].weight.data.fill_(1e4)
    recipe = fb.Recipe([fb.Rule(".*", weight="fp16")], transforms=["batchnorm"])
    images = torch.rand(2, 3, 8, 8)
    plain, folded = fb.plan(model, recipe), fb.quantize(model, recipe, evaluation=[images]).plan
    assert becomes(plain) == ["fp16", "fp16"]
    assert becomes(folded) == ["float", "fp16"]
    assert "its weights reach" in folded.rows[0].overflow
