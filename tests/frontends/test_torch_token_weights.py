"""What a row counts is the squared gradient that autograd finds at the layer's output; nothing is left behind."""

from functools import partial

import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.errors import RecipeError
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.token_weights import GradientRun, TokenWeights

UNKNOWN = (
    "no gradient at its output is known, since it is an expert, is called several times or the model cannot be "
    "differentiated: every row of its input counts alike"
)
BATCHES = list(torch.randint(0, 90, (3, 2, 10), generator=torch.Generator().manual_seed(0)))


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def measured(model, **options):
    run = GradientRun(LossGradient.of(model, find_layers(model)), find_layers(model), BATCHES, **options)
    assert len(run) == len(list(run)) == 3
    return run.weights


def by_autograd(model, names):
    """Gradients of all outputs of the layers, kept by autograd, of the cross-entropy of labels drawn alike."""
    found = {name: [] for name in names}
    for number, batch in enumerate(BATCHES):
        draw = torch.Generator().manual_seed(number)
        outputs = {}

        def keep(name, outputs, module, args, output):
            output.retain_grad()
            outputs[name] = output

        hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name, outputs)) for name in names]
        logits = model(batch, use_cache=False).logits
        flat = logits.reshape(-1, 90)
        shares = torch.cat([torch.rand(len(rows), generator=draw) for rows in flat.split(64)]).double()
        labels = (flat.detach().double().softmax(-1).cumsum(-1) <= shares[:, None]).sum(-1)
        nn.functional.cross_entropy(flat, labels, reduction="sum").backward()
        for name in names:
            found[name].append(outputs[name].grad.square().mean(-1).flatten())
        for hook in hooks:
            hook.remove()
    return {name: [own / torch.cat(grads).mean() for own in grads] for name, grads in found.items()}


def test_weights_are_the_squared_gradients_of_the_cross_entropy():
    model = llama()
    found = measured(model)
    names = [layer.name for layer in find_layers(model) if layer.kind == "linear"]
    expected = by_autograd(llama(), names)
    assert len(names) == 21
    for name in names:
        for own, other in zip(found.by_layer[name], expected[name], strict=True):
            # Blocks are run a second time on the way back; sums of float32 in another order.
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)
    spread = torch.cat(list(expected["model.layers.0.mlp.down_proj"]))
    assert spread.max() > 2 * spread.min()  # else there is nothing to guide by


def test_rows_of_a_blocks_output_count_by_the_gradient_there():
    """What a block adds last goes into its output as it is, so that both have one gradient."""
    blocks = [f"model.layers.{number}" for number in range(3)]
    found = measured(llama(), wanted=[f"{name}.mlp.down_proj" for name in blocks], blocks=blocks)
    assert found.by_layer.keys() == {*blocks, *(f"{name}.mlp.down_proj" for name in blocks)}
    for name in blocks:
        for own, other in zip(found.of_block(name), found.by_layer[f"{name}.mlp.down_proj"], strict=True):
            assert torch.equal(own, other)
    assert not torch.equal(found.of_block(blocks[0])[0], found.of_block(blocks[1])[0])
    assert measured(llama()).of_block(blocks[0]) is None


def test_the_model_is_left_as_it_was():
    model = llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.train()
    measured(model)
    assert model.training
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(own.grad is None for own in model.parameters())
    still = [name for name, own in model.named_parameters() if not own.requires_grad]
    assert still == ["model.embed_tokens.weight"]


def test_layers_that_share_an_input_are_averaged():
    weights = TokenWeights({"q": [torch.tensor([1.0, 3.0])], "k": [torch.tensor([3.0, 1.0])]})
    assert weights.of(["q", "k", "v"], 0).tolist() == [2.0, 2.0]
    assert weights.of(["q"], 0).tolist() == [1.0, 3.0]
    assert weights.of(["v"], 0) is None
    assert weights.of(["q"], 1) is None


class Gated(nn.Module):
    """Only tokens whose first number is positive reach the output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return self.second(self.first(x).relu_()) * (x[..., :1] > 0)


def gated_batches():
    """Most tokens do not count, and lie in other directions than those that do."""
    torch.manual_seed(1)
    batches = []
    for _ in range(8):
        x = torch.randn(64, 16)
        counts = torch.arange(64) % 8 == 0
        x[counts, 8:], x[~counts, 1:8] = 0.0, 0.0
        x[:, 0] = torch.where(counts, 1.0, -1.0)
        batches.append(x)
    return batches


@pytest.mark.parametrize("sequential", [True, False])
def test_guided_gptq_loses_less_of_what_reaches_the_output(sequential):
    torch.manual_seed(0)
    float_model, batches = Gated().eval(), gated_batches()
    errors = {}
    for guided in (False, True):
        torch.manual_seed(0)
        rule = fb.Rule(kind="linear", weight="int2 channel", algorithm=fb.Gptq(guided=guided))
        calibration = fb.Calibration(data=batches, sequential=sequential)
        result = fb.quantize(Gated().eval(), fb.Recipe([rule]), calibration=calibration)
        assert not any(layer.remarks for layer in result.report.layers)
        with torch.no_grad():
            errors[guided] = sum(float((result.model(x) - float_model(x)).square().sum()) for x in batches)
    # An eighth of the tokens counts, in directions of their own, and two bits leave much to gain: 0.7 leaves room.
    assert errors[True] < 0.7 * errors[False]


def test_what_gradients_weigh_is_damped_more_unless_a_recipe_says_how_much():
    dampings = {}
    for options in ({"guided": False}, {"guided": True}, {"guided": True, "damping": 0.02}):
        rule = fb.Rule(kind="linear", weight="int4 channel", algorithm=fb.Gptq(**options))
        layers = fb.quantize(Gated().eval(), fb.Recipe([rule]), calibration=gated_batches()).report.layers
        dampings[str(options)] = {layer.damping for layer in layers}
    assert list(dampings.values()) == [{0.01}, {0.15}, {0.02}]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(8, 8)

    def forward(self, x):
        return self.own(self.own(x))


def test_a_layer_that_is_called_twice_counts_rows_alike_and_says_so():
    rule = fb.Rule(kind="linear", weight="int4 channel", algorithm=fb.Gptq(guided=True))
    result = fb.quantize(Twice(), fb.Recipe([rule]), calibration=[torch.randn(20, 8)])
    (layer,) = result.report.layers
    assert layer.remarks == (UNKNOWN,)


class WithoutGradients(Twice):
    @torch.no_grad()
    def forward(self, x):
        return self.own(x)


class Interrupted(Twice):
    """Its own operation has no gradient."""

    def forward(self, x):
        return Cut.apply(self.own(x))


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, slope):
        raise NotImplementedError


@pytest.mark.parametrize("kind", [WithoutGradients, Interrupted])
def test_a_model_without_gradients_counts_rows_alike_and_says_so(kind):
    rows = [torch.randn(20, 8, generator=torch.Generator().manual_seed(0))]
    results = []
    for guided in (True, False):
        torch.manual_seed(0)
        rule = fb.Rule(kind="linear", weight="int4 channel", algorithm=fb.Gptq(guided=guided))
        results.append(fb.quantize(kind(), fb.Recipe([rule]), calibration=rows))
    assert results[0].report.layers[0].remarks == (UNKNOWN,)
    codes = [result.model.own.qtensor.codes for result in results]
    assert torch.equal(*codes)


def test_two_aims_at_once_are_refused():
    with pytest.raises(RecipeError, match="use one of them"):
        fb.Gptq(guided=True, asymmetric=True)
