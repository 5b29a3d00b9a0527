"""Products inside attention rounded in training: their ranges are trained, and are those of what comes out."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.frontends.torch.rounded_product import RoundedProduct
from fewbit.training.gradients import GRADIENTS

SCHEMES = ["int8 static", "int8 static sym", "e4m3 static", "int8", "mxfp8"]


class Attention(nn.Module):
    """Four heads of eight numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        return self.out((torch.softmax(q @ k.mT / math.sqrt(8), -1) @ v).transpose(1, 2).flatten(2))


def draw(count=4):
    return torch.randn(count, 7, 32, generator=torch.Generator().manual_seed(1))


def recipe(scheme, **further):
    return fb.Recipe([fb.Rule(kind="attention", input=scheme), fb.Rule(kind="linear", weight="int8", **further)])


def trained(model, steps=3, rate=1e-2):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(draw()).square().mean().backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def outputs(model):
    return model(draw())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_finished_products_are_those_that_training_has_computed(scheme, gradient):
    model = fb.prepare_qat(Attention(), recipe(scheme), training=fb.Training(gradient=gradient), batch=draw())
    trained(model)
    seen = outputs(model)
    fresh = fb.quantize(Attention(), recipe(scheme), calibration=[draw()])
    result = fb.finish_qat(model)
    assert torch.equal(outputs(result.model), seen)
    assert {own for own, _ in result.model.named_modules()} == {own for own, _ in fresh.model.named_modules()}
    assert list(result.model.state_dict()) == list(fresh.model.state_dict())
    said = "operands of 2 products inside attention are rounded; softmax, norms and sums stay float"
    assert said in result.report.remarks
    assert [row.becomes for row in result.plan.rows] == [row.becomes for row in fresh.plan.rows]


def test_static_ranges_are_learned_and_the_result_has_the_very_same():
    model = fb.prepare_qat(Attention(), recipe("int8 static"), batch=draw())
    quantizer = model.query_key.key
    before = quantizer.activation.scale.clone()
    trained(model)
    learned = quantizer.activation
    assert quantizer.range.scale.grad.abs() > 0
    assert learned.scale != before
    found = fb.finish_qat(model).model.query_key.key.activation
    assert (found.scale, found.zero_point) == (learned.scale, learned.zero_point)
    assert "query_key.key.scale" in model.state_dict()


def test_averaged_ranges_begin_as_those_of_calibration():
    training = fb.Training(gradient="straight-through")
    asked = fb.Recipe([fb.Rule(kind="attention", input="int8 static minmax"), fb.keep(kind="linear")])
    calibrated = fb.quantize(Attention(), asked, calibration=[draw()]).model
    model = fb.finish_qat(fb.prepare_qat(Attention(), asked, training=training, batch=draw())).model
    # What goes into the second product has gone through the first, which calibration leaves float.
    for own, other in zip(model.query_key.children(), calibrated.query_key.children(), strict=True):
        assert own.activation.scale == other.activation.scale
        assert own.activation.zero_point == other.activation.zero_point


def test_gradients_reach_what_lies_before_the_products():
    model = fb.prepare_qat(Attention(), recipe("int8"), batch=draw())
    model.train()(draw()).square().mean().backward()
    assert bool((model.project.parametrizations.weight.original.grad.abs().sum(1) > 0).all())


def test_a_run_goes_on_from_a_state_dict_and_a_copy_is_apart():
    first = trained(fb.prepare_qat(Attention(), recipe("int8 static"), batch=draw()))
    second = fb.prepare_qat(Attention(), recipe("int8 static"), batch=2 * draw()).eval()
    assert not torch.equal(outputs(second), outputs(first))
    second.load_state_dict(first.state_dict())
    seen = outputs(first)
    assert torch.equal(outputs(second), seen)
    other = trained(copy.deepcopy(first))
    assert not torch.equal(outputs(other), seen)
    assert torch.equal(outputs(first), seen)
    assert torch.equal(outputs(fb.finish_qat(first).model), seen)
    assert any(isinstance(own, RoundedProduct) for own in other.modules())


def test_a_finished_model_without_rounded_products_has_its_own_forward():
    model = fb.prepare_qat(Attention(), recipe("int8"), batch=draw())
    assert "forward" in model.__dict__
    model.__dict__["fewbit_prepared"].remove()
    assert "forward" not in model.__dict__
    assert torch.equal(outputs(model), outputs(Attention()))


@pytest.mark.parametrize("scheme", ["int8", "nf4 g32"])
def test_a_weight_that_is_rounded_anew_is_no_operand(scheme):
    # The Conv1D of GPT-2 multiplies by its weight in the call of the module that makes the products.
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 300, "n_positions": 64}
    quiet = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **quiet))
    rules = [fb.Rule(kind="attention", input="int8 static"), fb.Rule(kind="linear", weight=scheme)]
    fb.prepare_qat(model, fb.Recipe([*rules, fb.keep(kind="head")]))
    called = []
    for name, own in model.named_modules():
        if isinstance(own, RoundedProduct):
            own.register_forward_hook(lambda *_, name=name: called.append(name))
    tokens = torch.randint(0, 300, (2, 9))
    model.train()(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    roles = ("query_key", "probabilities_value")
    assert called == [f"transformer.h.{layer}.attn.{role}" for layer in range(2) for role in roles]


def test_the_fused_encoder_of_torch_is_trained_too():
    def encoder():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

    rules = [fb.Rule(kind="attention", input="int8 static"), fb.keep(kind="linear")]
    model = trained(fb.prepare_qat(encoder(), fb.Recipe(rules), batch=draw()))
    seen = outputs(model)
    assert torch.equal(outputs(fb.finish_qat(model).model), seen)


def test_a_compiled_step_computes_what_an_eager_one_does():
    found = []
    for compiled in (False, True):
        model = fb.prepare_qat(Attention(), recipe("int8 static"), batch=draw())
        own = torch.compile(model, backend="aot_eager") if compiled else model
        trained(own)
        found.append(outputs(model))
    # The compiler may sum gradients in another order.
    assert torch.allclose(*found, atol=1e-5)
