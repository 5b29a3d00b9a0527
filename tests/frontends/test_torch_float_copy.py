"""A float copy computes with the numbers that the codes stand for, and leaves the module alone."""

import threading

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import fewbit as fb
from fewbit.errors import CheckpointError
from fewbit.frontends.torch.float_copy import float_copy
from fewbit.frontends.torch.quantized import QuantizedLayer


class Padded(nn.Conv2d):
    """Pads by a part of its own, and doubles."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.around = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return 2 * super().forward(self.around(x))


_MODULES = {
    "linear": (lambda: nn.Linear(8, 6), (3, 8)),
    "no bias": (lambda: nn.Linear(8, 6, bias=False), (3, 8)),
    "Conv1D": (lambda: Conv1D(6, 8), (3, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2), (2, 4, 9)),
    "stride": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), bias=False), (2, 4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 8)),
    "uneven": (lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 5)),
    "subclass": (lambda: Padded(4, 6, 2), (2, 4, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", _MODULES)
def test_each_kind_of_layer_computes_the_same_with_plain_weights(name):
    torch.manual_seed(0)
    make, shape = _MODULES[name]
    layer, x = make(), torch.randn(shape)
    model = nn.Sequential(layer).eval()
    result = fb.quantize(model, fb.Recipe([fb.Rule(".*", weight="int8")]))
    copied = float_copy(result.model)
    assert type(copied[0]) in (type(layer), nn.Linear)
    with torch.no_grad():
        # Padding apart from the convolution or inside of it: sums in another order.
        torch.testing.assert_close(copied(x), result.model(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(copied[0].weight, result.model[0].weight, rtol=0, atol=0)


def test_an_embedding_has_the_dequantized_rows():
    model = nn.Sequential(nn.Embedding(10, 4, padding_idx=0))
    fb.quantize(model, fb.Recipe([fb.Rule(".*", weight="int4 channel")]))
    ids = torch.arange(10)
    assert torch.equal(float_copy(model)(ids), model(ids))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.kept = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.again = self.first
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x):
        return self.encoder(self.kept(self.norm(self.again(self.first(x)) + self.shift)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    model = Block()
    rules = [fb.Rule("first", weight="int8", input="int8"), fb.Rule(r"encoder\.linear.", weight="int8", input="int8")]
    fb.quantize(model, fb.Recipe(rules))
    return model


def test_a_layer_at_two_places_stays_one_and_nothing_quantized_is_left(block):
    copied = float_copy(block)
    assert copied.first is copied.again
    assert not any(isinstance(part, QuantizedLayer) for part in copied.modules())
    assert "forward" not in vars(copied.encoder)


def test_other_numbers_are_shared_and_the_module_stays_as_it_was(block):
    before = {name: own.clone() for name, own in block.state_dict().items()}
    modes, forward = [part.training for part in block.modules()], vars(block.encoder)["forward"]
    copied = float_copy(block)
    assert copied.kept.weight.data_ptr() == block.kept.weight.data_ptr()
    assert copied.shift.data_ptr() == block.shift.data_ptr()
    assert not any(part.training for part in copied.modules())
    assert not any(own.requires_grad for own in copied.parameters())
    assert [part.training for part in block.modules()] == modes
    assert vars(block.encoder)["forward"] is forward
    assert isinstance(block.first, QuantizedLayer)
    assert block.kept.weight.requires_grad
    after = block.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], own) for name, own in before.items())


def test_a_part_that_cannot_be_copied_is_an_error():
    model = nn.Sequential(nn.Linear(8, 8))
    model.lock = threading.Lock()
    with pytest.raises(CheckpointError, match=r"Sequential cannot be copied: cannot pickle '_thread.lock'.*take"):
        float_copy(model)
