"""The store under fire: kills, several writers, full disks, damage. Nothing wrong, nothing lost.

The short form is part of every run of the tests. The long one prints the figures of
docs/reliability.md: `python -m pytest -s -m slow tests/reliability/test_crash.py`.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, tone
from safetensors import SafetensorError, safe_open

from tune.store import store as tune_store
from tune.store.collection import Row
from tune.store.command import main
from tune.store.encode import encode_tracks, read_row
from tune.store.prune import describe, evict_least_recently_used, prune
from tune.store.stale_files import STALE_S, STAMP
from tune.store.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
if hasattr(os, "fork"):
    from crash_worker import LAYERS, RULE, TinyEncoder

N = 8
LIVES = 4  # of the runs on one store, before the last one is left to end
KILLED = -signal.SIGKILL


class Arena:
    """Starts encoders that are to be killed (see crash_worker.py)."""

    def __init__(self, folder: Path):
        self.folder, self.n = folder, 0
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "crash_worker.py"],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, **order) -> int:
        self.process.stdin.write(json.dumps(order, default=str) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, store, paths, **order) -> "Run":
        self.n += 1
        log = self.folder / f"{self.n}.log"
        return Run(self, self.ask(store=store, paths=paths, log=log, **order), log)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


class Run:
    """A started encoder."""

    def __init__(self, arena, pid, log):
        self.arena, self.pid, self.log, self.code = arena, pid, log, None

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        if self.code is None:
            self.code = self.arena.ask(wait=self.pid)
        return self.code

    def lines(self) -> list:
        """What it logged, as far as it got: JSON as a dict, other text as it is."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) if line.startswith("{") else line for line in lines]

    def done(self) -> set:
        return {item["done"] for item in self.lines() if isinstance(item, dict) and "done" in item}

    def report(self) -> dict:
        assert self.wait() == 0, self.log.read_text()
        return self.lines()[-1]


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    arena = Arena(tmp_path_factory.mktemp("arena"))
    yield arena
    arena.close()


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Tracks of different lengths."""
    folder = tmp_path_factory.mktemp("music")
    paths = [str(folder / f"{i}.wav") for i in range(N)]
    for i, path in enumerate(paths):
        soundfile.write(path, tone(1 + 0.3 * i, 110 * (i + 1), seed=i), 24_000)
        os.utime(path, (1e9, 1e9))  # hashes of young files aren't remembered
    return paths


def collection_in(root):
    return Store(root).collection(TinyEncoder(), LAYERS, None)


def contents(root) -> dict:
    """Every row that is there, by its place: all that a row says but what it cost."""
    collection = collection_in(root)
    rows = {
        (content, cut): (row.tokens.shape, row.tokens.tobytes(), row.spans, row.counts, row.silent)
        for content, cut, row in collection.rows()
    }
    assert collection.damaged == []
    assert len(rows) == len(list(collection.folder.glob("*/*.safetensors")))  # none left out
    return rows


@pytest.fixture(scope="module")
def clean(arena, music, tmp_path_factory):
    """A store that nothing has happened to: its rows, and each path's row's place."""
    root = tmp_path_factory.mktemp("clean") / "store"
    assert arena.start(root, music).report()["encoded"] == N
    rows, store = contents(root), Store(root)
    assert len(rows) == N
    places = {path: next(k for k in rows if k[0] == store.content(path)) for path in music}
    return root, rows, places


def check(root, clean, runs) -> int:
    """Say how many rows there are, after no row was found wrong and none that was reported lost."""
    _, expected, places = clean
    there = contents(root)
    wrong = [key for key, row in there.items() if expected.get(key) != row]
    lost = [path for run in runs for path in run.done() if places[path] not in there]
    assert (wrong, lost) == ([], [])
    return len(there)


def finish(arena, root, music, clean, before: int) -> None:
    """Go on to the end: only what wasn't there is encoded, and the store equals the clean one."""
    kept = {p: p.stat().st_mtime_ns for p in root.glob("*/*/*/*.safetensors")}
    report = arena.start(root, music).report()
    assert (report["encoded"], report["damaged"], report["skipped"]) == (N - before, [], [])
    assert contents(root) == clean[1]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def wait_a_while(run: Run, rng) -> None:
    """Let a run get somewhere: to its start, or to any of its tracks and a little further."""
    if (n_done := rng.randrange(-1, N)) >= 0:
        until = time.monotonic() + 30
        while len(run.done()) < n_done and time.monotonic() < until:
            time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))


def random_kills(arena, music, clean, folder, *, n_kills, n_writers, seed):
    """Kill writers at random moments until `n_kills` were hit; return how many stores that took."""
    rng, kills, stores = random.Random(seed), 0, 0
    while kills < n_kills:
        root, runs, n_rows = folder / f"store-{stores}", [], 0
        for _ in range(LIVES):
            now = [arena.start(root, music) for _ in range(n_writers)]
            victims = now if n_writers == 1 else now[: n_writers - 1]
            for victim in victims:
                wait_a_while(victim, rng)
                kills += victim.kill() == KILLED
            for survivor in set(now) - set(victims):
                assert survivor.wait() == 0, survivor.log.read_text()
            runs += now
            n_rows = check(root, clean, runs) if (root / "locks").exists() else 0
            assert n_writers == 1 or n_rows == N
            if n_rows == N:
                break
        finish(arena, root, music, clean, n_rows)
        stores += 1
        shutil.rmtree(root)
    return kills, stores


def test_killed_at_random_moments(arena, music, clean, tmp_path):
    kills, stores = random_kills(arena, music, clean, tmp_path, n_kills=12, n_writers=1, seed=1)
    assert (kills >= 12, stores >= 1) == (True, True)


def test_killed_while_tracks_share_batches(arena, music, clean, tmp_path):
    """As on a GPU: rows equal those of single tracks but for rounding, none reported is lost."""
    rng, root = random.Random(3), tmp_path / "store"
    how, runs = {"share_batches": True, "batch_seconds": 3.0}, []
    for k in (9, 17, 26):
        runs.append(arena.start(root, music, die_at=k, **how))
        assert runs[-1].wait() == KILLED
    runs.append(arena.start(root, music, **how))
    wait_a_while(runs[-1], rng)
    runs[-1].kill()
    runs.append(arena.start(root, music, **how))
    assert runs[-1].report()["damaged"] == []
    there = contents(root)
    assert set(there) == set(clean[1])
    for run in runs:
        assert all(clean[2][path] in there for path in run.done())
    for place, (shape, tokens, *rest) in there.items():
        expected_shape, expected, *expected_rest = clean[1][place]
        assert (shape, rest) == (expected_shape, expected_rest)
        ours, theirs = (np.frombuffer(x, np.float32) for x in (tokens, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_writers", [1, 2, 4])
def test_killed_at_random_moments_often(arena, music, clean, tmp_path, n_writers):
    """The figure of docs/reliability.md."""
    kills, stores = random_kills(
        arena, music, clean, tmp_path, n_kills=150, n_writers=n_writers, seed=n_writers
    )
    print(f"\n{kills} kills, {n_writers} writers at once, {stores} stores: all equal the clean one")


def kill_at_every_change(arena, paths, clean, folder, steps) -> int:
    """Kill a run before its k-th change of a file, for each k of `steps` until it gets through."""
    for killed, k in enumerate(steps):
        root = folder / f"at-{k}"
        run = arena.start(root, paths, die_at=k)
        if run.wait() == 0:
            return killed
        assert run.code == KILLED
        n_rows = check(root, clean, [run]) if (root / "locks").exists() else 0
        report = arena.start(root, paths).report()
        assert report["encoded"] == len(paths) - n_rows
        assert check(root, clean, []) == len(paths)
        shutil.rmtree(root)
    raise AssertionError("it was never through")


def test_killed_before_every_change_of_a_file(arena, music, clean, tmp_path):
    killed = kill_at_every_change(arena, music[:1], clean, tmp_path, range(1, 200, 4))
    assert killed >= 4  # locks, folders, the description, the row: opened, flushed, renamed


@pytest.mark.slow
def test_killed_before_every_change_of_a_file_of_several_tracks(arena, music, clean, tmp_path):
    killed = kill_at_every_change(arena, music, clean, tmp_path, range(1, 2000))
    print(f"\n{killed} kills, each before another change of a file")
    assert killed >= 60


def is_torn(path: Path) -> bool:
    """Say whether a safetensors file is cut off."""
    try:
        safe_open(path, "numpy")
    except SafetensorError as error:
        return bool(re.search("invalid|incomplete|header", str(error)))
    return False


def test_a_row_that_is_half_written_when_its_writer_dies_is_no_row(arena, music, clean, tmp_path):
    root = tmp_path / "store"
    run = arena.start(root, music, torn=3)
    assert run.wait() == KILLED
    left = list(root.rglob("*.safetensors.*.tmp"))  # others were written at the same time
    assert any(is_torn(path) for path in left)
    stored = check(root, clean, [run])
    assert stored <= 3
    finish(arena, root, music, clean, stored)
    for path in left:
        assert path.exists()  # younger than a day
        os.utime(path, (time.time() - 2 * STALE_S,) * 2)
    prune(root)
    assert not any(path.exists() for path in left)
    assert contents(root) == clean[1]


@pytest.mark.parametrize("n_writers", [2, 4])
def test_writers_at_once_encode_each_track_once(arena, music, clean, tmp_path, n_writers):
    root = tmp_path / "store"
    paths = [music[(i * 3 + shift) % N] for shift in range(n_writers) for i in range(N)]
    runs = [arena.start(root, paths[i * N : (i + 1) * N]) for i in range(n_writers)]
    reports = [run.report() for run in runs]
    assert sum(report["encoded"] for report in reports) == N
    assert all(run.done() == set(music) for run in runs)
    assert contents(root) == clean[1]
    assert not list(root.rglob("*.tmp"))


def mount(folder: Path, options: str) -> bool:
    """Mount a small file system of its own, or change its options."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 32 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "size=32k"):
        pytest.skip("mounting a small disk needs root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_same_run_goes_on_when_there_is_room(
    arena, music, clean, disk
):
    root = disk / "store"
    full = arena.start(root, music)
    assert full.wait() == 2
    line = full.lines()[-1]
    assert line.startswith("error: No space left on device: ")
    assert "Traceback" not in full.log.read_text()
    assert not list(root.rglob("*.tmp"))
    n_rows = check(root, clean, [full])
    assert 0 < n_rows < N
    assert mount(disk, "remount,size=10m")
    finish(arena, root, music, clean, n_rows)


def test_a_read_only_store_serves_what_it_has_and_says_what_it_can_not_take(
    arena, music, clean, disk
):
    assert mount(disk, "remount,size=10m")
    root = disk / "store"
    assert arena.start(root, music[:5]).report()["encoded"] == 5
    (row,) = root.glob(f"*/*/*/{Store(clean[0]).content(music[0])}-*")
    damaged = bytearray(row.read_bytes())
    assert mount(disk, "remount,ro")
    assert arena.start(root, music[:5]).report()["encoded"] == 0
    more = arena.start(root, music)
    assert more.wait() == 2
    assert more.lines()[-1].startswith("error: Read-only file system: ")
    assert mount(disk, "remount,rw")
    damaged[-1] ^= 4
    row.write_bytes(damaged)
    assert mount(disk, "remount,ro")
    again = arena.start(root, music[:5])  # its damage is named, and it isn't served
    assert again.wait() == 2
    assert f"damaged row {row}" in again.log.read_text()
    assert "Read-only file system" in again.lines()[-1]
    assert mount(disk, "remount,rw")
    report = arena.start(root, music).report()
    assert (report["encoded"], report["damaged"]) == (4, [str(row)])
    assert contents(root) == clean[1]


def test_a_limit_on_files_is_one_line_and_leaves_no_row(arena, music, clean, tmp_path):
    root = tmp_path / "store"
    run = arena.start(root, music, file_size=1024)
    assert run.wait() == 2
    assert run.lines()[-1].startswith("error: File too large: ")
    assert not list(root.rglob("*.safetensors")) + list(root.rglob("*.tmp"))
    finish(arena, root, music, clean, 0)


def flips(clean, music, folder, n: int, seed: int) -> int:
    """Flip one bit of one row, n times; return how often the row was named (else it is equal)."""
    root, (_, expected, _), rng = folder / "store", clean, random.Random(seed)
    shutil.copytree(clean[0], root)
    encoder, store, named = TinyEncoder(), Store(root), 0
    for _ in range(n):
        path = rng.choice(sorted(root.glob("*/*/*/*.safetensors")))
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        collection = store.collection(encoder, LAYERS, None)
        report = encode_tracks(music, encoder, RULE, store, collection)
        assert report.damaged in ([], [str(path)])
        assert report.encoded_tracks == len(report.damaged)
        named += len(report.damaged)
        for content, spans in report.rows.values():
            row = collection.read(content, spans)
            value = row.tokens.shape, row.tokens.tobytes(), row.spans, row.counts, row.silent
            assert value in expected.values()
        assert contents(root) == expected
    return named


def test_a_flipped_bit_is_named_and_encoded_again(music, clean, tmp_path):
    assert flips(clean, music, tmp_path, 12, seed=3) >= 8


@pytest.mark.slow
def test_many_flipped_bits_are_named_and_encoded_again(music, clean, tmp_path):
    named = flips(clean, music, tmp_path, 1000, seed=4)
    print(f"\n1000 bits flipped: {named} rows named and encoded again, the others read the same")


def test_a_length_that_another_row_would_fit_does_not_lead_to_it(tmp_path, rng):
    """A damaged length must not find the row that another rule has made of the same track."""
    collection = collection_in(tmp_path / "store")
    short = Row(np.ones((1, 2, 64), np.float32), [(0, 24_000)], [1], False, 0.1)
    collection.write("ab" * 32, 25_000, short)
    (file,) = collection.folder.rglob("*.safetensors")
    assert collection.length("ab" * 32) == 25_000
    file.write_bytes(file.read_bytes().replace(b'"25000"', b'"24000"'))  # a bit of the 5
    assert collection.length("ab" * 32) is None
    assert collection.read("ab" * 32, [(0, 24_000)]) is None
    assert collection.damaged == [str(file)]


def test_a_row_under_another_tracks_name_is_not_served(clean, tmp_path):
    """As after a repair of the file system that has mixed up its entries."""
    root = tmp_path / "store"
    shutil.copytree(clean[0], root)
    a, b = sorted(root.glob("*/*/*/*.safetensors"))[:2]
    shutil.copy(a, b)
    collection = collection_in(root)
    assert len(list(collection.rows())) == N - 1
    assert collection.damaged == [str(b)]


def test_files_deleted_under_a_reader_are_missing_and_never_wrong(music, clean, tmp_path):
    root, expected = tmp_path / "store", clean[1]
    shutil.copytree(clean[0], root)
    encoder, store = TinyEncoder(), Store(root)
    collection = store.collection(encoder, LAYERS, None)
    rows = encode_tracks(music, encoder, RULE, store, collection).rows
    stop, seen, message = threading.Event(), {"there": 0, "gone": 0}, ""

    def delete_and_restore():
        files = sorted(root.glob("*/*/*/*.safetensors"))
        while not stop.is_set():
            for file in files:
                file.unlink()
                time.sleep(0.001)
                os.link(clean[0] / file.relative_to(root), file)

    vandal = threading.Thread(target=delete_and_restore)
    vandal.start()
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until and min(seen.values()) < 20:
            for path, (content, spans) in rows.items():
                try:
                    row = read_row(collection, path, content, spans)
                except ValueError as error:
                    message = str(error)
                    seen["gone"] += 1
                    continue
                value = row.tokens.shape, row.tokens.tobytes(), row.spans, row.counts, row.silent
                assert value in expected.values()
                seen["there"] += 1
    finally:
        stop.set()
        vandal.join()
    assert min(seen.values()) >= 20
    assert message.startswith("the stored embedding of ")
    assert message.endswith(" has vanished: run the command again")
    assert collection.damaged == []


@pytest.mark.parametrize("other", [0, 2, "2027.1"])
def test_a_store_of_another_format_is_neither_served_nor_changed(
    arena, music, clean, tmp_path, monkeypatch, other
):
    root = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(tune_store, "FORMAT", other)
        theirs = collection_in(root)
        for content, _ in clean[1]:
            spans = [(0, 12_000), (12_000, 24_000)]
            wrong = Row(np.ones((2, 2, 64), np.float32), spans, [1, 1], False, 0.1)
            theirs.write(content, 24_000, wrong)
    before = {p: p.read_bytes() for p in theirs.folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"of another version of TUNE \\(format {other}"):
        tune_store.open(root)
    finish(arena, root, music, clean, 0)
    assert {p: p.read_bytes() for p in theirs.folder.rglob("*") if p.is_file()} == before
    assert tune_store.open(root).key["format"] == tune_store.FORMAT
    assert len(describe(root)) == 2


DAY_S = 86_400


@pytest.mark.parametrize("jump_days", [0, 400, -400])
def test_left_files_go_after_a_day_and_a_living_writers_stays_whatever_the_clock(
    clean, tmp_path, jump_days
):
    root = tmp_path / "store"
    shutil.copytree(clean[0], root)
    store = Store(root)
    row = sorted(root.glob("*/*/*/*.safetensors"))[0]
    names = [f".{row.name}.{i}.tmp" for i in range(2)]
    dead = [row.with_name(names[0]), row.parent.parent / ".collection.json.0.tmp"]
    live = row.with_name(names[1])
    for path in (*dead, live):
        path.write_bytes(b"half a row")
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)
    living = store.claim(row.name[:64])
    Store(root)  # swept today: nothing is looked at
    assert all(path.exists() for path in (*dead, live))
    if jump_days:
        os.utime(root / STAMP, (time.time() - jump_days * DAY_S,) * 2)
    else:
        (root / STAMP).unlink()
    Store(root)
    assert [path.exists() for path in (*dead, live)] == [True, False, True]  # its track is locked
    living.release()
    prune(root)
    assert not any(path.exists() for path in (*dead, live))
    assert contents(root) == clean[1]


def test_a_size_limit_takes_the_rows_that_were_unused_longest_and_only_when_asked(
    arena, music, clean, tmp_path, capsys
):
    root = tmp_path / "store"
    shutil.copytree(clean[0], root)
    rows = sorted(root.glob("*/*/*/*.safetensors"))
    for age, row in enumerate(rows):
        os.utime(row, (time.time() - age * DAY_S,) * 2)
    sizes = [row.stat().st_size for row in rows]
    assert evict_least_recently_used(root, sum(sizes)) == []
    (item,) = evict_least_recently_used(root, sum(sizes[:3]), dry_run=True)
    assert (item["rows"], item["tracks"], item["bytes"]) == (N - 3, N - 3, sum(sizes[3:]))
    assert sorted(root.glob("*/*/*/*.safetensors")) == rows
    assert evict_least_recently_used(root, 0, encoder="another") == []
    assert evict_least_recently_used(root, 0, older_than_days=N) == []
    argv = ["prune", "--store", str(root)]
    assert main([*argv, f"--max_size={sum(sizes[:5])}B"]) == 0
    assert sorted(root.glob("*/*/*/*.safetensors")) == rows[:5]
    evict_least_recently_used(root, sum(sizes[:5]) - 1, older_than_days=2)
    assert sorted(root.glob("*/*/*/*.safetensors")) == rows[:4]
    assert len(contents(root)) == 4
    finish(arena, root, music, clean, 4)
    assert main([*argv, "--max_size=0"]) == 0
    assert not list(root.rglob("*.safetensors"))
    for text, message in (("50", "with its unit such as 50GB"), ("many", "such as")):
        with pytest.raises(SystemExit, match="2"):
            main([*argv, f"--max_size={text}"])
        assert message in capsys.readouterr().err
