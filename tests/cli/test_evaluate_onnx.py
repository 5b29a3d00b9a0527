"""`fewbit evaluate` of ONNX files and `fewbit quantize` on samples: what is printed is what can be computed by hand."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import fewbit as fb

CNN = """(float[n, 3, 8, 8] x) => (float[n, 5] logits) {
    c = Conv<pads=[1, 1, 1, 1]>(x, "conv.weight", "conv.bias")
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    logits = Gemm<transB=1>(f, "fc.weight", "fc.bias")
}"""
SHAPES = {"conv.weight": (16, 3, 3, 3), "conv.bias": (16,), "fc.weight": (5, 16), "fc.bias": (5,)}


def outputs(path, x):
    """What onnxruntime computes, without anything of fewbit."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, onnx_model):
    """A folder with `model.onnx`, its quantized form `int8.onnx`, and `data.npz` with labels; none is changed."""
    folder = tmp_path_factory.mktemp("samples")
    onnx.save(onnx_model(CNN, SHAPES), folder / "model.onnx")
    random = np.random.default_rng(0)
    x = (random.normal(size=(50, 3, 8, 8)) + random.normal(size=(50, 3, 1, 1))).astype(np.float32)
    labels = outputs(folder / "model.onnx", x).argmax(-1)
    labels[:5] = (labels[:5] + 1) % 5  # so that the model is right in 45 of 50
    np.savez(folder / "data.npz", x=x, labels=labels)
    result = fb.quantize(folder / "model.onnx", "w8a8-static", to="ort-cpu", calibration=folder / "data.npz")
    result.save(folder / "int8.onnx")
    return folder


@pytest.fixture
def evaluate(run):
    def call(*arguments):
        code, out, err = run("evaluate", *arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


@pytest.fixture
def mistake(run):
    def call(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("fewbit: ")
        return err.removeprefix("fewbit: ").removesuffix("\n")

    return call


def test_a_quantized_file_is_measured_beside_its_reference(evaluate, folder):
    data = evaluate(folder / "int8.onnx", "--reference", folder / "model.onnx", "--data", folder / "data.npz")
    with np.load(folder / "data.npz") as file:
        held = dict(file)
    x, y = (outputs(folder / name, held["x"]).astype(np.float64) for name in ("model.onnx", "int8.onnx"))
    (own,) = data["outputs"]
    assert own["name"] == data["scores"] == "logits"
    # Another size of batch is summed in another order inside of onnxruntime.
    assert own["sqnr"] == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-3)
    assert own["mean_absolute_difference"] == pytest.approx(np.abs(x - y).mean(), rel=1e-3)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert (own["cosine"], own["least_cosine"]) == pytest.approx((cosines.mean(), cosines.min()), rel=1e-6)
    assert data["top1_agreement"] == (x.argmax(1) == y.argmax(1)).mean()
    assert data["reference_accuracy"] == 0.9
    assert data["accuracy"] == (y.argmax(1) == held["labels"]).mean()
    assert (data["samples"], data["predictions"], data["data"]) == (50, 50, "50 samples of data.npz")
    assert data["bytes_on_disk"] == (folder / "int8.onnx").stat().st_size
    assert data["reference_bytes_on_disk"] == (folder / "model.onnx").stat().st_size
    assert [own["samples"] for own in data["latency"]] == [1, 32]
    assert all(own["seconds"] > 0 and own["reference_seconds"] > 0 for own in data["latency"])


def test_people_read_the_same(run, folder):
    code, out, err = run(
        "evaluate", folder / "int8.onnx", "--reference", folder / "model.onnx", "--data", folder / "data.npz",
        "--samples", 10,
    )  # fmt: skip
    assert code == 0
    assert "Traceback" not in err
    names = [line[:22].strip() for line in out.splitlines()]
    expected = [
        "logits",
        "top-1 agreement",
        "accuracy",
        "measured on",
        "size",
        "latency, 1 sample",
        "latency, 10 samples",
    ]
    assert names == expected
    lines = dict(zip(names, (line[23:] for line in out.splitlines()), strict=True))
    assert lines["measured on"] == "10 of 50 samples of data.npz"
    assert lines["accuracy"].endswith("the reference's 90.00%, of 10 labels (logits)")
    assert lines["top-1 agreement"].endswith("% of 10 predictions (logits)")
    assert " times the reference's " in lines["size"]
    assert " times as fast as the reference's " in lines["latency, 1 sample"]


def test_a_file_beside_itself_loses_nothing_and_a_damaged_one_a_lot(evaluate, folder, tmp_path):
    data = evaluate(folder / "model.onnx", "--reference", folder / "model.onnx", "--data", folder / "data.npz")
    assert data["outputs"][0]["sqnr"] == "inf"
    assert (data["top1_agreement"], data["accuracy"]) == (1.0, 0.9)
    model = onnx.load(folder / "int8.onnx")
    held = {own.name: own for own in model.graph.initializer}
    weight = next(name for name, own in held.items() if sorted(own.dims) == [5, 16])
    scale = next(held[node.input[1]] for node in model.graph.node if node.input[0] == weight)
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    onnx.save(model, tmp_path / "doubled.onnx")
    doubled, sound = (
        evaluate(path, "--reference", folder / "model.onnx", "--data", folder / "data.npz")["outputs"][0]["sqnr"]
        for path in (tmp_path / "doubled.onnx", folder / "int8.onnx")
    )
    assert doubled < 15
    assert sound > 25


def test_without_a_reference_there_are_accuracy_size_and_latency(evaluate, folder, tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(50, np.int64))
    data = evaluate(folder / "int8.onnx", "--data", folder / "data.npz", "--labels", tmp_path / "labels.npy")
    with np.load(folder / "data.npz") as file:
        x = file["x"]
    assert data["accuracy"] == (outputs(folder / "int8.onnx", x).argmax(1) == 0).mean()
    assert (data["outputs"], data["top1_agreement"], data["reference"]) == ([], None, None)
    assert data["latency"][0]["reference_seconds"] is None


def test_weights_alone_in_four_bits_are_measured_too(evaluate, folder, onnx_model, tmp_path):
    text = '(float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, "l.weight") }'
    onnx.save(onnx_model(text, {"l.weight": (64, 64)}), tmp_path / "float.onnx")
    rules = fb.Recipe([fb.Rule(".*", weight="int4 g32")])
    fb.quantize(tmp_path / "float.onnx", rules, to="ort-cpu").save(tmp_path / "int4.onnx")
    assert "MatMulNBits" in {node.op_type for node in onnx.load(tmp_path / "int4.onnx").graph.node}
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    data = evaluate(
        tmp_path / "int4.onnx", "--reference", tmp_path / "float.onnx", "--data", tmp_path / "x.npy", "--batch-size", 2
    )  # fmt: skip
    assert 10 < data["outputs"][0]["sqnr"] < 30
    assert [own["samples"] for own in data["latency"]] == [1, 2]


def test_a_file_of_another_float_type_is_given_its_own(evaluate, folder, tmp_path, onnx_model):
    half = onnx_model(
        "(float16[n, 64] x) => (float16[n, 64] y) { y = Mul(x, two) }", {"two": np.asarray([2], np.float16)}
    )
    onnx.save(half, tmp_path / "half.onnx")
    whole = onnx_model("(float[n, 64] x) => (float[n, 64] y) { y = Mul(x, two) }", {"two": np.asarray([2], np.float32)})
    onnx.save(whole, tmp_path / "whole.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    data = evaluate(tmp_path / "half.onnx", "--reference", tmp_path / "whole.onnx", "--data", tmp_path / "x.npy")
    assert 60 < data["outputs"][0]["sqnr"] < 90  # 11 bits


def test_a_file_of_fixed_shape_is_given_batches_of_its_size(evaluate, mistake, onnx_model, folder, tmp_path):
    for size in (1, 8):
        text = CNN.replace("[n, 3", f"[{size}, 3").replace("[n, 5", f"[{size}, 5")
        onnx.save(onnx_model(text, SHAPES), tmp_path / f"{size}.onnx")
    given = ("--data", folder / "data.npz")
    data = evaluate(folder / "int8.onnx", "--reference", tmp_path / "8.onnx", *given)
    assert (data["samples"], data["data"]) == (48, "48 of 50 samples of data.npz")
    assert [own["samples"] for own in data["latency"]] == [8]
    assert evaluate(tmp_path / "1.onnx", *given)["samples"] == 50
    said = mistake("evaluate", tmp_path / "1.onnx", "--reference", tmp_path / "8.onnx", *given)
    assert said.endswith(
        "8.onnx takes 8 samples at once, so that no batch fits both; export one of them with a free axis"
    )


def test_sizes_count_external_data(evaluate, folder, tmp_path):
    onnx.save(
        onnx.load(folder / "model.onnx"), tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data",
        size_threshold=0,
    )  # fmt: skip
    data = evaluate(tmp_path / "apart.onnx", "--data", folder / "data.npz")
    assert data["bytes_on_disk"] == sum((tmp_path / name).stat().st_size for name in ("apart.onnx", "apart.data"))
    assert (tmp_path / "apart.data").stat().st_size > 2000


def test_images_are_measured_with_a_table_and_labels_beside_them(evaluate, folder, tmp_path):
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]
    for number, own in enumerate(pixels):
        Image.fromarray(own).save(tmp_path / f"{number}.png")
    (tmp_path / "table.toml").write_text("size = 8\nmean = 0.5\nstd = 0.25\n")
    x = (np.stack(pixels).transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    labels = outputs(folder / "model.onnx", x).argmax(1)
    (tmp_path / "labels.csv").write_text("".join(f"{number}.png,{label}\n" for number, label in enumerate(labels)))
    data = evaluate(folder / "model.onnx", "--data", tmp_path, "--preprocess", tmp_path / "table.toml")
    assert (data["accuracy"], data["samples"]) == (1.0, 3)


def test_models_of_an_old_opset_are_measured(evaluate, tmp_path, onnx_model):
    onnx.save(onnx_model("(float[n, 4] x) => (float[n, 4] y) { y = Neg(x) }", {}, opset=8), tmp_path / "old.onnx")
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    assert evaluate(tmp_path / "old.onnx", "--data", tmp_path / "x.npy")["samples"] == 3


def test_mistakes_are_answered_with_what_to_do(mistake, folder, made, tmp_path):
    model, data = folder / "model.onnx", folder / "data.npz"
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:100])
    (tmp_path / "text.txt").write_text("a text")
    np.savez(tmp_path / "other.npz", y=np.zeros((2, 3, 8, 8), np.float32))
    (tmp_path / "table.toml").write_text("size = 8\nmeen = 1")
    expected = {
        (model,): "model.onnx is measured on samples; give --data: an .npz or .npy file, or a folder of .npy files or",
        (
            model,
            "--data",
            data,
            "--text",
            "a.txt",
        ): "is measured on samples, not on a text; give --data instead of --text",
        (model, "--data", data, "--reference", made / "model"): "is compared with .onnx files only, not with",
        (model, "--data", data, "--device", "cuda"): "device 'cuda' cannot be used: ONNX models run on the CPU",
        (made / "model", "--data", data): "--data is for .onnx files, and",
        (made / "model", "--batch-size", "3"): "--batch-size is for .onnx files, and",
        (made / "model", "--reference", model): "cannot be compared with",
        (model, "--data", tmp_path / "missing.npz"): "missing.npz': no such file or folder",
        (model, "--data", tmp_path / "text.txt"): "text.txt holds no samples; give an .npz or .npy file",
        (model, "--data", tmp_path / "other.npz"): "other.npz has no 'x' and holds 'y', which the model does not know",
        (model, "--data", data, "--labels", tmp_path / "no.csv"): "no.csv': no such file",
        (model, "--data", data, "--preprocess", tmp_path / "table.toml"): "holds arrays, which are taken as they are",
        (tmp_path / "cut.onnx", "--data", data): "cut.onnx is no ONNX file, or cut short",
        (tmp_path / "no.onnx", "--data", data): "cannot read",
    }
    for arguments, message in expected.items():
        assert message in mistake("evaluate", *arguments), arguments


# quantize


def test_quantize_calibrates_and_measures_on_files(run, folder, tmp_path):
    code, out, _ = run(
        "quantize", folder / "model.onnx", "-o", tmp_path / "out.onnx", "--recipe", "w8a8-static",
        "--calibration", folder / "data.npz", "--samples", 40, "--batch-size", 8, "--data", folder / "data.npz",
        "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert report["calibration"] == "40 of 50 samples of data.npz: 5 batches"
    assert report["text"] == "50 samples of data.npz"
    assert report["output_sqnr"] > 25
    assert (tmp_path / "out.onnx").is_file()


def test_without_other_data_quantize_measures_on_what_calibrates_and_says_so(run, folder, tmp_path):
    command = ("quantize", folder / "model.onnx", "--calibration", folder / "data.npz", "--samples", 40)
    code, out, _ = run(*command, "-o", tmp_path / "static.onnx", "--recipe", "w8a8-static")
    assert code == 0
    [found] = re.findall(r"^output SQNR +(\S+) dB$", out, re.MULTILINE)
    assert 25 < float(found) < 60
    assert "measured on            the samples of data.npz that calibrated it too\n" in out
    assert out.endswith(f"written                {tmp_path / 'static.onnx'}, with static.report.html beside it\n")
    told = json.loads((tmp_path / "static.report.json").read_text())
    assert told["output_sqnr"] == pytest.approx(float(found), abs=0.005)
    code, out, _ = run(*command, "-o", tmp_path / "alone.onnx", "--recipe", "w8a16")
    assert code == 0
    assert "measured on            the samples of data.npz given with --calibration\n" in out
    code, out, _ = run(*command, "-o", tmp_path / "none.onnx", "--recipe", "w8a16", "--text", "none")
    assert code == 0
    assert "SQNR" not in out


def test_options_about_samples_need_some(mistake, folder, made, tmp_path):
    to = ("-o", tmp_path / "out")
    said = mistake("quantize", made / "model", *to, "--batch-size", 4)
    assert said == "--batch-size is about samples in files, and there are none; give --calibration or --data"
    said = mistake("quantize", made / "model", *to, "--data", folder / "data.npz", "--text", "a.txt")
    assert said == "--data and --text exclude each other: quality is measured on one of them"
    said = mistake("quantize", folder / "model.onnx", "-o", tmp_path / "out.onnx", "--recipe", "w8a8-static", "-q")
    assert "writes no text of its own; give calibration batches, a text file, or samples: an .npz" in said
    assert list(tmp_path.iterdir()) == []
