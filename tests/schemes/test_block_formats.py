"""Schemes whose scale is quantized too: exact parts, errors that do not depend on magnitude, no erased groups."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbit.catalogue import lookup
from fewbit.evaluation.fidelity import fidelity
from fewbit.formats.minifloat import E4M3
from fewbit.formats.power_of_two import PowerOfTwo
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.block_formats import BLOCK_FORMATS, MXFP4, MXFP8, NVFP4
from fewbit.schemes.granularity import PerGroup, PerTile
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme


def weights(magnitude=1.0, shape=(32, 256)):
    values = np.random.default_rng(0).standard_normal(shape) * magnitude
    return values.astype(np.float32)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_values_are_level_times_scale_to_the_bit_in_every_framework(name, xp):
    scheme = parse_scheme(name)
    values = weights()
    expected, found = quantize(values, scheme), quantize(xp.from_numpy(values), scheme)
    np.testing.assert_array_equal(xp.to_numpy(found.codes), expected.codes)
    np.testing.assert_array_equal(xp.to_numpy(found.scale.codes), expected.scale.codes)
    np.testing.assert_array_equal(xp.to_numpy(found.dequantize()), expected.dequantize())
    size = scheme.granularity.size
    spread = np.repeat(expected.scale_values(), size, axis=1)
    np.testing.assert_array_equal(expected.dequantize(), scheme.format.decode(expected.codes) * spread)


def test_two_level_nvfp4_has_one_error_at_every_magnitude_and_one_level_fails():
    one_level = Scheme(format=NVFP4.format, granularity=PerGroup(16), scale_scheme=None)
    errors, single = [], []
    for magnitude in (1.0, 1e-3, 1e-6):
        values = weights(magnitude)
        errors.append(fidelity(values, quantize(values, NVFP4).dequantize()).sqnr)
        # What a single e4m3 scale a group, without a float for the tensor, would store.
        scale = E4M3.decode(E4M3.encode(quantize(values, one_level).scale))
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = NVFP4.format.encode(np.where(scale > 0, 1, 0).repeat(16, 1) * values / scale.repeat(16, 1))
        single.append(fidelity(values, NVFP4.format.decode(codes) * scale.repeat(16, 1)).sqnr)
    # Scales land on other e4m3 roundings when the tensor's float differs in its last bits: a tenth of a dB.
    assert max(errors) - min(errors) < 0.1
    # A floor between three bits (about 15 dB on a normal draw) and what four reach (about 20).
    assert errors[0] > 18.0
    # Scales of 1e-3 are subnormal in e4m3, steps of up to half their size: at least double the error power.
    assert single[1] < errors[1] - 3.0
    assert single[2] <= 0.0


def test_a_microscaling_scale_is_the_power_of_two_that_the_specification_allows():
    values = np.zeros((5, 32), np.float32)
    values[:, 0] = [6.0, 7.0, 6.9, 4.0, 3.0 * 2.0**-20]
    scales = quantize(values, MXFP4).scale_values()[:, 0]
    # 7 is nearer to 8 than to 6; ties go up, as compressed-tensors has it.
    assert scales.tolist() == [1.0, 2.0, 1.0, 1.0, 2.0**-21]


def test_mxfp8_takes_the_next_power_beyond_its_largest_element_and_clips_nothing():
    above = np.nextafter(np.float32(448.0), np.float32(512.0))
    values = np.zeros((4, 32), np.float32)
    values[:, 0] = [256.0, 448.0, above, 480.0]
    found = quantize(values, MXFP8)
    assert found.scale_values()[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert found.dequantize()[:, 0].tolist() == [256.0, 448.0, 448.0, 480.0]


def test_beyond_the_largest_element_of_mxfp8_the_next_power_leaves_less_noise_than_clipping():
    values = np.random.default_rng(0).standard_t(4, (256, 1024)).astype(np.float32)
    clipping = replace(MXFP8.scale_scheme, format=PowerOfTwo(480.0 / 448.0))
    errors = [
        fidelity(values, quantize(values, scheme).dequantize()).sqnr
        for scheme in (MXFP8, replace(MXFP8, scale_scheme=clipping))
    ]
    assert errors[0] > errors[1] + 0.15  # 31.46 dB against 31.27


def test_powers_of_two_lose_nothing_under_a_microscaling_scale():
    values = np.exp2(np.arange(-60, 60, dtype=np.float32)).repeat(32).reshape(120, 32)
    assert np.array_equal(quantize(values, MXFP4).dequantize(), values)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_empty_groups_give_zeros_and_leave_the_others_alone(name):
    scheme = parse_scheme(name)
    values = weights(1e-3)
    alone = quantize(values, scheme).dequantize()
    values[3] = 0.0
    found = quantize(values, scheme).dequantize()
    assert not found[3].any()
    # A tile of scales with an empty row in it may have another maximum.
    if not isinstance(scheme.scale_scheme.granularity, PerTile):
        np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(alone, 3, 0))


@pytest.mark.parametrize("name", ["nvfp4", "nf4-double"])
def test_a_small_group_beside_a_large_one_is_not_erased(name):
    values = weights()
    values[:, :64] *= 1e-6
    result = quantize(values, parse_scheme(name))
    assert (result.scale_values() > 0).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_bits_count_the_scales_and_the_scales_of_scales(name):
    scheme = lookup(BLOCK_FORMATS, name, what="scheme")
    scales = 256 // scheme.granularity.size
    outer = math.prod(quantize(weights(), scheme).scale.scale.shape)
    outer_bits = 32 if scheme.scale_scheme.scale_type == "float32" else 16
    expected = scheme.format.bits + (32 * scales * 8 + outer * outer_bits) / (32 * 256)
    assert scheme.bits_per_weight((32, 256)) == expected


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_quantized_layer_runs_and_loads_back(name):
    import fewbit as fb

    def made(seed):
        torch.manual_seed(seed)
        recipe = fb.Recipe([fb.Rule("0", weight=name)])
        return fb.quantize(torch.nn.Sequential(torch.nn.Linear(64, 48)), recipe).model

    first, second, inputs = made(0), made(1), torch.randn(3, 64)
    assert isinstance(first[0].qtensor.scale, QTensor)
    assert torch.equal(first(inputs), torch.nn.functional.linear(inputs, first[0].qtensor.dequantize(), first[0].bias))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(inputs), first(inputs))
    assert not any(value.dtype == torch.float32 and "codes" in key for key, value in first.state_dict().items())
