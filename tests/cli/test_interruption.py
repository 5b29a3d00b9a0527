"""A signal ends what runs, also where Python would drop the exception.

Each test that sends one does so in a process of its own: a signal that nobody hears ends the process that it reaches.
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from fewbit.cli.interruption import Interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BEGINNING = """
import signal, sys, time
from fewbit.cli.interruption import Interruptible

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)], sys.unraisablehook

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a command in the background of a script ignores
before, ending = handlers(), Interruptible()
"""


def run(program, *arguments):
    command = [sys.executable, "-c", BEGINNING + textwrap.dedent(program), *(str(own) for own in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


INTERRUPTED = """
try:
    with ending:
        signal.raise_signal(int(sys.argv[1]))
        time.sleep(5)
except KeyboardInterrupt:
    print(ending.code, handlers() == before)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_comes_out_as_an_interrupt_and_its_code_is_that_of_a_shell(number):
    heard = "signal.signal(int(sys.argv[1]), signal.default_int_handler)\nbefore = handlers()\n"  # not so under nohup
    assert run(heard + INTERRUPTED, int(number)) == (0, f"{128 + number} True\n", "")


def test_a_signal_that_nobody_waits_for_ends_the_process():
    """Without this the tests above and below could pass on a signal that never came."""
    assert run("signal.raise_signal(signal.SIGTERM)")[0] == -signal.SIGTERM


DROPPED = """
lost = 0

class Dropping:
    # Is interrupted while Python takes it apart, where no exception can come out.
    def __del__(self):
        global lost
        lost += 1
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)

begun = time.perf_counter()
"""


def test_an_interrupt_inside_of_a_del_comes_again_and_nothing_is_printed():
    program = """
    try:
        with ending:
            one = Dropping()
            del one
            print(lost)  # it was dropped there
            time.sleep(5)
    except KeyboardInterrupt:
        print(ending.code, time.perf_counter() - begun < 4)
    """
    assert run(DROPPED + textwrap.dedent(program)) == (0, f"1\n{128 + signal.SIGTERM} True\n", "")


def test_an_interrupt_that_was_dropped_at_the_very_end_comes_no_more():
    """The command is done, and says so by its exit code; a signal that came late would end it by itself."""
    program = """
    with ending:
        one = Dropping()
        del one
    time.sleep(0.5)
    print(ending.code, handlers() == before)
    """
    assert run(DROPPED + textwrap.dedent(program)) == (0, f"{128 + signal.SIGTERM} True\n", "")


def test_other_exceptions_inside_of_a_del_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Failing:
        def __del__(self):
            raise ValueError("here")

    with Interruptible():
        one = Failing()
        del one
    assert [lost.exc_type for lost in told] == [ValueError]


def test_a_signal_that_was_ignored_before_stays_ignored():
    program = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ending:
        signal.raise_signal(signal.SIGHUP)
    print(ending.code, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
    """
    assert run(program) == (0, "None True\n", "")
