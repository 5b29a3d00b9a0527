"""Ctrl-C, SIGTERM and SIGHUP end a command in order: what it had begun to write is removed, the exit code tells why.

Exit codes are those of a shell: 128 and the number of the signal.
"""

from __future__ import annotations

import _thread
import signal
import sys
from pathlib import Path
from threading import Timer, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

from fewbit.checkpoints.folder import settle_all, unfinished

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: Seconds after which an interruption that was lost comes again.
_AGAIN = 0.01


def _send(number: int) -> None:
    """Send the main thread a signal; where the system can, so that it also ends what waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


class Interruptible:
    """While it is open, a signal that asks for an end comes out of the running code as `KeyboardInterrupt`."""

    def __init__(self) -> None:
        #: The last signal; `None` before any.
        self._signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        #: What brings a lost interruption back.
        self._again: Timer | None = None
        #: The folder of a run that can be gone on with.
        self.kept: Path | None = None

    @property
    def code(self) -> int | None:
        """The exit code that the last signal stands for; `None` before any."""
        return None if self._signal is None else 128 + self._signal

    def __enter__(self) -> Interruptible:
        # Only the main thread may say what a signal does, and only there it arrives.
        for number in _ENDING if current_thread() is main_thread() else ():
            # A command started by nohup, or in the background of a script, is not to hear some of them.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        # A second Ctrl-C must not break off the tidying.
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        if self._again is not None:  # nothing is left to interrupt, and nobody hears it from here on
            self._again.cancel()
            self._again.join()
        self.kept = next((own.path.parent for own in unfinished.values() if own.stays), None)
        settle_all()
        sys.unraisablehook = self._hook
        for number, before in self._before.items():
            signal.signal(number, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # handlers are given both
        self._signal = number
        raise KeyboardInterrupt

    def _unraisable(self, lost: Any) -> None:
        """Bring back an interruption that came inside of a `__del__` or a callback, where Python drops exceptions."""
        if self._signal is None or lost.exc_type is not KeyboardInterrupt:
            self._hook(lost)
            return
        if self._again is not None:  # two in turn come again as one
            self._again.cancel()
        self._again = Timer(_AGAIN, _send, (self._signal,))
        self._again.daemon = True
        self._again.start()
