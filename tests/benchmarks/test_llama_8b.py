"""benchmarks/llama_8b.py solves every layer of its blocks and says how long that took."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llama_8b.py"


def test_a_small_one_is_solved_on_the_processor():
    sizes = ["--blocks", "2", "--hidden", "64", "--samples", "4", "--length", "32", "--weight", "int4 g32"]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["device"], found["layers"]) == ("cpu", 14)
    assert 0 < found["solving_seconds"] < found["seconds"]
    assert found["peak_gb"] > 0
