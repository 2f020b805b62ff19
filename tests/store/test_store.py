"""The store: rows come back as they went in, whole or not at all, whoever else is writing."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run

from tune.audio.decode import AudioError
from tune.segments.rules import parse_rule
from tune.store.collection import Row
from tune.store.prune import boundaries, describe, prune
from tune.store.store import Store, default_root
from tune.system.files import cache_folder, save_tensors

RATE = 24_000
CONTENT = "ab" * 32
OTHER = "cd" * 32
SPANS = [(0, 100), (100, 200), (200, 250)]


def encoder(**changes):
    """What a store wants to know of an encoder."""
    values = {
        "name": "muq",
        "fingerprint": "f" * 64,
        "precision": "no",
        "sample_rate": RATE,
        "n_layers": 3,
        "frame_rate": 25.0,
        "pool_width": lambda rate: round(25 / rate),
    }
    return SimpleNamespace(**(values | changes))


def row_of(rng, spans=SPANS, n_layers=1, width=4) -> Row:
    """A row of random tokens, one a segment."""
    tokens = rng.standard_normal((len(spans), n_layers, width)).astype(np.float32)
    return Row(tokens, [list(span) for span in spans], [1] * len(spans), False, 0.25)


def same(a: Row, b: Row) -> bool:
    """Say whether two rows are equal to the last bit."""
    others = ("spans", "counts", "silent", "seconds")
    return (
        a.tokens.dtype == b.tokens.dtype
        and a.tokens.shape == b.tokens.shape
        and a.tokens.tobytes() == b.tokens.tobytes()
        and all(getattr(a, name) == getattr(b, name) for name in others)
    )


def files(store: Store) -> list[str]:
    """Everything in the store but the locks and the hash cache."""
    found = (p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file())
    return sorted(f for f in found if not f.startswith(("locks/", "hashes.")))


def rows_in(store: Store) -> list:
    return sorted(store.root.rglob("*.safetensors"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def last(store):
    """The rows of the last layer."""
    return store.collection(encoder(), [3], None)


def test_a_row_comes_back_as_it_was_written(store, rng):
    tokens = rng.standard_normal((5, 2, 4)).astype(np.float32)
    tokens[0, 0, 0], tokens[0, 0, 1] = -0.0, np.float32(1e-42)  # sign of zero, subnormal
    row = Row(tokens, [[0, 100], [100, 200], [200, 250]], [2, 2, 1], True, 1.5)
    rows = store.collection(encoder(), [1, 3], 2.0)
    assert rows.read(CONTENT, SPANS) is None
    assert rows.length(CONTENT) is None
    assert not rows.has(CONTENT, SPANS)
    assert rows.bytes_of(CONTENT, SPANS) == 0
    rows.write(CONTENT, 250, row)
    assert same(rows.read(CONTENT, SPANS), row)
    assert rows.length(CONTENT) == 250
    assert rows.has(CONTENT, SPANS)
    (file,) = rows_in(store)
    assert rows.bytes_of(CONTENT, SPANS) == file.stat().st_size
    # Another process sees the same.
    again = Store(store.root).collection(encoder(), [1, 3], 2.0)
    assert same(again.read(CONTENT, SPANS), row)


def test_tokens_of_another_type_or_order_in_memory_are_stored_as_float32(last, rng):
    row = row_of(rng, width=6)
    odd = dataclasses.replace(row, tokens=row.tokens.astype(np.float64)[:, :, ::-1])
    last.write(CONTENT, 250, odd)
    back = last.read(CONTENT, SPANS).tokens
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, row.tokens[:, :, ::-1])


def test_other_spans_or_another_track_are_not_served(last, rng):
    last.write(CONTENT, 250, row_of(rng))
    assert last.read(CONTENT, SPANS[:2]) is None
    assert last.read(CONTENT, [(0, 90), (90, 200), (200, 250)]) is None
    assert last.read(CONTENT, [(0, 100), (50, 200), (200, 250)]) is None
    assert last.read(OTHER, SPANS) is None
    assert last.length(OTHER) is None


def test_a_second_writer_replaces_the_row_by_its_own(store, last, rng):
    first, second = row_of(rng), row_of(rng)
    last.write(CONTENT, 250, first)
    last.write(CONTENT, 250, second)
    assert same(last.read(CONTENT, SPANS), second)
    assert len(rows_in(store)) == 1


def break_replace(monkeypatch):
    def replace(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr("tune.system.files.os.replace", replace)


def break_flush(monkeypatch):
    def fsync(file):
        raise OSError("input/output error")

    monkeypatch.setattr("tune.system.files.os.fsync", fsync)


def break_save(monkeypatch):
    def save(tensors, path, metadata):
        path.write_bytes(b"half a row")
        raise OSError("no space left on device")

    monkeypatch.setattr("tune.store.collection.save_tensors", save)


@pytest.mark.parametrize("breakage", [break_replace, break_flush, break_save])
@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_midway_leaves_nothing(store, last, rng, monkeypatch, breakage, there):
    before = row_of(rng)
    last.write(OTHER, 250, row_of(rng))
    if there:
        last.write(CONTENT, 250, before)
    listing = files(store)
    with monkeypatch.context() as patch:
        breakage(patch)
        with pytest.raises(OSError, match=r"no space left|input/output error"):
            last.write(CONTENT, 250, row_of(rng))
    assert files(store) == listing
    back = last.read(CONTENT, SPANS)
    assert same(back, before) if there else back is None
    after = row_of(rng)
    last.write(CONTENT, 250, after)
    assert same(last.read(CONTENT, SPANS), after)


def test_a_row_is_not_seen_before_it_is_complete(last, rng, monkeypatch):
    seen = []

    def save(tensors, path, metadata):
        save_tensors(tensors, path, metadata)
        seen.append((last.has(CONTENT, SPANS), last.read(CONTENT, SPANS), last.length(CONTENT)))

    monkeypatch.setattr("tune.store.collection.save_tensors", save)
    last.write(CONTENT, 250, row_of(rng))
    assert seen == [(False, None, None)]
    assert last.has(CONTENT, SPANS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_stored(store, last, rng, value):
    row = row_of(rng)
    row.tokens[1, 0, 2] = value
    with pytest.raises(ValueError, match=f"non-finite embeddings for {CONTENT}"):
        last.write(CONTENT, 250, row)
    assert files(store) == []


def flip(file, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def cut(file, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


DAMAGES = {
    "last byte of the tensor": lambda file: flip(file, -1),
    "first byte of the tensor": lambda file: flip(file, -3 * 4 * 4),
    "first byte of the file": lambda file: flip(file, 0),
    "cut by one byte": lambda file: cut(file, -1),
    "cut in the middle": lambda file: cut(file, 100),
    "empty": lambda file: cut(file, 0),
    "another file": lambda file: file.write_bytes(b"hello" * 100),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_row_is_named_removed_and_not_served(store, last, rng, caplog, name):
    row = row_of(rng)
    last.write(CONTENT, 250, row)
    (file,) = rows_in(store)
    DAMAGES[name](file)
    assert last.read(CONTENT, SPANS) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"damaged row {file}" in record.getMessage()
    assert not file.exists()
    assert last.damaged == [str(file)]
    last.write(CONTENT, 250, row)
    assert same(last.read(CONTENT, SPANS), row)
    assert last.length(CONTENT) == 250


def test_no_single_flipped_bit_gives_another_row(store, last, rng):
    row = row_of(rng)
    last.write(CONTENT, 250, row)
    (file,) = rows_in(store)
    sound = file.read_bytes()
    served = 0
    for at in range(len(sound)):
        for bit in (1, 64):
            damaged = bytearray(sound)
            damaged[at] ^= bit
            file.write_bytes(damaged)
            back = last.read(CONTENT, SPANS)
            served += back is not None
            assert back is None or same(back, row), f"byte {at} of {len(sound)}"
    # Only the track's length isn't covered by the checksum, and the padding of the header.
    assert served < len(sound) / 10


def test_a_damaged_length_is_no_length(store, last, rng):
    last.write(CONTENT, 250, row_of(rng))
    (file,) = rows_in(store)
    cut(file, 20)
    assert last.length(CONTENT) is None
    assert file.exists()  # read() names and removes it


def test_all_layers_together_serve_each_of_them_bit_for_bit(store, rng):
    row = row_of(rng, n_layers=4)
    every = store.collection(encoder(), [0, 1, 2, 3], None)
    every.write(CONTENT, 250, row)
    for layers in ([0], [1], [2], [3], [0, 2]):
        rows = store.collection(encoder(), layers, None)
        expected = dataclasses.replace(row, tokens=np.ascontiguousarray(row.tokens[:, layers]))
        assert same(rows.read(CONTENT, SPANS), expected)
        assert rows.has(CONTENT, SPANS)
        assert rows.length(CONTENT) == 250
        assert rows.bytes_of(CONTENT, SPANS) == every.bytes_of(CONTENT, SPANS) > 0
    assert len(rows_in(store)) == 1


def test_single_layers_do_not_serve_all_or_each_other(store, rng):
    store.collection(encoder(), [3], None).write(CONTENT, 250, row_of(rng))
    for layers in ([0, 1, 2, 3], [2], [2, 3]):
        assert store.collection(encoder(), layers, None).read(CONTENT, SPANS) is None


def test_a_damaged_row_of_one_layer_is_served_from_all_layers(store, last, rng):
    row = row_of(rng, n_layers=4)
    store.collection(encoder(), [0, 1, 2, 3], None).write(CONTENT, 250, row)
    last.write(CONTENT, 250, dataclasses.replace(row, tokens=row.tokens[:, 3:]))
    (single,) = last.folder.rglob("*.safetensors")
    flip(single, -1)
    np.testing.assert_array_equal(last.read(CONTENT, SPANS).tokens, row.tokens[:, 3:])
    assert last.damaged == [str(single)]


def test_rules_that_cut_a_track_alike_share_its_row(store, last, rng):
    n_samples = 30 * RATE
    spans = {seg: parse_rule(seg).spans(n_samples, RATE) for seg in ("full", "60", "30", "10")}
    row = row_of(rng, spans["full"])
    last.write(CONTENT, n_samples, row)
    for seg in ("full", "60", "30"):
        assert same(last.read(CONTENT, spans[seg]), row)
        last.write(CONTENT, n_samples, row_of(rng, spans[seg]))
        assert len(rows_in(store)) == 1
        last.write(CONTENT, n_samples, row)
    assert last.read(CONTENT, spans["10"]) is None
    last.write(CONTENT, n_samples, row_of(rng, spans["10"]))
    assert len(rows_in(store)) == 2
    assert same(last.read(CONTENT, spans["full"]), row)


CHANGES = [
    ({"fingerprint": "e" * 64}, None),
    ({"precision": "fp16"}, None),
    ({"precision": "bf16"}, None),
    ({"sample_rate": 16_000}, None),
    ({}, 1.0),
    ({}, 2.5),
]


def test_whatever_changes_the_numbers_has_its_own_rows(store, last, rng):
    last.write(CONTENT, 250, row_of(rng))
    for number, (changes, frame_rate) in enumerate(CHANGES, start=2):
        rows = store.collection(encoder(**changes), [3], frame_rate)
        assert rows.read(CONTENT, SPANS) is None
        rows.write(CONTENT, 250, row_of(rng))
        assert len({file.parts[-4] for file in rows_in(store)}) == number


def test_the_same_weights_under_another_name_are_the_same_rows(store, last, rng):
    row = row_of(rng)
    last.write(CONTENT, 250, row)
    renamed = store.collection(encoder(name="models/my muq"), [3], None)
    assert same(renamed.read(CONTENT, SPANS), row)
    renamed.write(OTHER, 250, row)
    assert same(last.read(OTHER, SPANS), row)
    assert len({file.parts[-4] for file in rows_in(store)}) == 1


def test_a_collection_says_what_its_numbers_depend_on(store, rng):
    name = "Open MuQ/large:é"
    rows = store.collection(encoder(name=name, precision="fp16"), [1, 2], 2.0)
    rows.write(CONTENT, 250, row_of(rng, n_layers=2))
    (file,) = store.root.glob("*/*/collection.json")
    assert file.parent.name == "layers-1-2"
    key = json.loads(file.read_text(encoding="utf-8"))
    assert key["encoder"] == name
    assert key["fingerprint"] == "f" * 64
    assert key["precision"] == "fp16"
    assert key["sample_rate"] == RATE
    assert key["tokens"] == "frame at 2 Hz"
    assert key["resampler"] == "soxr HQ"
    assert key["layers"] == [1, 2]


def test_content_is_the_hash_of_the_bytes_whatever_the_name(store, tmp_path):
    a, b = tmp_path / "a.wav", tmp_path / "b.mp3"
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert store.content(a) == store.content(str(b)) == expected
    a.write_bytes(b"another")
    assert store.content(a) == hashlib.sha256(b"another").hexdigest()


def test_content_follows_a_file_that_changes_without_changing_its_size(store, tmp_path):
    file = tmp_path / "a.wav"
    for text, age_s in ((b"one", 60), (b"two", 30), (b"six", 0), (b"ten", 0)):
        file.write_bytes(text)
        os.utime(file, (time.time() - age_s, time.time() - age_s))
        for _ in range(2):
            assert store.content(file) == hashlib.sha256(text).hexdigest()


def test_a_remembered_hash_is_not_computed_again(store, tmp_path, monkeypatch):
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    os.utime(file, (1e9, 1e9))
    expected = store.content(file)
    monkeypatch.setattr("tune.audio.hashing.content_hash", lambda path: pytest.fail("hashed again"))
    assert Store(store.root).content(file) == expected


def test_a_damaged_cache_of_hashes_is_as_good_as_none(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    os.utime(tmp_path / "a.wav", (1e9, 1e9))
    Store(tmp_path / "store").content(tmp_path / "a.wav")
    (cache,) = (tmp_path / "store").glob("hashes.txt")
    cache.write_bytes(b"no database" * 100)
    store = Store(tmp_path / "store")
    for _ in range(2):
        assert store.content(tmp_path / "a.wav") == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.wav", "no such file"),
        ("empty.wav", r"empty file \(0 bytes\)"),
        ("folder", "not a regular file"),
        ("a\0b.wav", "unreadable: embedded null byte"),
        ("a" * 300, "unreadable: File name too long"),
    ],
)
def test_files_without_content_are_refused_with_the_reason(store, tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=f"^{reason}$"):
        store.content(tmp_path / name)


HOLD = """
import sys, time
from tune.store.store import Store
lock = Store(sys.argv[1]).claim(sys.argv[2])
print("held" if lock else "refused", flush=True)
time.sleep(60)
"""


def start(code: str, *args) -> subprocess.Popen:
    """Start another process that can import the library."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_claim_keeps_other_processes_out_until_its_process_is_killed(store):
    holder = start(HOLD, store.root, CONTENT)
    try:
        assert holder.stdout.readline() == "held\n"
        assert store.claim(CONTENT) is None
        free = store.claim(OTHER)  # other tracks go on
        assert free is not None
        free.release()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    lock = store.claim(CONTENT, timeout_s=10)
    assert lock is not None
    refused = start(HOLD, store.root, CONTENT)
    try:
        assert refused.stdout.readline() == "refused\n"
    finally:
        refused.kill()
        refused.communicate()
    lock.release()


def test_tracks_that_begin_alike_do_not_wait_for_each_other(store):
    locks = [store.claim(f"ab{i:02x}" + "0" * 60) for i in range(256)]
    assert None not in locks
    assert store.claim("ab07" + "1" * 60) is None
    for lock in locks:
        lock.release()


def test_a_claim_is_free_again_after_release(store):
    lock = store.claim(CONTENT)
    assert store.claim(CONTENT) is None
    lock.release()
    lock = store.claim(CONTENT)
    assert lock is not None
    lock.release()


WRITE = """
import sys
from types import SimpleNamespace
import numpy as np
from tune.store.collection import Row
from tune.store.store import Store
root, content, seconds, n = sys.argv[1:]
encoder = SimpleNamespace(name="muq", fingerprint="f" * 64, precision="no", sample_rate=24000,
                          n_layers=3)
rows = Store(root).collection(encoder, [3], None)
tokens = np.random.default_rng(5).standard_normal((3, 1, 50_000)).astype(np.float32)
row = Row(tokens, [[0, 100], [100, 200], [200, 250]], [1, 1, 1], False, float(seconds))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(n)):
    rows.write(content, 250, row)
"""


def test_processes_that_write_the_same_row_at_once_leave_one_good_row(store, last, caplog):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(store.root), CONTENT, str(seconds), "80"],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seconds in (1.0, 2.0)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    tokens = np.random.default_rng(5).standard_normal((3, 1, 50_000)).astype(np.float32)
    reads = 0
    while any(writer.poll() is None for writer in writers):
        row = last.read(CONTENT, SPANS)
        if row is not None:
            reads += 1
            assert row.tokens.tobytes() == tokens.tobytes()
            assert row.seconds in (1.0, 2.0)
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    assert reads > 0
    assert last.damaged == []
    assert caplog.records == []
    assert len(files(store)) == 2  # collection.json and the row: nothing was left aside
    assert last.read(CONTENT, SPANS).tokens.tobytes() == tokens.tobytes()


DAY_S = 86_400


def age(collection, days: float) -> None:
    """Let a collection's rows be unused for so long."""
    for file in collection.folder.rglob("*.safetensors"):
        os.utime(file, (time.time() - days * DAY_S,) * 2)


@pytest.fixture
def filled(store, rng):
    """Four collections: muq's last layer (old) and all layers, mel, and an old one of frames."""
    muq = store.collection(encoder(), [3], None)
    muq.write(CONTENT, 250, row_of(rng))
    muq.write(CONTENT, 250, row_of(rng, SPANS[:1]))
    muq.write(OTHER, 250, row_of(rng))
    every = store.collection(encoder(), [0, 1, 2, 3], None)
    every.write(CONTENT, 250, row_of(rng, n_layers=4))
    mel = store.collection(encoder(name="mel", fingerprint="0", n_layers=0), [0], None)
    mel.write(OTHER, 250, row_of(rng))
    frames = store.collection(encoder(precision="fp16"), [3], 2.0)
    frames.write(CONTENT, 250, row_of(rng))
    age(muq, 40)
    age(frames, 10)
    return store


def listed(items) -> set[tuple]:
    return {(item["encoder"], item["layers"], item["tokens"]) for item in items}


MUQ, EVERY = ("muq", "3", "segment"), ("muq", "all", "segment")
MEL, FRAMES = ("mel", "all", "segment"), ("muq", "3", "frame at 2 Hz")


def test_describe_counts_tracks_rows_and_bytes(filled):
    items = {(i["encoder"], i["layers"], i["tokens"]): i for i in describe(filled.root)}
    assert {key: (i["tracks"], i["rows"], i["precision"]) for key, i in items.items()} == {
        MUQ: (2, 3, "no"),
        EVERY: (1, 1, "no"),
        MEL: (1, 1, "no"),
        FRAMES: (1, 1, "fp16"),
    }
    assert sum(i["bytes"] for i in items.values()) == sum(
        file.stat().st_size for file in rows_in(filled)
    )
    assert abs(time.time() - 40 * DAY_S - items[MUQ]["used"]) < 60
    assert abs(time.time() - items[EVERY]["used"]) < 60


@pytest.mark.parametrize("text", ["{", "{}", "[]", "3"])
def test_describe_passes_over_a_collection_that_is_unreadable(filled, caplog, text):
    file = filled.collection(encoder(), [3], None).folder / "collection.json"
    file.write_text(text)
    assert listed(describe(filled.root)) == {EVERY, MEL, FRAMES}
    assert f"unreadable {file}" in caplog.text


@pytest.mark.parametrize(
    ("conditions", "gone"),
    [
        ({}, set()),
        ({"encoder": "mel"}, {MEL}),
        ({"encoder": "muq"}, {MUQ, EVERY, FRAMES}),
        ({"older_than_days": 30}, {MUQ}),
        ({"older_than_days": 5}, {MUQ, FRAMES}),
        ({"encoder": "mel", "older_than_days": 5}, set()),
        ({"encoder": "mu"}, set()),
    ],
)
def test_prune_deletes_what_fits_every_condition(filled, conditions, gone):
    everything = files(filled)
    assert listed(prune(filled.root, **conditions, dry_run=True)) == gone
    assert files(filled) == everything
    assert listed(prune(filled.root, **conditions)) == gone
    assert listed(describe(filled.root)) == {MUQ, EVERY, MEL, FRAMES} - gone


def test_prune_leaves_nothing_of_a_collection_and_what_is_left_still_serves(filled, rng):
    every = filled.collection(encoder(), [0, 1, 2, 3], None)
    before = every.read(CONTENT, SPANS)
    prune(filled.root, encoder="mel")
    assert not [f for f in filled.root.iterdir() if f.name.startswith("mel")]
    prune(filled.root, older_than_days=30)
    assert same(every.read(CONTENT, SPANS), before)


def test_prune_removes_temporary_files_of_dead_writers_only(filled):
    rows = filled.collection(encoder(), [0, 1, 2, 3], None).folder
    dead = [rows / ".collection.json.0.tmp", rows / "ab" / ".x.safetensors.0.tmp"]
    live = rows / "ab" / ".x.safetensors.1.tmp"
    for file in (*dead, live):
        file.write_bytes(b"half a row")
    for file in dead:
        os.utime(file, (time.time() - 2 * DAY_S,) * 2)
    prune(filled.root, dry_run=True)
    assert all(file.exists() for file in (*dead, live))
    assert prune(filled.root) == []
    assert not any(file.exists() for file in dead)
    assert live.exists()


def with_boundaries(store) -> list:
    """Write the boundaries of two tracks, one of them by two rules; return the files."""
    for content, rule in ((CONTENT, "structure"), (OTHER, "structure"), (CONTENT, "other")):
        store.write_boundaries(content, {"rule": rule}, RATE, SPANS)
    return sorted(store.root.glob("boundaries/*/??/*.json"))


def test_boundaries_are_counted_by_track_and_with_all_their_bytes(filled):
    assert boundaries(filled.root) == {"tracks": 0, "bytes": 0}
    kept = with_boundaries(filled)
    assert len(kept) == 3
    total = sum(file.stat().st_size for file in kept)
    assert boundaries(filled.root) == {"tracks": 2, "bytes": total}
    assert listed(describe(filled.root)) == {MUQ, EVERY, MEL, FRAMES}  # not one of them


def test_prune_removes_temporary_files_of_boundaries_and_keeps_the_boundaries(filled):
    kept = with_boundaries(filled)
    dead, live = (kept[0].with_name(f".{kept[0].name}.{i}.tmp") for i in range(2))
    for file in (dead, live):
        file.write_bytes(b"{")
    os.utime(dead, (time.time() - 2 * DAY_S,) * 2)
    before = boundaries(filled.root)
    prune(filled.root, dry_run=True)
    assert dead.exists()
    assert prune(filled.root) == []
    assert (dead.exists(), live.exists()) == (False, True)
    prune(filled.root, encoder="muq")
    assert boundaries(filled.root) == before  # every encoder shares them


def test_the_command_counts_boundaries(filled, tmp_path):
    assert "boundaries" not in command("--store", filled.root, cwd=tmp_path).stdout
    rows = sum(file.stat().st_size for file in rows_in(filled))
    kept = sum(file.stat().st_size for file in with_boundaries(filled))
    size = command("size", "--store", filled.root, cwd=tmp_path)
    assert size.stdout == f"{rows + kept}\n"
    listing = command("--store", filled.root, cwd=tmp_path)
    *_, line = listing.stdout.splitlines()
    assert line == f"boundaries (--seg structure) of 2 tracks: {kept} B"


def command(*args, cwd, env=None):
    """Run python -m tune.store."""
    return run("-m", "tune.store", *args, cwd=cwd, env={"PYTHONPATH": str(ROOT), **(env or {})})


def test_the_command_lists_sizes_and_prunes(filled, tmp_path):
    total = sum(file.stat().st_size for file in rows_in(filled))
    size = command("size", "--store", filled.root, cwd=tmp_path)
    assert (size.returncode, size.stdout, size.stderr) == (0, f"{total}\n", "")

    listing = command(cwd=tmp_path, env={"TUNE_STORE": str(filled.root)})
    assert (listing.returncode, listing.stderr) == (0, "")
    assert "4 collections" in " ".join(listing.stdout.split())  # a long path is folded
    (line,) = [line for line in listing.stdout.splitlines() if "fp16" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")][:6] == [
        "muq",
        "3",
        "frame at 2 Hz",
        "mix",
        "fp16",
        "1",
    ]

    dry = command("--store", filled.root, "prune", "--encoder=mel", "--dry_run", cwd=tmp_path)
    assert (dry.returncode, len(describe(filled.root))) == (0, 4)
    assert dry.stdout.startswith("would be deleted")
    cut = command("prune", "--encoder=mel", "--store", filled.root, cwd=tmp_path)
    assert (cut.returncode, cut.stderr) == (0, "")
    assert cut.stdout.startswith("deleted")
    assert [row.split()[1] for row in cut.stdout.splitlines() if row.startswith("│")] == ["mel"]
    assert listed(describe(filled.root)) == {MUQ, EVERY, FRAMES}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["list"], "no store at "),
        (["size"], "no store at "),
        (["prune", "--encoder", "x"], "no store at "),
        (["size", "--dry_run"], "belong to prune"),
        (["show"], "invalid choice: 'show'"),
    ],
)
def test_the_command_answers_mistakes_in_one_line_with_code_2(tmp_path, args, message):
    done = command(*args, "--store", tmp_path / "none", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_command_prunes_nothing_without_a_condition(filled, tmp_path):
    done = command("prune", "--store", filled.root, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nothing to prune: give --encoder, --older_than, --old or --max_size\n"
    assert len(describe(filled.root)) == 4


def test_the_default_store_is_named_by_the_environment_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNE_STORE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("TUNE_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache/tune/store"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/tune"


def test_a_store_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the store .*file can't be created: .+"):
        Store(tmp_path / "file")
    with pytest.raises(ValueError, match=r"the store .*below can't be created: .+"):
        Store(tmp_path / "file" / "below")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
def test_rows_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode & 0o777
    collection = Store(tmp_path / "store").collection(encoder(), [3], None)
    collection.write("c" * 64, 10, Row(np.zeros((1, 1, 3)), [(0, 10)], [1], False, 0.1))
    (row,) = (tmp_path / "store").rglob("*.safetensors")
    assert row.stat().st_mode & 0o777 == usual
