"""Ctrl-C and SIGTERM that can't be lost.

Why a signal is raised again by a timer: Python runs a signal handler between two bytecodes of the
main thread. If that is inside a destructor or a callback of a C library (PyTorch, W&B, tqdm),
Python
prints "Exception ignored" and drops the KeyboardInterrupt, and the script runs on for hours. A flag
that our loops check would be simpler, but most of the time passes in single calls of libraries:
encoding a long track, a download, reading a data set. So the handler raises, and a timer raises
again every second until the exception arrives where the script ends (`Stop.arrived`). It doesn't
while the exception is being handled (`Stop.again` looks for it among the active ones), so that
`finally` blocks can close files and runs. Tests in tests/reliability/test_stopping.py lose the
first one on purpose.

Child processes get signals once they can handle them (`block_signals`).
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BLOCKED = {signal.SIGINT, signal.SIGTERM}
AGAIN_S = 1.0
COPY_S = 5.0  # a launcher's SIGTERM within this time after Ctrl-C is a copy of it


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, by a class of ours.

    If a plain KeyboardInterrupt leaves an `exec` (as in dataclasses and namedtuple), Python later
    ends by the signal instead of the exit code, even when it was handled.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a scheduler, an agent or the system."""


class Stop:
    """The signal received, if any.

    Attributes
    ----------
    error : Interrupted, Terminated or None
    """

    def __init__(self):
        self.error: KeyboardInterrupt | None = None
        self._number = self._since = None

    def note(self, number, frame) -> None:
        """Handle a signal: raise it the first time, end at once the second time."""
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
        """Handle the timer: raise the exception again, unless it is being handled."""
        error, seen = sys.exception(), set()
        while error is not None and id(error) not in seen:
            if error is self.error:
                return
            seen.add(id(error))
            error = error.__context__
        raise self.error

    def arrived(self) -> None:
        """Stop the timer: the exception has reached the end of the script."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def exit_on_signal() -> None:
    """End by Ctrl-C or SIGTERM in one line while libraries are imported, until `noted_signals`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing_begun)


def _nothing_begun(number, frame) -> None:
    """End at once: no file is open, and an import could drop an exception."""
    print("\nstopped: nothing was begun yet", file=sys.stderr, flush=True)
    os._exit(128 + number)


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Handle Ctrl-C and SIGTERM by a `Stop`: in this block, and after a signal until the end."""
    stop, before = Stop(), {}
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread gets signals
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
            for number, handler in before.items():  # finished without a signal
                signal.signal(number, signal.SIG_DFL if handler is _nothing_begun else handler)


def end_interrupted(code: int) -> None:
    """End after a signal without Python's teardown, once what was registered for it has run.

    The signal may have fallen into a library that was being imported or starting a thread, and
    taking such a library down has ended in a crash (code -11) when all was closed already. A child
    of `multiprocessing` returns instead: it still hands its results over.
    """
    if multiprocessing.parent_process() is not None:
        return
    try:
        threading._shutdown()  # waits for threads, as Python does
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or a pipe nobody reads
                stream.flush()
        os._exit(code)


@contextmanager
def block_signals() -> Iterator[None]:
    """Start child processes in this block: they get signals after calling `unblock_signals`.

    Ctrl-C in a terminal reaches children too, and a child that is still importing would print a
    traceback. The mask of blocked signals is inherited, so a child's signals wait until it has set
    its handlers; this process's wait until the block ends.
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
    """Receive signals from now on, in a process started within `block_signals`.

    Parameters
    ----------
    interrupt : handler of Ctrl-C, as for `signal.signal`; None leaves it as it is
    """
    if interrupt is not None:
        signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
