"""compressed-tensors rounds inputs as fewbit does, by ranges found anew or fixed; where it does not, by how much."""

from dataclasses import replace

import pytest
import torch

from fewbit.activation import Activation
from fewbit.formats.power_of_two import PowerOfTwo
from fewbit.schemes.notation import parse_input_scheme


def rounded_by_both(scheme, values, scale=None, zero_point=None):
    """Return what fewbit and compressed-tensors make of `values`, and the step by which they may differ."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    from fewbit.checkpoints.compressed_tensors_inputs import input_entry

    scheme = parse_input_scheme(scheme) if isinstance(scheme, str) else scheme
    args = QuantizationArgs(**input_entry(scheme))
    ours = Activation(scheme=scheme, scale=scale, zero_point=zero_point).rounded(values)
    if scheme.fixes_unit:
        unit = (1.0 / scale).reshape(1)
        scale, zero_point = compute_dynamic_scales_and_zp(values, args, torch.nn.Module(), unit)
        return ours, fake_quantize(values, scale, zero_point, args, unit)
    if scale is None:
        scale, zero_point = compute_dynamic_scales_and_zp(values, args, torch.nn.Module())
    return ours, fake_quantize(values, scale, zero_point, args)


def some_inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 500, 96, generator=generator) * torch.rand(4, 500, 1, generator=generator)


@pytest.mark.parametrize("scheme", ["int8", "int8 tensor", "int8 g32", "int4", "e4m3", "e4m3 tensor", "e4m3 g32"])
def test_dynamic_ranges_of_the_runtime_are_fewbits(scheme):
    """The two scales differ by a unit in the last place, 6e-8; what differs by more lies on a tie."""
    ours, theirs = rounded_by_both(scheme, some_inputs())
    off = (ours - theirs).abs() > 1e-6 * some_inputs().abs().amax(-1, keepdim=True)
    assert off.double().mean() < 1e-4


@pytest.mark.parametrize("scheme", ["mxfp4", "mxfp6", "mxfp8"])
def test_inputs_under_powers_of_two_are_rounded_alike_to_the_bit(scheme):
    ours, theirs = rounded_by_both(scheme, some_inputs())
    assert torch.equal(ours, theirs)


def groups_under(largest):
    """A group of 32 numbers for each magnitude, which is its largest; the others lie in 24 binades below."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(len(largest), 1, 32, generator=generator) * 2.0 - 1.0
    values *= 2.0 ** -torch.randint(0, 24, values.shape, generator=generator)
    values[:, 0, 0] = 1.0
    return values * largest[:, None, None]


#: The largest magnitudes that a group of bfloat16 numbers can have, of one binade.
MAGNITUDES = torch.arange(256.0, 512.0, 2.0)


@pytest.mark.parametrize("exponent", [-20, 0, 9])
def test_of_the_largest_magnitudes_of_16_bits_one_gives_another_power_under_mxfp8(exponent):
    """448, the largest element, fits a power, and theirs is the next: what is subnormal is coarser there."""
    unit = 2.0**exponent
    ours, theirs = rounded_by_both("mxfp8", groups_under(MAGNITUDES * unit))
    off = (ours - theirs).abs().amax(-1)[:, 0]
    assert MAGNITUDES[off > 0.0].tolist() == [448.0]
    assert off.max() <= 2.0**-9 * unit  # the step of such numbers


def test_the_comparison_of_powers_notices_the_rule_of_other_elements():
    """The negative control: the next power where a magnitude lies nearer to the next binade, 480 and beyond."""
    scheme = parse_input_scheme("mxfp8")
    elsewhere = replace(scheme.scale_scheme, format=PowerOfTwo(480.0 / 448.0))
    ours, theirs = rounded_by_both(replace(scheme, scale_scheme=elsewhere), groups_under(MAGNITUDES))
    off = (ours - theirs).abs().amax(-1)[:, 0]
    assert MAGNITUDES[off > 2.0**-9].tolist() == [*range(466, 480, 2)]  # clipped to 448, not rounded to 480


@pytest.mark.parametrize("exponent", [-9, -12], ids=["reached", "exceeded"])
def test_inputs_under_scales_in_a_fixed_unit_are_rounded_alike_to_the_bit(exponent):
    """Units of fewbit's own are powers of two, and what calibration has seen may be exceeded."""
    unit = torch.tensor(2.0**exponent)
    ours, theirs = rounded_by_both("nvfp4 static", some_inputs(), unit)
    assert torch.equal(ours, theirs)
    ours, _ = rounded_by_both("nvfp4 static", some_inputs(), unit / 3.0)  # the negative control
    assert (ours != theirs).double().mean() > 0.1


def test_under_the_unit_of_another_writer_they_differ_on_ties_only():
    """They divide by its reciprocal, and fewbit multiplies by it: a unit in the last place of a scale."""
    ours, theirs = rounded_by_both("nvfp4 static", some_inputs(), torch.tensor(1.0 / 700.0))
    off = (ours - theirs).abs() > 1e-6 * some_inputs().abs().amax(-1, keepdim=True)
    assert off.double().mean() < 1e-4


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)], ids=str)
def test_compressed_tensors_finds_the_scales_of_16_bit_inputs_in_16_bits(dtype, share, signal_to_noise):
    """Theirs are rounded twice, 8 or 11 bits and then 4: some groups get the next scale, at no other error overall."""
    values = some_inputs().to(dtype)
    ours, theirs = (own.float() for own in rounded_by_both("nvfp4 static", values, torch.tensor(2.0**-9)))
    groups = (ours != theirs).unflatten(-1, (-1, 16)).any(-1)
    assert 0.0 < groups.double().mean() < share
    ratios = [signal_to_noise(values.float().numpy(), own.numpy()) for own in (ours, theirs)]
    assert abs(ratios[0] - ratios[1]) < 0.01
    assert torch.equal(*rounded_by_both("mxfp8", values))  # a power of two is the same in every type


def test_groups_that_the_unit_is_too_large_for_are_kept_and_the_runtime_erases_them():
    """A scale below half the least e4m3 level: fewbit takes that level, the runtime 1/8, which leaves nothing."""
    values = torch.linspace(-1.0, 1.0, 16).reshape(1, 1, 16) * 6.0 * 2.0**-11
    ours, theirs = rounded_by_both("nvfp4 static", values, torch.tensor(1.0))
    assert not theirs.any()
    assert (ours - values).abs().max() <= 2.0**-11  # half of the step of 2^-10 that follows 1.0 under 2^-9


@pytest.mark.parametrize("scheme", ["int8 sym", "int4 sym"])
def test_symmetric_dynamic_integers_differ_at_the_largest_magnitude_of_a_token_only(scheme):
    """It maps to 127.5, a tie, which a unit in the last place of the scale decides; either side errs by half a step."""
    values = some_inputs()
    ours, theirs = rounded_by_both(scheme, values)
    largest = values.abs().amax(-1, keepdim=True)
    step = largest / (127.5 if scheme.startswith("int8") else 7.5)
    off = (ours - theirs).abs() > 1e-6 * largest
    assert 0.1 < off.any(-1).double().mean() < 0.9
    at_largest = values.abs() == largest
    assert (off & ~at_largest).double().mean() < 1e-4
    for rounded in (ours, theirs):  # what is left of 1e-5 is the last place of float32 in the numbers themselves
        assert ((rounded - values).abs() / step)[off & at_largest].sub(0.5).abs().max() < 1e-5 * 127


@pytest.mark.parametrize("scheme", ["int8 static", "int8 static sym", "e4m3 static"])
@pytest.mark.parametrize("exponent", [-8, -5, -2])
def test_static_ranges_that_are_powers_of_two_are_applied_alike_to_the_bit(scheme, exponent):
    """Such a scale and its reciprocal are exact; an even zero point leaves ties where they are."""
    zero = torch.tensor(-20.0) if scheme == "int8 static" else None
    ours, theirs = rounded_by_both(scheme, some_inputs(), torch.tensor(2.0**exponent), zero)
    assert torch.equal(ours, theirs)


def test_compressed_tensors_takes_one_range_for_all_tokens_of_an_input_without_a_batch(signal_to_noise):
    """Theirs: only of three axes and more is a token a row; fewbit's tokens are rows always."""
    values = some_inputs()
    ours, theirs = rounded_by_both("int8", values[0])
    _, whole = rounded_by_both("int8 tensor", values[0])
    assert torch.equal(theirs, whole)
    ratios = [signal_to_noise(values[0].numpy(), other.numpy()) for other in (ours, theirs)]
    assert ratios[0] > ratios[1] + 3.0
