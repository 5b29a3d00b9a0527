"""What compressed-tensors packs itself, fewbit reads as the weights that compressed-tensors reads."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, decoded_blocks
from fewbit.checkpoints.compressed_tensors_form import entry
from fewbit.frontends.torch.stored import from_stored


def packed(word, seed):
    """Return the tensors of a weight in compressed-tensors' own hand, and the weight that it reads from them."""
    scheme = BLOCKS[word]
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(seed)) * 0.03
    largest = weight.unflatten(1, (-1, scheme.granularity.size)).abs().amax(-1)
    state = {"weight": weight}
    if word.startswith("nvfp4"):
        state["weight_global_scale"] = (448 * 6 / weight.abs().max()).reshape(1)
        state["weight_scale"] = (state["weight_global_scale"] * largest / 6).to(torch.float8_e4m3fn).float()
    else:
        state["weight_scale"] = 2.0 ** torch.floor(torch.log2(largest / scheme.format.maximum) + 1)
    args = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**entry(scheme)))
    compressor = BaseCompressor.get_value_from_registry(word)
    stored = compressor.compress(state, args)
    return stored, compressor.decompress(stored, args)["weight"]


def arrays(stored):
    import ml_dtypes

    small = {torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn}
    return {
        name: tensor.view(torch.uint8).numpy().view(small[tensor.dtype]) if tensor.dtype in small else tensor.numpy()
        for name, tensor in stored.items()
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("word", BLOCKS)
def test_the_weights_are_equal_to_the_bit_in_the_type_that_it_gives_them(word, seed):
    stored, theirs = packed(word, seed)
    ours = from_stored(np.asarray(decoded_blocks(arrays(stored), BLOCKS[word]).dequantize()))
    assert ours.abs().max() > 0.05
    assert torch.equal(ours.to(theirs.dtype), theirs)


@pytest.mark.parametrize("word", BLOCKS)
def test_the_comparison_notices_codes_in_another_order(word):
    """The negative control."""
    stored, theirs = packed(word, 0)
    codes = "weight" if "weight" in stored else "weight_packed"
    bits = stored[codes].view(torch.uint8)
    turned = bits << 4 | bits >> 4 if codes == "weight_packed" else bits.flip(1)
    stored[codes] = turned.view(stored[codes].dtype)
    ours = from_stored(np.asarray(decoded_blocks(arrays(stored), BLOCKS[word]).dequantize()))
    assert not torch.equal(ours.to(theirs.dtype), theirs)
