"""Converting holds some tensors of a model, however many it has, whatever the order in which the source lists them."""

import tracemalloc

import pytest

import fewbit as fb
from fewbit.sources.checkpoint import CheckpointFolder

SIZES = {"hidden_size": 256, "intermediate_size": 1024, "tie_word_embeddings": True}
#: Layers of the two models, and the numbers in each layer: attention with two key-value heads of four, and the rest.
FEW, MANY = 2, 10
LAYER = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 1024
#: Codes of a layer take half a byte each. What grows is zero points, a sixteenth of that, and Python's objects.
GROWTH = (MANY - FEW) * LAYER / 2 / 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory, language_model):
    """A folder with a model of each size in every layout."""
    root = tmp_path_factory.mktemp("sizes")
    recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int4 g32")])
    for layers in (FEW, MANY):
        model = language_model("llama", num_hidden_layers=layers, **SIZES)
        fb.quantize(model, recipe, to="gptq").save(root / f"gptq-{layers}")
        fb.convert(root / f"gptq-{layers}", root / f"gguf-{layers}.gguf", "gguf")
        fb.convert(root / f"gptq-{layers}", root / f"compressed-tensors-{layers}", "compressed-tensors")
    return root


def held(source, output, to):
    """Return the most bytes at once while a model is converted; NumPy tells tracemalloc of its arrays."""
    tracemalloc.start()
    try:
        fb.convert(source, output, to)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("source", "to"), [
    ("gguf", "compressed-tensors"), ("gguf", "gptq"), ("gptq", "gguf"), ("compressed-tensors", "gptq"),
    ("compressed-tensors", "gguf"),
])  # fmt: skip
def test_a_model_with_more_layers_takes_no_more_memory_than_its_modules(tmp_path, folders, source, to):
    ending = {"gguf": ".gguf"}
    few, many = (
        held(folders / f"{source}-{layers}{ending.get(source, '')}", tmp_path / f"{layers}{ending.get(to, '')}", to)
        for layers in (FEW, MANY)
    )
    assert many - few < GROWTH


def test_a_model_that_is_held_is_found_out(folders):
    """The negative control: what all tensors of a file take."""
    sizes = []
    for layers in (FEW, MANY):
        tracemalloc.start()
        every = list(CheckpointFolder(folders / f"gguf-{layers}.gguf").checkpoint.tensors())
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(every) > 9 * layers
    assert sizes[1] - sizes[0] > 2 * GROWTH
