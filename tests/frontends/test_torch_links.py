"""Links are found in architectures that no table knows, and only where moving numbers along them changes nothing."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.channel_scaling import Form, exchange
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.links import LinkSearch


def folds_of(model, batch, part=None):
    """The folds of the first block, or of the whole model if `part` is empty."""
    layers = find_layers(model)
    if part is None:
        part = find_blocks(model, layers).blocks[0].name
    inside = [layer for layer in layers if not part or layer.name.startswith(f"{part}.")]
    return LinkSearch(model, part, inside, [lambda: run_batch(model, batch, every_score=True)]).folds()


def described(folds):
    """{producer: consumers} by the last parts of their names."""
    return {fold.link.producer.split(".")[-1]: [name.split(".")[-1] for name in fold.link.consumers] for fold in folds}


def fold_called(folds, producer):
    return next(fold for fold in folds if fold.link.producer.endswith(producer))


def test_a_llama_has_four_links_a_block_also_under_grouped_queries(tiny):
    model, batches = tiny("Llama")
    folds = folds_of(model, batches[0])
    assert described(folds) == {
        "v_proj": ["o_proj"],
        "up_proj": ["down_proj"],
        "input_layernorm": ["q_proj", "k_proj", "v_proj"],
        "post_attention_layernorm": ["gate_proj", "up_proj"],
    }
    # Four heads of 8 channels read two heads of values, two each.
    first, second = list(range(8)), list(range(8, 16))
    assert fold_called(folds, "v_proj").link.channels.tolist() == first + first + second + second
    assert fold_called(folds, "up_proj").link.channels.tolist() == list(range(48))
    assert {fold.form for fold in folds} == {Form.ROWS, Form.GAIN}


def test_a_gpt2_has_its_values_among_queries_and_keys_in_the_weight_of_one_conv1d(tiny):
    model, batches = tiny("GPT2")
    folds = folds_of(model, batches[0])
    # Behind c_fc there is a GELU, which no factor passes.
    assert described(folds) == {"ln_1": ["c_attn"], "c_attn": ["c_proj"], "ln_2": ["c_fc"]}
    assert fold_called(folds, "c_attn").link.channels.tolist() == list(range(64, 96))


def test_a_bert_has_only_its_values_since_its_norms_feed_the_residual_stream_too(tiny):
    model, batches = tiny("Bert")
    assert described(folds_of(model, batches[0])) == {"value": ["dense"]}


def test_a_vit_has_its_norms_and_its_values(tiny):
    model, batches = tiny("ViT")
    assert described(folds_of(model, batches[0])) == {
        "v_proj": ["o_proj"],
        "layernorm_before": ["q_proj", "k_proj", "v_proj"],
        "layernorm_after": ["fc1"],
    }


_SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


def test_gains_beside_one_are_found_by_trying(tiny):
    torch.manual_seed(0)
    config = transformers.GemmaConfig(**_SHAPE, num_key_value_heads=1, head_dim=8)
    folds = folds_of(transformers.GemmaForCausalLM(config).eval(), torch.randint(3, 300, (2, 24)))
    forms = {fold.link.producer.split(".")[-1]: fold.form for fold in folds}
    assert forms == {
        "v_proj": Form.ROWS,
        "up_proj": Form.ROWS,
        "input_layernorm": Form.GAIN_BESIDE_ONE,
        "post_attention_layernorm": Form.GAIN_BESIDE_ONE,
    }


def test_values_that_lie_head_by_head_between_queries_and_keys_are_found():
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_SHAPE)).eval()
    link = fold_called(folds_of(model, torch.randint(3, 300, (2, 24))), "query_key_value").link
    assert link.channels.tolist() == [24 * head + 16 + place for head in range(4) for place in range(8)]


def test_experts_in_one_tensor_keep_the_norm_before_them_out(tiny):
    model, batches = tiny("Mixtral")
    assert described(folds_of(model, batches[0])) == {
        "v_proj": ["o_proj"],
        "input_layernorm": ["q_proj", "k_proj", "v_proj"],
    }


class Scale(nn.Module):
    """A home-made norm: no class that anyone knows, a gain and a shift."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x / x.abs().mean(-1, keepdim=True) * self.weight + self.bias


class Mlp(nn.Module):
    """What is between its two layers is given."""

    def __init__(self, between, inputs=8, width=12):
        super().__init__()
        self.norm, self.one, self.two = Scale(inputs), nn.Linear(inputs, width), nn.Linear(width, inputs)
        self.between = between

    def forward(self, x):
        return x + self.two(self.between(self.one(self.norm(x))))


def mlp(between, **sizes):
    torch.manual_seed(0)
    return Mlp(between, **sizes).eval()


X = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Dropout()])
def test_factors_pass_what_is_linear_for_each_sign(between):
    assert described(folds_of(mlp(between), X, part="")) == {"norm": ["one"], "one": ["two"]}


@pytest.mark.parametrize("between", [nn.GELU(), nn.ReLU6(), nn.Softplus(), nn.LayerNorm(12)])
def test_factors_do_not_pass_what_is_not(between):
    folds = folds_of(mlp(between), 8 * X, part="")
    assert "one" not in described(folds)
    assert described(folds)["norm"] == ["one"]


def test_a_relu6_is_passed_as_little_if_no_activation_of_the_run_reaches_six():
    assert "one" not in described(folds_of(mlp(nn.ReLU6()), X, part=""))


class Mixed(nn.Module):
    """Another function for the first three channels, ReLU for the rest."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return torch.cat([self.function(x[..., :3]), x[..., 3:].relu()], -1)


def with_dead_channels(between):
    model = mlp(between)
    with torch.no_grad():
        model.one.bias[:3], model.one.bias[3:] = -100.0, 3.0
    return model


@torch.no_grad()
def test_channels_that_relu_makes_zero_in_the_run_are_in_the_link_and_the_fold_is_exact_where_they_wake_up():
    model = with_dead_channels(nn.ReLU())
    # For the first norm, whose outputs have a deviation of 1 whatever comes in.
    model.norm.weight.mul_(100)
    woken = torch.randn(200, 8, generator=torch.Generator().manual_seed(5))
    asleep = next(own[None] for own in woken if bool((model.one(model.norm(own))[:3] < 0).all()))
    fold = fold_called(folds_of(model, asleep, part=""), "one")
    assert fold.link.channels[:3].tolist() == [0, 1, 2]
    expected = model(woken)
    assert bool((model.one(model.norm(woken))[:, :3] > 0).any(0).all())
    fold.fold(np.exp2(np.arange(12) % 5))
    assert torch.equal(model(woken), expected)


@pytest.mark.parametrize("channels", [[11], [0, 1, 2]], ids=["one", "several"])
@torch.no_grad()
def test_channels_that_one_of_many_rows_wakes_up_are_in_the_link(channels):
    model, many = mlp(nn.ReLU()), X.repeat(50, 1)
    model.norm = nn.Identity()
    model.one.bias[channels], model.one.weight[channels] = -1.0, 0.0
    model.one.weight[channels, 0] = 1.0
    many[:, 0] = -9.0
    many[777, 0] = 30.0  # every tenth row is compared, and this is none of them
    assert (model.one(many)[:, channels] > 0).sum() == len(channels)
    link = fold_called(folds_of(model, many, part=""), "one").link
    assert link.channels.tolist() == list(range(12))


@pytest.mark.parametrize(
    "function",
    [
        nn.ReLU6(),  # numbers above 0 show it
        lambda x: x.relu() - (-x - 200).relu(),  # numbers far below 0
        torch.zeros_like,  # what no number passes is linked to nothing
    ],
)
def test_channels_that_another_function_makes_zero_in_the_run_stay_as_they_are(function):
    link = fold_called(folds_of(with_dead_channels(Mixed(function)), X, part=""), "one").link
    assert link.channels.tolist() == [-1, -1, -1, *range(3, 12)]


def test_a_flattened_convolution_is_linked_to_each_position_of_the_layer_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5)).eval()
    (fold,) = folds_of(model, torch.randn(6, 3, 5, 5), part="")
    assert (fold.link.producer, fold.link.consumers) == ("0", ("3",))
    assert fold.link.channels.tolist() == [place // 9 for place in range(36)]


class Depthwise(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 2, groups=2), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1),
        )  # fmt: skip
        self[6].running_mean.normal_()
        self.eval()


def test_convolutions_are_linked_whatever_their_groups():
    folds = folds_of(Depthwise(), torch.randn(2, 3, 6, 6), part="")
    # A BatchNorm subtracts what it has stored: its own gain divides, not what is before it.
    assert {fold.link.producer: fold.link.consumers for fold in folds} == {
        "0": ("2",), "2": ("4",), "4": ("5",), "6": ("7",)
    }  # fmt: skip


class ReadTwice(Mlp):
    def forward(self, x):
        hidden = self.between(self.one(self.norm(x)))
        return self.two(hidden) + hidden.sum(-1, keepdim=True)


class SharesItsWeight(Mlp):
    def __init__(self, between):
        super().__init__(between, width=8)
        self.two.weight = self.one.weight


class ReadsAnotherLayersWeight(Mlp):
    """The weight of a consumer is read past its forward."""

    def forward(self, x):
        return super().forward(x) + self.two.weight.sum()


class Sometimes(Mlp):
    """A layer that may read the same channels, for inputs that the run has none of."""

    def __init__(self, between):
        super().__init__(between)
        self.expert = nn.Linear(12, 8)

    def forward(self, x):
        hidden = self.between(self.one(self.norm(x)))
        return x + (self.expert if x.sum() > 1e6 else self.two)(hidden)


@pytest.mark.parametrize("kind", [ReadTwice, SharesItsWeight, ReadsAnotherLayersWeight, Sometimes])
def test_a_layer_whose_output_something_else_reads_or_may_read_has_no_link(kind):
    torch.manual_seed(0)
    assert "one" not in described(folds_of(kind(nn.ReLU()).eval(), X, part=""))


def test_a_consumer_without_effect_proves_nothing_and_is_not_linked():
    model = mlp(nn.ReLU())
    nn.init.zeros_(model.two.weight)
    assert "one" not in described(folds_of(model, X, part=""))


@pytest.mark.parametrize("producer", ["norm", "one"])
def test_a_fold_of_any_factors_leaves_the_function_and_taken_back_every_bit(producer):
    model = mlp(nn.ReLU())
    before, expected = copy.deepcopy(model.state_dict()), model(X)
    fold = fold_called(folds_of(model, X, part=""), producer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    factors = np.random.RandomState(0).uniform(0.1, 10, fold.link.outputs)
    undo = fold.fold(factors)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    following = {"norm": "one", "one": "two"}[producer]
    assert changed == [f"{producer}.weight", f"{producer}.bias", f"{following}.weight"]
    # Each weight is rounded once more.
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-5)
    exchange(undo)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_columns_under_other_factors_change_the_output():
    model = mlp(nn.ReLU())
    expected, fold = model(X), fold_called(folds_of(model, X, part=""), "one")
    factors = np.exp2(np.arange(12) % 3)
    fold.fold(factors, np.roll(factors, 1))
    assert not torch.allclose(model(X), expected, rtol=0.1)
