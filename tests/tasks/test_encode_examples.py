"""examples/slurm_array.sh and examples/ray_encode.py: the rows of one process, killed or not."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from conftest import ROOT
from test_encode_shard import NANO, N, counts, music, rows, whole  # noqa: F401 - two are fixtures

SLURM = ROOT / "examples" / "slurm_array.sh"
RAY = ROOT / "examples" / "ray_encode.py"


def array_task(number: int, *args, **env) -> subprocess.CompletedProcess:
    """Run the script as Slurm runs one task of an array of three."""
    variables = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "3"} | env
    return subprocess.run(
        ["bash", SLURM, *map(str, args)],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_slurm_script_is_sound_and_asks_to_be_queued_again():
    checked = subprocess.run(["bash", "-n", SLURM], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SLURM.read_text(), re.M))
    assert asked["requeue"] == ""
    assert re.fullmatch(r"0-\d+", asked["array"])  # shares are counted from 0


def test_tasks_of_a_slurm_array_encode_a_share_each(music, whole, tmp_path):  # noqa: F811
    args = (music, *NANO)
    first = array_task(1, *args, TUNE_STORE=str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert f"shard 1/3: {N // 3} of {N} tracks" in first.stdout
    again = array_task(1, *args, TUNE_STORE=str(tmp_path), SLURM_ARRAY_TASK_COUNT="1", N_SHARDS="3")
    assert counts(again.stdout) == [(N // 3, 0, 0)]  # one task of the array, submitted once more
    found = rows(tmp_path)
    assert len(found) == N // 3
    assert found.items() <= whole.items()
    beyond = array_task(3, *args, TUNE_STORE=str(tmp_path))
    assert beyond.returncode == 2
    assert "expected I/N" in beyond.stderr


def test_without_an_array_the_slurm_script_says_so():
    alone = array_task(0, "music", SLURM_ARRAY_TASK_ID="")
    assert alone.returncode != 0
    assert "sbatch --array=0-7" in alone.stderr


@pytest.fixture
def ray_folder():
    """Ray's own folder; its path is short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition, process, seconds=180):
    """Wait until a condition holds while a process runs; its value."""
    give_up = time.monotonic() + seconds
    while not (found := condition()) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.002)
    return found


def test_ray_killed_and_resumed_gives_the_rows_of_one_process(
    music,  # noqa: F811
    whole,  # noqa: F811
    tmp_path,
    ray_folder,
):
    """First everything is killed, then, in the second run, the worker that encodes."""
    pytest.importorskip("ray", reason="the extra `ray` isn't installed")
    command = [sys.executable, RAY, music, *NANO, "--store", tmp_path, "--tracks", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_TMPDIR": ray_folder}

    def start() -> subprocess.Popen:
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return subprocess.Popen(list(map(str, command)), env=env, **pipes)

    def n_rows() -> int:
        return sum(1 for _ in tmp_path.rglob("*.safetensors"))

    killed = start()
    assert wait_for(n_rows, killed)
    everyone = [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]
    for process in everyone:
        process.kill()
    psutil.wait_procs(everyone[:-1], timeout=30)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    n_stored = len(rows(tmp_path))
    assert 0 < n_stored < N

    second = start()
    assert wait_for(lambda: n_rows() > n_stored, second)
    encoders = [
        process
        for process in psutil.Process(second.pid).children(recursive=True)
        if "MapBatches(Encode)" in " ".join(process.cmdline())
    ]
    assert encoders
    for process in encoders:
        process.kill()
    assert n_rows() < N
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    (line,) = [line for line in out.splitlines() if line.startswith(f"{N} tracks: ")]
    found = {kind: int(n) for n, kind in re.findall(r"(\d+) (encoded|stored before)", line)}
    assert sum(found.values()) == N
    assert found["stored before"] >= n_stored
    assert rows(tmp_path) == whole
