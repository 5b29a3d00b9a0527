"""What GPTQ and AWQ files do not hold is a problem of the plan, with the reason."""

import pytest
from torch import nn

import fewbit as fb

GPTQ = {
    "another width": (nn.Linear(64, 12), "int4 g32", "out_features 12 is not a multiple of 8, which fill GPTQ's words"),
    "inputs that fill no word": (nn.Linear(20, 32), "int4 channel", "in_features 20 is not a multiple of 8, which"),
    "three bits": (nn.Linear(64, 24), "int3 g32", "out_features 24 is not a multiple of 32, which fill GPTQ's words"),
    "five bits": (nn.Linear(64, 32), "int5 g32", "GPTQ has no layout for 'int5 g32'; use int2, int3, int4, int8"),
    "floats": (nn.Linear(64, 32), "e4m3", "GPTQ has no layout for 'e4m3 channel'"),
    "zero points between codes": (nn.Linear(64, 32), "int4 g32 float-zero", "GPTQ has no layout for"),
    "one scale for all": (nn.Linear(64, 32), "int4 tensor", "runtimes load GPTQ weights by channel, g16, g32, g64"),
    "groups of 8": (nn.Linear(64, 32), "int4 g8", "runtimes load GPTQ weights by channel, g16, g32, g64, g128"),
    "an embedding": (nn.Embedding(32, 64), "int4 g32", "GPTQ files hold Linear modules only, and this one is of class"),
}  # fmt: skip
AWQ = {
    "another width": (nn.Linear(64, 12), "int4 g32", "out_features 12 is not a multiple of 8, which fill AWQ's words"),
    "other bits": (nn.Linear(64, 32), "int8 g32", "AWQ has no layout for 'int8 g32'; use int4, with float scales"),
    "no groups": (nn.Linear(64, 32), "int4 channel", "runtimes load AWQ weights by g16, g32, g64, g128, not 'int4"),
    "a convolution": (nn.Conv2d(64, 32, 1), "int4 g32", "AWQ files hold Linear modules only, and this one is of class"),
}  # fmt: skip
REFUSED = {("gptq", case): own for case, own in GPTQ.items()} | {("awq", case): own for case, own in AWQ.items()}


@pytest.mark.parametrize(("to", "case"), REFUSED)
def test_what_a_layout_does_not_hold_is_a_problem_of_the_plan(to, case):
    layer, weight, message = REFUSED[to, case]
    made = fb.plan(nn.Sequential(layer), fb.Recipe([fb.Rule(".*", weight=weight)]), to=to)
    assert len(made.problems) == 1
    assert made.problems[0].startswith(f"0: {message}")


def test_rounded_inputs_are_a_problem_of_the_plan():
    recipe = fb.Recipe([fb.Rule("0", weight="int8", input="int8")])
    problem = fb.plan(nn.Sequential(nn.Linear(64, 32)), recipe, to="gptq").problems[0]
    assert problem == "0: GPTQ files round no input, and here is 'int8 token asym'; leave out `input`"
