"""Which modules are blocks, in models of every shape; each asserted exactly."""

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.layers import find_layers


def found(model):
    """The names of the blocks and of the layers outside, after checking that nothing is lost."""
    layers = find_layers(model)
    partition = find_blocks(model, layers)
    inside = [layer for block in partition.blocks for layer in block.layers]
    assert sorted([*inside, *partition.outside], key=layers.index) == layers
    assert all(layer.name.startswith(block.name) for block in partition.blocks for layer in block.layers)
    return [block.name for block in partition.blocks], [layer.name for layer in partition.outside]


def numbered(prefix, count):
    return [f"{prefix}.{index}" for index in range(count)]


@pytest.mark.parametrize(
    ("architecture", "blocks", "outside"),
    [
        ("Llama", numbered("model.layers", 3), ["model.embed_tokens", "lm_head"]),
        ("GPT2", numbered("transformer.h", 3), ["transformer.wte", "transformer.wpe", "lm_head"]),
        (
            "Bert",
            numbered("encoder.layer", 3),
            ["embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings",
             "pooler.dense"],
        ),
        ("ViT", numbered("vit.layers", 3), ["vit.embeddings.patch_embeddings.projection", "classifier"]),
        (
            "T5",
            [*numbered("encoder.block", 3), *numbered("decoder.block", 2)],
            ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"],
        ),
        (
            "Bart",
            [*numbered("model.encoder.layers", 2), *numbered("model.decoder.layers", 3)],
            ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"],
        ),
        ("Mixtral", numbered("model.layers", 3), ["model.embed_tokens", "lm_head"]),
    ],
)  # fmt: skip
def test_the_blocks_of_known_architectures_are_found_without_knowing_them(tiny, architecture, blocks, outside):
    model, _ = tiny(architecture)
    assert found(model) == (blocks, outside)


def test_the_first_block_of_t5_belongs_to_the_list_though_it_holds_one_layer_more(tiny):
    model, _ = tiny("T5")
    first, second, *_ = find_blocks(model, find_layers(model)).blocks
    extra = {layer.name.removeprefix(first.name) for layer in first.layers}
    extra -= {layer.name.removeprefix(second.name) for layer in second.layers}
    assert extra == {".layer.0.SelfAttention.relative_attention_bias"}


class Block(nn.Module):
    def __init__(self, width, hidden=24):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Attributes(nn.Module):
    def __init__(self, widths=(16, 16, 16, 16)):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.block1, self.block2, self.block3, self.block4 = (Block(16, hidden) for hidden in widths)
        self.neck = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.head(self.neck(x))


def test_attributes_of_one_class_and_shape_are_blocks():
    assert found(Attributes()) == (["block1", "block2", "block3", "block4"], ["stem", "neck.0", "head"])


def test_an_attribute_of_another_shape_is_none():
    assert found(Attributes((24, 24, 16, 24)))[0] == ["block1", "block2", "block4"]
    assert found(Attributes((8, 16, 24, 32)))[0] == []


class Stages(nn.Module):
    """As a ResNet: stages of growing width, as attributes or in a list; one stage has a single block."""

    def __init__(self, *, in_a_list):
        super().__init__()
        stages = [nn.Sequential(*[Block(8 * 2**index) for _ in range(depth)]) for index, depth in enumerate((2, 1, 3))]
        self.stem = nn.Linear(4, 8)
        if in_a_list:
            self.stages = nn.Sequential(*stages)
        else:
            self.stage1, self.stage2, self.stage3 = stages
        self.head = nn.Linear(32, 10)


@pytest.mark.parametrize(("in_a_list", "stages"), [(True, "stages.{}"), (False, "stage{}")])
def test_stages_written_as_sequentials_are_looked_through(in_a_list, stages):
    first = 0 if in_a_list else 1
    names = [
        f"{stages.format(first + stage)}.{index}" for stage, depth in enumerate((2, 1, 3)) for index in range(depth)
    ]
    assert found(Stages(in_a_list=in_a_list)) == (names, ["stem", "head"])


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 8), nn.Linear(8, 16)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Mixture(nn.Module):
    """A block with experts, or every other one without, as in many mixtures of experts."""

    def __init__(self, experts):
        super().__init__()
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16)) for _ in range(4)])
        self.experts = nn.ModuleList([Expert() for _ in range(experts)])
        self.router = nn.Linear(16, 4)

    def forward(self, x):
        parts = [*self.heads, *self.experts]
        return x + sum(part(x) for part in parts) * self.router(x).mean()


def test_experts_and_heads_do_not_win_over_the_block_around_them():
    model = nn.ModuleDict({"words": nn.Embedding(50, 16), "layers": nn.ModuleList(map(Mixture, (0, 4, 0, 4)))})
    assert found(model) == (numbered("layers", 4), ["words"])


def test_attention_and_feed_forward_kept_as_pairs_in_lists_are_blocks_in_their_order():
    pairs = nn.ModuleList([nn.ModuleList([Expert(), Block(16)]) for _ in range(2)])
    assert found(nn.ModuleDict({"layers": pairs})) == (["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"], [])


def test_a_block_may_itself_be_a_sequential_with_bare_layers():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)], nn.Linear(8, 2))
    assert found(model) == (["0", "1", "2"], ["3"])


def test_entries_of_another_class_stay_outside_of_a_list_of_blocks():
    assert found(nn.Sequential(Expert(), Block(16), Block(16, 8), nn.Linear(16, 2))) == (
        ["1", "2"],
        ["0.up", "0.down", "3"],
    )


def test_a_module_that_hangs_twice_in_a_list_is_no_repetition():
    shared = Block(8)
    assert found(nn.ModuleList([shared, shared]))[0] == []


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
        Block(16),
        nn.ReLU(),
        nn.Sequential(nn.Embedding(10, 8), Block(8), nn.Linear(8, 2)),
    ],
)
def test_bare_layers_and_single_parts_are_no_blocks(model):
    assert found(model) == ([], [layer.name for layer in find_layers(model)])


def test_only_the_layers_that_are_asked_for_make_blocks():
    model = nn.Sequential(Block(8), Block(8))
    layers = [layer for layer in find_layers(model) if layer.name.startswith("1.")]
    partition = find_blocks(model, layers)
    assert (partition.blocks, partition.outside) == ((), tuple(layers))


def test_nothing_runs_and_nothing_changes_while_blocks_are_looked_for():
    with torch.device("meta"):
        model = nn.Sequential(Block(8), Block(8))
    assert found(model)[0] == ["0", "1"]
