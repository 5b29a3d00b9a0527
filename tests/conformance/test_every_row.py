"""Every row of `fewbit support` gives the same bits on every framework, eager and compiled: `==` to NumPy.

NumPy itself is held to scalar oracles in test_affine.py and test_small_floats.py.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fewbit.formats import FORMATS
from fewbit.qtensor import QTensor, fake_quantize, quantize
from fewbit.ranges import RANGES
from fewbit.schemes.notation import parse_scheme
from fewbit.support import schemes

SHAPE = (4, 100)  # 64 and 32 do not divide 100: the last group is uneven
#: Formats that torch compiles under every granularity; the others under the usual one, unless --every-row is given:
#: compiling takes seconds a scheme, and a granularity knows nothing of the format.
REPRESENTATIVES = ("int4", "e4m3", "nf4")
FAMILIES = {form: [row for row in schemes() if row.scheme.split()[0] == form] for form in FORMATS}
WHOLE_ROWS = [row for row in schemes() if row.scheme.split()[0] not in FORMATS]


def normals() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.02, size=SHAPE).astype(np.float32)


def ties(form) -> np.ndarray:
    """Numbers halfway between levels, in rows whose scale is a power of two."""
    levels = np.array(form.levels)
    lower = np.arange(0, len(levels) - 1, max(1, len(levels) // 256))
    middles = np.resize((levels[lower] + levels[lower + 1]) / 2, SHAPE).astype(np.float32)
    middles[:, ::16] = form.reach
    return middles


def extremes() -> np.ndarray:
    weight = np.where(normals() < 0, -1.0, 1.0) * np.array([[65504.0], [2.0**40], [1.0], [2.0**-100]])
    return weight.astype(np.float32)


def subnormals() -> np.ndarray:
    weight = normals()
    weight[0] *= np.float32(2.0**-125)
    weight[1, ::2] *= np.float32(2.0**-125)
    weight[2] *= np.float32(2.0**-116)  # on both sides of 2^-126
    weight[3] = 0.0
    return weight


def cases(form) -> dict[str, np.ndarray]:
    return {
        "normals": normals(),
        "ties": ties(form),
        "extremes": extremes(),
        "subnormals and zeros": subnormals(),
        "bfloat16-born": normals().astype(ml_dtypes.bfloat16).astype(np.float32),
    }


def parts(qtensor: QTensor):
    """Yield every array of a QTensor."""
    yield qtensor.codes
    yield from parts(qtensor.scale) if isinstance(qtensor.scale, QTensor) else [qtensor.scale]
    if qtensor.zero_point is not None:
        yield qtensor.zero_point
    yield qtensor.dequantize()


def everything(texts, scale_type):
    """Return a function from a weight to all that quantizing it by each of `texts` gives."""
    wanted = [parse_scheme(text) for text in texts]
    wanted = [scheme.stored_as(scale_type) if scale_type else scheme for scheme in wanted]

    def run(weight):
        found = []
        for scheme in wanted:
            found += parts(quantize(weight, scheme))
        return tuple(found)

    return run


def assert_equal_to_numpy(texts, runner, scale_type, weights):
    function = everything(texts, scale_type)
    compiled = runner(function)
    for case, weight in weights.items():
        expected, found = function(weight), compiled(weight)
        assert len(found) == len(expected)
        for position, (want, got) in enumerate(zip(expected, found, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"{texts}: {case}, array {position}", strict=True)


@pytest.mark.parametrize("form", [form for form in FORMATS if FAMILIES[form]])
def test_every_format_under_every_granularity(form, runner, compiles_slowly):
    rows = FAMILIES[form]
    if compiles_slowly and form not in REPRESENTATIVES:
        rows = [row for row in rows if row.scheme.endswith("g64")]
    symmetries = [("", True), (" asym", any(row.asymmetric for row in rows))]
    weights = cases(parse_scheme(f"{form} tensor asym" if form in ("int1", "uint1") else f"{form} tensor").format)
    for number, (words, there) in enumerate(symmetries):
        texts = [row.scheme + words for row in rows if there and (words or form != "int1")]
        if texts:
            assert_equal_to_numpy(texts, runner, ("float16", None)[number], weights)


@pytest.mark.parametrize("row", WHOLE_ROWS, ids=lambda row: row.scheme)
def test_every_whole_scheme(row, runner):
    assert_equal_to_numpy([row.scheme], runner, None, cases(parse_scheme(row.scheme).format))


@pytest.mark.parametrize("method", RANGES)
def test_every_range_method(method, runner):
    texts = [f"int4 g64 {method}", f"int3 channel asym {method}", f"e4m3 tensor {method}"]
    texts += [f"int4 g64 float-zero {method}"] * (method not in ("absmax", "percentile"))
    assert_equal_to_numpy(texts, runner, "bfloat16", {"normals": normals(), "extremes": extremes()})


@pytest.mark.parametrize("seed", [None, 7], ids=["nearest", "stochastic"])
def test_fake_quantization_also_from_a_seed(runner, seed):
    texts = ("int4 g64", "int8 channel asym", "int4 g64 float-zero", "e4m3 channel", "nf4 g64", "nvfp4")
    wanted = [parse_scheme(text) for text in texts]

    def run(weight):
        return tuple(fake_quantize(weight, scheme, seed=seed) for scheme in wanted)

    for want, got in zip(run(normals()), runner(run)(normals()), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
