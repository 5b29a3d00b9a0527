"""SmoothQuant: exact in float, less error where inputs have outliers, and said in plan and report."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError, RecipeError
from fewbit.frontends.torch.link_scope import LinkScope
from fewbit.interfaces import frontend_of
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.transforms import parse_transform
from fewbit.transforms.scope import Rounded
from fewbit.transforms.smoothquant import SmoothQuant, factors_of


def scope_of(model, batches):
    layers = frontend_of("torch").layers(model)
    return LinkScope(model, "", layers, [lambda batch=batch: model(batch) for batch in batches])


def recipe(*transforms, weight="int8", given="int8", **options):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight, input=given, **options)], transforms=transforms)


SEARCH = {"name": "smoothquant", "alpha": "search"}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, "search"])
def test_the_rescaled_model_computes_the_same(outliers, alpha):
    model, batches = outliers
    before, others = copy.deepcopy(model), torch.randn(16, 64)
    schemes = {name: Rounded(parse_scheme("int8"), parse_input_scheme("int8")) for name in ("0.up", "1.up", "2.down")}
    with torch.no_grad():
        scope = scope_of(model, batches)
        done = SmoothQuant(alpha).rescaled(scope, schemes)
        assert [rescaled.link.consumers for rescaled in done] == [("0.up",), ("1.up",), ("2.down",)]
        assert not torch.equal(model[0].norm.weight, before[0].norm.weight)
        # Each rescaled weight is rounded to float32 once more.
        torch.testing.assert_close(model(others), before(others), rtol=1e-5, atol=1e-5)
        scope.restorer()()
    assert all(torch.equal(own, old) for own, old in zip(model.parameters(), before.parameters(), strict=True))


def test_gains_get_numbers_of_8_bits_that_16_bit_files_hold_exactly(outliers):
    model, batches = outliers
    with torch.no_grad():
        schemes = {"0.up": Rounded(parse_scheme("int8"), parse_input_scheme("int8"))}
        SmoothQuant(0.5).rescaled(scope_of(model, batches), schemes)
    gain = model[0].norm.weight
    assert torch.equal(gain.bfloat16().float(), gain)
    assert not torch.equal(model[1].norm.weight.bfloat16().float(), model[1].norm.weight)


def test_factors_are_those_of_the_paper_around_one():
    inputs, columns = np.asarray([9.0, 4.0, 1.0]), np.asarray([1.0, 4.0, 1.0])
    found = factors_of(inputs, columns, 0.5)
    paper = np.sqrt(inputs) / np.sqrt(columns)
    np.testing.assert_allclose(found / found[0], paper / paper[0], rtol=1e-12)
    assert found.max() * found.min() == pytest.approx(1.0)
    # With alpha 1 the inputs become equal, with 0 the columns.
    assert np.ptp(inputs / factors_of(inputs, columns, 1.0)) == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(columns * factors_of(inputs, columns, 0.0)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("transform", ["smoothquant", SEARCH])
@pytest.mark.parametrize("given", ["int8 sym", "int8 static"])
def test_outliers_of_inputs_cost_less_with_it(outliers, transform, given):
    model, batches = outliers
    found = [
        fb.quantize(copy.deepcopy(model), recipe(*own, given=given), calibration=batches, evaluation=batches).report
        for own in ([], [transform])
    ]
    # Three channels set the range of all: at least 3 dB, half of the error's power, are to be won.
    assert found[1].output_sqnr > found[0].output_sqnr + 3
    assert found[1].before is None or found[1].before == found[0].before


@pytest.mark.parametrize("transform", [SEARCH, "awq", "equalization", "rotation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_16_bits_are_transformed_too(tiny_llama, transform, dtype):
    model, batches = tiny_llama
    rules = [fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int8", input="int8")]
    result = fb.quantize(model.to(dtype), fb.Recipe(rules, transforms=[transform]), calibration=batches)
    said = "was rotated" if transform == "rotation" else "rescaled, "
    assert said in result.report.remarks[0]
    if transform == "rotation":  # the values of two blocks and nothing else, though roundings hide much
        assert result.report.remarks[1] == "rotation: values inside the heads of 2 layers were rotated"
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}


def test_the_search_leaves_a_link_alone_that_it_cannot_improve():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1.0)
        model[2].weight.sign_()
    # Inputs of 1 and weights of 1 and -1 are on their grids: there is no error.
    result = fb.quantize(model, recipe(SEARCH, weight="int8 channel narrow"), calibration=[torch.randn(8, 16)])
    assert result.report.remarks[0] == "smoothquant: no link of the model was rescaled"
    assert bool((model[0].bias == 1.0).all())


def test_the_report_names_links_and_settings(outliers):
    model, batches = outliers
    report = fb.quantize(model, recipe({"name": "smoothquant", "alpha": 0.8}), calibration=batches).report
    assert report.remarks[0] == ("smoothquant: 6 links were rescaled, alpha 0.80 for 6: norm -> up 3, up -> down 3")
    notes = {layer.name: layer.notes for layer in report.layers}
    assert notes["1.up"] == ("smoothquant alpha 0.80, with 1.norm",)
    assert notes["2.down"] == ("smoothquant alpha 0.80, with 2.up",)


def test_it_comes_before_gptq_in_the_walk(outliers):
    model, batches = outliers
    plain, smooth = (
        fb.quantize(
            copy.deepcopy(model), recipe(*own, weight="int4 g32", given="int8 sym", algorithm="gptq"),
            calibration=batches, evaluation=batches,
        ).report
        for own in ([], ["smoothquant"])
    )  # fmt: skip
    assert [layer.algorithm for layer in smooth.layers] == ["gptq"] * 6
    assert smooth.output_sqnr > plain.output_sqnr


def test_a_run_that_fails_gives_every_weight_back(outliers, monkeypatch):
    model, batches = outliers
    before = copy.deepcopy(model.state_dict())
    changed = []

    def fails(own, *_, **__):
        changed.append(not torch.equal(own[2].norm.weight, before["2.norm.weight"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbit.pipeline.round_products", fails)
    with pytest.raises(KeyboardInterrupt):
        fb.quantize(model, recipe("smoothquant"), calibration=batches)
    assert changed == [True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_combinations_without_sense_are_errors_of_the_plan(outliers):
    model, _ = outliers
    with pytest.raises(PlanError, match="no rule rounds an input to a scale"):
        fb.quantize(model, recipe("smoothquant", given=None), calibration=[torch.randn(4, 64)])
    both = fb.plan(model, recipe("smoothquant", "smoothquant"))
    assert "smoothquant is there 2 times, and the last would undo the others" in both.problems[0]
    with pytest.raises(PlanError, match="needs calibration data"):
        fb.quantize(model, recipe("smoothquant"))


def test_options_are_checked_and_stand_in_toml():
    assert parse_transform("smoothquant") == SmoothQuant(0.5)
    text = '[[rules]]\nkind = "linear"\nweight = "int8"\ninput = "int8"\n'
    tables = fb.Recipe.from_text(f'transforms = ["batchnorm", {{ name = "smoothquant", alpha = "search" }}]\n{text}')
    assert tables.transforms[1] == SmoothQuant("search")
    for value, told in {
        "alpha = 1.5": r"alpha 1\.5 is neither in \[0, 1\]",
        "alpha = true": "alpha True is neither",
        "alhpa = 1": "unknown option of transform 'smoothquant': 'alhpa'; did you mean 'alpha'",
    }.items():
        with pytest.raises(RecipeError, match=told):
            fb.Recipe.from_text(f'transforms = [{{ name = "smoothquant", {value} }}]\n{text}')
    with pytest.raises(RecipeError, match="without a name"):
        parse_transform({"alpha": 0.5})
