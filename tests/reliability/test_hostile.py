"""Hostile audio: a corpus of 400 files (hostile_files.py) through every script that reads music.

In the test's process; in processes by `python -m pytest -m slow tests/reliability/test_hostile.py`.
"""

import contextlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import hostile_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import ROOT, run
from hostile_files import BAD, EITHER, GOOD
from in_process import call
from safetensors.numpy import load_file

from tune.audio.decode import AudioError, read_audio, read_header
from tune.cli.parser import one_line

FILE_S = 5.0  # a bound for any one file


def call_process(name, *argv, cwd, env=None):
    """Run a script or module as a process of its own."""
    program = [ROOT / name] if name.endswith(".py") else ["-m", name]
    env = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), **(env or {})}
    return run(*program, *argv, cwd=cwd, env=env)


CALLS = {"in_process": call, "processes": call_process}


@pytest.fixture(
    scope="module", params=["in_process", pytest.param("processes", marks=pytest.mark.slow)]
)
def hostile(request, tmp_path_factory):
    """Every script over the whole corpus, and embed.py over the good files alone."""
    root = tmp_path_factory.mktemp("hostile")
    corpus = hostile_files.make(root / "music")
    call = CALLS[request.param]
    bare = {"TUNE_STORE": str(root / "store"), "XDG_CACHE_HOME": str(root / "cache")}
    # Folders show only what has an audio ending; a list can't name a file with a line break.
    lines = [os.fsencode(p) for p in corpus.expected if not {"\n", "\r"} & set(p)]
    (root / "all.txt").write_bytes(b"\n".join(lines))
    everything = call(
        "embed.py",
        corpus.folder,
        "all.txt",
        "--encoder=mel",
        "--out=all.parquet",
        cwd=root,
        env=bare,
    )
    table = pq.read_table(root / "all.parquet").to_pylist()
    rows = {row["path"]: row for row in table}
    assert len(rows) == len(table)
    usable = [path for path in corpus.expected if rows[listed(path)]["reason"] is None]
    other = {**bare, "TUNE_STORE": str(root / "other")}
    alone = call(
        "embed.py", *reversed(usable), "--encoder=mel", "--out=good.parquet", cwd=root, env=other
    )
    for i, split in enumerate(("train", "val", "test")):
        mine = list(corpus.expected)[i::3]
        rows_of = [
            {"audio_path": p, "label": ("low", "high")[k // 2 % 2]} for k, p in enumerate(mine)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows_of)
        (root / f"files.{split}.jsonl").write_text(text)
    probe = call(
        "train_probe.py",
        "--task",
        root,
        "--encoder=mel",
        "--report_to=none",
        "--epochs=1",
        "--name=run",
        "--allow_outside",
        cwd=root,
        env=bare,
    )
    check = call(
        "tune.tasks", "check", root, "--json=check.json", "--allow_outside", cwd=root, env=bare
    )
    yield SimpleNamespace(
        root=root,
        corpus=corpus,
        everything=everything,
        alone=alone,
        rows=rows,
        usable=usable,
        probe=probe,
        check=check,
    )
    (corpus.folder / "huge-5-hours.wav").unlink()


def listed(path: str) -> str:
    """A path as embed.py's table has it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def in_json(path: str) -> bool:
    """Whether a jsonl can name it."""
    return path.isascii() or not any("\udc80" <= c <= "\udcff" for c in path)


def test_the_corpus_is_what_it_says(hostile):
    counts = Counter(hostile.corpus.expected.values())
    assert sum(counts.values()) >= 400
    assert counts[GOOD] >= 200
    assert counts[BAD] >= 100
    endings = {Path(p).suffix for p in hostile.corpus.expected}
    assert len(endings) >= 20


def test_nothing_crashes_or_writes_a_traceback(hostile):
    for done, code in (
        (hostile.everything, 0),
        (hostile.alone, 0),
        (hostile.probe, 0),
        (hostile.check, 1),
    ):
        assert done.returncode == code, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
    assert not (hostile.root / "owned").exists()  # what a name holds was run by no shell


def test_every_file_ends_as_expected_and_is_reported_once(hostile):
    seen = hostile.rows
    assert set(seen) == {listed(p) for p in hostile.corpus.expected}
    for path, expect in hostile.corpus.expected.items():
        row = seen[listed(path)]
        assert (row["reason"] is None) == (row["embedding"] is not None)
        if expect != EITHER:
            assert (row["reason"] is None) == (expect == GOOD), (path, row["reason"])
        name = f"WARNING: skipped {one_line(path)}: "
        told = [line for line in hostile.everything.stderr.splitlines() if name in line]
        assert len(told) == (row["reason"] is not None), path
        if told:
            assert one_line(row["reason"]) in told[0]


def test_no_embedding_is_ever_anything_but_finite(hostile):
    vectors = np.stack([r["embedding"] for r in hostile.rows.values() if r["reason"] is None])
    assert len(vectors) == len(hostile.usable)
    assert np.isfinite(vectors).all()
    for store in ("store", "other"):
        files = list((hostile.root / store).rglob("*.safetensors"))
        assert len(files) > 200
        assert all(np.isfinite(load_file(file)["tokens"]).all() for file in files)


def test_the_good_files_are_the_same_to_the_last_bit_without_the_bad_ones(hostile):
    alone = pq.read_table(hostile.root / "good.parquet").to_pylist()
    assert {row["path"] for row in alone} == {listed(p) for p in hostile.usable}
    for row in alone:
        assert row == hostile.rows[row["path"]]


def test_a_probe_and_a_check_report_the_same_bad_files(hostile):
    result = json.loads((hostile.root / "runs/run/result.json").read_text())
    report = json.loads((hostile.root / "check.json").read_text())
    reasons = {p: hostile.rows[listed(p)]["reason"] for p in hostile.corpus.expected if in_json(p)}
    bad = {p: reason for p, reason in reasons.items() if reason}
    skipped = Counter(item["where"] for item in result["skipped"])
    assert max(skipped.values()) == 1
    told = {i["where"]: i["reason"] for i in result["skipped"] if ".jsonl:" not in i["where"]}
    assert told == bad
    assert sum(result["n_tracks"].values()) == len(reasons) - len(bad)
    names = len(hostile.corpus.expected) - len(reasons)  # not UTF-8: a jsonl has no way to say them
    assert len(result["skipped"]) == len(bad) + names
    checked = [p for p in report["problems"] if p["kind"] == "file"]
    short = {p for p, reason in bad.items() if reason.startswith("too short")}
    assert {p["where"][0] for p in checked} == bad.keys() - short  # how long is long enough
    assert len(checked) == len(bad) - len(short)  # depends on the encoder


def test_no_file_takes_long_or_much_memory(hostile):
    slowest = 0.0
    for path in hostile.corpus.expected:
        started = time.perf_counter()
        for read in (read_header, lambda path: read_audio(path, 24_000)):
            with contextlib.suppress(AudioError):
                read(path)
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < FILE_S


def test_how_long_a_file_may_be_can_be_said(tmp_path, monkeypatch):
    path = tmp_path / "hour.wav"
    soundfile.write(path, np.zeros(3600 * 1_000, np.int16), 1_000)
    assert len(read_audio(path, 1_000)) == 3600 * 1_000
    monkeypatch.setenv("TUNE_MAX_HOURS", "0.9")
    for read in (read_header, lambda path: read_audio(path, 1_000)):
        with pytest.raises(AudioError, match=r"^too long: 1\.00 hours; up to 0\.9 hours are read"):
            read(path)
    monkeypatch.setenv("TUNE_MAX_HOURS", "much")
    with pytest.raises(ValueError, match="TUNE_MAX_HOURS must be a number above 0, got 'much'"):
        read_audio(path, 1_000)


def test_a_length_that_no_header_tells_is_bounded_too(tmp_path, monkeypatch):
    path = tmp_path / "stream.wav"
    soundfile.write(path, np.zeros(24_000), 24_000)
    monkeypatch.setenv("TUNE_MAX_HOURS", str(0.5 / 3600))
    monkeypatch.setattr("tune.audio.readers.UNKNOWN_FRAMES", 0)  # as if the header said nothing
    with pytest.raises(AudioError, match=r"^too long: there is more than its header says; up to"):
        read_audio(path, 24_000)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain Björk \U0001f3b5", "plain Björk \U0001f3b5"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202egnp", r"\u202egnp"),
        ("caf\udce9", r"caf\xe9"),
    ],
)
def test_names_are_shown_in_one_line_that_changes_no_terminal(name, shown):
    assert one_line(name) == shown
