"""benchmarks/jax_functions.py measures what it says, and Qwix's defects are none of fewbit's."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix")
pytest.importorskip("flax")
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a file of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


#: The greatest relative error of outputs that each case may have; of GPTQ see the tests of rules.
LIMITS = {"int3": 0.35, "int4": 0.2, "uint4": 0.12, "NVFP4": 0.12, "NF4": 0.2, "static": 0.05}


@pytest.mark.slow
def test_fewbit_does_what_qwix_does_not(script):
    defects = script("jax_defects")
    names = [case.name for case in defects.CASES]
    assert len(names) == len(set(names)) == 16
    for case in defects.CASES:
        found = float(defects.outcome(case.by_fewbit))  # no error, and not float
        limit = next((own for word, own in LIMITS.items() if word in case.name), 0.01)
        assert 0 < found < limit, case.name


def test_outcomes_tell_floats_errors_and_types_apart(script):
    defects, ones = script("jax_defects"), jnp.ones(3)
    assert defects.outcome(lambda: (ones, ones)) == "stays float"
    assert defects.outcome(lambda: (1.1 * ones, ones)) == "0.100"
    assert defects.outcome(lambda: (ones.astype(jnp.bfloat16), ones)) == "bfloat16 instead of float32"
    assert defects.outcome(lambda: ones @ jnp.ones(4)).startswith("TypeError: ")


@pytest.mark.slow
def test_gptq_is_the_same_work_for_both(script):
    found = {name: run() for name, run in script("jax_solving").runs(16, "int4 channel").items()}
    assert next(iter(found)) == "Qwix"
    assert found["fewbit, what Qwix does"] == pytest.approx(found["Qwix"], rel=0.05)  # float16 scales here
    assert found["fewbit"] < found["Qwix"] < 1


def test_products_are_read_from_the_program(script):
    programs = script("jax_programs")
    x, w = np.ones((4, 32), np.int8), np.ones((16, 32), np.int8)

    def product(a, b, kind):
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=kind)

    found = programs.Program.of(lambda a, b: product(a, b, jnp.int32), x, w).products
    assert sum(found.values()) == 1
    assert next(iter(found)).startswith(("s8 x s8 -> s32, ", "s32 x s32 -> s32, "))
    floats = [own.astype(np.float32) for own in (x, w)]
    program = programs.Program.of(lambda a, b: product(a, b, jnp.float32) + 1, *floats)
    assert [own.partition(",")[0] for own in program.products] == ["f32 x f32 -> f32"]
