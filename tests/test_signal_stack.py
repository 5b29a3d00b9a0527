"""The tests' own guard against a process that the next signal would kill."""

import subprocess
import sys
from pathlib import Path

import pytest
import signal_stack

GONE = """
import ctypes, signal_stack
assert signal_stack.is_there()
nowhere = signal_stack._Stack(1 << 40, 0, 1 << 16)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(nowhere), None) == 0
print(signal_stack.is_there())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is asked on Linux only")
def test_a_stack_that_is_gone_is_found_out():
    place = Path(signal_stack.__file__).parent
    done = subprocess.run([sys.executable, "-c", GONE], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
