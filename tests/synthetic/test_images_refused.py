"""Models that make no images for themselves, and options without sense."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.synthetic.image_form import ImageForm

FEW = {"shape": (2, 12, 12), "samples": 24, "batch_size": 16, "iterations": 1}


class Blind(nn.Module):
    """A network that runs without gradients."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    @torch.no_grad()
    def forward(self, x):
        return self.norm(self.layer(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("Transformer", {"method": "zeroq"}, "no BatchNorm that remembers statistics, so zeroq has nothing"),
        ("Transformer", {"method": "generator"}, "to train a generator against; use method 'patch-similarity'"),
        ("Convolutional", {"method": "patch-similarity"}, "a run of Convolutional shows no attention between patches"),
        ("Convolutional", {"shape": (3, 12, 12)}, r"does not run on images of shape \(3, 12, 12\): .*; give the shape"),
        ("Convolutional", {"shape": None}, r"does not say which shape .*Synthetic\(shape=\(2, 224, 224\)\)"),
        ("Convolutional", {"method": "generator", "classes": 11}, "not a score for each of 11 classes; this method"),
        (
            "Convolutional",
            {"method": "batchnorm"},
            "method 'batchnorm' makes no images; use one of zeroq, generator",
        ),
        (Blind, {}, "no gradient comes through the forward of Blind to its BatchNorms, which run 1 times"),
        (lambda: nn.Linear(4, 4), {"shape": None}, "Linear has no BatchNorm that .*, shows no attention .* writes no"),
        (lambda: nn.Conv2d(2, 2, 1), {}, "Conv2d has no BatchNorm that remembers .* nothing to make data from"),
        (object, {}, "synthetic data needs a torch module, and this is an ONNX model: its BatchNorms are folded"),
    ],
)
def test_a_model_that_a_method_cannot_use_is_refused_with_the_remedy(model, options, message, untrained):
    torch.manual_seed(0)
    made = untrained[model]() if isinstance(model, str) else model()
    with pytest.raises(CalibrationError, match=message):
        fb.Synthetic(**{**FEW, **options}).images(made)


def test_a_loss_that_overflows_is_named(network):
    network.first_norm.running_var.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"loss of synthetic images is (inf|nan): numbers of Convolutional"):
        fb.Synthetic(**FEW).images(network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "zeroc"}, "unknown method of synthetic data 'zeroc'; did you mean 'zeroq'?"),
        ({"samples": 0}, "samples 0 of synthetic data; give 1 at least, or leave it out"),
        ({"iterations": 1.5}, "iterations 1.5 of synthetic data; give 1 at least"),
        ({"batch_size": None}, "batch_size None of synthetic data; give 1 at least"),
        ({"shape": (3, 0, 8)}, r"shape \(3, 0, 8\) is not channels, height and width; give \(3, 224, 224\), say"),
        ({"shape": "3x8x8"}, "shape '3x8x8' is not channels, height and width"),
        ({"shape": (3, 1 << 14, 1 << 14)}, "has 805,306,368 numbers; more than 67,108,864 are not made"),
        ({"values": (1, -1)}, r"values \(1, -1\) are not the least and the largest of inputs; give \(-1, 1\), say"),
        ({"values": 5}, "values 5 are not the least and the largest of inputs"),
    ],
)
def test_options_without_sense_are_refused(options, message):
    with pytest.raises(CalibrationError, match=message):
        fb.Synthetic(**options)


def test_arrays_with_channels_last_are_refused():
    own = fb.Preprocessing(size=8, layout="NHWC")
    with pytest.raises(CalibrationError, match="layout NHWC of the preprocessing; torch modules take images as NCHW"):
        ImageForm.of(nn.Identity(), fb.Synthetic(preprocessing=own))
