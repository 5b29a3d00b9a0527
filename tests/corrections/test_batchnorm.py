"""BatchNorm re-estimation: norms learn what the quantized layers before them put out, in modules and graphs alike."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import fewbit as fb
from fewbit.corrections.batchnorm import ReestimateBatchNorm
from fewbit.errors import CalibrationError, PlanError
from fewbit.interfaces import frontend_of

RULES = [fb.Rule(".*", weight="int3 tensor")]
BUFFERS = ("running_mean", "running_var")


def quantized(model, batches, corrections=("batchnorm",), **further):
    return fb.quantize(model, fb.Recipe(RULES, corrections=corrections), calibration=batches, **further)


def buffers(net):
    return {name: own.clone() for name, own in net.named_buffers() if name.endswith(BUFFERS)}


def test_norms_have_the_cumulative_average_that_torch_computes(depthwise_nets):
    net, _, batches = depthwise_nets()
    plain = quantized(copy.deepcopy(net), batches, ()).model
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    update_bn(batches, plain)
    found = buffers(quantized(net, batches).model)
    assert found.keys() == buffers(plain).keys()
    for name, own in buffers(plain).items():
        assert torch.equal(found[name], own)


def test_outputs_come_nearer_to_those_of_the_float_model(depthwise_nets):
    net, _, batches = depthwise_nets()
    plain, own = (
        quantized(copy.deepcopy(net), batches, given, evaluation=batches).report for given in ((), ("batchnorm",))
    )
    assert own.output_sqnr > plain.output_sqnr + 1
    assert "correction batchnorm: means and variances of 4 BatchNorms were re-estimated on 3 batches" in own.remarks


def test_modes_momenta_and_counts_of_norms_stay(depthwise_nets):
    net, _, batches = depthwise_nets()
    net.norm1.momentum = 0.3
    counted = int(net.norm1.num_batches_tracked)
    quantized(net.train(), batches)
    assert net.norm1.training
    assert net.norm1.momentum == 0.3
    assert int(net.norm1.num_batches_tracked) == counted


def test_the_numbers_are_such_as_a_file_in_16_bits_holds(depthwise_nets):
    net, _, batches = depthwise_nets()
    for own in buffers(quantized(net, batches, dtype="bfloat16").model).values():
        assert torch.equal(own, own.bfloat16().float())


def test_graphs_see_what_modules_see_and_so_do_their_files(depthwise_nets, tmp_path):
    net, graph, batches = depthwise_nets()
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    arrays = [batch.numpy() for batch in batches]
    result = quantized(str(path), arrays, evaluation=arrays)
    expected = quantized(net, batches).model
    held = {name: values.const_value.numpy() for name, values in result.model.graph.graph.initializers.items()}
    for name, own in buffers(expected).items():
        # float32 means over 16 x 49 numbers, in another order.
        np.testing.assert_allclose(held[name], own.numpy(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        wanted = expected(batches[0]).numpy()
    np.testing.assert_allclose(frontend_of("onnx").run(result.model, arrays[0])["y"], wanted, rtol=1e-3, atol=1e-4)
    assert "correction batchnorm: means and variances of 4 BatchNorms were re-estimated on 3 batches" in (
        result.report.remarks
    )
    session = onnxruntime.InferenceSession(result.save(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": arrays[0]})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_model_without_norms_says_what_the_remedy_is():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    report = quantized(model, [torch.randn(4, 1, 9, 9)]).report
    assert any("folded are repaired by correction bias" in text for text in report.remarks)


def test_a_norm_that_no_batch_reaches_stays_and_is_named(depthwise_nets):
    net, _, batches = depthwise_nets()
    net.idle = nn.BatchNorm2d(3)
    report = quantized(net, batches).report
    assert "correction batchnorm: idle: no calibration input reached it, so it stays as it was" in report.remarks
    assert net.idle.running_var.tolist() == [1.0, 1.0, 1.0]


def test_a_batch_of_one_number_a_channel_is_refused_and_the_model_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match="one number a channel, which has no variance; give larger batches"):
        quantized(model, [torch.randn(1, 4)])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folding_and_re_estimating_do_not_go_together(depthwise_nets):
    net, _, batches = depthwise_nets()
    recipe = fb.Recipe(RULES, transforms=["batchnorm"], corrections=["batchnorm"])
    with pytest.raises(PlanError, match="leave out one, and with folded norms use correction bias"):
        fb.quantize(net, recipe, calibration=batches)


def test_without_data_it_is_an_error_that_says_so(depthwise_nets):
    net, _, _ = depthwise_nets()
    with pytest.raises(PlanError, match="needs calibration data"):
        quantized(net, None)


def test_recipes_name_it():
    recipe = fb.Recipe.from_text('corrections = ["batchnorm"]\n[[rules]]\nmatch = ".*"\nweight = "int8"')
    assert recipe.corrections == (ReestimateBatchNorm(),)
