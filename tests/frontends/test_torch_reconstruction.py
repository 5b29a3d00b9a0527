"""A block that is trained runs as it will, and is compared with what the float model puts out there."""

import pytest
import torch
from torch import nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch import reconstruction
from fewbit.frontends.torch.calls import hidden
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

COARSE = parse_scheme("int3 g16")
FRONTEND = TorchFrontend()

pytestmark = pytest.mark.usefixtures("one_thread")


def stages(model, batches, *, sequential=True, statistics=(), names=None, each=None):
    """Quantize as the pipeline does, coarsely; return the parts to be trained, having called `each` with them."""
    layers = [layer for layer in FRONTEND.layers(model) if layer.kind != "embedding"]
    wanted = {layer.name: statistics for layer in layers if names is None or layer.name.startswith(names)}
    run = FRONTEND.calibrate(model, layers, wanted, batches, sequential=sequential, trained=set(wanted))
    found = []
    for stage in run:
        for part in stage:
            if part.again:
                found.append(part)
                if each:
                    each(part)
                continue
            for layer in part.layers:
                FRONTEND.replacement(model, layer, quantize(FRONTEND.weight(model, layer), COARSE)).install()
    return found


def outputs(watched, model, names, batches):
    return {name: [hidden(output) for _, output in seen] for name, seen in watched(model, names, batches).items()}


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Bert"])
@pytest.mark.parametrize("sequential", [True, False])
def test_targets_are_those_of_the_float_model_and_the_block_runs_behind_quantized_ones(
    tiny, watched, architecture, sequential
):
    model, batches = tiny(architecture)
    names = [name for name, module in model.named_modules()
             if type(module).__name__ in ("LlamaDecoderLayer", "GPT2Block", "BertLayer")]  # fmt: skip
    assert len(names) == (12 if architecture == "GPT2" and len(names) == 12 else 3)
    floats = outputs(watched, model, names, batches)
    found = {}

    def each(part):
        if not part.block.name:
            return
        weights = {layer.name: model.get_submodule(layer.name).qtensor.dequantize() for layer in part.layers}
        with torch.no_grad():
            found[part.block.name] = [part.block.forward(weights, sample) for sample in range(len(part.block.calls))]
        assert part.remarks == ()
        for target, expected in zip(part.block.targets, floats[part.block.name], strict=True):
            assert torch.equal(target, expected)

    stages(model, batches, sequential=sequential, statistics=("second_moment",), each=each)
    assert list(found) == names
    quantized = outputs(watched, model, names, batches)
    for name in names:
        for own, expected in zip(found[name], quantized[name], strict=True):
            # A dequantized weight that is held is multiplied in another order than by a kernel.
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[name][0], floats[name][0], atol=1e-3)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, rows):
        return rows + self.second(torch.relu(self.first(rows)))


class Parts(nn.Module):
    def __init__(self, part=Part):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(part() for _ in range(3))

    def forward(self, rows):
        for part in self.parts:
            rows = part(rows)
        return rows


def batches():
    return [torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_the_next_block_gets_what_the_trained_one_puts_out():
    model, seen = Parts(), {}

    def each(part):
        if not part.block.name:
            return
        seen[part.block.name] = list(part.block.calls)  # which the walk lets go of afterwards
        for layer in part.layers:  # as if training had changed them
            model.get_submodule(layer.name).hold(torch.eye(32))

    stages(model, batches(), statistics=("second_moment",), each=each)
    # relu of the rows is added to them, and again; the calibration lets go of what is held.
    rows = batches()[0]
    assert torch.allclose(seen["parts.0"][0].args[0], rows)
    bias = {name: own for name, own in Parts().named_parameters() if name.endswith("bias")}
    expected = rows + torch.relu(rows + bias["parts.0.first.bias"]) + bias["parts.0.second.bias"]
    torch.testing.assert_close(seen["parts.1"][0].args[0], expected)


def test_gradients_reach_the_trial_weights_and_nothing_else():
    model = Parts()

    def each(part):
        if not part.block.name:
            return
        weights = {layer.name: torch.zeros(32, 32, requires_grad=True) + 0.1 for layer in part.layers}
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        part.block.forward(leaves, 0).square().sum().backward(inputs=list(leaves.values()))
        assert all(float(weight.grad.abs().sum()) > 0 for weight in leaves.values())
        assert all(parameter.grad is None for parameter in model.parameters())

    assert len(stages(model, batches(), each=each)) == 3


class Noisy(Part):
    def forward(self, rows):
        return super().forward(rows) + torch.randn(()) * 0.1


def test_a_block_that_cannot_be_run_again_says_so():
    found = stages(Parts(Noisy), batches())
    assert [part.block for part in found] == [None] * 3
    assert found[1].remarks == ("its block parts.1 was not trained: it cannot be run on its own",)
    assert [layer.name for layer in found[1].layers] == ["parts.1.first", "parts.1.second"]


class Skipping(Parts):
    def forward(self, rows):
        return self.parts[2](self.parts[0](rows))


def test_a_block_that_nothing_reaches_says_so():
    found = {part.layers[0].name: part for part in stages(Skipping(), batches())}
    assert found["parts.1.first"].remarks == ("its block parts.1 was not trained: no calibration input reached it",)
    assert found["parts.2.first"].block is not None


class Halved(Parts):
    """What the second block gets is not what the first puts out."""

    def forward(self, rows):
        return self.parts[1](self.parts[0](rows) * 0.5)


def test_where_inputs_are_captured_anew_targets_are_those_of_the_float_block_on_them():
    model, calls = Halved(), {}
    found = stages(
        model, batches(), each=lambda part: part.block and calls.update({part.block.name: [*part.block.calls]})
    )
    remarks = {part.layers[0].name: part.remarks for part in found}
    assert remarks["parts.0.first"] == ()
    assert remarks["parts.1.first"] == ("parts.1 was trained for its float output on quantized inputs",)
    block = found[1].block
    with torch.no_grad():
        rows = model.parts[0](batches()[0]) * 0.5
        torch.testing.assert_close(calls["parts.1"][0].args[0], rows)
        torch.testing.assert_close(block.targets[0], Halved().parts[1](rows))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 4)

    def forward(self, rows):
        return self.layer(rows).argmax(-1)


def test_an_output_without_float_numbers_cannot_be_trained_for():
    with pytest.raises(CalibrationError, match=r"^an output of type Tensor begins with no float tensor to train for"):
        stages(Counting(), batches())


def weights_of(model, part):
    return {layer.name: model.get_submodule(layer.name).qtensor.dequantize() for layer in part.layers}


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Bert"])
def test_samples_of_a_block_run_at_once_with_the_outputs_and_gradients_of_runs_one_by_one(tiny, architecture):
    model, batches = tiny(architecture)
    seen = []

    def each(part):
        if not part.block.name:
            return
        weights = {name: own.requires_grad_() for name, own in weights_of(model, part).items()}
        together = part.block.together(weights, [1, 0])
        alone = [part.block.forward(weights, sample) for sample in (1, 0)]
        gradients = []
        for found in (together, alone):
            loss = sum(own.square().mean() for own in found)
            gradients.append(torch.autograd.grad(loss, list(weights.values())))
        for own, expected in zip([*together, *gradients[0]], [*alone, *gradients[1]], strict=True):
            # Products of twice as many rows add in another order.
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
        seen.append(part.block.name)

    stages(model, batches, each=each)
    assert len(seen) >= 3


class Mixing(Part):
    """What a sample becomes depends on those beside it."""

    def forward(self, rows):
        return super().forward(rows) - rows.mean(0)


def test_samples_of_a_block_that_mixes_them_run_one_by_one():
    model, found = Parts(Mixing), []

    def each(part):
        if part.block.name:
            found.append(part.block.together(weights_of(model, part), [0, 1]))

    stages(model, batches(), each=each)
    assert found == [None] * 3


def test_samples_of_other_shapes_and_one_alone_are_not_joined():
    model, found = Parts(), []
    given = [torch.randn(8, 32), torch.randn(8, 32), torch.randn(2, 8, 32)]

    def each(part):
        if part.block.name == "parts.1":
            weights = weights_of(model, part)
            found.extend(part.block.together(weights, samples) for samples in ([0, 2], [0], [0, 1]))

    stages(model, given, each=each)
    assert found[:2] == [None, None]
    assert [tuple(own.shape) for own in found[2]] == [(8, 32)] * 2


def test_more_numbers_than_memory_should_hold_are_not_joined(monkeypatch):
    model, found = Parts(), []
    monkeypatch.setattr(reconstruction, "_AT_ONCE", {"cpu": 3 * 8 * 32 - 1})

    def each(part):
        if part.block.name:
            found.append([part.block.together(weights_of(model, part), samples) for samples in ([0, 1, 2], [0, 1])])

    stages(model, batches(), each=each)
    assert [three for three, _ in found] == [None] * 3
    assert all(len(two) == 2 for _, two in found)
