"""SIGTERM and Ctrl-C: training saves its state and stops between two steps, everything else stops at once.

A second Ctrl-C ends the process where it is; what is on disk is whole at any moment.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
"""75 is EX_TEMPFAIL: the same command goes on."""


class Interrupted(BaseException):
    """A signal asked this process to stop. Like KeyboardInterrupt, no ordinary error."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.code, self.where = EXIT_CODES[signal.Signals(number)], where


class Handler:
    """What to do when a signal comes: note it while something must not be cut in two, else stop."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self.quiet = False
        self._depth = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        if self.pending is not None:
            if number == signal.SIGINT:
                os._exit(EXIT_CODES[signal.SIGINT])
            return
        if not self._depth:
            raise Interrupted(number)
        self.pending = number
        if not self.quiet:  # in a process that another one stops and speaks for
            print("\nstopping after the step in hand; Ctrl-C once more stops at once", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted; where no one asked for it (`check`), it is raised at the end."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth:
            self.check()

    def check(self, where: str = "") -> None:
        """Raises Interrupted if a signal was noted."""
        if self.pending is not None:
            number, self.pending = self.pending, None
            raise Interrupted(number, where)


HANDLER = Handler()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C go to `HANDLER`. Only the main thread gets signals; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, HANDLER) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_termination() -> None:
    """From now on SIGTERM does nothing: all is done, and a process that ends must not look as if it was cut short."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
