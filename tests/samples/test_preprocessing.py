"""The table of what is done to images: what it may say, and every mistake in it with what there is instead."""

import re

import pytest

from fewbit.errors import RecipeError
from fewbit.samples.preprocessing import Preprocessing

TABLE = """
size = [224, 192]
resize = "crop"
shorter_side = 256
interpolation = "bicubic"
channels = "bgr"
scale = 1.0
mean = [104, 117, 123]
std = 1
layout = "NHWC"
dtype = "float16"
"""


def test_a_file_says_the_same_as_the_value(tmp_path):
    (tmp_path / "table.toml").write_text(TABLE, encoding="utf-8")
    assert Preprocessing.from_toml(tmp_path / "table.toml") == Preprocessing(
        size=(224, 192), shorter_side=256, interpolation="bicubic", channels="bgr", scale=1.0, mean=(104, 117, 123),
        layout="NHWC", dtype="float16",
    )  # fmt: skip


def test_what_is_left_out_is_what_most_models_take():
    own = Preprocessing(size=32)
    assert (own.shape, own.factor, own.mean, own.std, own.dtype) == (
        (3, 32, 32),
        1 / 255,
        (0,) * 3,
        (1,) * 3,
        "float32",
    )
    assert Preprocessing(size=32, dtype="uint8").factor == 1.0
    assert Preprocessing(size=(2, 4), channels="gray", layout="NHWC").shape == (2, 4, 1)
    assert hash(Preprocessing.from_table({"size": [2, 4]})) == hash(Preprocessing(size=(2, 4)))


WRONG = {
    "an unknown key": ("size = 8\nmeans = 0", "unknown key of preprocessing 'means'; did you mean 'mean'? known: chan"),
    "no size": ("mean = 0", "preprocessing says no size; add size = 224, or [height, width]"),
    "size": ("size = 0", "size = 0 is not a number of pixels"),
    "three sizes": ("size = [1, 2, 3]", "is not a number of pixels or [height, width]"),
    "huge": ("size = 100000", "is not a number of pixels"),
    "a text": ('size = "224"', "is not a number of pixels"),
    "truth": ("size = true", "is not a number of pixels"),
    "resize": ('size = 8\nresize = "croop"', "unknown resize 'croop'; did you mean 'crop'? known: crop, stretch"),
    "no word": ("size = 8\nresize = 3", "unknown resize '3'; known: crop, stretch"),
    "layout": ('size = 8\nlayout = "CHW"', "unknown layout 'CHW'; did you mean 'NCHW'? known: NCHW, NHWC"),
    "channels": ('size = 8\nchannels = "rgba"', "unknown channels 'rgba'; did you mean 'rgb'? known: bgr, gray, rgb"),
    "interpolation": ('size = 8\ninterpolation = "area"', "unknown interpolation 'area'; known: bicubic, bilinear"),
    "dtype": ('size = 8\ndtype = "int8"', "unknown dtype 'int8'; did you mean 'uint8'? known: float16, float32, uint8"),
    "no crop": (
        'size = 8\nresize = "stretch"\nshorter_side = 9',
        "shorter_side = 9 is not a number of pixels, or there",
    ),
    "shorter": ("size = 8\nshorter_side = 7", "shorter_side = 7 is less than size = 8; nothing to crop from"),
    "mean": ("size = 8\nmean = [1, 2]", "mean = [1, 2] is not 3 numbers, one for each channel or one for all"),
    "std": ("size = 8\nstd = [1, 0, 1]", "std = [1, 0, 1] is not 3 numbers, one for each channel and not 0"),
    "infinite": ("size = 8\nmean = inf", "mean = inf is not 3 numbers"),
    "scale": ("size = 8\nscale = nan", "scale = nan is not a number"),
    "pixels": (
        'size = 8\ndtype = "uint8"\nmean = 1',
        "dtype = 'uint8' takes pixels as they are; leave out scale, mean",
    ),
    "no TOML": ("size = = 8", "is not valid TOML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_is_wrong_is_refused_with_what_there_is(tmp_path, case):
    text, message = WRONG[case]
    path = tmp_path / "table.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(message)) as raised:
        Preprocessing.from_toml(path)
    assert str(raised.value).startswith(str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read preprocessing .*none.toml: No such file"):
        Preprocessing.from_toml(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match=r"preprocessing .*bytes.toml is not UTF-8"):
        Preprocessing.from_toml(tmp_path / "bytes.toml")
