"""From a torch module to a file that a runtime runs in few bits: it computes what the quantized module computes."""

import json
import warnings
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from openvino_models import compiled
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, FewbitWarning, PlanError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.runtimes.processor import processor_flags
from fewbit.runtimes.saturation import saturates

_SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip


class Pictures(nn.Module):
    """A convolution with its norm, a residual around a depthwise and a pointwise one, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.pointwise(nn.functional.relu6(self.depthwise(x)))).relu()
        return self.head(x.mean((2, 3)))


def _pictures():
    return Pictures(), [torch.randn(8, 3, 12, 12) for _ in range(3)]


def _encoder():
    tokens = torch.randint(3, 100, (4, 12))
    mask = torch.ones_like(tokens)
    mask[1, 8:] = 0
    return transformers.BertModel(transformers.BertConfig(**_SHAPE)), [{"input_ids": tokens, "attention_mask": mask}]


def _decoder():
    config = transformers.LlamaConfig(**_SHAPE, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), [torch.randint(3, 100, (4, 12)) for _ in range(3)]


_MODELS = {"pictures": _pictures, "encoder": _encoder, "decoder": _decoder}
_RECIPES = ("w8a8-static", "w8a8", "w4a16")
#: A layer of each model whose weight is damaged.
_DAMAGED = {
    "pictures": "head", "encoder": "encoder.layer.0.output.dense", "decoder": "model.layers.0.mlp.down_proj"
}  # fmt: skip


class Saved(NamedTuple):
    path: Any
    told: dict
    #: Signal-to-noise ratio in dB that quantization leaves, of the module.
    left: float
    batch: Any
    expected: np.ndarray


@pytest.fixture(scope="module")
def saved(tmp_path_factory, first_output, signal_to_noise):
    """Return a function from model, recipe and runtime to what was saved, once each.

    For onnxruntime as on a processor that does not saturate: `_ran` adds in 32 bits on any.
    """
    made = {}

    def save(name, recipe, runtime="ort-cpu"):
        if (name, recipe, runtime) not in made:
            torch.manual_seed(0)
            model, batches = _MODELS[name]()
            floats = first_output(TorchFrontend().run(model.eval(), batches[0]))
            result = fb.quantize(model, recipe, to=runtime, calibration=batches)
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
                warnings.simplefilter("error")
                if runtime == "ort-cpu":
                    patch.setattr("fewbit.checkpoints.onnx.format.processor_flags", frozenset)
                assert result.save(path) == path
            told = json.loads(path.with_name("model.report.json").read_text())
            expected = first_output(result.run(batches[0]))
            made[name, recipe, runtime] = Saved(path, told, signal_to_noise(floats, expected), batches[0], expected)
        return made[name, recipe, runtime]

    return save


def _fed(names, batch):
    values = [batch] if isinstance(batch, torch.Tensor) else [batch[name] for name in names]
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _ran(model, batch):
    source, options = model if isinstance(model, bytes) else str(model), onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, _fed([value.name for value in session.get_inputs()], batch))[0]


def _least(recipe, left):
    """Return the least nearness in dB of a file to the module, where quantization has `left` that much.

    They differ by sums of float32 in another order, and where such a difference decides a tie by the step of a code:
    far below a hundredth of the noise. With fixed ranges the file rounds values between layers too, fewer than the
    inputs of layers that the module rounds and as finely: no more noise than there is.
    """
    return left if recipe == "w8a8-static" else left + 20


@pytest.mark.parametrize("recipe", _RECIPES)
@pytest.mark.parametrize("name", _MODELS)
def test_a_file_computes_what_the_quantized_module_does(saved, name, recipe, signal_to_noise):
    own = saved(name, recipe)
    onnx.checker.check_model(own.path, full_check=True)
    assert 5 < own.left < 60
    assert signal_to_noise(own.expected, _ran(own.path, own.batch)) > _least(recipe, own.left)


@pytest.mark.parametrize("recipe", _RECIPES)
@pytest.mark.parametrize("name", _MODELS)
def test_a_scale_that_is_twice_as_large_is_noticed(saved, name, recipe, signal_to_noise):
    own = saved(name, recipe)
    proto = onnx.load(own.path)
    [scale] = [tensor for tensor in proto.graph.initializer if tensor.name == f"{_DAMAGED[name]}.scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    # Four times the noise that the test above allows, at least.
    assert signal_to_noise(own.expected, _ran(proto.SerializeToString(), own.batch)) < _least(recipe, own.left) - 6


_KERNELS = {
    ("pictures", "w8a8-static"): {"QLinearConv", "QGemm"},
    ("pictures", "w8a8"): {"ConvInteger", "DynamicQuantizeMatMul"},
    ("encoder", "w8a8-static"): {"MatMulIntegerToFloat", "QGemm"},
    ("encoder", "w8a8"): {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"},
    ("decoder", "w8a8-static"): {"MatMulIntegerToFloat", "QLinearMatMul"},
    ("decoder", "w8a8"): {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"},
}


@pytest.mark.parametrize(("name", "recipe"), _KERNELS)
def test_onnxruntime_runs_every_layer_in_integers_and_the_report_says_on_what(saved, name, recipe):
    told = saved(name, recipe).told
    kernels = [layer["kernel"] for layer in told["layers"] if layer["becomes"] != "float"]
    assert {kernel.removeprefix("onnxruntime ").partition(",")[0] for kernel in kernels} == _KERNELS[name, recipe]
    assert all(layer["fast"] for layer in told["layers"])
    between = "values between layers are rounded in the file only, not in the module that was measured"
    assert (between in told["remarks"]) == (recipe == "w8a8-static" and name != "encoder")


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_four_bits_are_packed_and_the_report_says_what_the_inputs_are(saved, name):
    told = saved(name, "w4a16").told
    kernels = {layer["kernel"] for layer in told["layers"] if layer["becomes"].startswith("int4")}
    assert kernels == {"onnxruntime MatMulNBits, from MatMulNBits, 4 bits, accuracy level 1"}


@pytest.mark.parametrize(
    ("name", "recipe"), [("pictures", "w8a8-static"), ("encoder", "w4a16"), ("decoder", "w8a8-static")]
)
def test_openvino_runs_what_is_written_for_it(saved, name, recipe, signal_to_noise):
    own = saved(name, recipe, "openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    model = compiled(own.path, options)
    made = model(_fed([value.get_any_name() for value in model.inputs], own.batch))[0]
    # Where 8 bits saturate they are 7: 7 dB between both roundings, and 3 for the values between layers. What saturates
    # is 16 dB off or more.
    coarser = 10 if recipe == "w8a8-static" and saturates(processor_flags()) else 0
    assert signal_to_noise(own.expected, made) > _least(recipe, own.left) - coarser


def test_batches_and_lengths_stay_free(saved):
    tokens = torch.randint(3, 100, (1, 7))
    assert _ran(saved("decoder", "w4a16").path, tokens).shape == (1, 7, 100)
    assert _ran(saved("pictures", "w8a8-static").path, torch.zeros(3, 3, 12, 12)).shape == (3, 10)


def test_a_plan_for_a_runtime_knows_the_operators_of_a_module_and_no_kernels_of_torch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 4))
    made = fb.plan(model, "w8a8", to="ort-cpu")
    assert (made.problems, made.hints) == ((), ())
    assert [row.becomes for row in made.rows] == ["float"] + ["int8 channel, input int8 tensor asym"] * 2
    assert "0: kept float, ort-cpu holds no ConvTranspose2d" in made.adaptations
    assert fb.plan(model, "w8a8").hints


def test_files_have_the_type_that_the_module_computes_in():
    model = nn.Sequential(nn.Linear(64, 8))
    assert fb.plan(model, "w8a16", to="ort-cpu").storage_type == "float32"
    with pytest.raises(PlanError, match="a graph has the types that the model computes in, here float32"):
        fb.quantize(model, "w8a16", to="ort-cpu", dtype="float16")


def test_modules_in_float16_are_written_and_those_in_bfloat16_refused(tmp_path, signal_to_noise):
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(4, 64).half()
    result = fb.quantize(model.half(), "w8a8-static", to="ort-cpu", calibration=[batch])
    with pytest.warns(FewbitWarning, match="stayed float: onnxruntime did not fuse"):  # it fuses float32 only
        path = result.save(tmp_path / "model.onnx")
    assert {value.type.tensor_type.elem_type for value in onnx.load(path).graph.input} == {onnx.TensorProto.FLOAT16}
    # 11 bits of float16, beside steps of 1/255 of a range that are the same in both.
    assert signal_to_noise(result.run(batch).numpy(), _ran(path, batch)) > 35
    with pytest.raises(PlanError, match=r"the module computes in bfloat16, .* convert it by module\.float\(\)"):
        fb.quantize(nn.Sequential(nn.Linear(64, 8)).bfloat16(), "w8a16", to="ort-cpu")


def test_a_result_for_no_target_says_how_a_preset_fits_one(tmp_path):
    result = fb.quantize(nn.Sequential(nn.Linear(64, 8)), "w8a8", evaluation=[torch.randn(2, 64)])
    with pytest.raises(PlanError, match="give to='ort-cpu' when quantizing: a preset then fits itself to it"):
        result.save(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_batches_that_measure_are_what_a_module_is_traced_on(tmp_path, signal_to_noise):
    torch.manual_seed(0)
    batch = torch.randn(2, 64)
    result = fb.quantize(nn.Sequential(nn.Linear(64, 8)), "w8a16", evaluation=[batch])
    path = result.save(tmp_path / "model.onnx", runtime="ort-cpu")
    # Eight bits without zero points: MatMulNBits at level 4 rounds the input to 1/255 of its range.
    assert signal_to_noise(result.run(batch).numpy(), _ran(path, batch)) > 30
    blind = fb.quantize(nn.Sequential(nn.Linear(64, 8)), "w8a16")
    with pytest.raises(CheckpointError, match="there is no batch to trace Sequential on; quantize"):
        blind.save(tmp_path / "blind.onnx")


class Masked(nn.Module):
    """Takes a list of tensors, a number and a word."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3), nn.Linear(8, 4)

    def forward(self, parts, factor, how="relu"):
        x = self.first(parts[0] + factor * parts[1])
        return self.second((x.relu() if how == "relu" else x).mean(-1))


def test_what_is_no_tensor_in_a_batch_is_part_of_the_graph(tmp_path, signal_to_noise):
    torch.manual_seed(0)
    batches = [([torch.randn(2, 4, 9), torch.randn(2, 4, 9)], 0.5, "relu") for _ in range(2)]
    result = fb.quantize(Masked().eval(), "w8a8-static", to="ort-cpu", calibration=batches)
    path = result.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    [made] = session.run(None, dict(zip(names, (part.numpy() for part in batches[0][0]), strict=True)))
    assert signal_to_noise(result.run(batches[0]).numpy(), made) > 30
