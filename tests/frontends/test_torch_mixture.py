"""Experts get statistics of the tokens that are routed to them, those with too few do without, routers stay float."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.calibration import Calibration
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.quantized import QuantizedLayer

WIDTH, INNER, EXPERTS = 16, 24, 4
#: Sums of at most a few hundred rows in float32, added up in another order.
SUMS = {"rtol": 1e-4, "atol": 1e-6}


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.Linear(WIDTH, INNER)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """Two of four experts for each token, as in Mixtral; `starved` gets none."""

    def __init__(self, starved=()):
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.shared, self.shared_gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.register_buffer("barred", torch.zeros(EXPERTS))
        self.barred[list(starved)] = -1e4

    def forward(self, x):
        rows = self.norm(x).reshape(-1, WIDTH)
        shares, chosen = torch.topk((self.gate(rows) + self.barred).softmax(-1), 2)
        output = self.shared(rows) * self.shared_gate(rows).sigmoid()
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                output = output.index_add(0, token, expert(rows[token]) * shares[token, place, None])
        return x + output.reshape(x.shape)


class Net(nn.Module):
    def __init__(self, starved=()):
        super().__init__()
        self.layers = nn.ModuleList(Mixture(starved) for _ in range(2))
        self.out = nn.Linear(WIDTH, 2)  # as many outputs as there are blocks, and no router

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def net(starved=()):
    torch.manual_seed(0)
    return Net(starved).eval()


def batches(rows=64, number=3):
    mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    return [torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(seed)) @ mix for seed in range(number)]


def test_routers_and_experts_are_found_and_a_head_beside_the_blocks_is_none():
    layers = {layer.name: layer for layer in find_layers(net())}
    routers = [name for name, layer in layers.items() if layer.kind == "router"]
    assert routers == [f"layers.{block}.{gate}" for block in range(2) for gate in ("gate", "shared_gate")]
    assert {name for name, layer in layers.items() if layer.expert} == {
        f"layers.{block}.experts.{number}.w{part}" for block in (0, 1) for number in range(4) for part in (1, 2, 3)
    }
    assert layers["out"].kind == "linear"


class Headed(nn.Module):
    """Not a mixture: as many blocks as outputs behind them, at the top."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3))
        self.score = nn.Linear(WIDTH, 3)


def test_blocks_with_a_head_behind_them_are_no_experts():
    assert [(layer.kind, layer.expert) for layer in find_layers(Headed())] == [("linear", False)] * 4


@pytest.mark.parametrize("preset", ["w4a16", "w8a16", "w8a8"])
def test_presets_keep_routers_float_and_say_so(preset):
    model = net()
    report = fb.quantize(model, preset, calibration=batches()).report
    rows = {layer.name: layer for layer in report.layers}
    assert rows["layers.0.gate"].becomes == "float"
    assert rows["layers.0.gate"].notes == ("kept by rule 'router'",)
    assert type(model.layers[0].gate) is nn.Linear
    assert isinstance(model.layers[0].experts[0].w1, QuantizedLayer)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("starved", [(), (2,)])
def test_the_second_moments_of_an_expert_are_those_of_its_tokens(sequential, starved):
    model, data = net(starved), batches()
    frontend = TorchFrontend()
    layers = [layer for layer in frontend.layers(model) if layer.kind == "linear"]
    wanted = {layer.name: ("second_moment",) for layer in layers}
    seen = {}
    for stage in frontend.calibrate(model, layers, wanted, data, sequential=sequential):
        for part in stage:
            seen |= part.statistics
    # By hand: nothing was quantized in between, so that the tokens are those of the float model.
    x = torch.cat(data)
    for block, mixture in enumerate(model.layers):
        rows = mixture.norm(x).reshape(-1, WIDTH)
        chosen = torch.topk((mixture.gate(rows) + mixture.barred).softmax(-1), 2).indices
        for number, expert in enumerate(mixture.experts):
            own = rows[(chosen == number).any(-1)]
            inner = nn.functional.silu(expert.w1(own)) * expert.w3(own)
            for name, given in {"w1": own, "w3": own, "w2": inner}.items():
                found = seen[f"layers.{block}.experts.{number}.{name}"]["second_moment"]
                assert found.count == len(own)
                assert (number in starved) == (len(own) == 0)
                expected = (given.T @ given / max(len(own), 1)).detach()
                torch.testing.assert_close(found.result(), expected, **SUMS)
        x = mixture(x).detach()


def test_an_expert_with_few_tokens_is_rounded_without_data_and_listed():
    model = net()
    # 40 tokens, two experts each: no more than 20 for an expert on average, and its second layer has 24 inputs.
    report = fb.quantize(model, "w4a16", calibration=[batch[:1, :40] for batch in batches(number=1)]).report
    experts = [layer for layer in report.layers if ".experts." in layer.name]
    few = {layer.name: layer for layer in experts if "without data" in str(layer.remarks)}
    assert 0 < len(few) < len(experts)
    for name, layer in few.items():
        [remark] = layer.remarks
        assert remark.endswith(f"tokens reached it, fewer than {layer.shape[1]}: rounded without data")
        assert int(remark.split()[0]) < layer.shape[1]
        assert f"{name}: {remark}" in report.remarks
        assert "fell back" in layer.states
    assert not any(layer.remarks for layer in report.layers if layer.name.endswith("shared"))


@pytest.mark.parametrize("sequential", [False, True])
def test_an_expert_without_tokens_is_rounded_without_data_and_listed(sequential):
    model = net(starved=(1,))
    data = Calibration(data=batches(), sequential=sequential)
    report = fb.quantize(model, "w4a16", calibration=data).report
    rows = {layer.name: layer for layer in report.layers}
    for part in ("w1", "w2", "w3"):
        assert rows[f"layers.0.experts.1.{part}"].remarks == ("no calibration input reached it: rounded without data",)
        assert rows[f"layers.0.experts.1.{part}"].becomes != "float"
        assert "without data" not in str(rows[f"layers.0.experts.0.{part}"].remarks)


INT3 = {"weight": "int3 g8"}
GUESSED = {
    "nearest, weighted": (INT3 | {"algorithm": fb.Nearest(weighted=True)}, INT3),
    "learned levels, weighted": (
        {"weight": "kmeans2 channel", "algorithm": fb.Nearest(weighted=True)}, {"weight": "kmeans2 channel"}),
    "clipped by the output": ({"weight": "int3 g8 clip"}, INT3),
    "autoround": (INT3 | {"algorithm": fb.AutoRound(steps=8, reach=1.0)}, INT3 | {"algorithm": fb.Gptq()}),
    "brecq from nearest": (INT3 | {"algorithm": fb.Brecq(steps=200, start="nearest")}, INT3),
    "autoround from nearest": (INT3 | {"algorithm": fb.AutoRound(steps=8, reach=1.0, start="nearest")}, INT3),
}  # fmt: skip


def codes_of(rule, data):
    recipe = fb.Recipe([fb.Rule(r".*\.experts\..*", **rule)])
    result = fb.quantize(net(starved=(1,)), recipe, calibration=data)
    modules = {name: own for name, own in result.model.named_modules() if isinstance(own, QuantizedLayer)}
    values = {name: own.qtensor.dequantize() for name, own in modules.items()}
    return values, {layer.name: layer for layer in result.report.layers if ".experts." in layer.name}


@pytest.mark.parametrize("case", GUESSED)
def test_an_expert_with_few_tokens_is_rounded_as_without_data_whatever_rounds_it(case):
    rule, without = GUESSED[case]
    data = [batch[:1, :30] for batch in batches(number=1)]
    found, rows = codes_of(rule, data)
    expected, plain = codes_of(without, data)
    few = {name for name, layer in rows.items() if set(layer.remarks) - set(plain[name].remarks)}
    assert {name for name in rows if ".experts.1." in name} < few < set(rows)
    for name in rows:
        assert torch.equal(found[name], expected[name]) == (name in few), name
    for name in few:
        remarks = str(rows[name].remarks)
        assert "no calibration input reached it" in remarks or f"fewer than {rows[name].shape[1]}" in remarks


@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
def test_links_of_an_expert_with_few_tokens_stay_as_they_are_and_are_listed(transform):
    data = [batch[:1, :30] for batch in batches(number=1)]
    rounded = {"input": "int8 token"} if transform == "smoothquant" else {}
    recipe = fb.Recipe([fb.Rule(r".*\.experts\..*", weight="int4 g8", **rounded)], transforms=[transform])
    report = fb.quantize(net(), recipe, calibration=data).report
    left = [remark for remark in report.remarks if " left as it was: " in remark]
    assert left
    for remark in left:
        assert remark.startswith(f"{transform}: layers.")
        assert remark.endswith(", fewer than its 24 inputs")
    enough = fb.quantize(net(), recipe, calibration=batches()).report
    assert not any(" left as it was: " in remark for remark in enough.remarks)


class Lone(Mixture):
    """The experts that a batch reaches change from one to the next."""

    def forward(self, x):
        first = int(x.flatten()[0] > 0)
        self.barred = torch.tensor([-1e4] * 2 + [0.0] * 2).roll(2 * first)
        return super().forward(x)


def test_batches_that_reach_different_experts_are_all_taken_in():
    torch.manual_seed(0)
    model = nn.Sequential(Lone(), Lone()).eval()
    data = batches()
    assert len({int(batch.flatten()[0] > 0) for batch in data}) == 2
    report = fb.quantize(model, "w4a16", calibration=data).report
    assert "without data" not in str(report.remarks)


def test_gptq_on_experts_leaves_less_error_in_the_output_than_nearest():
    data, held_out = batches(), batches(number=5)[3:]
    wanted = [net()(batch) for batch in held_out]
    errors = {}
    for algorithm in ("nearest", "gptq"):
        model = net()
        rule = fb.Rule(r".*\.experts\..*", weight="int3 g8", algorithm=algorithm)
        fb.quantize(model, fb.Recipe([rule]), calibration=data if algorithm == "gptq" else None)
        found = [model(batch) for batch in held_out]
        errors[algorithm] = sum(float((a - b).square().sum().detach()) for a, b in zip(found, wanted, strict=True))
    assert errors["gptq"] < 0.8 * errors["nearest"]


def test_experts_are_not_corrected_for_drift_and_the_report_says_so():
    model = net()
    rule = fb.Rule(kind="linear", weight="int4 g8", algorithm=fb.algorithms.gptq.Gptq(asymmetric=True))
    report = fb.quantize(model, fb.Recipe([rule]), calibration=batches()).report
    rows = {layer.name: layer for layer in report.layers}
    assert any("drift" in remark for remark in rows["layers.1.experts.0.w1"].remarks)
    assert not any("could not be measured" in remark for remark in rows["layers.1.shared"].remarks)


def test_a_folder_of_separate_experts_loads_back_to_equal_outputs(tmp_path):
    model, batch = net(), batches(number=1)[0]
    fb.quantize(model, "w4a16", to="compressed-tensors", calibration=batches()).save(tmp_path / "mixture")
    loaded = fb.load(tmp_path / "mixture", into=Net().eval()).model
    assert torch.equal(loaded(batch), model(batch))
