"""Products inside attention from a module to its graph and file: the same scales, the same codes, the same output."""

import json

import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.torch.frontend import TorchFrontend

STATIC, DYNAMIC = "int8 tensor asym static", "int8 tensor asym"
_SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip


class Block(nn.Module):
    """torch's own attention: with its weights asked for it scales queries itself, else its fused product does."""

    def __init__(self, *, weights):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 8)
        self.weights = weights

    def forward(self, x):
        return self.out(x + self.attention(x, x, x, need_weights=self.weights)[0])


class Twice(nn.Module):
    """One attention, called twice."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x):
        return self.block(self.block(x))


def _decoder():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE, num_key_value_heads=2))


def _encoder():
    return transformers.BertModel(transformers.BertConfig(**_SHAPE, attn_implementation="eager"))


_MODELS = {
    "decoder": _decoder,
    "encoder, eager": _encoder,
    "attention": lambda: Block(weights=False),
    "attention, scaled outside": lambda: Block(weights=True),
    "called twice": Twice,
}


def _quantized(name, text):
    torch.manual_seed(0)
    model = _MODELS[name]().eval()
    draw = torch.Generator().manual_seed(1)
    batch = torch.randint(3, 100, (4, 12), generator=draw)
    if name in ("attention", "attention, scaled outside", "called twice"):
        batch = torch.randn(4, 7, 32, generator=draw)
    floats = TorchFrontend().run(model, batch)
    rules = [fb.Rule(kind="attention", input=text)]
    return fb.quantize(model, fb.Recipe(rules), to="ort-cpu", calibration=[batch]), batch, floats


@pytest.mark.parametrize(("name", "text"), [*((name, STATIC) for name in _MODELS), ("decoder", DYNAMIC)])
def test_a_file_rounds_the_products_that_the_module_rounds_and_runs_them_in_integers(
    tmp_path, name, text, first_output, signal_to_noise
):
    result, batch, floats = _quantized(name, text)
    floats, expected = first_output(floats), first_output(result.run(batch))
    path = result.save(tmp_path / "m.onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]
    # A code that lies amid two may fall to either; what remains is a hundredth of what rounding did.
    assert signal_to_noise(expected, made) > signal_to_noise(floats, expected) + 20
    layers = json.loads((tmp_path / "m.report.json").read_text())["layers"]
    kernels = [own["kernel"] for own in layers if own["kind"] == "attention"]
    wanted = "MatMulIntegerToFloat" if text == STATIC else "DynamicQuantizeMatMul"
    # Of a product that is called twice the report knows no node.
    assert len(kernels) == 2
    assert name == "called twice" or all(wanted in kernel for kernel in kernels)


def test_scales_are_those_of_the_module_and_another_one_is_noticed(first_output, signal_to_noise):
    result, batch, floats = _quantized("attention", STATIC)
    graph = TorchFrontend().graph(result.model, batch)
    for product, operands in graph.products.items():
        module = result.model.get_submodule(product)
        for operand, own in operands.items():
            assert own.scale == module.get_submodule(operand).activation.scale
    floats, expected = first_output(floats), first_output(result.run(batch))
    left = signal_to_noise(floats, expected)
    feeds = batch.numpy()
    assert signal_to_noise(expected, next(iter(OnnxFrontend().run(graph, feeds).values()))) > left + 20
    product = next(own for own in graph.products if own.endswith("query_key"))
    operands = graph.products[product]
    wrong = type(operands["key"])(
        scheme=operands["key"].scheme, scale=2 * operands["key"].scale, zero_point=operands["key"].zero_point
    )
    graph.products[product] = {**operands, "key": wrong}
    assert signal_to_noise(expected, next(iter(OnnxFrontend().run(graph, feeds).values()))) < left + 20


def test_every_call_of_an_attention_is_rounded():
    result, batch, _ = _quantized("called twice", STATIC)
    assert len(TorchFrontend().graph(result.model, batch).products) == 4


class Linear(nn.Module):
    """Attention without a softmax: scores are used as they are."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return (self.query(x) @ self.key(x).transpose(1, 2)) @ self.value(x)


def test_products_that_the_graph_shows_beside_no_softmax_are_an_error_that_names_them():
    torch.manual_seed(0)
    model, batch = Linear().eval(), torch.randn(2, 5, 8)
    result = fb.quantize(model, fb.Recipe([fb.Rule(kind="attention", input=STATIC)]), calibration=[batch])
    with pytest.raises(CheckpointError, match=r"query_key and 1 more: .* no MatMul .* leave out the rules of kind"):
        TorchFrontend().graph(result.model, batch)
