"""Quantized forms take part also where torch would go around the forward of a layer."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.activation import Activation
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.replacement import TorchReplacement
from fewbit.interfaces import Activations
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme


@pytest.mark.parametrize("stacked", [False, True])
def test_inputs_are_rounded_inside_an_encoder_that_torch_would_fuse(stacked):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = (nn.TransformerEncoder(layer, 2) if stacked else layer).eval()
    x = torch.randn(2, 5, 16)
    fb.quantize(model, fb.Recipe([fb.Rule(kind="linear", weight="int8", input="int4")]))
    with torch.no_grad():
        found = model(x)
    expected = model(x)  # with gradients torch does not fuse
    # The same products; only attention itself is computed in another order of float32 sums, which may flip a code.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_float_form_gives_an_encoder_its_own_forward_back():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    (first, *_) = TorchFrontend().layers(model)
    qtensor = quantize(TorchFrontend().weight(model, first), fb.parse_scheme("int8"))
    form = TorchReplacement(model, first, qtensor, Activations(input=Activation(scheme=parse_input_scheme("int8"))))
    form.install()
    assert "forward" in vars(model)
    form.restore()
    assert "forward" not in vars(model)
