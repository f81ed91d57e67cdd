"""SIGINT, SIGTERM and SIGHUP as a request that is looked at where waiting is done.

A handler that raises would be shorter, but is lost when the signal comes inside a callback of the
interpreter: one that arrived in the hooks around fork(2) was "ignored" there (seen on 2026-11-23).
"""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """Somebody wants an end of it."""


class StopSignals:
    """Whether one of the signals has come; `fileno` is readable from then on, for poll(2)."""

    def __init__(self) -> None:
        self._is_requested = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def listen(self) -> None:
        """From now on the signals ask instead of killing; for good."""
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup(1) means it
                signal.signal(number, self._on_signal)

    def fileno(self) -> int:
        return self._reader

    def check(self) -> None:
        """Raises StopRequested once a signal has come."""
        if self._is_requested:
            raise StopRequested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_requested:
            self._is_requested = True
            os.write(self._writer, b".")


def never() -> None:
    """The check of those whom nobody stops."""
