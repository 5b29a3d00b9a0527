"""`fewbit.jax` is there when it is asked for, and JAX is imported nowhere else."""

import re
import subprocess
import sys
from pathlib import Path

import fewbit as fb
from fewbit.support import tables

SOURCE = Path(fb.__file__).parent
#: Where JAX may be imported: by name, where arrays are JAX's already, and in the front end.
IMPORTERS = {
    "jax.py",
    "numerics/namespace.py",
    "numerics/float_bits.py",
    "numerics/jax_gradient.py",
    "numerics/loop.py",
}


def test_jax_is_imported_by_the_front_end_alone():
    imports = re.compile(r"^\s*(import jax|from jax)\b", re.MULTILINE)
    found = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if imports.search(path.read_text())}
    assert {name for name in found if not name.startswith("frontends/jax/")} <= IMPORTERS


def test_it_is_imported_when_it_is_asked_for():
    code = "import sys, fewbit as fb; print('jax' in sys.modules); fb.jax.quantize; print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_without_jax_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import fewbit as fb\n"
        "try: fb.jax\n"
        "except fb.FewbitError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "fewbit.jax needs jax; pip install 'fewbit[jax]'"


def test_fewbit_support_says_which_algorithms_work_on_functions():
    assert tables()["frontends"]["jax"] == ["nearest", "gptq", "hqq", "adaround"]
