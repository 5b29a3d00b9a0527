"""The bytes that a plan promises are the bytes that a state_dict holds."""

import pytest
import torch

import fewbit as fb


@pytest.mark.parametrize("scheme", ["int4 g16", "int3 g16 asym", "int8 tensor", "e4m3", "mxfp4", "nvfp4", "nf4-double"])
def test_a_plan_without_a_target_counts_what_a_state_dict_holds(scheme):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 40, bias=False))
    result = fb.quantize(model, fb.Recipe([fb.Rule("0", weight=scheme)]))
    state = result.model.state_dict()
    del state["0.weight_scheme"]  # the notation, a few bytes that no plan counts
    assert sum(tensor.nbytes for tensor in state.values()) == result.plan.rows[0].bytes_after
