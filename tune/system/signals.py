"""Ctrl-C and SIGTERM that can't be lost.

Python drops an exception that is raised in a destructor or in a callback of a library, and with it
the user's Ctrl-C. Here a signal is noted first, then raised, and raised again every second until it
arrives where the script ends; not while it is on its way there, so that what closes files and runs
is left to do so. Child processes get signals once they can answer them (`block_signals`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

BLOCKED = {signal.SIGINT, signal.SIGTERM}
AGAIN_S = 1.0
COPY_S = 5.0  # a launcher passes on the SIGTERM that everybody got


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, by a class of ours.

    Python notes a plain KeyboardInterrupt that leaves an `exec`, as dataclasses and namedtuple use
    it, and ends by the signal instead of by the exit code even when it was handled since.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, an agent or the machine asks to end."""


class Stop:
    """What was asked for by a signal, if anything.

    Attributes
    ----------
    error : Interrupted, Terminated or None
    """

    def __init__(self):
        self.error: KeyboardInterrupt | None = None
        self._number = self._since = None

    def note(self, number, frame) -> None:
        """Note the first signal and raise it; the same key pressed again ends at once."""
        if self.error is None:
            self.error = Terminated() if number == signal.SIGTERM else Interrupted()
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


def exit_on_signal() -> None:
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


@contextmanager
def block_signals() -> Iterator[None]:
    """Start processes in this block: they get Ctrl-C and SIGTERM when they call `unblock_signals`.

    Ctrl-C in a terminal reaches children too, and one that is still importing prints a traceback.
    Which signals are blocked is inherited, so a child's wait until it has said what to do at them;
    this process's wait until the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    import multiprocessing.resource_tracker

    multiprocessing.resource_tracker.ensure_running()  # while it starts it lets them through
    noted: list[int] = []
    # The mask is this thread's and its children's; another thread may take the signal meanwhile.
    is_main = threading.current_thread() is threading.main_thread()
    ours = {n for n in BLOCKED if is_main and callable(signal.getsignal(n))}
    handlers = {n: signal.signal(n, lambda n, _: noted.append(n)) for n in ours}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in noted:
            signal.raise_signal(number)


def unblock_signals(interrupt=None) -> None:
    """In a process started while signals were held back: take them from now on.

    Parameters
    ----------
    interrupt : what Ctrl-C does here, as `signal.signal` takes it; None for what it did before
    """
    if interrupt is not None:
        signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
