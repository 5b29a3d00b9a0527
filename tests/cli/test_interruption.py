"""A signal ends what runs, also where Python would drop the exception."""

import signal
import sys
import time

import pytest

from fewbit.cli.interruption import Interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def handlers():
    return [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook


@pytest.fixture
def heard():
    """No signal is ignored, as SIGHUP is under nohup."""
    before = [signal.signal(number, signal.default_int_handler) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_comes_out_as_an_interrupt_and_its_code_is_that_of_a_shell(number):
    before, ending = handlers(), Interruptible()
    with pytest.raises(KeyboardInterrupt), ending:  # noqa: PT012  # the signal comes out of what follows it
        signal.raise_signal(number)
        time.sleep(5)
    assert ending.code == 128 + number
    assert handlers() == before


class Dropping:
    """Is interrupted while Python takes it apart, where no exception can come out."""

    lost = 0

    def __del__(self):
        Dropping.lost += 1
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)


def test_an_interrupt_inside_of_a_del_comes_again_and_nothing_is_printed(capfd):
    Dropping.lost, ending = 0, Interruptible()
    begun = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), ending:  # noqa: PT012  # the first one is dropped, the second comes out
        one = Dropping()
        del one
        assert Dropping.lost == 1  # it was dropped there
        time.sleep(5)
    assert time.perf_counter() - begun < 4
    assert ending.code == 128 + signal.SIGTERM
    assert capfd.readouterr().err == ""


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
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptible() as ending:
            signal.raise_signal(signal.SIGHUP)
        assert ending.code is None
    finally:
        signal.signal(signal.SIGHUP, before)
