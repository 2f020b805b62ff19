"""Decoding in processes: the same samples, reasons and notes; a crash costs one file."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from tune.audio import processes as module
from tune.audio.decode import AudioError, decode
from tune.audio.processes import DecodeProcesses

RATE = 24_000


@pytest.fixture
def files(tmp_path, rng):
    """Six files of different lengths, three formats."""
    paths = []
    for i, ending in enumerate(["wav", "flac", "ogg"] * 2):
        path = tmp_path / f"{i}.{ending}"
        soundfile.write(path, 0.1 * rng.standard_normal((22_050 * (i + 1), 2)), 44_100)
        paths.append(str(path))
    return paths


def test_processes_give_the_same_samples_from_several_threads(files):
    with DecodeProcesses() as processes, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda path: processes.decode(path, RATE), files))
    for path, sound in zip(files, found, strict=True):
        expected = decode(path, RATE)
        assert sound.samples.tobytes() == expected.samples.tobytes()
        assert sound.notes == expected.notes


def test_channels_and_notes_come_through(tmp_path, rng):
    left = 0.1 * rng.standard_normal(RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], 1), RATE)  # channels that cancel
    with DecodeProcesses() as processes:
        mixed = processes.decode(tmp_path / "a.wav", RATE)
        first = processes.decode(tmp_path / "a.wav", RATE, channels="left")
    assert mixed.notes == decode(tmp_path / "a.wav", RATE).notes != ()
    assert np.array_equal(first.samples, decode(tmp_path / "a.wav", RATE, channels="left").samples)


@pytest.mark.parametrize("content", [b"", b"not audio at all" * 100])
def test_a_bad_file_has_the_same_reason(tmp_path, content):
    path = tmp_path / "bad \N{SNOWMAN}.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError) as expected:
        decode(path, RATE)
    with DecodeProcesses() as processes:
        with pytest.raises(AudioError) as found:
            processes.decode(path, RATE)
        with pytest.raises(AudioError, match="no such file"):
            processes.decode(tmp_path / "absent.wav", RATE)
    assert str(found.value) == str(expected.value)


def test_another_error_is_raised_where_it_was_asked_for(files):
    with DecodeProcesses() as processes, pytest.raises(ValueError, match="channels must be"):
        processes.decode(files[0], RATE, channels="sideways")


def test_a_killed_process_is_replaced(files):
    with DecodeProcesses() as processes:
        processes.decode(files[0], RATE)
        (process,) = processes._all
        process.kill()
        assert len(processes.decode(files[0], RATE).samples) == len(decode(files[0], RATE).samples)


def test_a_file_that_crashes_its_process_costs_that_file_alone(files, monkeypatch):
    """A crash as damaged files cause in C: the process is gone in the middle of its answer."""
    crash = (
        "import os, sys; sys.path.append(sys.argv[1]); import tune.audio.processes as p\n"
        "decode = p.decode\n"
        "def crash(path, *a, **k):\n"
        "    return os.abort() if path.endswith('1.flac') else decode(path, *a, **k)\n"
        "p.decode = crash\n"
        "p.serve()"
    )
    monkeypatch.setattr(module, "SERVE", crash)
    with DecodeProcesses() as processes:
        assert len(processes.decode(files[0], RATE).samples)
        with pytest.raises(AudioError, match="ended the decoding process"):
            processes.decode(files[1], RATE)
        assert len(processes.decode(files[2], RATE).samples)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_processes_end_with_the_process_that_asked(files, tmp_path):
    """Killed outright, it leaves none behind."""
    code = (
        "import os, signal, sys\nfrom tune.audio.processes import DecodeProcesses\n"
        "p = DecodeProcesses()\np.decode(sys.argv[1], 24000)\n"
        "print(p._all[0].pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run([sys.executable, "-c", code, files[0]], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, until = int(done.stdout), time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the decoding process is still there")
