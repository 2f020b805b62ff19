"""Test code: scripts and modules run in the test's own process, which saves their start."""

import contextlib
import io
import logging
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

from accelerate.state import AcceleratorState
from conftest import ROOT


def call(name: str, *argv, cwd: Path, env: dict | None = None):
    """Run a script (`embed.py`) or module (`tune.tasks`) on a CPU.

    Returns
    -------
    returncode, stdout and stderr, as of a process; an error that would be a traceback is raised
    """
    logger = logging.getLogger("tune")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    environment, argv_before = dict(os.environ), sys.argv
    on_term = signal.getsignal(signal.SIGTERM)
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.environ.update({"ACCELERATE_USE_CPU": "true", **(env or {})})
    sys.argv = [name, *map(str, argv)]
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*found in sys.modules")
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__")
    except SystemExit as left:
        code = left.code or 0
    finally:
        sys.argv = argv_before
        signal.signal(signal.SIGTERM, on_term)
        AcceleratorState._reset_state(reset_partial_state=True)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
