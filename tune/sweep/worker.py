"""A worker of `python -m tune.sweep`: a process that does run after run by a script's main.

The script is imported once and an encoder is loaded once for all the runs that ask for it alike.
Everything else is a run like any other. The worker hooks into two places of the script: at its
tracker, to report each epoch and to end a run early; and after its encoding, to notice that no
track was cut, so that the run duplicates another one and needn't be trained.
"""

import contextlib
import gc
import importlib.util
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from tune.cli.parser import ENVIRONMENT, ROOT, raised_by_us
from tune.system.signals import unblock_signals


class EndedEarlyError(Exception):
    """The run was ended on purpose, its W&B run is complete: the run's state, and why."""


def work(connection: Connection, program: str, device: int | None) -> None:
    """Run runs until told to quit.

    Messages in: ("check", argv), ("run", name, argv, log file), ("stop", name), ("answer", ...),
    ("quit",). Messages out: ("ready",), ("checked", problem or None), ("epoch", values),
    ("uncut", kind of token), ("done", state, text).

    Parameters
    ----------
    program : the script's file name
    device : number of the GPU to use, None when there is one at most
    """
    if device is not None:  # before CUDA is touched
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    # Nothing is open while libraries are imported, and they could take the exception for their own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unblock_signals(signal.SIG_DFL)
    quiet = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the worker
    os.dup2(quiet.fileno(), 1)
    try:
        worker = Worker(connection, program)
        for number in (signal.SIGINT, signal.SIGTERM):  # from now on there may be a run to close
            signal.signal(number, signal.default_int_handler)
        connection.send(("ready",))
        while (message := connection.recv())[0] != "quit":
            if message[0] == "check":
                connection.send(("checked", worker.check(message[1])))
            elif message[0] == "run":
                connection.send(("done", *worker.run(*message[1:])))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # The sweep has ended. What was running is closed as failed by the script; W&B closes a run
        # that it had only just begun by this process's exit code, and isn't disturbed at that: the
        # sweep kills who takes too long.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + signal.SIGINT)


class Worker:
    """The script, the encoders that it has loaded, and its current run.

    Parameters
    ----------
    connection : to the sweep
    program : the script's file name
    """

    def __init__(self, connection: Connection, program: str):
        self.connection, self.program = connection, program
        self.script = load_script(program)
        self.encoders, self.name, self.args, self.tracker = {}, "", None, None
        self.script.Tracker = self._make_tracker
        self.script.Extractor = self._extractor(self.script.Extractor)

    def check(self, argv: Sequence[str]) -> str | None:
        """Parse a command line by the script; return its error as one line, or None."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self.script.parse_args(list(argv))
        except SystemExit:
            return said.getvalue().strip().splitlines()[-1]
        return None

    def run(self, name: str, argv: Sequence[str], log: Path) -> tuple[str, str | None]:
        """Run a run, with all that it prints in a file; return its state and what went wrong."""
        self.name, self.tracker = name, None
        with open(log, "w", encoding="utf-8") as file, _redirected(file.fileno()):
            try:
                sys.argv = [self.program, *argv]
                self.args = self.script.parse_args(list(argv))
                if hasattr(self.args, "skip_degenerate"):
                    self.args.skip_degenerate = False  # that's decided here
                self._fresh_state()
                self.script.main(self.args)
            except EndedEarlyError as ended:
                return ended.args
            except SystemExit:
                return "failed", f"wrong flags, see {log}"
            except (KeyboardInterrupt, EOFError, BrokenPipeError):
                raise
            except Exception as error:
                traceback.print_exc()
                known = isinstance(error, ValueError) and raised_by_us(error)
                known |= isinstance(error, OSError) and error.errno in ENVIRONMENT
                text = " ".join(str(error).split())
                return "failed", text if known else f"{type(error).__name__}: {text}, see {log}"
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
        return "finished", None

    def _extractor(self, base: type) -> type:
        """The script's Extractor, with encoders kept between runs and a check for uncut tracks."""
        worker = self

        class HookedExtractor(base):
            """Extractor of a run."""

            def load(self, name, **settings):
                return worker.load_encoder(super().load, name, **settings)

            def encode(self, paths, accelerator=None, *, strict=False):
                reports = super().encode(paths, accelerator, strict=strict)
                worker.ask_if_uncut(self.rules, reports)
                return reports

        return HookedExtractor

    def load_encoder(self, load, name: str, **kwargs):
        """Load an encoder, or take the one that an earlier run loaded with the same arguments."""
        # A run keeps no deeper layers than it needs, so the layer asked for belongs to the key.
        key = (name, self.args.layer, *sorted((k, str(v)) for k, v in kwargs.items()))
        if key not in self.encoders:
            self.encoders.clear()  # one at a time: two of MuQ's size may not fit a device
            self.encoders[key] = load(name, **kwargs)
        return self.encoders[key]

    def ask_if_uncut(self, rules, reports) -> None:
        """When no track was cut, ask whether the run duplicates another one."""
        from tune.aggregators.degenerate import degenerate_reason, repeated_pick

        given = self.args
        pieces = [[len(spans) for _, spans in report.rows.values()] for report in reports]
        alone = isinstance(given.seg, list) and len(given.seg) == 1  # not a mix of lengths
        why = degenerate_reason(rules, pieces, given.agg, given.tokens) if alone else None
        why = why or (repeated_pick(given.use_seconds, given.pick) if alone else None)
        if why:
            if "same_as" not in why:
                self.tracker.end(why)
                raise EndedEarlyError("undefined", why["degenerate"])
            self.connection.send(("uncut", given.tokens))
            while (answer := self._receive())[0] != "answer":
                pass
            if answer[1]:
                self.tracker.end({**why, "same_as": answer[1]})
                raise EndedEarlyError("same", None)

    def _receive(self) -> tuple:
        """Receive a message during a run; the sweep's end is a Ctrl-C.

        The signal itself may be lost: Python drops what is raised in a destructor.
        """
        message = self.connection.recv()
        if message[0] == "quit":
            raise KeyboardInterrupt
        return message

    def _make_tracker(self, accelerator, report_to: str):
        """Stand in for the script's Tracker."""
        from tune.runs.tracking import Tracker

        worker = self

        class Reporting(Tracker):
            """A tracker that also tells the sweep, and ends the run when the sweep says so."""

            default_mode = "offline"  # runs are kept on disk, complete; `wandb sync` uploads them

            def log(self, values, step=None):
                super().log(values, step)
                if step is None:
                    return
                worker.connection.send(("epoch", dict(values)))
                while worker.connection.poll():
                    message = worker._receive()
                    if message == ("stop", worker.name):
                        self.end({"stopped_early": True})
                        raise EndedEarlyError("stopped", None)

            def end(self, summary):
                """Close a W&B run as finished, with why it isn't whole."""
                if self.wandb:
                    import wandb

                    wandb.run.summary.update(summary)
                    wandb.run.finish(exit_code=0)

        self.tracker = Reporting(accelerator, report_to)
        return self.tracker

    def _fresh_state(self) -> None:
        """Forget the last run: Accelerate's state, and a GPU's memory and its peak."""
        import torch
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if torch.cuda.is_available():
            gc.collect()  # a quarter of a second, so only where memory is scarce
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):  # Linux: the peak of resident memory begins anew
            Path("/proc/self/clear_refs").write_text("5")


def load_script(program: str) -> ModuleType:
    """Import a script of this repository by its file."""
    path = ROOT / program
    if not path.is_file():
        raise ValueError(f"{program} is not in {ROOT}: sweeps run from a checkout")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _redirected(target: int):
    """Point standard output and error, also those of child processes, at a file."""
    kept = {fd: os.dup(fd) for fd in (1, 2)}
    try:
        for fd in kept:
            os.dup2(target, fd)
        yield
    finally:
        for fd, old in kept.items():
            os.dup2(old, fd)
            os.close(old)
