"""Ctrl-C and SIGTERM end a script in seconds, wherever they fall, and what closes it still runs."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT

SCRIPT = """
import os, signal, sys, time
from tune.cli import run_script

def press(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two instructions, here

class Dying:
    def __init__(self, number): self.number = number
    def __del__(self): press(self.number)

def wait(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)

def main():
    way, number = sys.argv[1], getattr(signal, sys.argv[2])
    if way == "dropped":
        Dying(number)  # Python drops what is raised in there
        print("dropped", flush=True)
        wait(60)
    elif way == "swallowed":
        try:
            press(number)
        except BaseException:
            pass
        wait(60)
    elif way == "converted":
        try:
            press(number)
        except BaseException:
            raise RuntimeError("a library's own error")
    try:
        press(number)
    finally:
        if way == "twice":
            press(number)
        if way == "copied":  # from the launcher, which got it too
            press(signal.SIGTERM)
        wait(1.5)
        print("closed", flush=True)

run_script(main)
"""


@pytest.fixture(scope="module")
def ended():
    """Scripts that were sent signals, all at once: (way, signal) -> code, stdout, stderr, s."""
    ways = [("dropped", "SIGINT"), ("dropped", "SIGTERM"), ("swallowed", "SIGINT"),
            ("converted", "SIGTERM"), ("plain", "SIGINT"), ("copied", "SIGINT"),
            ("copied", "SIGTERM"), ("twice", "SIGINT")]  # fmt: skip
    started = time.monotonic()
    running = {
        way: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *way], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for way in ways
    }  # fmt: skip
    out = {}
    for way, process in running.items():
        stdout, stderr = process.communicate(timeout=50)
        out[way] = (process.returncode, stdout, stderr, time.monotonic() - started)
    return out


@pytest.mark.parametrize(
    ("way", "number", "code", "printed"),
    [("dropped", "SIGINT", 130, "dropped\n"), ("dropped", "SIGTERM", 143, "dropped\n"),
     ("swallowed", "SIGINT", 130, ""), ("converted", "SIGTERM", 143, ""),
     ("plain", "SIGINT", 130, "closed\n"), ("copied", "SIGINT", 130, "closed\n"),
     ("copied", "SIGTERM", 143, "closed\n")],
)  # fmt: skip
def test_a_signal_is_never_lost_and_what_closes_the_run_is_left_to_do_so(
    ended, way, number, code, printed
):
    returned, stdout, stderr, seconds = ended[way, number]
    assert (returned, stdout) == (code, printed), stderr
    assert stderr.splitlines()[-1].endswith("the same command goes on from there")
    assert "Traceback" not in stderr.split("Exception ignored")[0]
    assert ("Exception ignored" in stderr) == (way == "dropped")
    assert seconds < 45


def test_a_second_ctrl_c_ends_at_once(ended):
    assert ended["twice", "SIGINT"][:3] == (-2, "", "")
