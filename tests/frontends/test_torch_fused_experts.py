"""Experts in one parameter become layers: found by a run, measured on their tokens, put back where none changed."""

import copy

import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.frontends.torch.expert_stack import FusedExperts
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.fused_experts import experts_apart
from fewbit.frontends.torch.layers import find_layers

WIDTH, INNER, EXPERTS = 16, 24, 4
#: One product a layer instead of one for all, in float32: sums in another order.
SUMS = {"rtol": 1e-4, "atol": 1e-5}
#: Layers of an expert: under the names that checkpoints have for them, if they keep experts apart.
OWN = {
    "Mixtral": {"3.w1": (INNER, WIDTH), "3.w3": (INNER, WIDTH), "3.w2": (WIDTH, INNER)},
    "GptOss": {"gate_up_proj.3": (2 * INNER, WIDTH), "down_proj.3": (WIDTH, INNER)},
}
#: `_experts_implementation` of transformers.
WAYS = ["eager", "grouped_mm", "batched_mm"]
_SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
}  # fmt: skip


def model_of(family, way="eager"):
    torch.manual_seed(0)
    own = {"GptOss": {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}}.get(family, {})
    config = getattr(transformers, f"{family}Config")(**_SHAPE, **own)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # of GptOss some are without numbers, and routers would tie
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias, std=0.1)
    model.set_experts_implementation(way)
    return model


def tokens(number=3, shape=(2, 48)):
    return [torch.randint(3, 300, shape, generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


class Dense(nn.Module):
    """Every expert on every token, weighed by the router, as in Llama 4; `use` says how the parameter is used."""

    def __init__(self, use):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))
        self.use = use

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        return x + (self.use(x, self.weight) * shares.T[:, :, None]).sum(0)


USES = {
    "bmm": lambda x, w: torch.bmm(x.expand(EXPERTS, -1, -1), w),
    "loop": lambda x, w: torch.stack([x @ own for own in w]),
    "linear": lambda x, w: torch.stack([nn.functional.linear(x, w[number]) for number in range(len(w))]),
    "converted": lambda x, w: torch.stack([x @ w[number].to(x.dtype).T for number in range(w.shape[0])]),
    "weight first": lambda x, w: torch.stack([(w[number - EXPERTS] @ x.T).mT for number in range(EXPERTS)]),
}
STRANGE = {
    "einsum": lambda x, w: torch.einsum("ni,eij->enj", x, w),
    "scaled": lambda x, w: torch.bmm(x.expand(EXPERTS, -1, -1), w * 2.0),
    "both ways": lambda x, w: torch.stack([x @ w[0], x @ w[1].T, x @ w[2], x @ w[3]]),
}


def dense(use):
    torch.manual_seed(0)
    return Dense(use).eval()


def rows(number=3, count=40):
    return [torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(number)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_apart_the_model_computes_the_same_and_is_put_back(family, way):
    model, batch = model_of(family, way), tokens(1)[0]
    names, expected = list(model.state_dict()), model(batch).logits
    with experts_apart(model, lambda: None) as said:
        assert not said
        layers = {layer.name: layer for layer in find_layers(model) if layer.expert}
        torch.testing.assert_close(model(batch).logits, expected, **SUMS)
        stack = model.model.layers[0].mlp.experts.gate_up_proj
        assert isinstance(stack, FusedExperts)
        # The axes are told by the products: both families store them the other way round.
        assert stack.outputs_first == (family == "Mixtral")
    shapes = {name.removeprefix("model.layers.1.mlp.experts."): layer.shape for name, layer in layers.items()}
    assert len(layers) == 2 * len(OWN[family]) * EXPERTS
    assert OWN[family].items() <= shapes.items()
    assert list(model.state_dict()) == names
    assert torch.equal(model(batch).logits, expected)


@pytest.mark.parametrize("use", USES)
def test_home_made_products_are_seen_and_the_gate_beside_them_is_a_router(use):
    model, batch = dense(USES[use]), rows(1)[0]
    expected = model(batch)
    with experts_apart(model, lambda: batch) as said:
        assert not said
        torch.testing.assert_close(model(batch), expected, **SUMS)
        found = {layer.name: layer.kind for layer in find_layers(model)}
        assert found == {"gate": "router"} | {f"weight.{number}": "linear" for number in range(EXPERTS)}
        assert model.weight.shape == (EXPERTS, WIDTH, WIDTH)
        assert (model.weight.dtype, model.weight.ndim, len(model.weight)) == (torch.float32, 3, EXPERTS)


@pytest.mark.parametrize("use", STRANGE)
def test_other_uses_stay_float_and_the_plan_and_the_report_say_so(use):
    model, data = dense(STRANGE[use]), rows()
    before, expected = model.weight.detach().clone(), model(data[0])
    recipe = fb.Recipe([fb.Rule(".*", weight="int8")])
    said = f"weight: {EXPERTS}x{WIDTH}x{WIDTH} stays float: it is used otherwise than as a matrix for each expert"
    assert said in fb.plan(model, recipe, batch=data[0]).adaptations
    report = fb.quantize(model, recipe, calibration=data).report
    assert said in report.adaptations
    assert [layer.name for layer in report.layers] == ["gate"]
    assert torch.equal(model.weight, before)
    assert model(data[0]).shape == expected.shape


def test_without_a_run_or_a_use_in_it_they_stay_float_and_that_is_said():
    model = dense(USES["bmm"])
    recipe = fb.Recipe([fb.Rule(".*", weight="int8")])
    [said] = fb.plan(model, recipe).adaptations
    assert said.endswith("its use shows in a run of the model only; give a batch, or calibration batches")
    model.use = lambda x, w: x.expand(EXPERTS, -1, -1)
    [said] = fb.plan(model, recipe, batch=rows(1)[0]).adaptations
    assert said.endswith("stays float: no product of a run of the model uses it")


def test_code_that_takes_nothing_but_a_parameter_keeps_it():
    def use(x, w):
        if not isinstance(w, nn.Parameter):
            raise TypeError("a parameter, please")
        return torch.bmm(x.expand(EXPERTS, -1, -1), w)

    report = fb.quantize(dense(use), fb.Recipe([fb.Rule(".*", weight="int8")]), calibration=rows()).report
    [said] = report.adaptations
    assert said.endswith("stays float: a run that watches it fails (TypeError: a parameter, please)")


def test_a_plan_lists_every_expert_and_leaves_the_model_alone():
    model = model_of("Mixtral")
    names = list(model.state_dict())
    made = fb.plan(model, "w4a16")
    assert sum(".experts." in row.layer.name for row in made.rows) == 2 * 3 * EXPERTS
    assert list(model.state_dict()) == names
    # Everything is counted once.
    assert made.bytes_before == 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_the_second_moments_of_an_expert_are_those_of_its_tokens(way):
    model, data = model_of("Mixtral", way), tokens()
    mixture = model.model.layers[0].mlp
    given = []
    hook = mixture.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    for batch in data:
        model(batch)
    hook.remove()
    x = torch.cat([own.reshape(-1, WIDTH) for own in given])
    chosen = mixture.gate(x)[2]
    gates, downs = (own.detach().clone() for own in (mixture.experts.gate_up_proj, mixture.experts.down_proj))
    frontend, seen = TorchFrontend(), {}
    with experts_apart(model, lambda: None):
        layers = [layer for layer in frontend.layers(model) if layer.expert]
        wanted = {layer.name: ("second_moment",) for layer in layers}
        for stage in frontend.calibrate(model, layers, wanted, data, sequential=True):
            for part in stage:
                seen |= part.statistics
    for number in range(EXPERTS):
        own = x[(chosen == number).any(-1)]
        gate, up = (own @ gates[number].T).chunk(2, -1)
        for name, inputs in {"w1": own, "w3": own, "w2": nn.functional.silu(gate) * up}.items():
            found = seen[f"model.layers.0.mlp.experts.{number}.{name}"]["second_moment"]
            assert found.count == len(own) > 0
            torch.testing.assert_close(found.result(), inputs.T @ inputs / len(own), **SUMS)
    assert downs.shape == (EXPERTS, WIDTH, INNER)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_the_quantized_model_computes_what_its_dequantized_numbers_say(family, way):
    model, batch = model_of(family, way), tokens(1)[0]
    report = fb.quantize(model, "w4a16", calibration=tokens()).report
    assert all(layer.becomes.startswith("int4") for layer in report.layers if ".experts." in layer.name)
    # The oracle: a float model with these numbers in its parameters.
    oracle = model_of(family, way)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, FusedExperts):
                parameter = oracle.get_parameter(name)
                for number in range(EXPERTS):
                    weight = torch.cat([layer.weight for layer in module.layers(number)])
                    weight = weight if family == "Mixtral" else weight.T
                    assert not torch.equal(parameter[number], weight)
                    parameter[number] = weight
            elif hasattr(module, "qtensor") and ".experts." not in name:
                oracle.get_submodule(name).weight.copy_(module.weight)
    torch.testing.assert_close(model(batch).logits, oracle(batch).logits, **SUMS)


def test_a_state_dict_loads_into_a_fresh_model_of_the_recipe():
    model, batch = model_of("Mixtral"), tokens(1)[0]
    fb.quantize(model, "w4a16", calibration=tokens())
    fresh = model_of("Mixtral")
    fb.quantize(fresh, "w4a16", calibration=tokens(1))
    assert not torch.equal(fresh(batch).logits, model(batch).logits)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(batch).logits, model(batch).logits)
    assert torch.equal(copy.deepcopy(model)(batch).logits, model(batch).logits)


def test_an_expert_without_tokens_is_rounded_without_data_and_listed():
    model = model_of("GptOss")
    with torch.no_grad():
        model.model.layers[0].mlp.router.bias[2] = -1e4
    report = fb.quantize(model, "w4a16", calibration=tokens()).report
    for part in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{part}.2"
        assert f"{name}: no calibration input reached it: rounded without data" in report.remarks


def test_gptq_leaves_less_error_in_the_output_than_nearest():
    held_out, errors = tokens(5)[3:], {}
    wanted = [model_of("Mixtral")(batch).logits for batch in held_out]
    for algorithm in ("nearest", "gptq"):
        model = model_of("Mixtral")
        recipe = fb.Recipe([fb.Rule(r".*\.experts\..*", weight="int3 g8", algorithm=algorithm)])
        fb.quantize(model, recipe, calibration=tokens() if algorithm == "gptq" else None)
        found = [model(batch).logits for batch in held_out]
        errors[algorithm] = sum(float((a - b).square().sum().detach()) for a, b in zip(found, wanted, strict=True))
    assert errors["gptq"] < 0.8 * errors["nearest"]


@pytest.mark.parametrize("transform", ["awq", "smoothquant", "equalization"])
def test_transforms_move_numbers_between_the_layers_of_an_expert(transform):
    model, batch = model_of("Mixtral"), tokens(1)[0]
    expected = model(batch).logits
    rule = fb.Rule(r".*\.experts\..*", weight="int16 channel", input="int16" if transform == "smoothquant" else None)
    report = fb.quantize(model, fb.Recipe([rule], transforms=[transform]), calibration=tokens()).report
    noted = {layer.name for layer in report.layers if any(note.startswith(transform) for note in layer.notes)}
    # The gate is read by no layer, and no factor may come into it.
    assert any(name.endswith(".w2") for name in noted)
    assert not any(name.endswith(".w1") for name in noted)
    torch.testing.assert_close(model(batch).logits, expected, rtol=0.0, atol=0.02 * float(expected.std().detach()))


def test_where_no_expert_is_quantized_the_parameters_stay():
    model = model_of("GptOss")
    names, numbers = list(model.state_dict()), model.model.layers[0].mlp.experts.down_proj.detach().clone()
    recipe = fb.Recipe([fb.keep(r".*\.experts\..*"), fb.Rule(kind="linear", weight="int8")])
    fb.quantize(model, recipe)
    assert [name for name in names if ".experts." in name] == [name for name in model.state_dict() if "experts" in name]
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj, numbers)
