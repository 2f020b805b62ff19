"""Fuzzing: what any bytes make of the decoder and of the readers of jsonl, CSV and lists.

A short form runs always. The long one takes minutes ($TUNE_FUZZ_SECONDS says how many seconds each
test takes): `python -m pytest -m slow tests/reliability/test_fuzz.py`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from hostile_files import wave
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tune.audio.find_files import find_music
from tune.tasks.load import load_task
from tune.tasks.readers import TaskError, read_path

SECONDS = float(os.environ.get("TUNE_FUZZ_SECONDS", 60))
MEMORY = 6 << 30  # bytes of address space that a decoding process may take
FILE_S = 10.0
FORMATS = (
    "WAV",
    "AIFF",
    "FLAC",
    "OGG",
    "MP3",
    "CAF",
    "W64",
    "AU",
    "RF64",
    "NIST",
    "VOC",
    "SVX",
    "IRCAM",
    "PAF",
    "MAT4",
    "MAT5",
    "AVR",
    "SDS",
    "XI",
    "HTK",
    "PVF",
    "MPC2K",
)
JSONL = [
    b'{"audio_path": "a/1.wav", "label": "low", "split": "train", "ori_uid": "x"}',
    b'{"audio_path": "data/E/2.wav", "label": [0.1, -0.2], "split": "val"}',
    b'{"audio_path": "3.wav", "label": ["a", "b"], "split": "test"}',
    b'{"audio_path": 7, "label": null}',
    b"[1, 2]",
    b"null",
    b'"text"',
    b"{}",
    b"[" * 3_000,
    b'{"audio_path": "\\ud800", "label": NaN}',
    b'{"audio_path": {"a": []}, "label": {"b": 1}}',
    b'{"audio_path": "x", "label": 1e999, "split": 3}',
    b'{"audio_path": "x", "label": true}',
    b'{"audio_path": "x", "label": 123456789012345678901234567890}',
    b"\xff\xfe\x00",
    b'{"audio_path": "a\\u0000b", "label": "low"}',
    b'{"audio_path": "' + b"x" * 5_000 + b'"}',
    b'{"audio_path": "x", "label": "low", "split": ["train"]}',
    b'{"audio_path": "x", "label": [[1], "a", null]}',
    b'{"audio_path": "", "label": ""}',
]
TABLE = [
    b"path,label,split",
    b"1.wav,low,train",
    b'"2, a.wav",high,test',
    b'"open quote,low',
    b"3.wav",
    b"4.wav,low,val,more",
    b",,",
    b"\xef\xbb\xbfpath,label",
    b"\xff,low",
    b"a\0b,low,train",
    b"label\tpath",
    b"5.wav,1.5,train",
    b"6.wav,nan,val",
    b"7.wav,-inf,test",
    b"x" * 140_000,
    b"8.wav,a;b;;c,train",
    b"path,path,label,label",
    b"9.wav,low,polka",
]
# Runs in a process of its own: a crash of the decoder or a bite of memory would be the end of it.
DECODER = """
import sys, time
import resource
import numpy as np
from tune.audio.decode import AudioError, read_audio, read_header
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
for line in sys.stdin:
    path, started, said = line.rstrip("\\n"), time.perf_counter(), "samples"
    for read in (read_header, lambda p: read_audio(p, 24_000), lambda p: read_audio(p, 16_000, .1, .3)):
        try:
            samples = read(path)
            if isinstance(samples, np.ndarray):
                assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
        except AudioError as error:
            said = str(error)
            assert said and len(said.splitlines()) == 1, said
    print(f"\\n=> {time.perf_counter() - started:.3f} {said}", flush=True)
"""  # noqa: E501


def mutate(data: bytes, rng, others: list[bytes]) -> bytes:
    """Flip, cut, double, overwrite with extreme numbers, or splice with another file."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = rng.integers(6), int(rng.integers(max(1, len(out))))
        head = int(rng.integers(min(96, max(1, len(out)))))
        if kind == 0:
            for i in rng.integers(0, max(1, len(out)), int(rng.integers(1, 30))):
                out[i : i + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            out[head : head + 4] = rng.choice(EXTREMES)
        elif kind == 2:
            del out[at : at + int(rng.integers(1, 2_000))]
        elif kind == 3:
            out[at:at] = out[head : head + int(rng.integers(1, 2_000))]
        elif kind == 4:
            del out[at:]
        else:
            other = others[int(rng.integers(len(others)))]
            out[at:] = other[min(at, len(other)) :]
    return bytes(out)


EXTREMES = np.array(
    [
        b"\0\0\0\1",
        b"\xff" * 4,
        b"\x7f" + b"\xff" * 3,
        b"\xff\xff\xff\x7f",
        b"\x80\0\0\1",
        b"\1\0\0\1",
    ],
    dtype="S4",
)


@pytest.mark.slow
def test_no_bytes_crash_hang_or_swell_the_decoder(tmp_path):
    rng = np.random.default_rng(int(os.environ.get("TUNE_FUZZ_SEED", 1)))
    seeds = []
    for format in FORMATS:
        path = tmp_path / f"seed.{format.lower()}"
        for subtype in soundfile.available_subtypes(format):
            if soundfile.check_format(format, subtype):
                for rate in (24_000, 8_000):
                    try:
                        soundfile.write(path, wave(0.4, rate)[:, 0], rate, subtype, format=format)
                    except soundfile.LibsndfileError:
                        continue
                    seeds.append((path.suffix, path.read_bytes()))
                    break
    assert len(seeds) > 80
    with open(tmp_path / "err", "w") as err:
        worker = subprocess.Popen(
            [sys.executable, "-c", DECODER, str(MEMORY)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    n = decoded = 0
    slowest, end = 0.0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        suffix, data = seeds[n % len(seeds)]
        path = tmp_path / f"fuzz{suffix}"
        path.write_bytes(mutate(data, rng, [d for _, d in seeds]))
        worker.stdin.write(f"{path}\n")
        worker.stdin.flush()
        # libsndfile itself writes to stdout now and then.
        answer = next((line[3:] for line in worker.stdout if line.startswith("=> ")), "")
        assert answer, (suffix, n, (tmp_path / "err").read_text()[-2000:])
        slowest, n = max(slowest, float(answer.split()[0])), n + 1
        decoded += answer.rstrip().endswith(" samples")
    worker.stdin.close()
    worker.stdout.close()
    assert worker.wait(30) == 0
    print(f"decoder: {n} files, {decoded} decoded, the slowest took {slowest:.2f} s")
    assert slowest < FILE_S
    assert n > 20 * SECONDS or SECONDS < 5
    assert 0 < decoded < n


def read_any(path: Path, cache: Path) -> str:
    """Read a task's file; say what became of it. Anything but a TaskError goes through."""
    try:
        rows, skipped = read_path(path)
    except TaskError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return "refused"
    for row in rows:
        assert {"where", "id", "path", "label", "split", "track"} <= row.keys()
        assert isinstance(row["path"], str)
        assert row["where"].startswith(str(path))
    assert all(item["where"] and item["reason"] for item in skipped)
    try:
        task = load_task(str(path), cache_dir=cache, usable=False)
    except TaskError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return "refused"
    assert sum(len(task.splits[s]) for s in task.splits) + len(task.skipped) <= len(rows) + len(
        skipped
    )
    return "read"


LINES = {".jsonl": JSONL, ".csv": TABLE, ".tsv": [line.replace(b",", b"\t") for line in TABLE]}


def some_bytes(suffix):
    """Lines of a file: known ones, any, and known ones cut or with other bytes inside."""
    known = st.sampled_from(LINES[suffix])
    broken = st.tuples(known, st.integers(0, 60), st.binary(max_size=6)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    )
    return st.lists(st.one_of(known, known, broken, st.binary(max_size=30)), max_size=12).map(
        lambda lines: b"\n".join(lines)
    )


@pytest.mark.parametrize("suffix", LINES)
def test_any_lines_are_a_task_or_an_error_in_one_line(tmp_path, suffix):
    check_lines(tmp_path, suffix, 40)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", LINES)
def test_many_lines_are_a_task_or_an_error_in_one_line(tmp_path, suffix):
    seen, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        seen += check_lines(tmp_path, suffix, 500)
    print(f"{suffix}: {seen} files")
    assert seen >= 500


def check_lines(folder: Path, suffix: str, n: int) -> int:
    """Try n files; return how many were read or refused."""
    path, outcomes = folder / f"task{suffix}", []

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(
            some_bytes(suffix), some_bytes(suffix).map(lambda data: LINES[suffix][0] + b"\n" + data)
        )
    )
    def check(data):
        path.write_bytes(data)
        outcomes.append(read_any(path, folder))

    check()
    assert "refused" in outcomes
    return len(outcomes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8).map(b"\n".join))
def test_any_list_names_files_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz-list.txt"
    path.write_bytes(data)
    try:
        found = find_music([path])
    except ValueError as error:
        assert "no line that names a file" in str(error)  # noqa: PT017
        return
    assert found
    assert len(set(found)) == len(found)


def test_the_fuzzer_itself_finds_what_is_planted(tmp_path, monkeypatch):
    def bare(path, **_):
        return [json.loads(line) for line in path.read_bytes().splitlines()], []

    monkeypatch.setattr(sys.modules[__name__], "read_path", bare)
    with pytest.raises(BaseException):  # noqa: B017 - which one depends on what it met first
        check_lines(tmp_path, ".jsonl", 10)
