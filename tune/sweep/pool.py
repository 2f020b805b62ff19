"""The worker processes of `python -m tune.sweep`, and the loop that gives them cells."""

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

from tqdm import tqdm

from tune.sweep.config import Cell, to_stop
from tune.sweep.journal import Sweep
from tune.sweep.worker import work
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
        self.busy: dict = {}  # connection -> cell, None while it starts
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
        """End all workers; those at a cell have time to close its run."""
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


def run(sweep: Sweep, n_workers: int) -> None:
    """Run all cells that have no result yet.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, once the workers have closed their runs.
    """
    with ctrl_c_noted() as pressed:
        _run(sweep, n_workers, pressed)
    if pressed:
        raise KeyboardInterrupt


def _run(sweep: Sweep, n_workers: int, pressed: list) -> None:
    """Run cells until there are none left, or Ctrl-C was pressed."""
    first = sweep.next()
    if first is None:
        return
    sweep.pending.appendleft(first)
    pool = Pool(min(n_workers, max(1, sweep.size)), sweep.program)
    done = sum(c.state in ENDED for c in sweep.cells.values())
    checked = deaths = 0
    try:
        with tqdm(
            total=sweep.size,
            initial=done,
            desc=sweep.config.get("name") or "sweep",
            unit="cell",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        ) as bar:
            while pool.workers and not pressed:
                for connection in multiprocessing.connection.wait(list(pool.workers), LOOK_S):
                    if pressed:  # workers end by it too, and aren't replaced
                        break
                    cell = pool.busy[connection]
                    try:
                        message = connection.recv()
                    except (EOFError, ConnectionResetError):
                        code, deaths = pool.replace(connection), deaths + 1
                        if cell is not None:
                            sweep.note(cell, "failed", f"its process died (exit code {code})")
                            bar.update()
                        if deaths > 3 + len(sweep.cells) // 4:
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
                        _epoch(sweep, pool, cell, message[1])
                    elif kind == "uncut":
                        cell.twin = sweep.twin_of(cell, message[1])
                        connection.send(("answer", cell.twin))
                    elif kind == "done":
                        sweep.note(cell, *message[1:])
                        if cell.state == "failed":
                            bar.write(f"failed: {cell.name}: {cell.error}", file=sys.stderr)
                        sweep.settle_twins()
                        bar.update()
                        bar.total = sweep.size
                        pool.busy[connection] = None
                    if kind in ("ready", "done"):
                        _give(sweep, pool, connection)
                if not any(pool.busy.values()) and not sweep.pending and sweep.is_whole:
                    break
    finally:
        pool.close()
    sweep.settle_twins()


def _give(sweep: Sweep, pool: Pool, connection) -> None:
    """Give a worker that is free its next cell, if there is one."""
    cell = sweep.next()
    if cell is None:
        return
    cell.history, cell.twin = [], None
    sweep.note(cell, "running")
    pool.busy[connection] = cell
    log = sweep.logs / f"{cell.name}.log"
    connection.send(("cell", cell.name, sweep.argv(cell), log))


def _epoch(sweep: Sweep, pool: Pool, cell: Cell, values: Mapping) -> None:
    """Keep the metric's value, and stop whom early termination stops."""
    metric = sweep.config.get("metric", {}).get("name")
    if metric in values:
        cell.history.append(float(values[metric]))
    running = {c.name: connection for connection, c in pool.busy.items() if c is not None}
    for name in to_stop(sweep.config, list(sweep.cells.values())) & set(running):
        running[name].send(("stop", name))


def _devices() -> list[int]:
    """Numbers of the GPUs, found without loading torch; [] without any, or when told which."""
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d]
    return sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*"))
