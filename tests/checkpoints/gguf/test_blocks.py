"""GGUF's blocks: what is packed decodes with the gguf package to the same numbers, and unpacks to the same weight."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.checkpoints.gguf.blocks import BLOCKS, pack, tensor_scale, unpack
from fewbit.errors import CheckpointError
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.gguf import KINDS, kind_of, scheme_of
from fewbit.schemes.notation import parse_scheme


def normals(*shape):
    return (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(np.float32)


def assert_same(found, expected):
    if expected is None or isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True)
        return
    assert found.scheme == expected.scheme
    for part in ("codes", "scale", "zero_point", "minimum"):
        assert (getattr(found, part) is None) == (getattr(expected, part) is None)
        if getattr(expected, part) is not None:
            assert_same(getattr(found, part), getattr(expected, part))


def decoded(rows, kind):
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])


def without_tensor_scale(weight):
    """Return the weight as NVFP4 blocks hold it."""
    if not isinstance(weight.scale, QTensor) or weight.scale.scheme.format.name != "e4m3":
        return weight
    return replace(weight, scale=replace(weight.scale, scale=np.ones((1, 1), np.float32)))


def test_every_type_has_the_sizes_of_the_gguf_package():
    assert {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] for kind in KINDS} == BLOCKS


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_decodes_to_its_numbers_and_unpacks_to_itself(kind):
    weight = normals(6, 512)
    weight[0] = 0.0
    weight[1, :64] = 0.0
    weight[2, :256] = -0.3
    weight[3] = np.abs(weight[3])
    quantized = without_tensor_scale(quantize(weight, scheme_of(kind)))
    rows = pack(quantized, kind)
    np.testing.assert_array_equal(decoded(rows, kind), quantized.dequantize())
    assert_same(unpack(rows, kind), quantized)
    assert not quantized.dequantize()[0].any()
    rows[4, BLOCKS[kind][1] // 2] ^= 1  # the comparison sees a single bit
    assert not np.array_equal(decoded(rows, kind), quantized.dequantize())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("FP4")])
def test_any_bytes_unpack_to_what_the_gguf_package_decodes(kind):
    size = BLOCKS[kind][1]
    rows = np.random.default_rng(1).integers(0, 256, (128, 2 * size), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):  # among random float16s are NaN and infinity
        values = decoded(rows, kind)
    finite = np.isfinite(values).all(axis=1)
    kept = unpack(rows[finite], kind)
    np.testing.assert_array_equal(kept.dequantize(), values[finite])
    np.testing.assert_array_equal(pack(kept, kind), rows[finite])
    assert finite.sum() > 8
    with pytest.raises(CheckpointError, match=f"of its {kind} scales are NaN or infinite; the file is damaged"):
        unpack(rows, kind)


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4"])
def test_any_bytes_with_usable_scales_unpack_to_what_the_gguf_package_decodes(kind):
    size, scales = BLOCKS[kind][1], 4 if kind == "NVFP4" else 1
    rows = np.random.default_rng(1).integers(0, 256, (128, size), dtype=np.uint8)
    rows[:, :scales] = np.clip(rows[:, :scales] & 0x7F, 1, None)
    np.testing.assert_array_equal(unpack(rows, kind).dequantize(), decoded(rows, kind))


def test_the_scale_of_an_nvfp4_tensor_is_kept_beside_its_blocks():
    quantized = quantize(normals(4, 128), parse_scheme("nvfp4"))
    assert tensor_scale(quantized) != 1.0
    assert_same(unpack(pack(quantized, "NVFP4"), "NVFP4", tensor_scale(quantized)), quantized)


def test_an_empty_mxfp4_block_of_llama_cpp_is_read_and_others_of_its_scale_are_refused():
    rows = np.zeros((1, 17), np.uint8)
    assert not unpack(rows, "MXFP4").dequantize().any()
    rows[0, 1] = 1
    with pytest.raises(CheckpointError, match=r"MXFP4 block has the scale 2\^-127 or NaN"):
        unpack(rows, "MXFP4")


def test_what_a_type_cannot_hold_is_refused_with_the_reason():
    q4 = quantize(normals(2, 64), scheme_of("Q4_0"))
    with pytest.raises(CheckpointError, match="a weight in 'q4_0' is not Q8_0 but Q4_0"):
        pack(q4, "Q8_0")
    with pytest.raises(CheckpointError, match=r"float16 scales, which do not hold 0\.3333"):
        pack(replace(q4, scale=np.full_like(q4.scale, 1 / 3)), "Q4_0")
    with pytest.raises(CheckpointError, match=r"rows of shape \(1, 17\) hold no whole Q4_0 blocks"):
        unpack(np.zeros((1, 17), np.uint8), "Q4_0")


def test_plain_groups_of_32_under_float16_scales_are_q4_0_and_q8_0_as_they_are():
    for text, kind in (("int4 g32", "Q4_0"), ("int8 g32", "Q8_0")):
        quantized = quantize(normals(4, 64), parse_scheme(text).stored_as("float16"))
        assert kind_of(quantized.scheme) == kind
        np.testing.assert_array_equal(decoded(pack(quantized, kind), kind), quantized.dequantize())


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 3),
    blocks=st.integers(1, 3),
    exponent=st.integers(-12, 2),
    seed=st.integers(0, 2**16),
    heavy=st.booleans(),
)
def test_any_weight_survives_the_bytes(kind, rows, blocks, exponent, seed, heavy):
    generator = np.random.default_rng(seed)
    shape = rows, blocks * BLOCKS[kind][0]
    weight = generator.standard_t(2, shape) if heavy else generator.standard_normal(shape)
    importance = np.exp(2 * generator.standard_normal(shape[1])).astype(np.float32)
    weight = (weight * 10.0**exponent).astype(np.float32)
    quantized = without_tensor_scale(quantize(weight, scheme_of(kind), importance))
    packed = pack(quantized, kind)
    np.testing.assert_array_equal(decoded(packed, kind), quantized.dequantize())
    assert_same(unpack(packed, kind), quantized)
