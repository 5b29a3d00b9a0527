"""The searches of GGUF's grids beside those of llama.cpp, as libgguf has them: never a larger error."""

import numpy as np
import pytest

from fewbit.qtensor import quantize
from fewbit.schemes.gguf import GGUF_FORMATS, KINDS
from fewbit.schemes.notation import parse_scheme

libgguf = pytest.importorskip("libgguf")

DRAWS = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "Student": lambda rng, shape: rng.standard_t(4, shape),
    "one-sided": lambda rng, shape: np.abs(rng.standard_normal(shape)) - 0.1,
}


def weight_of(data, rows=24, width=1024):
    return (DRAWS[data](np.random.default_rng(0), (rows, width)) * 0.02).astype(np.float32)


def importance_of(width=1024):
    return np.exp(np.random.default_rng(1).standard_normal(width)).astype(np.float32)


def errors(kind, weight, importance, text=None):
    """Return fewbit's squared error, weighted, and libgguf's."""
    theirs = libgguf.GGMLQuantizationType[kind]
    other = libgguf.dequantize_rows(libgguf.quantize_rows(weight, theirs, importance), theirs)
    own = quantize(weight, parse_scheme(text or KINDS[kind]), importance).dequantize()
    counted = 1.0 if importance is None else importance.astype(np.float64)
    return tuple(float((counted * (found - weight.astype(np.float64)) ** 2).sum()) for found in (own, other))


@pytest.mark.parametrize("data", DRAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_squared_error_is_no_larger_than_llama_cpps(kind, data):
    own, other = errors(kind, weight_of(data), None)
    assert own <= other


@pytest.mark.parametrize("data", DRAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weighted_error_is_no_larger_than_llama_cpps_with_an_importance_matrix(kind, data):
    text = KINDS[kind] if KINDS[kind] in GGUF_FORMATS else f"{KINDS[kind]} mse"
    own, other = errors(kind, weight_of(data), importance_of(), text)
    assert own <= other


def test_without_its_importance_the_search_is_worse_by_the_weighted_error():
    """The comparison above can fail."""
    weight, importance = weight_of("Gaussian"), importance_of()
    theirs = libgguf.GGMLQuantizationType["Q4_K"]
    other = libgguf.dequantize_rows(libgguf.quantize_rows(weight, theirs, importance), theirs)
    plain = quantize(weight, parse_scheme("q4_k")).dequantize()
    assert ((plain - weight) ** 2 * importance).sum() > ((other - weight) ** 2 * importance).sum()


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_a_weight_that_llama_cpp_put_on_the_grid_is_found_again(kind):
    """To the bit, but for types in which scale and minimum are quantized: other pairs come near to theirs."""
    theirs = libgguf.GGMLQuantizationType[kind.upper()]
    weight = weight_of("Gaussian", rows=8)
    on_grid = libgguf.dequantize_rows(libgguf.quantize_rows(weight, theirs), theirs)
    again = quantize(on_grid, parse_scheme(kind)).dequantize()
    if kind in ("q2_k", "q4_k", "q5_k"):
        assert ((again - on_grid) ** 2).sum() < 0.2 * ((on_grid - weight) ** 2).sum()
    else:
        same = (again == on_grid).reshape(-1, 16).all(axis=1)
        # Of Q6_K's 64 levels few are used in a group of 16; another scale may do as well there.
        assert same.mean() > (0.995 if kind == "q6_k" else 0.9999)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_on_rotated_weights_of_a_language_model_the_error_is_no_larger(kind, weighted, rotated_weight):
    text = KINDS[kind] if KINDS[kind] in GGUF_FORMATS else f"{KINDS[kind]} mse"
    own, other = errors(kind, rotated_weight, importance_of(1536) if weighted else None, text)
    assert own <= other


@pytest.fixture(scope="module")
def rotated_weight():
    from fewbit.sources import open_source

    layers = open_source("smollm2-rotated").load().model.layers
    return layers[3].mlp.down_proj.weight.detach().numpy()[:64].copy()
