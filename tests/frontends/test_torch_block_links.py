"""How home-made models wire their blocks: found, verified, and walked rightly where it is irregular."""

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.block_inputs import walk_blocks
from fewbit.frontends.torch.block_links import trace_blocks
from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import run_batch, same
from fewbit.frontends.torch.layers import find_layers


def names_of(model):
    return [block.name for block in find_blocks(model, find_layers(model)).blocks]


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Chain(nn.Module):
    """A home-made module; `style` says how it calls its blocks, which hang in another order."""

    def __init__(self, style="plain", block=Block):
        super().__init__()
        self.style = style
        self.stem = nn.Linear(8, 16)
        self.block4, self.block1, self.block2, self.block3 = (block() for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for block in (self.block1, self.block2, self.block3, self.block4):
            if self.style == "residual":
                x = x + block(x)
            elif self.style == "in place between" and block is not self.block1:
                x = block(x.mul_(0.5))
            else:
                x = block(x)
        return x


BATCHES = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
ORDER = ["block1", "block2", "block3", "block4"]


def chain(*arguments):
    torch.manual_seed(0)
    return Chain(*arguments).eval()


def test_a_home_made_module_is_walked_in_the_order_of_its_calls(walk_and_disturb):
    model = chain()
    assert names_of(model) == ["block4", "block1", "block2", "block3"]
    assert [block.name for block in walk_blocks(model, names_of(model), BATCHES)] == ORDER
    assert walk_and_disturb(model, names_of(model), BATCHES) == ["block1"]


@pytest.mark.parametrize("style", ["residual", "in place between"])
def test_blocks_that_are_not_called_on_each_others_output_are_captured_one_by_one(style, walk_and_disturb):
    model = chain(style)
    assert walk_and_disturb(model, names_of(model), BATCHES) == ORDER


class WritesIntoItsInput(Block):
    def forward(self, x):
        return x.add_(self.down(self.up(x).relu()))


def test_a_block_that_writes_into_its_input_is_chained_all_the_same():
    model = chain("plain", WritesIntoItsInput)
    names = names_of(model)
    expected = [run_batch(model, batch) for batch in BATCHES]
    *_, last = walk_blocks(model, names, BATCHES)
    assert last.chained
    assert all(torch.equal(output, wanted) for output, wanted in zip(last.outputs(), expected, strict=True))
    assert all(torch.equal(output, wanted) for output, wanted in zip(last.outputs(), expected, strict=True))


class Counts(Block):
    """A block with a state: it cannot be run on its own without changing what it gives."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def forward(self, x):
        self.times += 1
        return super().forward(x) * self.times


def test_a_block_that_cannot_be_repeated_is_captured_and_run_by_the_model():
    model = chain("plain", Counts)
    links = trace_blocks(model, names_of(model), BATCHES)
    assert [(link.name, link.chained, link.replayable) for link in links] == [(name, False, False) for name in ORDER]
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    blocks = walk_blocks(model, names_of(model), BATCHES)
    first = next(blocks)
    del forwards[:]
    assert len(list(first.outputs())) == len(forwards) == len(BATCHES)


class Refuses(Block):
    def forward(self, x):
        if getattr(self, "spent", False):
            raise RuntimeError("only once")
        self.spent = True
        return super().forward(x)


def test_a_block_that_refuses_a_second_call_is_not_replayable():
    links = trace_blocks(chain("plain", Refuses), ORDER, BATCHES[:1])
    assert [link.replayable for link in links] == [False] * 4


class PassesTuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, state):
        x, mask = state
        return x + self.linear(x) * mask, mask


class Packed(nn.Module):
    """Its blocks hand on a tuple as one argument."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([PassesTuples() for _ in range(3)])

    def forward(self, x):
        state = (x, (x > 0).to(x))
        for block in self.blocks:
            state = block(state)
        return state[0]


def test_tuples_are_handed_on_whole(walk_and_disturb):
    torch.manual_seed(0)
    assert walk_and_disturb(Packed(), numbered("blocks", 3), BATCHES) == ["blocks.0"]


def numbered(prefix, count):
    return [f"{prefix}.{index}" for index in range(count)]


class Recurrent(nn.Module):
    """One of its blocks is called between all others."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(8) for _ in range(3)])
        self.shared = Block(8)

    def forward(self, x):
        for block in self.blocks:
            x = self.shared(block(x))
        return x


def test_a_block_that_is_called_several_times_gets_all_of_its_calls(watched):
    torch.manual_seed(0)
    model = Recurrent()
    names = [*numbered("blocks", 3), "shared"]
    seen = watched(model, names, BATCHES)
    assert [(block.name, len(block.calls)) for block in walk_blocks(model, names, BATCHES)] == [
        ("blocks.0", 3), ("shared", 9), ("blocks.1", 3), ("blocks.2", 3),
    ]  # fmt: skip
    for block in walk_blocks(model, names, BATCHES):
        assert not block.chained
        pairs = zip(block.calls, block.outputs(), seen[block.name], strict=True)
        assert all(
            same(call.arguments(), expected.arguments()) and same(output, wanted)
            for call, output, (expected, wanted) in pairs
        )


class Windowed(nn.Module):
    """Odd blocks get a mask of the last four positions, even ones of all: equal masks for short inputs."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, mask):
            return x + mask @ self.linear(x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Part() for _ in range(4)])

    def forward(self, x):
        full = torch.ones(len(x), len(x)).tril()
        masks = (full, full - full.tril(-4))
        for index, block in enumerate(self.blocks):
            x = block(x, masks[index % 2])
        return x


def test_masks_that_differ_on_long_inputs_only_are_told_apart(walk_and_disturb):
    torch.manual_seed(0)
    short, long = torch.randn(3, 8), torch.randn(9, 8)
    model = Windowed()
    assert walk_and_disturb(model, numbered("blocks", 4), [short, short + 1]) == ["blocks.0"]
    assert walk_and_disturb(model, numbered("blocks", 4), [short, long, short + 1]) == ["blocks.0", "blocks.1"]


class Detour(Chain):
    """Leaves blocks out for inputs of one shape."""

    def forward(self, x):
        return super().forward(x) if len(x) > 3 else self.block4(self.block1(self.stem(x)))


def test_a_batch_that_takes_another_way_breaks_the_chain(walk_and_disturb):
    torch.manual_seed(0)
    model = Detour().eval()
    names = names_of(model)
    assert walk_and_disturb(model, names, [BATCHES[0], BATCHES[1][:3], BATCHES[2]]) == ORDER


class Swaps(Chain):
    """Calls two blocks in the other order for inputs of one shape."""

    def forward(self, x):
        if len(x) > 3:
            return super().forward(x)
        return self.block4(self.block2(self.block3(self.block1(self.stem(x)))))


def test_a_batch_that_takes_the_blocks_in_another_order_breaks_the_chain(watched):
    torch.manual_seed(0)
    model, batches = Swaps().eval(), [BATCHES[0], BATCHES[1][:3]]
    blocks = list(walk_blocks(model, ORDER, batches))
    assert [block.name for block in blocks if not block.chained] == ORDER
    seen = watched(model, ORDER, batches)
    for block in walk_blocks(model, ORDER, batches):
        wanted = [expected.arguments() for expected, _ in seen[block.name]]
        assert same([call.arguments() for call in block.calls], wanted)


class Recalls(nn.Module):
    """Its blocks look at a memory, the second one at its own input in that place."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, memory):
            return x + self.linear(memory)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Part() for _ in range(3)])

    def forward(self, x):
        memory = x.cos()
        first = self.blocks[0](x, memory)
        return self.blocks[2](self.blocks[1](first, first), memory)


def test_an_argument_that_only_some_followers_replace_is_kept_for_the_others(walk_and_disturb):
    torch.manual_seed(0)
    model = Recalls()
    assert [link.slots for link in trace_blocks(model, numbered("blocks", 3), BATCHES)] == [
        {}, {0: None, 1: None}, {0: None},
    ]  # fmt: skip
    assert walk_and_disturb(model, numbered("blocks", 3), BATCHES) == ["blocks.0"]


def test_blocks_that_no_batch_reaches_come_last_and_have_no_calls():
    torch.manual_seed(0)
    model = Detour().eval()
    walked = [
        (block.name, len(block.calls), len(list(block.outputs())))
        for block in walk_blocks(model, names_of(model), [batch[:3] for batch in BATCHES])
    ]
    assert walked == [("block1", 3, 3), ("block4", 3, 3), ("block2", 0, 0), ("block3", 0, 0)]
