"""Files, readers and iterables through `fewbit.quantize`: what comes out is what a list of batches gives."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError, RecipeError

MLP = """(float[n, 16] x) => (float[n, 4] y) {
    g = Gemm<transB=1>(x, "up.weight")
    r = Relu(g)
    h = Gemm<transB=1>(r, "middle.weight")
    s = Relu(h)
    y = Gemm<transB=1>(s, "down.weight")
}"""
SHAPES = {"up.weight": (16, 16), "middle.weight": (16, 16), "down.weight": (4, 16)}
X = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)
BATCHES = [{"x": X[:32]}, {"x": X[32:64]}, {"x": X[64:]}]


class Reader:
    def __init__(self, batches):
        self.left = list(batches)

    def get_next(self):
        return self.left.pop(0) if self.left else None


@pytest.fixture
def mlp(onnx_model):
    return onnx_model(MLP, SHAPES)


def scales(result):
    """The static ranges of all inputs, in the order of the layers."""
    return [own.activations.input.scale.item() for own in result.model.layers.values()]


def test_an_onnx_model_is_calibrated_alike_from_everything_that_gives_batches(mlp, tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=X)
    np.save(tmp_path / "x.npy", X)
    for name, batch in zip("abc", BATCHES, strict=True):
        (tmp_path / "folder" / "x").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "folder" / "x" / f"{name}.npy", batch["x"])
    expected = fb.quantize(mlp, "w8a8-static", calibration=BATCHES, evaluation=BATCHES)
    kinds = {
        "npz": (str(tmp_path / "data.npz"), "70 samples of data.npz"),
        "npy": (tmp_path / "x.npy", "70 samples of x.npy"),
        "folder": (tmp_path / "folder", "70 samples of folder"),
        "samples": (fb.Samples(tmp_path / "data.npz", batch_size=32), "70 samples of data.npz"),
        "reader": (Reader(BATCHES), "the given batches"),
        "generator": ((batch["x"] for batch in BATCHES), "the given batches"),
    }
    for kind, (calibration, name) in kinds.items():
        evaluation = Reader(BATCHES) if kind == "reader" else BATCHES if kind == "generator" else calibration
        result = fb.quantize(mlp, "w8a8-static", calibration=calibration, evaluation=evaluation)
        assert scales(result) == scales(expected), kind
        assert result.report.output_sqnr == expected.report.output_sqnr
        assert result.report.calibration == f"{name}: 3 batches"
        assert result.report.text == name
    other = fb.quantize(mlp, "w8a8-static", calibration=fb.Calibration(data=tmp_path / "data.npz", samples=7))
    assert other.report.calibration == "7 of 70 samples of data.npz: 1 batches"
    assert scales(other) != scales(expected)


def test_a_model_of_fixed_shape_takes_its_own_batches_out_of_a_file(onnx_model, tmp_path):
    np.savez(tmp_path / "data.npz", x=X)
    model = onnx_model(MLP.replace("n, 16", "4, 16").replace("n, 4", "4, 4"), SHAPES)
    result = fb.quantize(model, "w8a8-static", calibration=tmp_path / "data.npz", evaluation=tmp_path / "data.npz")
    assert result.report.calibration == "68 of 70 samples of data.npz: 17 batches"


def test_a_module_takes_arrays_as_tensors(tmp_path):
    np.savez(tmp_path / "data.npz", X)  # without a name: the first argument

    def quantized(calibration):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
        return fb.quantize(model, "w4a16", calibration=calibration, evaluation=calibration)

    expected = quantized([torch.from_numpy(batch["x"]) for batch in BATCHES])
    for calibration in (tmp_path / "data.npz", [batch["x"] for batch in BATCHES]):
        result = quantized(calibration)
        assert torch.equal(result.run(X), expected.run(torch.from_numpy(X)))
        assert result.report.output_sqnr == expected.report.output_sqnr


def test_a_module_with_names_takes_a_dict_and_floats_in_its_own_type(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(8, 16), nn.Linear(16, 4)

        def forward(self, ids, x):
            return self.linear(self.table(ids) + x)

    np.savez(tmp_path / "data.npz", x=X, ids=np.arange(70) % 8)
    result = fb.quantize(Pair().to(torch.bfloat16).eval(), "w8a8-static", calibration=tmp_path / "data.npz")
    assert result.report.calibration == "70 samples of data.npz: 3 batches"
    assert result.run({"x": X[:2], "ids": np.arange(2)}).dtype == torch.bfloat16


def test_images_calibrate_a_convolution(tmp_path):
    random = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(random.integers(0, 256, (12, 10, 3), np.uint8)).save(tmp_path / f"{number}.png")
    images = fb.Samples(tmp_path, preprocessing=fb.Preprocessing(size=8), batch_size=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    result = fb.quantize(model, "w8a8-static", calibration=images, evaluation=images)
    assert result.report.text.startswith("5 samples of ")
    assert result.report.output_sqnr > 25
    with pytest.raises(RecipeError, match="holds images, and what is to be done to them is not known"):
        fb.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), "w8a8-static", calibration=tmp_path)


def test_later_stages_of_a_calibration_do_not_read_the_data_again(mlp):
    class Counted:
        read = 0

        def get_next(self):
            self.place += 1
            Counted.read += 1
            return BATCHES[self.place - 1] if self.place <= 3 else None

        def rewind(self):
            self.place = 0

    fb.quantize(mlp, "w8a8-static", calibration=Counted())
    # 4 to count them; one batch for BatchNorms; the stage that looks at x, and the one behind the layer that reads it.
    # The third stage goes on from what the second one left; one batch is kept as the example to save with.
    assert Counted.read == 4 + 1 + 2 * 3 + 1


@pytest.mark.parametrize("framework", ["onnx", "torch"])
def test_memory_does_not_grow_with_the_number_of_samples(onnx_model, tmp_path, framework, monkeypatch):
    monkeypatch.setattr("fewbit.frontends.onnx.walk._IN_MEMORY", 1 << 16)

    def model():
        if framework == "onnx":
            return onnx_model(MLP.replace("n, 16", "n, 4096"), {**SHAPES, "up.weight": (16, 4096)})
        return nn.Sequential(nn.Linear(4096, 16), nn.ReLU(), nn.Linear(16, 4)).eval()

    def peak(count):
        np.savez(tmp_path / "data.npz", np.random.default_rng(0).normal(size=(count, 4096)).astype(np.float32))
        samples = fb.Samples(tmp_path / "data.npz", batch_size=16, count=count)
        tracemalloc.start()
        result = fb.quantize(model(), "w8a8-static", calibration=samples, evaluation=samples)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.report.calibration == f"{count:,} samples of data.npz: {count // 16} batches"
        return most

    peak(16)  # what is imported and compiled once
    few, many = peak(64), peak(1024)  # 1 MB and 16 MB
    assert many < few + (1 << 20)


WRONG = {
    "missing": ({"y": X}, CalibrationError, "data.npz has no 'x' and holds 'y', which the model does not know"),
    "type": ({"x": X.astype(np.float64)}, CalibrationError, "data.npz: input 'x' takes float32 and is given float64"),
    "shape": ({"x": X[:, :3]}, CalibrationError, r"data.npz: input 'x' takes shape \(n, 16\) and is given \(1, 3\)"),
    "NaN": ({"x": np.full((3, 16), np.nan, np.float32)}, NonFiniteError, "data.npz: 'x' holds NaN in sample 0"),
}


@pytest.mark.parametrize("use", ["calibration", "evaluation"])
@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_ends_the_run_with_its_name(mlp, tmp_path, case, use):
    arrays, error, message = WRONG[case]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(error, match=message):
        fb.quantize(mlp, "w8a8-static", **{"calibration": BATCHES, use: tmp_path / "data.npz"})


def test_other_paths_are_refused(mlp, tmp_path):
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(
        CalibrationError, match=r"has no tokenizer for .*text.txt; give batches of token ids, or samples"
    ):
        fb.quantize(mlp, "w8a8-static", calibration=tmp_path / "text.txt")
    with pytest.raises(CalibrationError, match=r"text.txt holds no samples; give an .npz or .npy file"):
        fb.quantize(mlp, "w8a8-static", calibration=BATCHES, evaluation=tmp_path / "text.txt")
    with pytest.raises(RecipeError, match="evaluation holds no batch; leave it out, or give some"):
        fb.quantize(mlp, "w8a16", evaluation=Reader([]))
    with pytest.raises(CalibrationError, match="calibration holds no batch; give some, or leave it out"):
        fb.quantize(mlp, "w8a8-static", calibration=iter([]))
    with pytest.raises(
        CalibrationError,
        match="evaluation takes several batches, a reader or the path of files, not one ndarray; wrap it",
    ):
        fb.quantize(mlp, "w8a16", evaluation=X)
