"""What goes together in a recipe and what does not: a table of pairs, each planned, and run where it is sound."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms import parse_algorithm
from fewbit.errors import PlanError


class Block(nn.Module):
    def __init__(self, width, *, bias):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 48, bias=bias), nn.Linear(48, width, bias=bias)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def model(*, bias=True, normed=False):
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(32)] if normed else []
    for norm in norms:
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    blocks = [Block(32, bias=bias), Block(32, bias=bias)]
    return nn.Sequential(
        nn.Linear(32, 32, bias=bias), *norms, *blocks, nn.RMSNorm(32), nn.Linear(32, 32, bias=bias)
    ).eval()


def batches():
    return [torch.randn(40, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def recipe(weight="int4 g16", *, transforms=(), corrections=(), **rule):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight, **rule)], transforms=transforms, corrections=corrections)


NEAREST = parse_algorithm("nearest")
WEIGHTED = {"name": "nearest", "weighted": True}
#: At 4 bits it finds nothing better in so small a model than GPTQ, with which it starts, and keeps that.
AUTOROUND = {"name": "autoround", "steps": 20}
BRECQ = {"name": "brecq", "steps": 50}
#: What makes sense together.
SOUND = {
    "rotation, gptq": recipe("int4 channel", transforms=["rotation"], algorithm="gptq"),
    "rotation, smoothquant, inputs": recipe("int8", input="int8", transforms=["rotation", "smoothquant"]),
    "rotation, awq": recipe(transforms=["rotation", "awq"]),
    "awq, gptq": recipe(transforms=["awq"], algorithm="gptq"),
    "awq, learned levels": recipe("kmeans3", transforms=["awq"], algorithm="gptq"),
    "awq, hqq": recipe("int4 g16 float-zero", transforms=["awq"], algorithm="hqq"),
    "awq, autoround": recipe("int3 g16", transforms=["awq"], algorithm=AUTOROUND),
    "smoothquant, static inputs": recipe("int8", input="int8 static", transforms=["smoothquant"]),
    "smoothquant, gptq, inputs": recipe("int4 channel", input="int8", transforms=["smoothquant"], algorithm="gptq"),
    "equalization, bias correction": recipe("int8 tensor", transforms=["equalization"], corrections=["bias"]),
    "bias correction, autoround": recipe("int3 g16", corrections=["bias"], algorithm=AUTOROUND),
    "adaround, learned levels": recipe("kmeans3", algorithm="adaround"),
    "rotation, adaround, inputs": recipe("int4 channel", input="int8", transforms=["rotation"], algorithm="adaround"),
    "bias correction, adaround": recipe("int4 tensor", corrections=["bias"], algorithm="adaround"),
    "awq, brecq": recipe("nf4 g16", transforms=["awq"], algorithm=BRECQ),
    "brecq, clipping": recipe("int4 g16 clip", algorithm=BRECQ),
    "bias correction, learned levels": recipe("kmeans4", corrections=["bias"], algorithm="gptq"),
    "autoround from hqq": recipe("int4 g16 float-zero", algorithm={**AUTOROUND, "start": "hqq"}),
    "gptq, float zero": recipe("int4 g16 float-zero", algorithm="gptq"),
    "gptq, nvfp4": recipe("nvfp4", algorithm="gptq"),
    "weighted nearest, ternary": recipe("ternary g16", algorithm=WEIGHTED),
    "weighted nearest, learned levels": recipe("kmeans2", algorithm=WEIGHTED),
    "batchnorm, awq": recipe(transforms=["batchnorm", "awq"]),
}
#: What does not, and what the plan says.
SENSELESS = {
    "smoothquant, weights only": (recipe(transforms=["smoothquant"]), "no rule rounds an input to a scale; add"),
    "awq, casts": (recipe("bf16", transforms=["awq"]), "rounded to a scale, and none is; leave it out"),
    "equalization, casts": (recipe("fp16", transforms=["equalization"]), "no weight has one; leave it out"),
    "rotation, casts": (recipe("bf16", transforms=["rotation"]), "share a scale, and nothing has one; leave it out"),
    "awq twice": (recipe(transforms=["awq", "awq"]), "transform awq is there 2 times"),
    "rotation twice": (recipe(transforms=["rotation", "rotation"]), "transform rotation is there 2 times"),
    "batchnorm twice": (recipe(transforms=["batchnorm", "batchnorm"]), "transform batchnorm is there 2 times"),
    "correction twice": (recipe(corrections=["bias", "bias"]), "correction bias is there 2 times"),
    "awq, smoothquant": (
        recipe("int8", input="int8", transforms=["awq", "smoothquant"]),
        "awq and smoothquant rescale the same links, and the last would undo the others; keep one",
    ),
    "awq, equalization": (recipe(transforms=["awq", "equalization"]), "awq and equalization rescale the same links"),
    "awq, then rotation": (recipe(transforms=["awq", "rotation"]), "here it follows awq; swap them"),
    "equalization, then batchnorm": (recipe(transforms=["equalization", "batchnorm"]), "it follows equalization; swap"),
    "hqq, symmetric": (recipe(algorithm="hqq"), "use a scheme such as 'int4 g64 float-zero'"),
    "hqq, a code as zero point": (recipe("int4 g16 asym", algorithm="hqq"), "a zero point between the codes"),
    "hqq, floats": (recipe("e4m3", algorithm="hqq"), "a zero point between the codes, and 'e4m3 channel' has none"),
    "hqq, learned levels": (recipe("kmeans4", algorithm="hqq"), "and 'kmeans4 channel' has none"),
    "autoround, learned levels": (recipe("kmeans4", algorithm="autoround"), "integers of 2 to 8 bits, not 'kmeans4"),
    "autoround, nf4": (recipe("nf4 g16", algorithm="autoround"), "integers of 2 to 8 bits, not 'nf4 g16'"),
    "autoround, nvfp4": (recipe("nvfp4", algorithm="autoround"), "integers of 2 to 8 bits, not 'nvfp4'"),
    "adaround, casts": (
        recipe("bf16", algorithm="adaround"),
        "levels of up to 8 bits, not of 'bf16'; use int8 or less",
    ),
    "weighted nearest, entropy": (recipe("int4 g16 entropy", algorithm=WEIGHTED), "leave out weighted, or use mse"),
    "weighted nearest, casts": (recipe("bf16", algorithm=WEIGHTED), "leave out weighted, or use mse"),
    "int32 bias, learned levels": (recipe("kmeans4", input="int8 static", bias="int32"), "an int32 bias needs integer"),
    "bias correction, casts": (recipe("bf16", corrections=["bias"]), "correction bias has no effect"),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_a_pair_without_sense_is_a_problem_of_the_plan(name):
    made, why = SENSELESS[name]
    problems = fb.plan(model(), made).problems
    assert any(why in problem for problem in problems), problems
    with pytest.raises(PlanError):
        fb.quantize(model(), made, calibration=batches())


def without(made):
    """Yield what a recipe of one rule has, and the recipe without it."""
    for field in ("transforms", "corrections"):
        for part in getattr(made, field):
            rest = [own for own in getattr(made, field) if own is not part]
            yield part.name, replace(made, **{field: rest})
    (rule,) = made.rules
    if rule.algorithm != NEAREST:
        before = getattr(rule.algorithm, "start", "nearest")
        yield rule.algorithm.name, replace(made, rules=[replace(rule, algorithm=before)])


def solved(made, name):
    return fb.quantize(model(normed="batchnorm" in name), made, calibration=batches(), evaluation=batches())


def outputs(result):
    with torch.no_grad():
        return torch.cat([result.model(rows) for rows in batches()])


@pytest.mark.parametrize("name", SOUND)
def test_in_a_sound_pair_every_part_has_an_effect_and_the_model_keeps_its_function(name):
    result = solved(SOUND[name], name)
    # Two bits keep some 5 dB; codes or levels that went wrong keep none.
    assert all(row.weight_sqnr > 3.0 for row in result.report.quantized)
    for part, rest in without(SOUND[name]):
        other = solved(rest, name)
        assert not torch.equal(outputs(other), outputs(result)), f"{part} changes nothing"
        # Weights drawn alike give a transform nothing to gain, but one that goes wrong costs far more than a bit: 6 dB.
        assert result.report.output_sqnr > other.report.output_sqnr - 3.0, part


def test_bias_correction_without_biases_has_no_effect_and_with_some_has():
    made = recipe(corrections=["bias"])
    assert any(
        "no layer that is quantized has a bias; leave it out" in own
        for own in fb.plan(model(bias=False), made).problems
    )
    assert not fb.plan(model(), made).problems
