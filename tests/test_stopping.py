"""Ctrl-C and SIGTERM end a script in seconds, wherever they fall, and what closes it still runs."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, make_task, run

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


MEL = ["--encoder=mel", "--seg=0.5", "--min_tail=0.2"]
PRETRAIN = [*MEL, "--hidden_size=32", "--num_layers=1", "--num_heads=2", "--intermediate_size=32",
            "--batch_size=4", "--lr=1e-2", "--dropout=0.1", "--epochs=60", "--patience=60",
            "--report_to=none"]  # fmt: skip


def life(folder, argv, number, rng, is_begun, within_s) -> tuple[int, str, float]:
    """Start a script, send a signal at a random moment after it has begun; how it ended, how fast.

    Parameters
    ----------
    is_begun : says whether there is something to lose already
    within_s : the signal comes at most so many seconds later
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)], cwd=folder, env=env, stdout=out, stderr=out
        )
        time.sleep(1)  # the interpreter's own start
        while process.poll() is None and not is_begun(log):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, within_s))
        sent = time.monotonic()
        process.send_signal(number)
        code = process.wait(60)
    return code, log.read_text(), time.monotonic() - sent


def is_done(text: str) -> bool:
    """Say whether a script has told its result, which is the last that it does."""
    return text.splitlines()[-1].startswith("  result ")


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def interrupted_often(folder, argv, rng, n, is_begun, within_s) -> tuple[int, float]:
    """Interrupt a command n times, then let it end; how often it was hit, and the slowest end."""
    hit, slowest = 0, 0.0
    for i in range(n):
        number = list(CODES)[i % 3]
        code, text, seconds = life(folder, argv, number, rng, is_begun, within_s)
        if code == 0 or (code == -number and number != signal.SIGKILL and is_done(text)):
            return hit, slowest  # the latter: while Python took down what had done its work
        assert code == CODES[number], text
        hit += 1
        if number != signal.SIGKILL:
            assert text.splitlines()[-1].startswith("stopped: "), text
            assert ("the same command goes on" in text) == ("nothing was begun yet" not in text)
            assert "Traceback" not in text.split("Exception ignored")[0], text
            slowest = max(slowest, seconds)
    done = run(*argv, cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return hit, slowest


@pytest.fixture
def tones(tmp_path):
    return make_task(tmp_path / "tones", seconds=8, n=(16, 8, 8))


@pytest.mark.slow
def test_pretraining_interrupted_anywhere_ends_as_if_it_had_not_been(tones, tmp_path):
    """Also between the renames of a checkpoint: an epoch here takes no longer than its saving."""
    script = ROOT / "pretrain_aggregator.py"
    flags = [script, "--tasks", tones, *PRETRAIN, "--store", tmp_path / "store", "--out"]
    done = run(*flags, "calm", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    hit, slowest = interrupted_often(
        tmp_path, [*flags, "cut"], random.Random(1), 15,
        lambda log: "\nepoch" in log.read_text(), 0.4,
    )  # fmt: skip
    print(f"\npretraining: {hit} interruptions, the slowest end after {slowest:.1f} s")
    assert hit >= 6
    assert slowest < 20
    for name in ("history.csv", "model.safetensors"):
        calm, cut = (tmp_path / out / name for out in ("calm", "cut"))
        assert calm.read_bytes() == cut.read_bytes(), name
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {
        p.name for p in (tmp_path / "calm").iterdir()
    }


@pytest.mark.slow
def test_probes_and_embeddings_interrupted_anywhere_end_as_if_they_had_not_been(tones, tmp_path):
    nano = ["--encoder=muq-nano", "--seg=1"]
    probe = [ROOT / "train_probe.py", "--task", tones, *nano, "--epochs=30", "--report_to=none"]
    table = [ROOT / "embed.py", tones / "audio", *nano]
    for argv in ([*probe, "--store=calm", "--name=calm"], [*table, "--store=calm", "--out=a.npy"]):
        done = run(*argv, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    rng, slowest, hit, sizes = random.Random(2), 0.0, 0, {}

    def grown(store):
        """Whether a row has come since the last time; every second life is hit while it loads."""
        n = len(list(store.glob("*/*/*/*.safetensors")))
        seen = sizes.setdefault(store, n)
        sizes[store] = n
        return n > seen or (n % 2 == 1 and rng.random() < 0.01)

    for store, argv in (("p", [*probe, "--store=p", "--name=cut"]),
                        ("e", [*table, "--store=e", "--out=b.npy"])):  # fmt: skip
        some, seconds = interrupted_often(
            tmp_path, argv, rng, 9, lambda log, s=store: grown(tmp_path / s), 1.0
        )
        hit, slowest = hit + some, max(slowest, seconds)
    print(f"\nprobes and embeddings: {hit} interruptions, the slowest end after {slowest:.1f} s")
    assert hit >= 6
    assert slowest < 20
    metrics = [json.loads((tmp_path / "runs" / name / "result.json").read_text())["metrics"]
               for name in ("calm", "cut")]  # fmt: skip
    assert metrics[0] == metrics[1]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    rows = [
        {p.name for p in (tmp_path / s).glob("*/*/*/*.safetensors")} for s in ("calm", "p", "e")
    ]
    assert rows[0] == rows[1] == rows[2]
