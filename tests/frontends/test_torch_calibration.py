"""Statistics are those of a plain run of the whole model whose earlier layers are quantized."""

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms.gptq import Gptq
from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

#: Float32 sums of a hundred rows, on activations that were summed in another order; a share of sqrt(H_ii H_jj).
SUMS = 1e-5
INT4 = parse_scheme("int4 g16")
FRONTEND = TorchFrontend()


pytestmark = pytest.mark.usefixtures("one_thread")


def gathered(model, batches, *, sequential=False, names=None, check=None, scheme=INT4):
    """Quantize layer by layer as the pipeline does; return parts as ({names}, statistics) for each stage.

    `check` is called with the statistics of each part before its layers are quantized.
    """
    layers = FRONTEND.layers(model)
    wanted = {layer.name: ("second_moment",) for layer in layers if names is None or layer.name in names}
    stages = []
    for stage in FRONTEND.calibrate(model, layers, wanted, batches, sequential=sequential):
        parts = []
        for part in stage:
            parts.append(([layer.name for layer in part.layers], part.statistics))
            if check:
                check(part.statistics)
            for layer in part.layers:
                assert layer.name in wanted
                # Coarse on purpose: what comes behind must show it.
                FRONTEND.replacement(model, layer, quantize(FRONTEND.weight(model, layer), scheme)).install()
        stages.append(parts)
    return stages


def by_hooks(model, batches, names):
    """Return the second moments of the inputs of some layers, float64, of plain runs of the whole model."""
    totals, counts, handles = {}, dict.fromkeys(names, 0), []
    for name in names:

        def enter(module, args, name=name):
            rows = args[0].detach().double().reshape(-1, args[0].shape[-1])
            totals[name] = totals.get(name, 0) + rows.T @ rows
            counts[name] += len(rows)

        handles.append(model.get_submodule(name).register_forward_pre_hook(enter))
    for batch in batches:
        run_batch(model, batch)
    for handle in handles:
        handle.remove()
    return {name: (totals[name] / counts[name], counts[name]) for name in totals}


def assert_those_of_hooks(model, batches):
    def check(statistics):
        expected = by_hooks(model, batches, list(statistics))
        assert set(expected) == set(statistics)
        for name, (moment, count) in expected.items():
            found = statistics[name]["second_moment"]
            size = torch.outer(moment.diagonal(), moment.diagonal()).sqrt()
            assert found.count == count, name
            assert ((found.result().double() - moment).abs() <= SUMS * size + 1e-30).all(), name
        seen.extend(expected)

    seen = []
    return check, seen


QKV, O = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]  # noqa: E741
GATE_UP, DOWN = ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]


def in_block(number, *names):
    return [f"model.layers.{number}.{name}" for name in names]


def linear_names(model):
    return [layer.name for layer in FRONTEND.layers(model) if layer.kind == "linear"]


# Which statistic a layer gets.


def test_layers_that_share_an_input_share_the_statistic(tiny):
    model, batches = tiny("Llama")
    stages = gathered(model, batches, names=linear_names(model))
    assert len(stages) == 4  # three blocks, and nothing outside
    for number, [(names, statistics)] in enumerate(stages[:3]):
        assert names == in_block(number, *QKV, *O, *GATE_UP, *DOWN)
        own = {name.removeprefix(f"model.layers.{number}."): id(statistics[name]["second_moment"]) for name in names}
        groups = {frozenset(name for name in own if own[name] == other) for other in own.values()}
        assert groups == {frozenset(group) for group in (QKV, O, GATE_UP, DOWN)}
    assert stages[3] == [([], {})]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Bert", "ViT", "T5", "Bart", "ModernBert"])
def test_statistics_are_those_of_the_model_with_its_quantized_prefix(tiny, architecture, sequential):
    model, batches = tiny(architecture)
    check, seen = assert_those_of_hooks(model, batches)
    names = linear_names(model)
    gathered(model, batches, sequential=sequential, names=names, check=check)
    assert sorted(seen) == sorted(names)
    assert not any(module._held is not None for module in model.modules() if isinstance(module, QuantizedLayer))


def test_the_head_is_measured_too(tiny):
    model, batches = tiny("Llama")
    *_, [(names, statistics)] = gathered(model, batches, names=["model.layers.1.mlp.up_proj", "lm_head"])
    assert (names, set(statistics)) == (["lm_head"], {"lm_head"})

    assert statistics["lm_head"]["second_moment"].count == sum(batch["input_ids"].numel() for batch in batches)


def test_an_embedding_gets_no_statistic(tiny):
    model, batches = tiny("GPT2")
    names = [layer.name for layer in FRONTEND.layers(model) if layer.kind == "embedding"]
    assert names
    stages = gathered(model, batches, names=[*names, "transformer.h.0.mlp.c_fc"])
    assert stages[-1] == [(names, {})]


def test_sequential_parts_come_in_the_order_of_the_calls(tiny):
    model, batches = tiny("Llama")
    stages = gathered(model, batches, sequential=True, names=linear_names(model))
    for number, parts in enumerate(stages[:3]):
        expected = [in_block(number, *names) for names in (QKV, O, GATE_UP, DOWN)]
        assert [names for names, _ in parts] == expected


def test_only_in_sequential_order_is_o_measured_behind_the_quantized_v(tiny):
    def moment_of_o(sequential, names):
        model, batches = tiny("Llama")
        stages = gathered(model, batches, sequential=sequential, names=in_block(0, *names))
        (found,) = (statistics for _, statistics in stages[0] if in_block(0, *O)[0] in statistics)
        return found[in_block(0, *O)[0]]["second_moment"].result()

    float_v, together = moment_of_o(False, O), moment_of_o(False, [*QKV, *O])
    assert torch.equal(float_v, together)
    behind = moment_of_o(True, [*QKV, *O])
    assert (behind - together).abs().max() > 1e-3 * together.abs().max()


def test_layers_that_nobody_asks_for_stay_float_and_unmeasured(tiny):
    model, batches = tiny("Llama")
    stages = gathered(model, batches, names=in_block(1, *DOWN))
    assert [names for parts in stages for names, _ in parts if names] == [in_block(1, *DOWN)]
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    assert quantized == in_block(1, *DOWN)


# Modules of one's own.


def rows(width, number=3):
    return [torch.randn(20, width, generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


@pytest.mark.parametrize("sequential", [False, True])
def test_a_model_without_blocks_is_done_whole(sequential):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    check, seen = assert_those_of_hooks(model, rows(32))
    [parts] = gathered(model, rows(32), sequential=sequential, check=check)
    assert [names for names, _ in parts] == ([["0"], ["2"]] if sequential else [["0", "2"]])
    assert seen == ["0", "2"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(x)))


class FourBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.block2, self.block3, self.block4 = (Residual() for _ in range(4))
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        return self.last(self.block4(self.block3(self.block2(self.block1(x)))))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_module_with_numbered_attributes_is_done_block_by_block(sequential):
    torch.manual_seed(0)
    model = FourBlocks()
    check, seen = assert_those_of_hooks(model, rows(16))
    stages = gathered(model, rows(16), sequential=sequential, check=check)
    assert len(stages) == 5
    assert seen == [*(f"block{k}.{name}" for k in range(1, 5) for name in ("one", "two")), "last"]


class InPlace(nn.Module):
    """Adds to its input in place: the second layer gets the tensor that the first one got, with other numbers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = x * 1.0
        x += self.one(x)
        return self.two(x)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_tensor_that_was_written_into_is_another_input(sequential):

    torch.manual_seed(0)
    model = InPlace()
    check, _ = assert_those_of_hooks(model, rows(16))
    gathered(model, rows(16), sequential=sequential, check=check)


class Either(nn.Module):
    """Gives both layers one tensor, or each its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, y=None):
        return self.one(x) + self.two(x if y is None else y)


def test_batches_that_share_inputs_differently_are_refused():
    one, two = rows(16, 2)
    with pytest.raises(CalibrationError, match=r"^two: it shares its input with one in one calibration batch and"):
        gathered(Either(), [one, (one, two)])
    check, seen = assert_those_of_hooks(model := Either(), [(one, two), (two, one)])
    gathered(model, [(one, two), (two, one)], check=check)
    assert seen == ["one", "two"]


class Twice(nn.Module):
    """Calls one layer twice, and one only for some inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.never = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.one(torch.relu(self.one(x)))


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_that_are_called_twice_or_never(sequential):
    torch.manual_seed(0)
    check, seen = assert_those_of_hooks(model := Twice(), rows(16))

    def check_reached(statistics):
        check({name: own for name, own in statistics.items() if name != "never"})

    [parts] = gathered(model, rows(16), sequential=sequential, check=check_reached)
    assert seen == ["one"]
    assert [name for names, _ in parts for name in names] == ["one", "never"]
    assert parts[-1][1]["never"]["second_moment"].count == 0


# End to end.


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ["Bert", "GPT2", "T5", "ViT", "Llama"])
def test_gptq_leaves_less_output_error_than_nearest_in_every_layer(tiny, architecture, sequential):
    model, batches = tiny(architecture)
    kept = [fb.keep(kind="head", optional=True), fb.keep(kind="embedding", optional=True)]
    recipe = fb.Recipe([*kept, fb.Rule(kind="linear", weight="int4 g16", algorithm="gptq")])
    data = fb.calibration.Calibration(data=batches, sequential=sequential)
    layers = fb.quantize(model, recipe, calibration=data).report.layers
    done = [layer for layer in layers if layer.algorithm == "gptq"]
    assert [layer.name for layer in done] == [layer.name for layer in layers if layer.kind == "linear"]
    for layer in done:
        assert layer.damping == 0.01, layer.name
        assert layer.seconds > 0.0
        # Of nearest and solved on the same inputs: a solve that does not pay even here is broken.
        assert layer.nearest_sqnr < layer.solved_sqnr, layer.name
    assert np.mean([layer.solved_sqnr - layer.nearest_sqnr for layer in done]) > 1.0
    quantized = [name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    assert quantized == [layer.name for layer in done]


def test_what_is_not_finite_midway_names_the_layer_and_leaves_the_model_float(tiny):
    model, batches = tiny("Llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = 3e38  # times anything above 1.13 it overflows
    modules = dict(model.named_modules())
    recipe = fb.Recipe([fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(".*", weight=INT4, algorithm=Gptq())])
    with pytest.raises(NonFiniteError, match=r"^model\.layers\.1\.mlp\.gate_proj: .*NaN or infinity"):
        fb.quantize(model, recipe, calibration=batches)
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
