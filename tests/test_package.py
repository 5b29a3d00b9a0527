"""What the package promises as a whole: its public names, and an import that stays light."""

import resource
import subprocess
import sys

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


def test_importing_fewbit_takes_under_a_second_and_imports_no_heavy_package():
    code = f"import sys, fewbit; print([name for name in {HEAVY!r} if name in sys.modules])"
    seconds = []
    for _ in range(3):
        started = processor_seconds()
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(processor_seconds() - started)
        assert run.stdout.strip() == "[]"
    assert min(seconds) < 1.0


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert fb.__version__ == version("fewbit")
