"""The tables of runtimes: what each refuses, with the fact, the value and a remedy that it then takes."""

import re

import pytest

from fewbit.errors import RecipeError
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.runtimes import RUNTIMES, runtime_named
from fewbit.runtimes.form import Packing, form_of, packing_of
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

LAYERS = {
    "linear": Layer("fc", "linear", (64, 96), "MatMul"),
    "gemm": Layer("fc", "linear", (64, 96), "Gemm"),
    "embedding": Layer("table", "embedding", (500, 96), "Gather"),
    "conv": Layer("conv", "conv", (8, 36), "Conv", stored=(8, 4, 3, 3)),
    "transposed": Layer("up", "conv", (8, 36), "ConvTranspose", stored=(4, 8, 3, 3)),
    "transposed in groups": Layer("up", "conv", (8, 18), "ConvTranspose", stored=(4, 4, 3, 3)),
}


def quantized(layer="linear", weight="int8", given=None, output=None):
    schemes = (parse_input_scheme(text) if text else None for text in (given, output))
    return QuantizedLayer(LAYERS[layer], parse_scheme(weight), *schemes)


TAKEN = [
    *[(word, {"given": "int8 static sym"}) for word in RUNTIMES],
    *[(word, {"weight": "int4 g32"}) for word in RUNTIMES],
    *[(word, {"layer": "embedding", "weight": "int4 g32"}) for word in RUNTIMES],
    *[(word, {"layer": "conv", "given": "int8 static sym"}) for word in RUNTIMES],
    ("ort-cpu", {"given": "int8 tensor asym"}),
    ("ort-cpu", {"given": "int16 static", "output": "int16 static"}),
    ("ort-cpu", {"weight": "e4m3", "given": "e4m3 static"}),
    ("tensorrt", {"weight": "e4m3", "given": "e4m3 static"}),
    ("openvino", {"given": "int8 static", "output": "int8 static"}),
    ("ort-cpu", {"layer": "transposed in groups", "weight": "int8 tensor"}),
    *[(word, {"weight": "fp16", "given": "fp16", "output": "fp16"}) for word in RUNTIMES],
    *[(word, {"layer": "embedding", "weight": "fp16"}) for word in RUNTIMES],
    ("tensorrt", {"weight": "bf16", "given": "bf16"}),
]
#: What is refused, words of the sentence, and what is to be changed to have it taken.
REFUSED = [
    ("ort-cpu", {"weight": "bf16", "given": "bf16"}, "nothing in bf16; use fp16", {"weight": "fp16", "given": "fp16"}),
    ("openvino", {"weight": "int8", "given": "fp16"}, "cast both, or leave out input", {"given": None}),
    ("openvino", {"weight": "fp16", "output": "fp16"}, "the input is not; cast both, or leave", {"output": None}),
    ("ort-cpu", {"given": "int8"}, "'int8 token asym'; use that or static", {"given": "int8 tensor asym"}),
    ("ort-cpu", {"given": "int8 tensor sym"}, "'int8 tensor sym'; use that or static", {"given": "int8 static"}),
    ("tensorrt", {"given": "int8 tensor"}, "takes no ranges of the moment", {"given": "int8 static sym"}),
    ("migraphx", {"given": "int8"}, "takes no ranges of the moment", {"given": "int8 static sym"}),
    ("openvino", {"given": "int8"}, "takes no ranges of the moment", {"given": "int8 static"}),
    (
        "tensorrt",
        {"given": "int8 static"},
        "'int8 tensor asym static'; use 'int8 static sym'",
        {"given": "int8 static sym"},
    ),
    ("migraphx", {"given": "int8 static"}, "takes no zero points", {"given": "int8 static sym"}),
    ("tensorrt", {"weight": "int4 g32 asym"}, "the weight is 'int4 g32 asym'; leave out asym", {"weight": "int4 g32"}),
    ("tensorrt", {"given": "int8 static sym", "output": "int8 static sym"}, "leave out output", {"output": None}),
    ("tensorrt", {"given": "int16 static sym"}, "rounds to int8, e4m3", {"given": "int8 static sym"}),
    ("openvino", {"weight": "e4m3"}, "has no form for weights in 'e4m3 channel'", {"weight": "int8"}),
    ("ort-cpu", {"weight": "nf4"}, "no form for weights in 'nf4 g128'", {"weight": "int4"}),
    ("ort-cpu", {"weight": "mxfp4"}, "no form for weights in 'mxfp4'", {"weight": "int4 g32"}),
    ("ort-cpu", {"weight": "int4 float-zero"}, "no float zero points", {"weight": "int4 asym"}),
    (
        "ort-cpu",
        {"weight": "int8 tile8x8"},
        "no scales by tile8x8; use tensor, channel or groups",
        {"weight": "int8 g32"},
    ),
    ("ort-cpu", {"weight": "int8 channel:1"}, "no scales by channel:1", {"weight": "int8 channel"}),
    ("ort-cpu", {"weight": "int8 asym", "given": "int8 static"}, "leave out asym", {"weight": "int8"}),
    ("ort-cpu", {"given": "int8 static channel"}, "one range a tensor", {"given": "int8 static"}),
    (
        "ort-cpu",
        {"given": "int4 static"},
        "here is 'int4 tensor asym static'; use 'int8 static'",
        {"given": "int8 static"},
    ),
    (
        "ort-cpu",
        {"given": "int8 tensor", "weight": "int4 g32"},
        "not 'int4 g32'; use 'int8 channel'",
        {"weight": "int8"},
    ),
    ("ort-cpu", {"given": "int8 static", "weight": "int8 g32"}, "misreads 8-bit blocks", {"weight": "int8"}),
    (
        "ort-cpu",
        {"given": "int8 static", "output": "int8"},
        "outputs are rounded by fixed ranges",
        {"output": "int8 static"},
    ),
    (
        "ort-cpu",
        {"layer": "conv", "weight": "int4 g9"},
        "ONNX blocks along one; use channel",
        {"weight": "int4 channel"},
    ),
    ("ort-cpu", {"layer": "transposed", "given": "int8 tensor"}, "no integer ConvTranspose", {"given": "int8 static"}),
    ("ort-cpu", {"layer": "transposed in groups"}, "have no axis of their own; use tensor", {"weight": "int8 tensor"}),
]


@pytest.mark.parametrize(("word", "asked"), TAKEN)
def test_what_a_runtime_takes_is_no_problem(word, asked):
    assert runtime_named(word).problem(quantized(**asked)) is None


@pytest.mark.parametrize(("word", "asked", "text", "remedy"), REFUSED)
def test_what_it_refuses_comes_with_a_remedy_that_works(word, asked, text, remedy):
    problem = runtime_named(word).problem(quantized(**asked))
    assert problem is not None
    assert text in problem
    assert ";" in problem
    assert runtime_named(word).problem(quantized(**{**asked, **remedy})) is None


def test_remedies_in_quotes_are_schemes():
    for word, asked, _, _ in REFUSED:
        problem = runtime_named(word).problem(quantized(**asked)) or ""
        for text in re.findall(r"use '([^']*)'", problem):
            parse_input_scheme(text)


def test_an_unknown_runtime_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match="did you mean 'ort-cpu'"):
        runtime_named("ort-gpu")


@pytest.mark.parametrize(
    ("word", "asked", "form"),
    [
        ("ort-cpu", {"given": "int8 static"}, "QDQ"),
        ("ort-cpu", {"given": "int8 tensor"}, "dynamic"),
        ("ort-cpu", {"weight": "int4 g32"}, "MatMulNBits"),
        ("ort-cpu", {"layer": "gemm", "weight": "int8"}, "MatMulNBits"),
        ("ort-cpu", {"layer": "embedding", "weight": "int4 g32"}, "GatherBlockQuantized"),
        ("ort-cpu", {"weight": "int4 g24"}, "DequantizeLinear"),
        ("ort-cpu", {"weight": "e4m3"}, "DequantizeLinear"),
        ("ort-cpu", {"layer": "conv", "weight": "int8"}, "DequantizeLinear"),
        ("openvino", {"weight": "int4 g32"}, "DequantizeLinear"),
        ("tensorrt", {"layer": "embedding", "weight": "int4 g32"}, "DequantizeLinear"),
    ],
)
def test_forms(word, asked, form):
    assert form_of(quantized(**asked), runtime_named(word)) == form


@pytest.mark.parametrize(
    ("asked", "packing"),
    [
        ({"weight": "int4 g32"}, Packing(4, 32)),
        ({"weight": "int3 g16"}, Packing(4, 16)),
        ({"weight": "int1 asym"}, Packing(2, 128)),
        ({"weight": "int6 channel"}, Packing(8, 128)),
        ({"weight": "int8", "layer": "embedding"}, Packing(8, 128)),
        ({"weight": "int4 g8"}, None),
        ({"weight": "int4 g48"}, None),
        ({"weight": "e4m3"}, None),
    ],
)
def test_packed_weights_have_blocks_of_a_power_of_two(asked, packing):
    assert packing_of(quantized(**asked), runtime_named("ort-cpu")) == packing
    assert packing_of(quantized(**asked), runtime_named("tensorrt")) is None


def test_rows_of_a_table_that_end_within_a_byte_are_not_packed():
    odd = QuantizedLayer(Layer("table", "embedding", (500, 33), "Gather"), parse_scheme("int4 g16"))
    assert packing_of(odd, runtime_named("ort-cpu")) is None


@pytest.mark.parametrize(("bits", "level"), [(2, 4), (4, 1), (8, 4)])
def test_accuracy_levels(bits, level):
    assert runtime_named("ort-cpu").level(bits) == level
