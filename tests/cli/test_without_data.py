"""`fewbit quantize --calibration synthetic` and `none`."""

import json

import pytest
import torch

from fewbit.calibration import Calibration
from fewbit.cli.samples import made_of
from fewbit.errors import RecipeError
from fewbit.samples.preprocessing import Preprocessing
from fewbit.synthetic.options import Synthetic


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A folder with a small network of convolutions and BatchNorms."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 4}
    model = ResNetForImageClassification(ResNetConfig(**shape))
    for _ in range(10):
        model(torch.randn(4, 3, 32, 32))
    folder = tmp_path_factory.mktemp("network") / "model"
    model.save_pretrained(folder)
    return folder


def quantized(run, network, output, *options):
    code, printed, error = run(
        "quantize", network, "-o", output, "--recipe", "w8a8-static", "--text", "none", "--json", *options
    )
    assert code == 0, error
    return json.loads(printed)


def test_images_are_made_of_the_shape_that_is_given(run, network, tmp_path):
    options = ("--calibration", "synthetic", "--shape", "3,32,32", "--samples", "4", "--seed", "3")
    found = quantized(run, network, tmp_path / "out", *options)
    assert found["calibration"].startswith("4 synthetic images of 3x32x32 (zeroq), 500 steps, loss ")
    assert found["seed"] == 3


def test_images_are_made_in_as_many_steps_as_are_given(run, network, tmp_path):
    options = ("--calibration", "synthetic", "--shape", "3,32,32", "--samples", "4", "--iterations", "7")
    found = quantized(run, network, tmp_path / "out", *options)
    assert found["calibration"].startswith("4 synthetic images of 3x32x32 (zeroq), 7 steps, loss ")


@pytest.mark.parametrize("calibration", ["none", "self", "images/"])
def test_steps_of_images_that_are_not_made_are_refused(calibration):
    with pytest.raises(RecipeError, match="--iterations is about images that a model makes; give --calibration synthe"):
        made_of(calibration, None, None, 7)


def test_none_is_no_data_at_all(run, network, tmp_path):
    found = quantized(run, network, tmp_path / "out", "--calibration", "none", "--shape", "3,32,32")
    assert found["calibration"].startswith("no data; static ranges from BatchNorm")
    assert {layer["algorithm"] for layer in found["layers"]} <= {"nearest", None}


def test_a_dry_run_says_what_gives_way(run, network):
    code, printed, _ = run("quantize", network, "--recipe", "w4a16", "--dry-run", "--calibration", "none")
    assert code == 0
    assert "no data: weights are rounded to nearest in the place of gptq" in printed


def test_a_missing_shape_is_named(run, network, tmp_path):
    options = ("--recipe", "w8a8-static", "--text", "none", "--calibration", "synthetic")
    code, _, error = run("quantize", network, "-o", tmp_path / "out", *options)
    assert code == 2
    assert "does not say which shape of images it takes; give it" in error
    assert "or --shape 3,224,224" in error


def test_words_become_what_makes_the_data(tmp_path):
    assert made_of("self", None, None) == "self"
    assert made_of("synthetic", " 3, 8,9", None) == Synthetic(shape=(3, 8, 9))
    assert made_of("none", None, None) == Synthetic(method="batchnorm")
    assert made_of("synthetic", None, None, 7) == Synthetic(iterations=7)
    assert Calibration(data="synthetic") == Calibration(data=Synthetic())
    table = tmp_path / "p.toml"
    table.write_text("size = 8\nmean = 0.5\nstd = 0.5\n")
    assert made_of("synthetic", None, table).preprocessing == Preprocessing(size=8, mean=0.5, std=0.5)


@pytest.mark.parametrize(
    ("calibration", "shape", "message"),
    [
        ("synthetic", "3x8x8", "--shape '3x8x8' is not channels, height and width; give 3,224,224, say"),
        ("self", "3,8,8", "--shape is about images that a model makes; give --calibration synthetic or none"),
    ],
)
def test_shapes_without_sense_are_refused(calibration, shape, message):
    with pytest.raises(RecipeError, match=message):
        made_of(calibration, shape, None)
