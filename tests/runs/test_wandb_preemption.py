"""A machine that is taken away, and the same W&B run taken up again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from conftest import ROOT
from wandb_server import WandbServer

EPOCHS = 6
# One run by the Tracker that the scripts use, without audio. It waits after two epochs.
SCRIPT = """
import sys, time
from accelerate import Accelerator
from tune.cli.parser import run_script
from tune.runs.tracking import Tracker

def main():
    tracker = Tracker(Accelerator(cpu=True, log_with=["wandb"]), "wandb")
    default = {"project": "tune", "name": "strategy", "group": "g", "job_type": "probe"}
    tracker.start({"lr": 0.1}, given={}, default=default, tags=[])
    try:
        for epoch in range(1, EPOCHS + 1):
            row = {"epoch": epoch, "val/loss": 1 / epoch}
            tracker.log(row, step=epoch)
            if "--wait" in sys.argv and epoch == 2:
                print("waiting", flush=True)
                time.sleep(600)
    except BaseException as error:
        tracker.fail(error)
        raise
    print(*tracker._finish_wandb(), sep="\\n")

run_script(main)
""".replace("EPOCHS", str(EPOCHS))
# Stands for `wandb agent`: starts the script and waits for it.
AGENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[3:]]))"


@pytest.fixture
def server():
    """A running server."""
    with WandbServer() as server:
        yield server


@pytest.fixture
def env(server, tmp_path):
    """The environment of a run with an id."""
    usual = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    here = {"HOME": str(tmp_path), "NETRC": os.devnull, "PYTHONPATH": str(ROOT)}
    return {**usual, **here, **server.env(), "WANDB_RUN_ID": "one"}


@contextlib.contextmanager
def waiting(command, env, folder):
    """A process that has logged two epochs and waits; nothing of it is left at the end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        for line in process.stdout:
            if line.strip() == "waiting":
                break
        else:
            pytest.fail(process.stderr.read())
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        yield family
    finally:
        for each in family:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                each.kill()
        process.communicate()


def wait_until(condition, seconds=60):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(env, folder):
    """Run the script to its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def is_complete(run):
    """Whether every epoch is there once, and the run has ended well."""
    epochs = Counter(row["epoch"] for row in run.rows if "epoch" in row)
    return run.exit_code == 0 and epochs == Counter(range(1, EPOCHS + 1))


def test_after_preemption_the_same_run_goes_on(server, env, tmp_path):
    with waiting(["-c", SCRIPT, "--wait"], env, tmp_path) as (process, *_):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    run = server.runs["one"]
    assert (run.preempted, run.summary["failed"]) == (1, "stopped")
    assert [row["epoch"] for row in run.rows if "epoch" in row] == [1, 2]
    done = finish(env, tmp_path)
    assert "less than the current step" not in done.stderr  # W&B's words for a step it has
    assert (run.starts, len(server.runs)) == (2, 1)
    assert is_complete(run)
    assert "failed" not in run.summary
    assert server.unknown == []


def test_ctrl_c_is_no_preemption_and_its_reason_goes_when_the_run_goes_on(server, env, tmp_path):
    with waiting(["-c", SCRIPT, "--wait"], env, tmp_path) as (process, *_):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    run = server.runs["one"]
    assert (run.preempted, run.exit_code, run.summary["failed"]) == (0, 1, "stopped")
    finish(env, tmp_path)
    assert is_complete(run)
    assert "failed" not in run.summary


def test_an_agent_that_stops_a_run_does_not_have_it_handed_out_again(server, env, tmp_path):
    env["WANDB_SWEEP_ID"] = "sweep1"
    command = ["-c", AGENT, "wandb", "agent", "-c", SCRIPT, "--wait"]
    with waiting(command, env, tmp_path) as (_, script, *_):
        script.send_signal(signal.SIGTERM)  # as an agent does on early termination
        wait_until(lambda: not script.is_running() or script.status() == psutil.STATUS_ZOMBIE)
    run = server.runs["one"]
    assert (run.preempted, run.exit_code, run.summary["failed"]) == (0, 1, "stopped")


def test_a_run_whose_agent_ends_as_well_is_preempted(server, env, tmp_path):
    env["WANDB_SWEEP_ID"] = "sweep1"
    command = ["-c", AGENT, "wandb", "agent", "-c", SCRIPT, "--wait"]
    with waiting(command, env, tmp_path) as (agent, script, *_):
        for process in (script, agent):
            process.send_signal(signal.SIGTERM)
        wait_until(lambda: not script.is_running() or script.status() == psutil.STATUS_ZOMBIE)
    assert server.runs["one"].preempted == 1
