"""Ctrl-C and SIGTERM that can't be lost.

Python drops an exception that is raised in a destructor or in a callback of a library, and with it
the user's Ctrl-C. Here a signal is noted first, then raised, and raised again every second until it
arrives where the script ends; not while it is on its way there, so that what closes files and runs
is left to do so.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 1.0
COPY_S = 5.0  # a launcher passes on the SIGTERM that everybody got


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, an agent or the machine asks to end."""


class Stop:
    """What was asked for by a signal, if anything.

    Attributes
    ----------
    error : KeyboardInterrupt, Terminated or None
    """

    def __init__(self):
        self.error: KeyboardInterrupt | None = None
        self._number = self._since = None

    def note(self, number, frame) -> None:
        """Note the first signal and raise it; the same key pressed again ends at once."""
        if self.error is None:
            self.error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
            self._number, self._since = number, time.monotonic()
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
            raise self.error
        # The launcher's SIGTERM follows a Ctrl-C in the terminal, which reaches both.
        copied = number == signal.SIGTERM and time.monotonic() - self._since < COPY_S
        if number == self._number and not copied:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def again(self, number, frame) -> None:
        """Raise it again, unless it is being handled right now or has arrived."""
        error, seen = sys.exception(), set()
        while error is not None and id(error) not in seen:
            if error is self.error:
                return
            seen.add(id(error))
            error = error.__context__
        raise self.error

    def arrived(self) -> None:
        """Don't raise it any more."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def end_quietly() -> None:
    """Until `noted_signals`, while libraries are imported: Ctrl-C and SIGTERM end in one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing_begun)


def _nothing_begun(number, frame) -> None:
    """End at once: nothing is open, and an import could drop an exception."""
    print("\nstopped: nothing was begun yet", file=sys.stderr, flush=True)
    os._exit(128 + number)


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Note Ctrl-C and SIGTERM; after either, what follows ends by the rules of `Stop` as well."""
    stop, before = Stop(), {}
    if threading.current_thread() is not threading.main_thread():  # signals aren't ours there
        yield stop
        return
    handlers = {signal.SIGINT: stop.note, signal.SIGTERM: stop.note}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = stop.again
    for number, handler in handlers.items():
        before[number] = signal.signal(number, handler)
    try:
        yield stop
    finally:
        stop.arrived()
        if stop.error is None:
            for number, handler in before.items():  # all is done: nothing is left to say
                signal.signal(number, signal.SIG_DFL if handler is _nothing_begun else handler)
