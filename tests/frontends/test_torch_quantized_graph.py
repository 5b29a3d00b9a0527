"""Torch to ONNX: the simulation of the graph gives what the quantized module gives.

Float32 sums in another order are all that differs, but where a value lies within such a rounding of a tie: its code may
go either way there, and moves what follows by a step. That is far below what thousands of roundings do together.
"""

import copy
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, MissingExtraError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.key_value_cache import key_value_cache
from fewbit.frontends.torch.quantized import quantized_layers

STATIC = "int8 tensor asym static"
_SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip


class Padded(nn.Conv2d):
    """Pads by itself, as models from TensorFlow do."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = Padded(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mirrored = nn.Conv2d(8, 32, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(32, 32, 2, stride=2)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = nn.functional.relu6(self.depthwise(self.norm(self.stem(x)).relu()))
        return self.head(self.up(self.mirrored(x)).relu().mean((2, 3)))


class Repeated(nn.Module):
    """A layer called twice in a row, one under two names, weights that are read past the forward, one not called."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(8, 32), nn.Linear(32, 32)
        self.named = self.again = nn.Linear(32, 32)
        self.square, self.embed, self.tied = nn.Linear(32, 32, bias=False), nn.Embedding(20, 32), nn.Embedding(20, 32)
        self.tied.weight = self.embed.weight

    def forward(self, x, ids):
        x = self.twice(self.twice(self.first(x)))
        x = self.again(self.named(x).relu()) + self.embed(ids)
        return self.square(x) + x @ self.square.weight, x @ self.embed.weight.T


class Case(NamedTuple):
    model: nn.Module
    plan: Any
    #: What the graph is exported on (`None`: what the model makes up), and what it is run on.
    example: Any
    batch: Any
    #: What the float module put out for that, and the quantized one before anything was exported.
    floats: list
    expected: list


def _case(model, batches, rules, example, folder=None, **further):
    floats = _outputs(model.eval(), batches[-1])
    result = fb.quantize(model, fb.Recipe(rules, **further), calibration=batches)
    if folder is not None:
        result = fb.load(result.save(folder))
    return Case(result.model, result.plan, example, batches[-1], floats, _outputs(result.model, batches[-1]))


def _outputs(model, batch):
    found = TorchFrontend().run(model, batch)
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
    return [own.detach().numpy() for own in parts if isinstance(own, torch.Tensor)]


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 16, 16, generator=draw) for _ in range(2)]
    torch.manual_seed(0)
    model = Pictures().train()
    with torch.no_grad():
        for batch in batches * 8:
            model(batch)
    rules = [
        fb.Rule("stem", weight="int8", input=STATIC, output=STATIC, bias="int32"),
        fb.Rule("depthwise|up", weight="int8", input=STATIC, bias="int32"),
        fb.Rule("mirrored", weight="int8", input="int8 token asym"),
        fb.Rule("head", weight="int4 g32"),
    ]
    return _case(model, batches, rules, batches[0][:1], transforms=["batchnorm"])


@pytest.fixture(scope="module")
def repeated():
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    batches = [(torch.randn(4, 8, generator=draw), torch.randint(0, 20, (4,), generator=draw)) for _ in range(4)]
    rules = [
        fb.Rule("first", weight="int4 g8"),
        fb.Rule("twice|square", weight="int8", input=STATIC, output=STATIC),
        fb.Rule("named", weight="int8", input=STATIC),
        fb.Rule("embed|tied", weight="int8"),
    ]
    return _case(Repeated(), batches, rules, batches[0])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**_SHAPE))
    tokens = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 8:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask}
    rules = [
        fb.Rule(r".*attention.*|pooler.*", weight="int8", input=STATIC),
        fb.Rule(r".*intermediate.*", weight="int4 g32"),
        fb.Rule(r".*output.dense|.*word_embeddings", weight="int8"),
    ]
    return _case(model, [batch], rules, None)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE, num_key_value_heads=2))
    tokens = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    rules = [
        fb.Rule(r".*self_attn.*", weight="int8", input=STATIC),
        fb.Rule(r".*gate_proj|.*up_proj", weight="int4 g32"),
        fb.Rule(r".*down_proj|lm_head", weight="int8"),
    ]
    return _case(model, [tokens], rules, tokens[:1, :5], tmp_path_factory.mktemp("decoder") / "model")


_CASES = ("pictures", "repeated", "encoder", "decoder")


@pytest.fixture(scope="module")
def graphs(request):
    """Return a function from the name of a case to its graph, made once on its example."""
    made = {}

    def graph(name):
        if name not in made:
            case = request.getfixturevalue(name)
            made[name] = TorchFrontend().graph(case.model, case.example)
        return made[name]

    return graph


def _nearness(signal, other):
    """Return the signal-to-noise ratio in dB, of the worst output."""
    return min(
        10 * np.log10(np.square(a, dtype=np.float64).sum() / max(np.square(a - b, dtype=np.float64).sum(), 1e-300))
        for a, b in zip(signal, other, strict=True)
    )


def _simulated(model, batch):
    return list(OnnxFrontend().run(model, batch).values())


@pytest.mark.parametrize("name", _CASES)
def test_the_graph_computes_what_the_module_does(request, graphs, name):
    case = request.getfixturevalue(name)
    lost = _nearness(case.floats, case.expected)
    assert lost < 60
    # A hundred times less noise than what quantization makes; without a flipped code it is 10^7 times and more.
    assert _nearness(case.expected, _simulated(graphs(name), case.batch)) > lost + 20


@pytest.mark.parametrize(
    ("name", "layer", "factor"),
    [
        ("pictures", "stem", 16),  # of which many positions are averaged
        ("repeated", "named", 2),
        ("encoder", "encoder.layer.0.attention.output.dense", 2),
        ("decoder", "model.layers.0.self_attn.o_proj", 2),
    ],
)
def test_a_wrong_scale_is_noticed(request, graphs, name, layer, factor):
    case, graph = request.getfixturevalue(name), copy.copy(graphs(name))
    rounded = graph.layers[layer]
    given = rounded.activations.input
    wrong = replace(given, scale=factor * given.scale)
    graph.layers = {**graph.layers, layer: replace(rounded, activations=replace(rounded.activations, input=wrong))}
    lost = _nearness(case.floats, case.expected)
    assert _nearness(case.expected, _simulated(graph, case.batch)) < lost + 20


@pytest.mark.parametrize("name", _CASES)
def test_the_module_stays_as_it_was(request, graphs, name):
    case = request.getfixturevalue(name)
    graphs(name)
    np.testing.assert_equal(_outputs(case.model, case.batch), case.expected)
    assert {own.layer.name for own in case.plan.quantized} <= {name for name, _ in quantized_layers(case.model)}


@pytest.mark.parametrize("name", ["pictures", "encoder", "decoder"])
def test_codes_scales_and_schemes_are_those_of_the_module(request, graphs, name):
    case, graph = request.getfixturevalue(name), graphs(name)
    assert list(graph.layers) == [own.layer.name for own in case.plan.quantized]
    for layer, rounded in graph.layers.items():
        expected = case.model.get_submodule(layer)
        assert rounded.qtensor.scheme == expected.scheme
        for own, other in ((rounded.qtensor, expected.qtensor), (rounded.bias, expected.integer_bias)):
            if other is not None:
                assert isinstance(own.codes, np.ndarray)
                np.testing.assert_array_equal(own.codes, other.codes)
                np.testing.assert_array_equal(own.scale, other.scale)
        for own, other in ((rounded.activations.input, expected.input), (rounded.activations.output, expected.output)):
            assert (own is None) == (other is None)
            if own is not None:
                assert own.scheme == other.scheme
                assert own.scale is None or (isinstance(own.scale, np.ndarray) and own.scale == other.activation.scale)


def test_each_call_of_a_layer_is_rounded_and_what_reads_its_weight_otherwise_is_not(repeated, graphs):
    uses = {name: [] for name in ("first", "twice", "named", "square", "embed")}
    for rounded in graphs("repeated").layers.values():
        [name] = [
            own for own in uses if np.array_equal(rounded.qtensor.codes, getattr(repeated.model, own).qtensor.codes)
        ]
        uses[name].append(rounded.activations.input is not None)
    # Nothing calls `tied`, whose codes are those of `embed`. Of `x @ square.weight` the outputs are the columns: it
    # stays float, on the same numbers.
    assert uses == {
        "first": [False], "twice": [True, True], "named": [True, True], "square": [True], "embed": [False, False]
    }  # fmt: skip


def test_a_convolution_pads_what_its_forward_padded_and_norms_are_folded(graphs):
    kinds = [node.op_type for node in graphs("pictures").graph.graph]
    assert kinds.count("Pad") == 1  # the mirrored one
    assert "BatchNormalization" not in kinds


def test_batches_and_lengths_are_free_and_the_size_of_a_picture_is_not(graphs):
    shapes = {name: [str(dim) for dim in graphs(name).graph.graph.inputs[0].shape] for name in ("pictures", "decoder")}
    assert shapes == {"pictures": ["batch", "3", "16", "16"], "decoder": ["batch", "input_ids_axis_1"]}


class Standardized(nn.Conv1d):
    def forward(self, x):
        return nn.functional.conv1d(x, self.weight - self.weight.mean(), self.bias)


class Scaled(nn.Conv1d):
    def forward(self, x):
        return super().forward(2 * x)


class Squashed(nn.Conv1d):
    def forward(self, x):
        return super().forward(x).tanh()


class Difficult(nn.Module):
    def __init__(self):
        super().__init__()
        self.standardized, self.scaled, self.squashed = (kind(4, 4, 1) for kind in (Standardized, Scaled, Squashed))
        self.shifted, self.shift = nn.Linear(4, 4, bias=False), nn.Parameter(torch.ones(4))
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        x = self.squashed(self.scaled(self.standardized(x)))
        return self.shifted(x.transpose(1, 2)) + self.shift


def test_what_a_graph_would_compute_otherwise_is_an_error_that_names_each_layer():
    torch.manual_seed(0)
    model = Difficult().eval()
    rules = [
        fb.Rule("standardized", weight="int8"),
        fb.Rule("scaled", weight="int8", input="int8 token"),
        fb.Rule("squashed|shifted", weight="int8", output="int8 tensor"),
        fb.Rule("idle", weight="int8"),
    ]
    batch = torch.randn(2, 4, 4)
    fb.quantize(model, fb.Recipe(rules))
    before = _outputs(model, batch)
    with pytest.raises(CheckpointError) as caught:
        TorchFrontend().graph(model, batch)
    np.testing.assert_equal(_outputs(model, batch), before)
    assert str(caught.value).splitlines() == [
        "standardized: its forward multiplies by something that it computes from its weight; keep it float",
        "scaled: its forward has a Mul between the rounding of its input and the product; leave out `input`",
        "squashed: a Tanh lies between its product and the rounding of its output; leave out `output`",
        "shifted: a Add lies between its product and the rounding of its output; leave out `output`",
        "idle: a run on the example batch does not reach it; keep it float, or give a batch that does",
    ]


def test_key_value_caches_are_refused(decoder):
    tokens, cache = decoder.batch, key_value_cache(decoder.model)
    with pytest.raises(CheckpointError, match=r"argument 'past_key_values' of the example batch is a key-value cache"):
        TorchFrontend().graph(decoder.model, {"input_ids": tokens, "past_key_values": cache})


def test_without_a_batch_a_language_model_is_traced_on_token_ids_and_a_mask(encoder, graphs):
    assert encoder.example is None
    assert [value.name for value in graphs("encoder").graph.graph.inputs] == ["input_ids", "attention_mask"]


def test_without_a_batch_another_module_is_an_error():
    with pytest.raises(
        CheckpointError, match=r"no batch to trace Linear on; quantize it with `calibration`, or export"
    ):
        TorchFrontend().graph(nn.Linear(2, 2), None)


def test_without_an_exporter_the_error_names_what_to_install(monkeypatch):
    for name in ("exported", "exporter", "quantized_graph"):
        monkeypatch.delitem(sys.modules, f"fewbit.frontends.torch.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "onnxscript.optimizer", raising=False)
    with pytest.raises(
        MissingExtraError, match=r"torch exports to ONNX by onnxscript.*; pip install 'fewbit\[export\]'"
    ):
        TorchFrontend().graph(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
