"""Images become what the table says, beside transformers' own functions; what cannot be read is named."""

import sys

import numpy as np
import pytest
from PIL import Image
from transformers import image_transforms

from fewbit.errors import CalibrationError, MissingExtraError, RecipeError
from fewbit.samples.images import ImageFolder
from fewbit.samples.model_input import ModelInput
from fewbit.samples.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height, width, channels=3, seed=0):
    """Something smooth, so that an offset by a pixel shows and interpolation has something to do."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    values = 127 + 60 * np.sin(x / 5 + c + seed) + 60 * np.cos(y / 7 - c)
    return values.astype(np.uint8) if channels > 1 else values[..., 0].astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    def save(**pictures):
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        return tmp_path

    return save


# Sizes whose differences are even: of an odd one the two libraries cut off the odd row at different ends.
@pytest.mark.parametrize(("size", "shorter"), [((64, 96), 48), ((96, 64), 48), ((48, 80), 40), ((30, 30), 40)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_the_centre_of_the_resized_image_is_what_transformers_cuts_out(folder, size, shorter, how):
    table = Preprocessing(size=32, shorter_side=shorter, interpolation=how, mean=MEAN, std=STD)
    found = ImageFolder(folder(a=picture(*size)), None, table).take([0])
    wanted = image_transforms.get_resize_output_image_size(picture(*size), shorter, default_to_square=False)
    resized = image_transforms.resize(picture(*size), wanted, resample=Image.Resampling[how.upper()])
    cropped = image_transforms.center_crop(resized, (32, 32))
    expected = image_transforms.normalize(image_transforms.rescale(cropped, 1 / 255), MEAN, STD)
    assert found.shape == (1, 3, 32, 32)
    assert found.dtype == np.float32
    # The same pixels; the arithmetic behind them is in another order, and numbers reach 2.6.
    assert np.abs(found[0] - np.moveaxis(expected, -1, 0)).max() < 1e-6
    # A pixel off is far more than that.
    assert np.abs(found[0, :, :, 1:] - found[0, :, :, :-1]).max() > 0.01


def test_stretching_gives_both_sides(folder):
    table = Preprocessing(size=(4, 8), resize="stretch", interpolation="nearest", dtype="uint8", layout="NHWC")
    pixels = picture(2, 2)
    found = ImageFolder(folder(a=pixels), None, table).take([0])
    assert np.array_equal(found[0], pixels.repeat(2, 0).repeat(4, 1))


def test_channels_layout_and_scale_are_as_the_table_says(folder):
    pixels = picture(8, 8)
    path = folder(a=pixels)

    def taken(**table):
        return ImageFolder(path, None, Preprocessing(size=8, **table)).take([0])[0]

    assert np.array_equal(taken(dtype="uint8"), np.moveaxis(pixels, -1, 0))
    assert np.array_equal(taken(dtype="uint8", layout="NHWC"), pixels)
    assert np.array_equal(taken(dtype="uint8", layout="NHWC", channels="bgr"), pixels[..., ::-1])
    means = (104.0, 117.0, 123.0)
    caffe = taken(channels="bgr", scale=1, mean=means, layout="NHWC")
    assert np.array_equal(caffe, pixels[..., ::-1].astype(np.float32) - np.asarray(means, np.float32))
    assert taken(dtype="float16").dtype == np.float16
    gray = taken(channels="gray", dtype="uint8")
    assert np.array_equal(gray[0], np.asarray(Image.fromarray(pixels).convert("L")))


def test_gray_images_palettes_and_alpha_have_three_channels(tmp_path):
    gray = picture(8, 8, 1)
    Image.fromarray(gray).save(tmp_path / "a.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "b.png")
    Image.fromarray(np.dstack([gray] * 4)).save(tmp_path / "c.png")
    found = ImageFolder(tmp_path, None, Preprocessing(size=8, dtype="uint8", layout="NHWC")).take([0, 1, 2])
    assert np.array_equal(found, np.broadcast_to(gray[None, :, :, None], (3, 8, 8, 3)))


def test_folders_inside_count_and_other_files_do_not(folder, tmp_path):
    folder(b=picture(8, 8), a=picture(8, 8))
    (tmp_path / "dogs").mkdir()
    Image.fromarray(picture(8, 8)).save(tmp_path / "dogs" / "c.JPG")
    (tmp_path / "labels.csv").write_text("a.png,1")
    assert ImageFolder(tmp_path, None, Preprocessing(size=8)).names == ["a.png", "b.png", "dogs/c.JPG"]


def test_a_table_that_does_not_fit_the_model_is_refused(folder):
    path = folder(a=picture(8, 8))
    own = ModelInput("pixels", np.dtype("float32"), ("n", 3, 8, 8))
    assert len(ImageFolder(path, [own], Preprocessing(size=8))) == 1
    with pytest.raises(
        CalibrationError, match=r"preprocessed: input 'pixels' takes shape \(n, 3, 8, 8\) and is given \(1, 8"
    ):
        ImageFolder(path, [own], Preprocessing(size=8, layout="NHWC"))
    with pytest.raises(CalibrationError, match="takes float32 and is given uint8"):
        ImageFolder(path, [own], Preprocessing(size=8, dtype="uint8"))
    with pytest.raises(CalibrationError, match="the inputs of the model are 'pixels', 'pixels'"):
        ImageFolder(path, [own, own], Preprocessing(size=8))
    with pytest.raises(
        RecipeError, match="holds images, and what is to be done to them is not known; give preprocessing"
    ):
        ImageFolder(path, [own])


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    Image.fromarray(picture(256, 256)).save(tmp_path / "b.jpg")
    content = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "c.png")
    store = ImageFolder(tmp_path, None, Preprocessing(size=8))
    for place, message in enumerate(
        (
            r"a.png is no image that can be read: .*; replace or remove it",
            r"b.jpg is no image that can be read: .*truncated",
            r"c.png has pixels of mode I;16, more than 8 bits; save it with 8 bits a channel",
        )
    ):
        with pytest.raises(CalibrationError, match=message):
            store.take([place])


def test_an_image_of_too_many_pixels_is_refused(folder, monkeypatch):
    path = folder(a=picture(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CalibrationError, match=r"a.png is no image that can be read: .*exceeds limit of 1000 pixels"):
        ImageFolder(path, None, Preprocessing(size=8)).take([0])


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    path = folder(a=picture(8, 8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"images need PIL; pip install 'fewbit\[images\]'"):
        ImageFolder(path, None, Preprocessing(size=8))
