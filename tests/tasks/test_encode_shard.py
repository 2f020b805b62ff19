"""python -m tune.store encode: shares of the tracks, at once and killed, as one process."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import make_task, tone
from in_process import call

from tune.store import store as tune_store
from tune.store.encode import EncodeReport, encode_tracks
from tune.store.extractor import Extractor
from tune.tasks import encode_shard

N = 12
NANO = ("--encoder", "muq-nano", "--layer", "all", "--seg", "1", "--mixed_precision", "no")
LINE = re.compile(r"(\d+) stored before, (\d+) encoded in [\d.]+ s, (\d+) skipped")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A folder of tracks, in subfolders."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(N):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        soundfile.write(
            folder / str(i % 2) / f"{i}.wav", tone(2 + 0.3 * i, 110 + i, seed=i), 24_000
        )
    return folder


def words(*args) -> list[str]:
    return [sys.executable, "-m", "tune.store", "encode", *map(str, args)]


def start(*args) -> subprocess.Popen:
    """A process that encodes."""
    return subprocess.Popen(words(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def encode(*args, cwd):
    """The same in this process, to its end."""
    return call("tune.store", "encode", *args, cwd=cwd)


def counts(stdout: str) -> list[tuple[int, int, int]]:
    """Stored before, encoded and skipped, of each line."""
    return [tuple(map(int, found)) for found in LINE.findall(stdout)]


def rows(store) -> dict:
    """Every row of a store, bit for bit, but what it cost."""
    found = {}
    for file in store.glob("*/layers-*/collection.json"):
        for content, cut, row in tune_store.open(file.parent).rows():
            values = row.tokens.shape, row.tokens.tobytes(), row.spans, row.counts, row.notes
            found[file.parent.relative_to(store), content, cut] = values
    return found


@pytest.fixture(scope="module")
def whole(music, tmp_path_factory):
    """The rows of one process."""
    store = tmp_path_factory.mktemp("whole") / "store"
    one = encode(music, *NANO, "--store", store, cwd=music)
    assert one.returncode == 0, one.stderr
    assert counts(one.stdout) == [(0, N, 0)]
    return rows(store)


def test_two_shards_at_once_give_the_rows_of_one_process(music, whole, tmp_path):
    both = [start(music, *NANO, "--store", tmp_path, "--shard", f"{i}/2") for i in range(2)]
    for i, process in enumerate(both):
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert out.startswith(f"shard {i}/2: {N // 2} of {N} tracks, --seg 1:")
        assert counts(out) == [(0, N // 2, 0)]
    assert rows(tmp_path) == whole
    again = encode(music, *NANO, "--store", tmp_path, cwd=music)
    assert counts(again.stdout) == [(N, 0, 0)]
    assert rows(tmp_path) == whole


def test_a_shard_that_is_killed_goes_on_where_it_was(music, whole, tmp_path):
    share = (music, *NANO, "--store", tmp_path, "--shard", "1/2")
    killed = start(*share)
    give_up = time.monotonic() + 120
    while not any(tmp_path.rglob("*.safetensors")) and time.monotonic() < give_up:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    n_stored = len(rows(tmp_path))
    assert 0 < n_stored <= N // 2
    rest = encode(*share, cwd=music)
    assert counts(rest.stdout) == [(n_stored, N // 2 - n_stored, 0)]
    other = encode(*share[:-1], "0/2", cwd=music)
    assert counts(other.stdout) == [(0, N // 2, 0)]
    assert rows(tmp_path) == whole


def test_bad_files_are_counted_by_reason_or_end_it(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(1.2, 200), 24_000)
    soundfile.write(folder / "b.wav", tone(0.01, 200), 24_000)
    soundfile.write(folder / "c.wav", tone(0.02, 200), 24_000)
    (folder / "d.wav").write_text("no audio")
    mel = (folder, "--encoder", "mel", "--store", tmp_path / "store")
    done = encode(*mel, "--seg", "1", "full", cwd=tmp_path)
    skipped = "3 skipped (2 too short; 1 can't be decoded)"
    assert [line.endswith(skipped) for line in done.stdout.splitlines()] == [True, True]
    assert counts(done.stdout) == [(0, 1, 3)] * 2
    assert all(f"skipped {folder / name}.wav" in done.stderr for name in "bcd")
    strict = encode(*mel, "--strict", cwd=tmp_path)
    assert (strict.returncode, strict.stdout) == (2, "")
    assert strict.stderr.splitlines()[-1].startswith(f"error: {folder}/b.wav: too short")


def test_shares_are_every_nth_path_of_the_sorted_list_each_once(tmp_path, monkeypatch):
    for name in ("b.wav", "a.wav", "c.wav", "d.wav"):
        (tmp_path / name).write_bytes(name.encode())
    shares = []

    def note(self, paths, *args, **kwargs):
        shares.append(paths)
        return [EncodeReport()]

    monkeypatch.setattr(Extractor, "encode", note)
    for i in range(3):
        again = [tmp_path / "a.wav", tmp_path, f"{tmp_path}/*.wav"]  # the same files thrice
        store = tmp_path / "store"
        encode(*again, "--encoder", "mel", "--store", store, "--shard", f"{i}/3", cwd=tmp_path)
    names = [[os.path.basename(path) for path in share] for share in shares]
    assert names == [["a.wav", "d.wav"], ["b.wav"], ["c.wav"]]


def test_a_tasks_rows_are_those_that_train_probe_reads(tmp_path):
    """All splits' tracks, by the same key: nothing is left to encode for the same strategy."""
    folder = make_task(tmp_path / "task", n=(2, 1, 1))
    store = tmp_path / "store"
    done = encode(folder, "--encoder", "mel", "--seg", "1", "--store", store, cwd=tmp_path)
    assert counts(done.stdout) == [(0, 4, 0)]
    args = encode_shard.read(
        encode_shard.make_parser(), [str(folder), "--encoder", "mel", "--seg", "1"]
    )
    assert encode_shard.is_task(args.music)
    extractor = Extractor("mel", args.rules, store=store)
    paths = encode_shard.find_paths(args)
    report = encode_tracks(
        paths, extractor.encoder, args.rules[0], extractor.store, extractor.collection
    )
    assert (len(report.rows), report.encoded_tracks) == (4, 0)
    assert all(
        np.isfinite(extractor.rows(p, [at])[0].tokens).all() for p, at in report.rows.items()
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gtzn"], "unknown task 'gtzn'"),
        (["."], "holds nothing to embed"),
        (["demo", "--shard", "2/2"], "expected I/N"),
        (["demo", "--seg", "abc"], "a segment is a number of seconds"),
        ([], "required: TASK|MUSIC"),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path):
    there = encode(*args, cwd=tmp_path)
    assert (there.returncode, there.stdout) == (2, "")
    (line,) = there.stderr.splitlines()
    assert message in line
