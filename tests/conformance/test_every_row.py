"""Every row of `fewbit support` gives the same bits on every framework, eager and compiled: `==` to NumPy.

NumPy itself is held to scalar oracles in test_affine.py and test_small_floats.py. Compiling takes seconds a scheme:
compilers get one of each kind, and all under `--every-row`.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fewbit.formats import FORMATS, LEARNED
from fewbit.qtensor import QTensor, fake_quantize, quantize
from fewbit.ranges import RANGES
from fewbit.schemes.notation import parse_scheme
from fewbit.support import schemes

SHAPE = (4, 100)  # 64 and 32 do not divide 100: the last group is uneven
#: What is left out where everything is compiled.
COMPILED = pytest.mark.every_row("torch compiled", "jax", "jax jit")
#: What is left out also where a search is a long Python loop.
SEARCHED = pytest.mark.every_row("torch compiled", "jax", "jax jit", "array-api-strict")
#: What is left out of range methods: a search runs outside of torch's graph, and is one compiled function to JAX.
BEYOND_JIT = pytest.mark.every_row("torch compiled", "jax")
#: A format of each kind: an integer with one level beside 0, others signed and not, of one byte and of two, floats with
#: and without a negative 0, a table of levels, and one of levels without a 0.
KINDS = ("int1", "int4", "uint8", "int16", "e4m3", "e4m3fnuz", "nf4", "binary")
#: Formats whose range is searched without being asked for.
SEARCHING = ("binary", "ternary")
#: Scales that are powers of two, floats under one scale of the tensor, floats under tiles, and casts.
WHOLE_KINDS = ("mxfp4", "nvfp4", "nf4-double", "fp16")
FAMILIES = {form: [row for row in schemes() if row.scheme.split()[0] == form] for form in FORMATS}
NEAREST = [form for form in FORMATS if FAMILIES[form] and form not in SEARCHING]
#: Learned levels are found on the host, not under a compiler: tests/test_codebooks.py. So are the scales of spans:
#: tests/schemes/test_gguf.py.
WHOLE_ROWS = [
    row.scheme
    for row in schemes()
    if row.scheme.split()[0] not in (*FORMATS, *LEARNED) and parse_scheme(row.scheme).span is None
]


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


def stored(text, scale_type):
    scheme = parse_scheme(text)
    return scheme.stored_as(scale_type) if scale_type else scheme


def everything(wanted):
    """Return a function from a weight to all that quantizing it by each of the schemes `wanted` gives."""

    def run(weight):
        found = []
        for scheme in wanted:
            found += parts(quantize(weight, scheme))
        return tuple(found)

    return run


def assert_equal_to_numpy(wanted, runner, weights):
    function = everything(wanted)
    compiled = runner(function)
    for case, weight in weights.items():
        expected, found = function(weight), compiled(weight)
        assert len(found) == len(expected)
        for position, (want, got) in enumerate(zip(expected, found, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"{wanted}: {case}, array {position}", strict=True)


def assert_family_equals_numpy(form, rows, runner):
    weights = cases(parse_scheme(f"{form} tensor asym" if form in ("int1", "uint1") else f"{form} tensor").format)
    wanted = [stored(row.scheme, "float16") for row in rows if form != "int1"]
    wanted += [stored(f"{row.scheme} asym", None) for row in rows if row.asymmetric]
    assert_equal_to_numpy(wanted, runner, weights)


def marked(values, kinds, mark=COMPILED):
    return [pytest.param(value, marks=[] if value in kinds else mark) for value in values]


@pytest.mark.parametrize("form", [*marked(NEAREST, KINDS), *marked(SEARCHING, KINDS, SEARCHED)])
def test_every_format_in_groups(form, runner):
    assert_family_equals_numpy(form, [row for row in FAMILIES[form] if row.scheme.endswith("g64")], runner)


@pytest.mark.parametrize("form", [*marked(NEAREST, ["int4"]), *marked(SEARCHING, [], SEARCHED)])
def test_every_format_under_every_other_granularity(form, runner):
    # A granularity knows nothing of the format.
    assert_family_equals_numpy(form, [row for row in FAMILIES[form] if not row.scheme.endswith("g64")], runner)


@pytest.mark.parametrize("scheme", marked(WHOLE_ROWS, WHOLE_KINDS))
def test_every_whole_scheme(scheme, runner):
    wanted = parse_scheme(scheme)
    assert_equal_to_numpy([wanted], runner, cases(wanted.format))


GRIDS = ("int3 channel asym", "int4 g64", "e4m3 tensor", "int4 g64 float-zero")


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("words", marked(GRIDS, ["int3 channel asym"], BEYOND_JIT))
def test_every_range_method(words, method, runner):
    weights = {"normals": normals(), "extremes": extremes()}
    assert_equal_to_numpy([stored(f"{words} {method}", "bfloat16")], runner, weights)


FAKE = ("int4 g64", "int8 channel asym", "int4 g64 float-zero", "e4m3 channel", "nf4 g64", "nvfp4")


@pytest.mark.parametrize("seed", [None, 7], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("text", marked(FAKE, ["int8 channel asym", "nf4 g64"]))
def test_fake_quantization_also_from_a_seed(runner, text, seed):
    scheme = parse_scheme(text)

    def run(weight):
        return (fake_quantize(weight, scheme, seed=seed),)

    for want, got in zip(run(normals()), runner(run)(normals()), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
