"""Runs wait at layers, go on through what has replaced them, and leave nothing behind."""

import pytest
import torch
from torch import nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.paused_runs import PausedRuns


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.two, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout()
        self.seen = []

    @torch.no_grad()
    def forward(self, x, skip=False):
        self.seen.append("start")
        hidden = self.one(x) if skip else self.one(x) + self.other(x)
        hidden = self.drop(hidden)
        self.seen.append("end")
        return hidden if skip else self.two(hidden)


GROUPS = [["one", "other"], ["two"]]


def inputs(number=3):
    return [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


def paused(model, batches, **arguments):
    return PausedRuns(model, GROUPS, [lambda batch=batch: model(batch, **arguments) for batch in batches])


def test_every_run_waits_at_each_group_and_runs_once():
    model, batches = Block(), inputs()
    runs = paused(model, batches)
    assert model.seen == []
    at_one = list(runs.reach("one"))
    assert model.seen == ["start"] * 3
    assert all(rows is batch for rows, batch in zip(at_one, batches, strict=True))
    at_two = list(runs.reach("two"))
    outputs = list(runs.outputs())
    runs.close()
    assert model.seen == ["start"] * 3 + ["end"] * 3
    with torch.no_grad():
        for batch, rows, output in zip(batches, at_two, outputs, strict=True):
            expected = model.eval().one(batch) + model.other(batch)
            assert torch.equal(rows, expected)
            assert torch.equal(output, model.two(expected))
    assert not any(output.requires_grad for output in outputs)


def test_runs_go_on_through_what_replaces_a_layer():
    model, batches = Block(), inputs()
    runs = paused(model, batches)
    list(runs.reach("one"))
    model.one, model.other = nn.Identity(), nn.Identity()
    at_two = list(runs.reach("two"))
    model.two = nn.Flatten(0)
    outputs = list(runs.outputs())
    runs.close()
    for batch, rows, output in zip(batches, at_two, outputs, strict=True):
        assert torch.equal(rows, batch + batch)
        assert torch.equal(output, rows.flatten())


@pytest.mark.parametrize("last", [None, "one", "two", "end"])
def test_closing_leaves_the_model_as_it_was(last):
    model = Block()
    model.two.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    own = model.one.forward = lambda x: x * 2  # a forward that someone else has put there
    runs = paused(model, inputs())
    assert not model.training
    for leader in {None: [], "one": ["one"], "two": ["one", "two"], "end": ["one", "two"]}[last]:
        list(runs.reach(leader))
    if last == "end":
        list(runs.outputs())
    assert torch.is_grad_enabled()
    runs.close()
    assert torch.is_grad_enabled()
    assert model.one.forward is own
    assert not any("forward" in part.__dict__ for part in (model.other, model.two))
    assert {name: part.training for name, part in model.named_modules()} == modes


def test_others_may_run_the_model_while_runs_wait():
    model, batches = Block().eval(), inputs()
    expected = model(batches[0])
    runs = paused(model, batches)
    list(runs.reach("one"))
    assert torch.equal(model(batches[0]), expected)
    runs.close()


def test_an_error_inside_of_a_run_comes_out():
    model = Block()
    runs = paused(model, [torch.zeros(5, 4), torch.zeros(5, 3)])
    list(runs.reach("one"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(runs.reach("two"))
    runs.close()


def test_a_run_that_leaves_a_layer_out_gives_nothing_there_and_goes_on():
    model, batches = Block().eval(), inputs()
    calls = [lambda number=number, batch=batch: model(batch, skip=number == 1) for number, batch in enumerate(batches)]
    runs = PausedRuns(model, GROUPS, calls)
    list(runs.reach("one"))
    assert [rows is None for rows in runs.reach("two")] == [False, True, False]
    outputs = list(runs.outputs())
    runs.close()
    assert all(torch.equal(output, call()) for output, call in zip(outputs, calls, strict=True))


class Swapped(Block):
    def forward(self, x, *, back):
        return self.one(self.two(x)) if back else self.two(self.one(x))


def test_a_run_that_calls_layers_in_another_order_is_refused():
    model, batches = Swapped(), inputs(2)
    runs = PausedRuns(
        model,
        [["one"], ["two"]],
        [lambda number=number, batch=batch: model(batch, back=number) for number, batch in enumerate(batches)],
    )
    assert [rows is None for rows in runs.reach("one")] == [False, True]
    list(runs.reach("two"))
    with pytest.raises(CalibrationError, match=r"^one: one calibration batch calls it after other layers and another"):
        list(runs.outputs())
    runs.close()


class Two(Block):
    def forward(self, x):
        return self.two(self.one(x) + self.other(x.clone()))


def test_a_run_that_shares_no_input_is_refused():
    runs = paused(model := Two(), inputs())
    list(runs.reach("one"))
    with pytest.raises(CalibrationError, match=r"^other: it shares its input with other layers in one"):
        list(runs.reach("two"))
    runs.close()
    assert "forward" not in model.one.__dict__


def test_calibration_in_sequential_order_runs_a_block_once_for_each_batch(tiny):
    model, batches = tiny("Llama")
    layers = [layer for layer in TorchFrontend().layers(model) if layer.kind == "linear" and layer.name != "lm_head"]
    counts = {}

    def count(name):
        def leave(module, args, output):
            counts[name] = counts.get(name, 0) + 1

        return leave

    for name in ("0", "1", "2"):
        model.model.layers[int(name)].mlp.register_forward_hook(count(name))
    ways = {}
    for sequential in (True, False):
        counts.clear()
        wanted = {layer.name: ("second_moment",) for layer in layers}
        for stage in TorchFrontend().calibrate(model, layers, wanted, batches, sequential=sequential):
            for _ in stage:
                pass
        ways[sequential] = dict(counts)
    # The trace runs a block twice for each shape of batch; one run of the first batch finds the order of its layers.
    shapes = len({batch["input_ids"].shape for batch in batches})
    number = len(batches)
    assert ways[True]["1"] <= 2 * shapes + 1 + number < ways[False]["1"] + shapes + 1
    assert ways[False]["1"] >= 2 * number
