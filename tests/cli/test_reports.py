"""From the command line to a report that is read back, compared, and to histograms in the terminal."""

import json
import re

import numpy as np
import pytest

import fewbit as fb
from fewbit.cli.histogram import histogram_lines

BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\N{FULL BLOCK}"


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """Two runs of the command line, 8 and 4 bits, calibrated on what they are measured on."""
    from fewbit.cli.application import main

    folder = tmp_path_factory.mktemp("written")
    for name, scheme in (("w8", "int8"), ("w4", "int4 g32")):
        with pytest.raises(SystemExit) as left:
            main(
                ["quantize", str(made / "model"), "-o", str(folder / name), "--weight", scheme, "--algorithm", "gptq",
                 "--text", str(made / "text.txt"), "--calibration", str(made / "text.txt"), "--sequences", "2",
                 "--length", "16", "--samples", "2", "--calibration-length", "16", "-q"]
            )  # fmt: skip
        assert left.value.code == 0
    return folder


def test_the_report_in_a_folder_is_read_back_with_what_went_into_layers(written):
    report = fb.Report.load(written / "w4")
    data = json.loads((written / "w4" / "report.json").read_text())
    assert "model.safetensors" in data.pop("files")  # which are no part of what was measured
    assert report.to_dict() == data
    assert all(own.inputs is not None and own.inputs.clipped is None for own in report.quantized)
    assert report.forward_seconds is not None
    assert min(report.forward_seconds) > 0
    assert report.command.startswith("fewbit quantize ")
    assert report.call is None


def test_text_that_was_calibrated_on_and_measured_on_is_warned_of(written):
    report = fb.Report.load(written / "w4")
    assert report.overlap.share == 1.0
    page = (written / "w4" / "report.html").read_text()
    assert "Calibration and evaluation text overlap:" in page
    assert "Measure on other text" in page


def test_runs_are_compared_by_their_folders(run, written):
    code, out, _ = run("compare", written / "w8", written / "w4")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run", "w8", "w4"]
    assert "layers that differ most, by the error of the output:" in lines


def test_a_histogram_is_drawn_below_each_tensor_that_matches(run, made):
    code, out, _ = run("inspect", made / "model", "--match", "down_proj", "--histogram")
    assert code == 0
    name, *drawn, axis, _ = out.splitlines()[1:]
    assert name.startswith("model.layers.0.mlp.down_proj.weight")
    assert len(drawn) == 4
    assert all(mark in "".join(drawn) for mark in BLOCKS)
    low, zero, high = axis.split()
    assert float(low) < float(zero) == 0 < float(high)
    assert BLOCKS[1] not in run("inspect", made / "model")[1]


def test_the_counts_of_a_histogram_are_data_for_scripts(run, written):
    code, out, _ = run("inspect", written / "w4", "--histogram", "--json", "--match", "down_proj$")
    assert code == 0
    (row,) = json.loads(out)["tensors"]
    assert sum(row["histogram"]) == np.prod(row["shape"])
    (plain,) = json.loads(run("inspect", written / "w4", "--json", "--match", "down_proj$")[1])["tensors"]
    assert plain["histogram"] == []


def test_the_highest_bin_fills_the_height_and_one_number_is_seen():
    lines = histogram_lines((1, 0, 1_000_000, 500_000), -1.0, 3.0, height=2)
    assert lines[0] == f"  {BLOCKS[1]}"
    assert lines[1] == f"{BLOCKS[0]} {BLOCKS[1] * 2}"
    assert re.split(r"\s+", lines[2]) == ["-1", "3"]


def test_zeros_alone_are_drawn_too():
    assert histogram_lines((0, 0, 9), 0.0, 0.0, height=1)[0] == f"  {BLOCKS[1]}"
