"""Outlier channel splitting: exact in float, on gated layers too; less error under one scale a row; taken back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import FewbitError, PlanError, RecipeError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.transforms import parse_transform
from fewbit.transforms.outlier_splitting import OutlierSplitting, split

pytestmark = pytest.mark.usefixtures("one_thread")


def split_model(model, batch, **options):
    with torch.no_grad():
        return OutlierSplitting(**options)(model, TorchFrontend(), batch)


def recipe(*transforms, weight="int4 channel"):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight), fb.keep(".*", optional=True)], transforms=transforms)


class Mlp(nn.Module):
    """Up, ReLU, down; the columns that read two channels are large."""

    def __init__(self, inplace=False):
        super().__init__()
        self.up, self.down = nn.Linear(48, 64), nn.Linear(64, 40)
        self.activation = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


def outlying(seed=0):
    torch.manual_seed(seed)
    model = Mlp().eval()
    with torch.no_grad():
        model.down.weight[:, 5] *= 12.0
        model.down.weight[:, 30] *= 6.0
    return model, torch.randn(64, 48)


def test_columns_add_up_to_what_they_were_to_the_bit():
    weight = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    sources, columns = split(weight, 7)
    together = np.zeros((8, 20))
    np.add.at(together.T, sources, columns.T)
    np.testing.assert_array_equal(together, weight)
    assert columns.shape == (8, 27)
    np.testing.assert_array_equal(columns.astype(np.float32), columns)  # powers of two of float32 numbers


def test_the_largest_of_all_columns_is_halved_each_time():
    weight = np.random.default_rng(0).standard_t(3, size=(8, 20))
    before = np.abs(weight).max()
    for count in range(1, 9):
        _, columns = split(weight, count)
        largest = np.abs(columns).max()
        assert largest <= before
        before = largest
    assert before < 0.6 * np.abs(weight).max()


def test_halves_half_a_step_apart_round_together_as_on_the_grid_of_the_whole():
    step, weight = 0.5, np.random.default_rng(0).uniform(-3.0, 3.0, size=(200, 1))
    apart = np.full(200, step / 2.0)

    def rounded(columns):
        return (np.floor(columns / step + 0.5) * step).sum(axis=1)

    aware, plain = (rounded(split(weight, 1, apart=own)[1]) for own in (apart, None))
    # Hermite: floor(2 x) = floor(x) + floor(x + 1/2); w stays within half a step.
    assert np.abs(aware - weight[:, 0]).max() <= step / 2.0 + 1e-12  # of float64 sums
    assert np.abs(plain - weight[:, 0]).max() > 0.9 * step  # equal halves go astray twice


@pytest.mark.parametrize("bits", [0, 4])
def test_the_wider_model_computes_the_same_and_can_be_taken_back(bits):
    model, batch = outlying()
    before, others = copy.deepcopy(model.state_dict()), torch.randn(16, 48)
    with torch.no_grad():
        expected = model(others)
        applied = split_model(model, batch, bits=bits)
        # Sums of 64 products in another order, whose parts are as large as 12.
        torch.testing.assert_close(model(others), expected, rtol=1e-5, atol=1e-4)
    assert applied.sentences == ("outlier-splitting: 32 channels were split on 1 link: up",)
    assert (model.up.out_features, model.down.in_features) == (96, 96)
    assert (model.up.weight.shape, model.up.bias.shape, model.down.weight.shape) == ((96, 48), (96,), (40, 96))
    assert model.down.weight.abs().max() < before["down.weight"].abs().max() / 2
    applied.restore()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (model.up.out_features, model.down.in_features) == (64, 64)


def test_both_halves_of_a_gated_layer_get_the_rows(tiny_llama):
    model, batches = tiny_llama
    with torch.no_grad():
        expected = model(batches[1]).logits
        applied = split_model(model, batches[0], multiple=4)
        # Two blocks of sums in another order.
        torch.testing.assert_close(model(batches[1]).logits, expected, rtol=1e-4, atol=1e-4)
    mlp = model.model.layers[1].mlp
    assert (len(mlp.gate_proj.weight), len(mlp.up_proj.weight), mlp.down_proj.weight.shape[1]) == (52, 52, 52)
    split_up = "outlier-splitting: 8 channels were split on 2 links: model.layers.0.mlp.up_proj and 1 more"
    assert applied.sentences[0] == split_up
    # Norms feed the residual stream's width, values a fixed number of heads.
    assert applied.sentences[1].endswith("cannot get wider; gather = true copies channels behind norms")
    assert len(model.model.layers[0].self_attn.v_proj.weight) == 16


def test_channels_behind_norms_are_copied_if_asked(tiny_llama):
    model, batches = tiny_llama
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(batches[1]).logits
        applied = split_model(model, batches[0], multiple=4, gather=True)
        # Two blocks of sums in another order.
        torch.testing.assert_close(model(batches[1]).logits, expected, rtol=1e-4, atol=1e-4)
        model.model.layers[1].input_layernorm.split_channels[-1] ^= 1  # another channel than the one that was halved
        assert (model(batches[1]).logits - expected).abs().max() > 1e-2
        model.model.layers[1].input_layernorm.split_channels[-1] ^= 1
    assert applied.sentences == (
        "outlier-splitting: 8 channels were split on 2 links: model.layers.0.mlp.up_proj and 1 more",
        "outlier-splitting: 20 channels were split on 5 links, copied before what reads them: "
        "model.layers.0.input_layernorm and 4 more",
        "outlier-splitting: model.layers.0.self_attn.v_proj and 1 more: what it makes cannot get wider",
    )
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (32, 36)
    assert model.state_dict().keys() == before.keys()
    applied.restore()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(batches[1]).logits, expected)


class Gelu(nn.Module):
    """Up, GELU, down behind a norm and into a residual: no factor passes the GELU."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(48), nn.Linear(48, 64), nn.Linear(64, 48)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def test_behind_a_gelu_rows_are_there_again_and_columns_halved():
    torch.manual_seed(0)
    model = nn.Sequential(Gelu(), Gelu()).eval()
    before, batch, others = copy.deepcopy(model.state_dict()), torch.randn(32, 48), torch.randn(16, 48)
    with torch.no_grad():
        model[0].down.weight[:, 5] *= 12.0
        expected = model(others)
        applied = split_model(model, batch, multiple=4)
        # Sums of 68 products in another order.
        torch.testing.assert_close(model(others), expected, rtol=1e-5, atol=1e-5)
    assert applied.sentences[0] == "outlier-splitting: 8 channels were split on 2 links: 0.up and 1 more"
    assert [(own.up.out_features, own.down.in_features) for own in model] == [(68, 68)] * 2
    largest = 12.0 * before["0.down.weight"][:, 5].abs().max()
    assert model[0].down.weight.abs().max() <= largest / 2
    applied.restore()
    with torch.no_grad():
        assert torch.equal(model(others), expected)


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_file_holds_the_gather_behind_a_norm(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, batch = nn.Sequential(Gelu(), nn.LayerNorm(48), nn.Linear(48, 8)).eval(), torch.randn(32, 48)
    table = {"name": "outlier-splitting", "multiple": 4, "gather": True}
    result = fb.quantize(model, recipe(table, weight="int8 channel"), calibration=[batch])
    assert result.plan.rows[-1].layer.shape == (8, 52)
    session = onnxruntime.InferenceSession(result.save(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    with torch.no_grad():
        whole = result.model(batch).numpy()
    # MatMulNBits rounds its inputs to 8 bits, by block.
    assert np.abs(found - whole).max() < 0.03 * np.abs(whole).max()


class Normed(nn.Module):
    """A norm over what the first layer makes: its width, and its statistics, are those of all channels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(48, 64), nn.LayerNorm(64), nn.Linear(64, 40)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


class Summed(nn.Module):
    """A layer whose output is also summed: one more channel would count twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 40)

    def forward(self, x):
        made = self.first(x).relu()
        return self.second(made / made.amax(-1, keepdim=True) * 0.0 + made) + made.sum() * 0.0 + made.mean() * 0.1


@pytest.mark.parametrize("kind", [Normed, Summed])
def test_what_cannot_get_wider_stays_as_it_was(kind):
    torch.manual_seed(0)
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    applied = split_model(model, torch.randn(32, 48))
    assert applied.sentences[0] == "outlier-splitting: no channel could be split"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"bits": 4}])
def test_outliers_cost_less_where_a_row_has_one_scale(seed, options):
    model, batch = outlying(seed)
    evaluation = [torch.randn(256, 48)]
    splitting = {"name": "outlier-splitting", "ratio": 0.05, "multiple": 4, **options}
    plain, wider = (
        fb.quantize(copy.deepcopy(model), recipe(*own), calibration=[batch], evaluation=evaluation).report
        for own in ((), (splitting,))
    )
    assert wider.output_sqnr > plain.output_sqnr + 1.0
    assert wider.remarks[0] == "outlier-splitting: 4 channels were split on 1 link: up"
    assert "outlier" not in " ".join(plain.remarks)


def test_plan_and_report_have_the_new_widths():
    model, batch = outlying()
    result = fb.quantize(model, recipe("outlier-splitting"), calibration=[batch])
    assert [row.layer.shape for row in result.plan.rows] == [(96, 48), (40, 96)]
    assert result.model.down.qtensor.codes.shape == (40, 96)
    assert [layer.shape for layer in result.report.layers] == [(96, 48), (40, 96)]


def test_files_that_are_read_into_given_widths_are_refused_by_the_plan_and_by_save(tmp_path):
    model, batch = outlying()
    made = fb.plan(model, recipe("outlier-splitting"), to="compressed-tensors")
    (problem,) = made.problems
    assert problem.startswith("outlier-splitting makes layers wider than the model's configuration says")
    result = fb.quantize(model, recipe("outlier-splitting"), calibration=[batch])
    with pytest.raises(PlanError, match="write an ONNX file"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_holds_the_wider_layers(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, batch = outlying()
    result = fb.quantize(model, recipe("outlier-splitting", weight="int8 channel"), calibration=[batch])
    path = result.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    with torch.no_grad():
        hidden = result.model.up(batch).relu()
        whole = result.model.down(hidden)
        hidden[:, 64:] = 0.0
        without = result.model.down(hidden)  # what the added channels make is missing
    # MatMulNBits rounds its inputs to 8 bits, by block.
    assert np.abs(found - whole.numpy()).max() < 0.02 * float(whole.abs().max())
    assert np.abs(found - without.numpy()).max() > 0.2 * float(whole.abs().max())


def test_a_group_that_does_not_fit_the_new_width_is_an_error_and_the_model_as_it_was():
    model, batch = outlying()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FewbitError, match="not a multiple of group size 16"):
        fb.quantize(model, recipe({"name": "outlier-splitting", "multiple": 1}, weight="int4 g16"), calibration=[batch])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.down.in_features == 64


def test_without_data_it_says_what_it_lacks():
    model, _ = outlying()
    assert split_model(model, None).sentences == (
        "outlier-splitting: no data shows what reads the channels of a layer; give some",
    )


def test_options_are_parsed_and_refused_out_of_range():
    table = {"name": "outlier-splitting", "ratio": 0.05, "multiple": 8, "bits": 4}
    assert parse_transform(table) == OutlierSplitting(ratio=0.05, multiple=8, bits=4)
    for options, text in (
        ({"ratio": 0.0}, "ratio 0.0 is outside"),
        ({"ratio": True}, "ratio True is outside"),
        ({"multiple": 0}, "multiple 0 is no number"),
        ({"bits": 1}, "bits 1 is neither 0 nor"),
        ({"gather": 1}, "gather = 1 is not true or false"),
    ):
        with pytest.raises(RecipeError, match=text):
            OutlierSplitting(**options)


@pytest.mark.parametrize("weight", ["int8 channel", "int4 g16", "nf4 channel"])
def test_halves_apart_by_the_step_of_another_scheme_are_refused(weight):
    model, batch = outlying()
    rule, table = fb.Rule(kind="linear", weight=weight), {"name": "outlier-splitting", "bits": 4}
    with pytest.raises(
        fb.errors.PlanError, match=f"half a step of 'int4 channel', and no weight is .* to '{weight}'; leave"
    ):
        fb.quantize(model, fb.Recipe([rule], transforms=[table]), calibration=[batch])


def test_an_interruption_leaves_the_model_as_it_was():
    model, batch = outlying()
    before, calls = copy.deepcopy(model.state_dict()), []

    def interrupt(module, _):
        calls.append(module.in_features)
        if module.in_features > 64:  # the first run of the wider layer
            raise KeyboardInterrupt

    model.down.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        split_model(model, batch)
    assert calls[-1] == 96
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.up.out_features == 64
