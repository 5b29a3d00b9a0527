"""What the package promises as a whole: its public names, and an import that stays light."""

import resource
import subprocess
import sys

import pytest

import fewbit as fb

HEAVY = ("torch", "transformers", "jax", "onnx", "onnxruntime", "ray", "typer", "jinja2")


def test_the_public_names_are_these():
    # A new name comes with an entry in CHANGELOG.md and in docs.
    assert fb.__all__ == [
        "AdaRound",
        "Adapters",
        "Allocation",
        "AutoRound",
        "Brecq",
        "Budget",
        "Calibration",
        "Codebook",
        "Conversion",
        "Evaluation",
        "FewbitError",
        "Float",
        "Gptq",
        "Hqq",
        "Int",
        "Nearest",
        "Options",
        "PerChannel",
        "PerGroup",
        "PerTensor",
        "PerTile",
        "PerToken",
        "Preprocessing",
        "QTensor",
        "Recipe",
        "Report",
        "Result",
        "Rule",
        "Samples",
        "Scheme",
        "Sensitivity",
        "Synthetic",
        "Training",
        "allocate",
        "convert",
        "finish_qat",
        "importance_matrix",
        "keep",
        "level_distance",
        "load",
        "load_adapters",
        "merge_adapters",
        "parameter_groups",
        "parse_scheme",
        "plan",
        "plan_qat",
        "prepare_adapters",
        "prepare_qat",
        "quantize",
        "quantize_folder",
        "save_adapters",
        "sensitivity",
        "training_memory",
    ]
    assert all(hasattr(fb, name) for name in fb.__all__)


def processor_seconds():
    """Return what children took of a processor, which they may have to share; it reads from no disk to speak of."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_of(statement):
    """Return the least processor time of three runs of `statement`, which must bring in no heavy package."""
    code = f"import sys; {statement}; print([name for name in {HEAVY!r} if name in sys.modules])"
    seconds = []
    for _ in range(3):
        started = processor_seconds()
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(processor_seconds() - started)
        assert run.stdout.strip() == "[]"
    return min(seconds)


def test_importing_fewbit_takes_a_fraction_of_a_second_and_imports_no_heavy_package():
    # Of 0.02 s an interpreter takes most; the limit leaves room for a machine ten times as slow.
    assert seconds_of("import fewbit") < 0.3


def test_the_modules_of_all_names_take_under_two_seconds_and_import_no_heavy_package():
    # 0.8 to 1.1 s on machines that are lent at once to others.
    assert seconds_of("from fewbit import *") < 2.0


def test_names_that_are_not_imported_yet_are_listed_and_a_wrong_one_is_an_attribute_error():
    code = "import fewbit; print({*fewbit.__all__} <= {*dir(fewbit)}, 'quantize' in vars(fewbit))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]
    with pytest.raises(AttributeError, match="module 'fewbit' has no attribute 'quantise'"):
        _ = fb.quantise


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert fb.__version__ == version("fewbit")
