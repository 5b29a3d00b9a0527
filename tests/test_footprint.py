"""The bytes that a plan promises are the bytes that a state_dict holds."""

import pytest
import torch

import fewbit as fb


@pytest.mark.parametrize(
    "scheme", ["int4 g16", "int3 g16 asym", "int8 tensor", "e4m3", "mxfp4", "nvfp4", "nf4-double", "fp16", "bf16"]
)
def test_a_plan_without_a_target_counts_what_a_state_dict_holds(scheme):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 40, bias=False))
    result = fb.quantize(model, fb.Recipe([fb.Rule("0", weight=scheme)]))
    state = result.model.state_dict()
    del state["0.weight_scheme"]  # the notation, a few bytes that no plan counts
    assert sum(tensor.nbytes for tensor in state.values()) == result.plan.rows[0].bytes_after


def test_a_bias_in_int32_is_counted_with_its_layer_and_no_more_with_the_rest():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 40), torch.nn.Linear(40, 8))
    rules = [fb.Rule("0", weight="int8", input="int8 static", bias="int32"), fb.Rule("1", weight="int8")]
    result = fb.quantize(model, fb.Recipe(rules), calibration=[torch.randn(5, 64)])
    first, second = result.plan.rows
    kept = ("0.weight_codes", "0.weight_scale", "0.bias_codes")  # a plan counts no static range, nor the notation
    assert first.bytes_after == sum(result.model.state_dict()[name].nbytes for name in kept)
    assert first.bytes_before == 4 * (64 * 40 + 40)
    assert second.bytes_before == 4 * 40 * 8
    assert [tensor.name for tensor in result.plan.rest] == ["1.bias"]
    assert result.plan.bytes_before == sum(4 * (out * width + out) for out, width in ((40, 64), (8, 40)))
