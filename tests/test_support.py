"""The tables of `fewbit support` say what the code does."""

import json

import numpy as np
import pytest
from ml_dtypes import finfo

from fewbit import support
from fewbit.algorithms import ALGORITHMS
from fewbit.catalogue import lookup
from fewbit.cli.application import main
from fewbit.formats import FORMATS
from fewbit.schemes.notation import parse_scheme


def test_every_catalogued_format_has_its_figures():
    rows = {row.name: row for row in support.formats()}
    assert set(FORMATS) <= set(rows)
    assert rows["int4"] == support.FormatRow("int4", 4, 16, 1.0, 7.0, "int32")
    assert rows["uint16"] == support.FormatRow("uint16", 16, 65536, 1.0, 65535.0, "int64")
    assert rows["e4m3"] == support.FormatRow("e4m3", 8, 253, 2.0**-9, 448.0, "float32")
    assert rows["e2m1"] == support.FormatRow("e2m1", 4, 15, 0.5, 6.0, "float32")
    assert rows["float16"] == support.FormatRow("float16", 16, 63487, 2.0**-24, 65504.0, "float32")
    assert rows["int64"].largest == float(2**63 - 1)
    assert rows["bfloat16"].largest == float(finfo("bfloat16").max)


def test_counted_levels_are_the_distinct_finite_values_of_the_type():
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows = {row.name: row for row in support.formats()}
    assert rows["float16"].levels == len(np.unique(patterns[np.isfinite(patterns)]))


def test_a_scheme_that_a_file_takes_is_written_and_one_that_it_refuses_is_not(tmp_path):
    import torch

    import fewbit as fb

    for row in support.schemes():
        if row.scheme not in ("int4 g64", "e4m3 channel", "e5m2 channel", "nvfp4", "int8 token", "nf4 g64", "fp16"):
            continue
        model = torch.nn.Sequential(torch.nn.Linear(128, 128))
        result = fb.quantize(model, fb.Recipe([fb.Rule("0", weight=row.scheme)]))
        folder = tmp_path / row.scheme.replace(" ", "-")
        if "compressed-tensors" in row.files:
            result.save(folder)
            assert fb.load(folder, into=torch.nn.Sequential(torch.nn.Linear(128, 128))).plan.rows[0].scheme
        else:
            with pytest.raises(fb.FewbitError, match="no layout for"):
                result.save(folder)


def test_asymmetry_is_for_integers_only():
    for row in support.schemes():
        format_word = row.scheme.split()[0]
        assert row.asymmetric == ("int" in format_word)
        # What moves zero points takes integers, what trains those of 2 to 8 bits; two levels to choose from are in all.
        bits = int(format_word.lstrip("uint")) if "int" in format_word else 0
        fine = bits <= 8 and format_word not in ("fp16", "bf16")
        takes = {"hqq": bits > 0, "autoround": 2 <= bits <= 8, **dict.fromkeys(("adaround", "brecq"), fine)}
        assert row.algorithms == tuple(name for name in ALGORITHMS if takes.get(name, True))
        if format_word in FORMATS and not format_word.startswith("int1"):
            assert parse_scheme(row.scheme).format == lookup(FORMATS, format_word, what="number format")


def test_a_kernel_takes_the_schemes_that_are_listed_and_no_others():
    from fewbit.kernels import KERNELS, KERNELS_OF_CASTS, kernels, select
    from fewbit.support import _INPUTS, _WEIGHTS, _requests

    rows = {row.name: row for row in support.kernels()}
    assert set(rows) == {*KERNELS, *KERNELS_OF_CASTS}
    tried = 0
    for kernel in kernels():
        row = rows[kernel.name]
        if row.missing or not row.layers:
            continue
        for weight in _WEIGHTS:
            for given in _INPUTS if row.inputs else ("",):
                listed = weight in row.weights and (not given or given in row.inputs)
                names = {select(request).name for request in _requests(kernel.purpose, weight, given)}
                assert (kernel.name in names) == listed
                tried += 1
    assert tried > 400 or any(rows[name].missing for name in ("fbgemm", "onednn"))


def test_a_kernel_that_cannot_run_here_is_listed_with_the_reason():
    import torch

    rows = {row.name: row for row in support.kernels()}
    assert rows["scaled_mm"].needs == "compute capability 8.9"
    assert rows["scaled_mm"].measured is False
    assert (rows["int_mm"].missing is None) == torch.cuda.is_available()
    assert rows["dequantize"].layers == ""


def test_the_command_prints_the_tables(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["support", "--json"])
    assert leave.value.code == 0
    assert json.loads(capsys.readouterr().out)["presets"]["w4a16"] == "int4 g128"
    with pytest.raises(SystemExit):
        main(["support"])
    printed = capsys.readouterr().out
    assert "e4m3              8      253    0.00195312           448  float32" in printed
    assert "nvfp4" in printed
    assert "onednn      convolutions with rounded inputs on cpu, float32" in printed
    assert "faster for up to 4 rows" in printed
    assert "nobody has measured it on cuda yet" in printed
