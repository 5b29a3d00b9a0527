"""Units of convolutional networks, each asserted exactly, and what becomes of them in a calibration."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import hidden
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.module_chain import chained, modules_in
from fewbit.frontends.torch.units import convolves, with_units
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

pytestmark = pytest.mark.usefixtures("one_thread")
COARSE = parse_scheme("int3 channel")


def image(channels=3, count=2, seed=0):
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def found(model, batch=None):
    """The names of blocks and units and of the layers outside, after checking that nothing is lost."""
    layers = find_layers(model)
    partition = with_units(model.eval(), find_blocks(model, layers), image() if batch is None else batch)
    inside = [layer for block in partition.blocks for layer in block.layers]
    assert sorted([*inside, *partition.outside], key=layers.index) == layers
    return [block.name for block in partition.blocks], [layer.name for layer in partition.outside]


def unit(inputs, outputs, kernel=3, groups=1):
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()]


def plain():
    return nn.Sequential(
        *unit(3, 8), *unit(8, 8, 3, 8), *unit(8, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    )


class Residual(nn.Module):
    """Two convolutions beside a third; its activation is a function."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.deep = nn.Sequential(*unit(inputs, inputs, 3, inputs), nn.Conv2d(inputs, outputs, 1))
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        return torch.relu(self.deep(x) + self.skip(x))


class Attributes(nn.Module):
    """Residual blocks of different shapes as attributes, between a stem that works in place and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.block1, self.block2 = Residual(8, 12), Residual(12, 16)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x):
        x = self.block2(self.block1(self.act(self.norm(self.stem(x)))))
        return self.classifier(torch.flatten(self.pool(x), 1))


class Stages(nn.Module):
    """As EfficientNet: a list of stages, each a list of blocks, whose shapes differ; block and stem in a body."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*unit(3, 8))
        self.stages = nn.ModuleList(
            [nn.ModuleList([Residual(8, 8), Residual(8, 12)]), nn.ModuleList([Residual(12, 12)])]
        )
        self.head = nn.Sequential(*unit(12, 16, 1))
        self.classifier = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.classifier(self.head(x).mean((2, 3)))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Stages(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_layer_of_a_sequential_makes_a_unit_with_the_norm_and_the_activation_behind_it():
    assert found(plain()) == (["0 > 1 > 2", "3 > 4 > 5", "6 > 7 > 8 > 9 > 10", "11"], [])


def test_a_residual_block_is_a_unit_and_what_goes_through_functions_ends_one():
    assert found(Attributes()) == (
        ["stem > norm > act", "block1", "block2 > pool", "classifier"], [],
    )  # fmt: skip


def test_blocks_that_are_repeated_stay_blocks_with_units_around_them():
    stages = ["stages.0.0", "stages.0.1", "stages.1.0"]
    assert found(Stages()) == ([*stages, "stem", "head", "classifier"], [])
    inside = [f"body.{name}" for name in (*stages, "stem", "head", "classifier")]
    assert found(Wrapped()) == ([*inside, "head"], [])


def test_what_stands_between_a_block_and_the_layer_behind_it_belongs_to_that_layer():
    model = nn.Sequential(Residual(3, 8), Residual(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    assert found(model) == (["0", "1", "2 > 3 > 4"], [])


def test_a_layer_in_a_module_of_its_own_is_named_by_that():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x).relu()

    assert found(nn.Sequential(Alone(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))) == (["0 > 1", "2"], [])


def test_what_is_called_twice_or_never_stays_outside():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared, self.spare = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            return self.shared(self.shared(self.first(x)))

    assert found(Twice()) == (["first"], ["shared", "spare"])


def test_units_are_for_networks_that_are_convolutional_for_the_most_part(tiny):
    assert convolves(find_layers(plain()))
    for architecture in ("ViT", "Llama", "Bert"):
        assert not convolves(find_layers(tiny(architecture)[0]))


def test_a_chain_is_its_modules_as_they_are():
    model = plain().eval()
    with torch.no_grad():
        assert torch.equal(chained(model, "0 > 1 > 2")(image()), model[:3](image()))
    assert chained(model, "3") is model[3]
    assert modules_in(model, "0 > 2") == [model[0], model[2]]


# In a calibration.


@pytest.mark.parametrize("make", [plain, Stages, Attributes])
@pytest.mark.parametrize("sequential", [True, False])
def test_units_are_trained_for_what_the_float_model_puts_out_there_behind_quantized_ones(make, sequential, watched):
    torch.manual_seed(0)
    model, batches, frontend = make().eval(), [image(seed=seed) for seed in range(3)], TorchFrontend()
    names = found(model)[0]
    ends = {name: name.split(" > ")[-1] for name in names}
    floats = outputs(watched, model, list(ends.values()), batches)
    layers = frontend.layers(model)
    wanted = dict.fromkeys((layer.name for layer in layers), ("second_moment",))
    seen = {}
    for stage in frontend.calibrate(model, layers, wanted, batches, sequential=sequential, trained=set(wanted)):
        for part in stage:
            if not part.again:
                for layer in part.layers:
                    assert part.statistics[layer.name]["second_moment"].count
                    frontend.replacement(model, layer, quantize(frontend.weight(model, layer), COARSE)).install()
                continue
            assert part.block.name in names
            assert part.remarks == ()
            weights = {layer.name: model.get_submodule(layer.name).qtensor.dequantize() for layer in part.layers}
            with torch.no_grad():
                seen[part.block.name] = [part.block.forward(weights, sample) for sample in range(3)]
            for target, expected in zip(part.block.targets, floats[ends[part.block.name]], strict=True):
                assert torch.equal(target, expected)
    assert set(seen) == set(names)
    quantized = outputs(watched, model, list(ends.values()), batches)
    for name in names:
        for own, expected in zip(seen[name], quantized[ends[name]], strict=True):
            # A dequantized weight that is held is multiplied in another order than by a kernel.
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_copied_is_trained_for_the_float_output_of_a_unit_on_quantized_inputs():
    class Uncopied(Stages):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    torch.manual_seed(0)
    rule = fb.Rule(".*", weight="int3 channel", algorithm={"name": "brecq", "steps": 2, "start": "nearest"})
    report = fb.quantize(Uncopied().eval(), fb.Recipe([rule]), calibration=[image()]).report
    # The mean over positions is no module: what comes behind it is caught in a run of the model.
    remarks = {layer.name: layer.remarks for layer in report.layers if layer.remarks}
    assert remarks == {"classifier": ("classifier was trained for its float output on quantized inputs",)}


def outputs(watched, model, names, batches):
    return {name: [hidden(output) for _, output in seen] for name, seen in watched(model, names, batches).items()}


def test_transforms_see_the_whole_network_though_it_is_trained_in_units():
    """Equalization folds from one unit into the next; in units alone it would find no link."""
    torch.manual_seed(0)
    sequence = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    notes = []
    for algorithm in ("nearest", {"name": "brecq", "steps": 2}):
        rule = fb.Rule(".*", weight="int4 tensor", algorithm=algorithm)
        recipe = fb.Recipe([rule], transforms=["equalization"])
        report = fb.quantize(copy_of(sequence), recipe, calibration=[image()]).report
        notes.append(report.remarks)
    assert notes[0] == notes[1]
    assert any("equaliz" in remark for remark in notes[0])


def copy_of(model):
    import copy

    return copy.deepcopy(model)
