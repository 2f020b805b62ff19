"""The worker processes of `python -m tune.sweep`, and the loop that hands out runs."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tune.sweep.config import SweepRun, to_stop
from tune.sweep.journal import Sweep
from tune.sweep.worker import work
from tune.system.progress import progress_bar
from tune.system.signals import block_signals

ENDED = ("finished", "same", "stopped", "undefined")
LOOK_S = 0.2  # between two looks whether Ctrl-C was pressed
LEAVE_S = 20  # what a worker gets for closing its run after Ctrl-C


class Pool:
    """The worker processes.

    Parameters
    ----------
    n : how many
    program : what they run
    """

    def __init__(self, n: int, program: str):
        self.program, self.context = program, multiprocessing.get_context("spawn")
        self.devices = _devices()
        if n > 1:  # spinning threads of all workers on all cores slow each other down many times
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // n)))
        self.workers: dict = {}  # connection -> process
        self.busy: dict = {}  # connection -> run, None while it starts
        for i in range(n):
            self.start(i)

    def start(self, i: int) -> None:
        """Start a worker."""
        here, there = self.context.Pipe()
        device = self.devices[i % len(self.devices)] if len(self.devices) > 1 else None
        process = self.context.Process(  # no daemon: the demo music is composed by children
            target=work, args=(there, self.program, device), name=f"worker-{i}"
        )
        with block_signals():
            process.start()
        there.close()  # so that its end is noticed
        self.workers[here], self.busy[here] = process, None

    def replace(self, connection) -> int | None:
        """Start another worker for one that died; return the dead one's exit code."""
        process = self.workers.pop(connection)
        self.busy.pop(connection)
        process.join(5)
        connection.close()
        self.start(int(process.name.removeprefix("worker-")))
        return process.exitcode

    def close(self) -> None:
        """End all workers; those with a run have time to close it."""
        for connection in self.workers:
            try:
                connection.send(("quit",))
            except (BrokenPipeError, OSError):
                continue
        deadline = time.monotonic() + LEAVE_S
        for connection, process in self.workers.items():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()
                process.join(5)
            if process.is_alive():
                process.kill()
            connection.close()


@contextmanager
def ctrl_c_noted() -> Iterator[list]:
    """Note Ctrl-C in a list instead of raising it wherever it falls; the second one raises.

    Python drops what is raised in a destructor or a callback, and with it the user's Ctrl-C.
    """
    pressed: list[int] = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals aren't ours there
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def run_all(sweep: Sweep, n_workers: int) -> None:
    """Do all runs that have no result yet.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, once the workers have closed their runs.
    """
    with ctrl_c_noted() as pressed:
        _run_all(sweep, n_workers, pressed)
    if pressed:
        raise KeyboardInterrupt


def _run_all(sweep: Sweep, n_workers: int, pressed: list) -> None:
    """Do runs until there are none left, or Ctrl-C was pressed."""
    first = sweep.next()
    if first is None:
        return
    sweep.pending.appendleft(first)
    pool = Pool(min(n_workers, max(1, sweep.size)), sweep.program)
    done = sum(c.state in ENDED for c in sweep.runs.values())
    checked = deaths = 0
    try:
        with progress_bar(
            total=sweep.size, initial=done, desc=sweep.config.get("name") or "sweep", unit="run"
        ) as bar:
            while pool.workers and not pressed:
                for connection in multiprocessing.connection.wait(list(pool.workers), LOOK_S):
                    if pressed:  # workers end by it too, and aren't replaced
                        break
                    run = pool.busy[connection]
                    try:
                        message = connection.recv()
                    except (EOFError, ConnectionResetError):
                        code, deaths = pool.replace(connection), deaths + 1
                        if run is not None:
                            sweep.note(run, "failed", f"its process died (exit code {code})")
                            bar.update()
                        if deaths > 3 + len(sweep.runs) // 4:
                            raise ValueError(
                                f"{deaths} worker processes died (exit code {code}); "
                                f"is there enough memory?"
                            ) from None
                        continue
                    kind = message[0]
                    if kind == "ready" and not checked:
                        checked = 1
                        everything = [sweep.argv(c) for c in sweep.pending]
                        for argv in everything:
                            connection.send(("check", argv))
                            if problem := connection.recv()[1]:
                                raise ValueError(f"{sweep.program} {' '.join(argv)}: {problem}")
                    if kind == "epoch":
                        _epoch(sweep, pool, run, message[1])
                    elif kind == "uncut":
                        run.same_as = sweep.find_same(run, message[1])
                        connection.send(("answer", run.same_as))
                    elif kind == "done":
                        sweep.note(run, *message[1:])
                        if run.state == "failed":
                            bar.write(f"failed: {run.name}: {run.error}", file=sys.stderr)
                        sweep.settle_same()
                        bar.update()
                        bar.total = sweep.size
                        pool.busy[connection] = None
                    if kind in ("ready", "done"):
                        _hand_out(sweep, pool, connection)
                if not any(pool.busy.values()) and not sweep.pending and sweep.is_whole:
                    break
    finally:
        pool.close()
    sweep.settle_same()


def _hand_out(sweep: Sweep, pool: Pool, connection) -> None:
    """Give a worker that is free its next run, if there is one."""
    run = sweep.next()
    if run is None:
        return
    run.history, run.same_as = [], None
    sweep.note(run, "running")
    pool.busy[connection] = run
    log = sweep.logs / f"{run.name}.log"
    connection.send(("run", run.name, sweep.argv(run), log))


def _epoch(sweep: Sweep, pool: Pool, run: SweepRun, values: Mapping) -> None:
    """Keep the metric's value, and stop the runs chosen by early termination."""
    metric = sweep.config.get("metric", {}).get("name")
    if metric in values:
        run.history.append(float(values[metric]))
    running = {c.name: connection for connection, c in pool.busy.items() if c is not None}
    for name in to_stop(sweep.config, list(sweep.runs.values())) & set(running):
        running[name].send(("stop", name))


def _devices() -> list[int]:
    """Numbers of the GPUs, found without loading torch; [] without any, or when told which."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d]
    return sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*"))
