"""Ctrl-C and SIGTERM end a script in seconds, wherever they fall, and what closes it still runs."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, make_task, run

SCRIPT = """
import os, signal, sys, time
from tune.cli.parser import run_script

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
    elif way == "exec":  # as in a dataclass that is being made
        exec("press(number)")
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
def ended(tmp_path_factory):
    """Scripts that were sent signals, all at once: (way, signal) -> code, stdout, stderr, s."""
    ways = [
        ("dropped", "SIGINT"),
        ("dropped", "SIGTERM"),
        ("swallowed", "SIGINT"),
        ("converted", "SIGTERM"),
        ("plain", "SIGINT"),
        ("copied", "SIGINT"),
        ("copied", "SIGTERM"),
        ("twice", "SIGINT"),
        ("exec", "SIGINT"),
    ]
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT)
    started = time.monotonic()
    running = {
        way: subprocess.Popen(
            [sys.executable, "-m", "script", *way],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for way in ways
    }
    out = {}
    for way, process in running.items():
        stdout, stderr = process.communicate(timeout=50)
        out[way] = (process.returncode, stdout, stderr, time.monotonic() - started)
    return out


@pytest.mark.parametrize(
    ("way", "number", "code", "printed"),
    [
        ("dropped", "SIGINT", 130, "dropped\n"),
        ("dropped", "SIGTERM", 143, "dropped\n"),
        ("swallowed", "SIGINT", 130, ""),
        ("converted", "SIGTERM", 143, ""),
        ("plain", "SIGINT", 130, "closed\n"),
        ("copied", "SIGINT", 130, "closed\n"),
        ("copied", "SIGTERM", 143, "closed\n"),
        ("exec", "SIGINT", 130, ""),
    ],
)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("argv", "library"),
    [
        (["compare.py", "."], "pandas"),
        (["tools/folds.py", "make", "t", "--out=f"], "numpy"),
        (["-m", "tune.sweep", "s.yaml"], "tqdm"),
        (["-m", "tune.tasks", "list"], "rich"),
    ],
)
def test_a_signal_while_libraries_are_imported_ends_in_one_line(tmp_path, argv, library, number):
    """A library that sends it in the moment in which it's imported, in front of the real one."""
    press = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(9)\n"
    (tmp_path / f"{library}.py").write_text(press)
    argv = [ROOT / argv[0], *argv[1:]] if argv[0] != "-m" else argv
    done = run(*argv, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 128 + number
    assert done.stderr.strip() == "stopped: nothing was begun yet"
    assert done.stdout == ""


def test_importing_the_package_leaves_the_signals_alone(tmp_path):
    code = "import signal, tune; assert signal.getsignal(2) is signal.default_int_handler"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import tune")  # while sys.argv[0] is "-m"
    (tmp_path / "mine" / "__main__.py").write_text(code)
    done = run("-m", "mine", "tune.sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


STARTING = {  # what starts processes of its own, and how their command line is known
    "sweep": (["-m", "tune.sweep", "s.yaml", "--workers=2"], "spawn_main"),
    "demo": ([ROOT / "train_probe.py", "--encoder=mel"], "spawn_main"),
    "profile": ([ROOT / "profile.py", "--encoder=mel", "--seg=1"], "tune.profiling.measure"),
    "corpus": (
        [ROOT / "tools/muq_nano/pretrain_nano.py", "--songs=160", "--out=nano"],
        "spawn_main",
    ),
}


@pytest.mark.parametrize("what", STARTING)
def test_ctrl_c_while_processes_start_ends_in_one_line(tones, tmp_path, what):
    """They get it, too, while they are still importing."""
    argv, known_by = STARTING[what]
    sweep = {
        "program": "train_probe.py",
        "method": "grid",
        "name": "s",
        "parameters": {
            "task": {"value": str(tones)},
            "encoder": {"value": "mel"},
            "seg": {"values": ["1", "2"]},
        },
    }
    (tmp_path / "s.yaml").write_text(json.dumps(sweep))
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=tmp_path,
        env=env,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    children = []
    while not children:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                children += [child] if known_by in " ".join(child.cmdline()) else []
    time.sleep(0.1)  # Python answers Ctrl-C from here on, and imports for some time yet
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("stopped: "), stderr
    assert "Traceback" not in stderr
    assert "KeyboardInterrupt" not in stderr
    assert not psutil.wait_procs(children, timeout=10)[1]


MEL = ["--encoder=mel", "--seg=0.5", "--min_tail=0.2"]
PRETRAIN = [
    *MEL,
    "--hidden_size=32",
    "--num_layers=1",
    "--num_heads=2",
    "--intermediate_size=32",
    "--batch_size=4",
    "--lr=1e-2",
    "--dropout=0.1",
    "--epochs=60",
    "--patience=60",
    "--report_to=none",
]


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
        tmp_path,
        [*flags, "cut"],
        random.Random(1),
        15,
        lambda log: "\nepoch" in log.read_text(),
        0.4,
    )
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

    for store, argv in (
        ("p", [*probe, "--store=p", "--name=cut"]),
        ("e", [*table, "--store=e", "--out=b.npy"]),
    ):
        some, seconds = interrupted_often(
            tmp_path, argv, rng, 9, lambda log, s=store: grown(tmp_path / s), 1.0
        )
        hit, slowest = hit + some, max(slowest, seconds)
    print(f"\nprobes and embeddings: {hit} interruptions, the slowest end after {slowest:.1f} s")
    assert hit >= 6
    assert slowest < 20
    metrics = [
        json.loads((tmp_path / "runs" / name / "result.json").read_text())["metrics"]
        for name in ("calm", "cut")
    ]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    rows = [
        {p.name for p in (tmp_path / s).glob("*/*/*/*.safetensors")} for s in ("calm", "p", "e")
    ]
    assert rows[0] == rows[1] == rows[2]
