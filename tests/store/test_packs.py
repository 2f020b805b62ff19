"""Packed rows are the same rows: found, damaged, replaced, pruned and killed as those in files."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT
from test_store import CONTENT, SPANS, encoder, row_of, same

from tune.segments.pick import PickedSpans, pick_row
from tune.store import collection as module
from tune.store.command import main
from tune.store.packs import Packs, try_again
from tune.store.prune import describe, evict_least_recently_used, prune
from tune.store.store import Store

N = 12


def collection_in(root, layers=(3,)):
    return Store(root).collection(encoder(), list(layers), None)


@pytest.fixture
def rows(rng):
    """Rows by content."""
    return {rng.bytes(32).hex(): row_of(rng) for _ in range(N)}


@pytest.fixture
def filled(tmp_path, rows):
    """A collection with a file for each row."""
    collection = collection_in(tmp_path / "store")
    for content, row in rows.items():
        collection.write(content, 250, row)
    return collection


def check(collection, rows, n_damaged=0):
    """All rows are served, with their lengths, by every way of asking."""
    for content, row in rows.items():
        assert same(collection.read(content, SPANS), row)
        assert collection.length(content) == 250
        assert collection.has(content, SPANS)
        assert collection.bytes_of(content, SPANS) > 48
    listed = {content: row for content, _, row in collection.rows()}
    assert list(listed) == sorted(rows)
    assert all(same(listed[content], row) for content, row in rows.items())
    assert len(collection.damaged) == n_damaged


def row_files(collection):
    return sorted(collection.folder.glob("??/*.safetensors"))


def the_pack(collection):
    (path,) = collection.packs.folder.glob("*.rows")
    return path


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def test_packed_rows_are_the_same_for_readers_from_before_and_after(filled, rows):
    before = collection_in(filled.root)
    assert before.read("00" * 32, SPANS) is None  # it has looked for packs
    size = filled.bytes_of(next(iter(rows)), SPANS)
    assert filled.pack() == N
    assert row_files(filled) == []
    for collection in (filled, before, collection_in(filled.root)):
        check(collection, rows)
        assert collection.bytes_of(next(iter(rows)), SPANS) == size
        assert collection.read("00" * 32, SPANS) is None
        assert collection.read(next(iter(rows)), SPANS[:1]) is None
    assert filled.pack() == 0


@pytest.mark.parametrize("layers", [(3,), range(4)])
def test_picked_segments_are_found_in_a_packed_whole_row(tmp_path, rng, layers):
    stored, row = collection_in(tmp_path, layers), row_of(rng, n_layers=len(layers))
    stored.write(CONTENT, 250, row)
    picked = PickedSpans([SPANS[0], SPANS[2]], SPANS)
    reader, size = collection_in(tmp_path), stored.bytes_of(CONTENT, picked)
    before = reader.read(CONTENT, picked)
    assert stored.pack() == 1
    for collection in (stored, reader, collection_in(tmp_path)):
        found = collection.read(CONTENT, picked)
        tokens = row.tokens if collection is stored else row.tokens[:, -1:]
        np.testing.assert_array_equal(found.tokens, tokens[[0, 2]], strict=True)
        assert found.spans == [[0, 100], [200, 250]]
        assert collection.bytes_of(CONTENT, picked) == size > 0
    assert same(reader.read(CONTENT, picked), before)
    assert same(stored.read(CONTENT, picked), pick_row(row, picked))
    own = row_of(rng, spans=list(picked), n_layers=len(layers))
    stored.write(CONTENT, 250, own)
    stored.pack()
    assert same(stored.read(CONTENT, picked), own)  # a row of its own comes first
    assert same(stored.read(CONTENT, SPANS), row)


def test_tokens_of_a_packed_row_may_be_written_to(filled, rows):
    filled.pack()
    content = next(iter(rows))
    filled.read(content, SPANS).tokens[:] = 0
    assert same(filled.read(content, SPANS), rows[content])


def test_all_layers_packed_serve_each_of_them(tmp_path, rng):
    every, row = collection_in(tmp_path, range(4)), row_of(rng, n_layers=4)
    every.write(CONTENT, 250, row)
    every.pack()
    for layer in range(4):
        one = collection_in(tmp_path, [layer])
        np.testing.assert_array_equal(
            one.read(CONTENT, SPANS).tokens, row.tokens[:, [layer]], strict=True
        )
        assert (one.length(CONTENT), one.has(CONTENT, SPANS)) == (250, True)


def test_a_row_written_again_replaces_the_packed_one(filled, rows, rng):
    content = next(iter(rows))
    filled.pack()
    for _ in range(2):
        rows[content] = row_of(rng)
        filled.write(content, 250, rows[content])
        check(filled, rows)
        check(collection_in(filled.root), rows)
        assert filled.pack() == 1
        check(collection_in(filled.root), rows)


def test_no_flipped_bit_of_a_pack_or_its_index_gives_another_row(filled, rows, rng):
    filled.pack()
    for file in (the_pack(filled), the_pack(filled).with_suffix(".index")):
        sound = file.read_bytes()
        for at in rng.integers(0, len(sound), 150):
            flip(file, at)
            collection = collection_in(filled.root)
            for content, row in rows.items():
                found = collection.read(content, SPANS)
                assert found is None or same(found, row)
                assert collection.length(content) in (250, None)
            for path in collection.packs.folder.glob("*.gone"):
                path.unlink()
            file.write_bytes(sound)
    check(collection_in(filled.root), rows)


def test_a_damaged_packed_row_is_named_once_and_stored_anew(filled, rows, caplog):
    filled.pack()
    (place,) = filled.packs.find(content := sorted(rows)[3])
    flip(the_pack(filled), place.offset + place.size - 1)
    assert filled.read(content, SPANS) is None
    (name,) = filled.damaged
    assert name == f"{the_pack(filled)}:{place.key}"
    assert f"damaged row {name}" in caplog.text
    for collection in (filled, collection_in(filled.root)):
        assert collection.read(content, SPANS) is None
        assert not collection.has(content, SPANS)
    filled.write(content, 250, rows[content])
    check(collection_in(filled.root), rows)


def test_a_damaged_index_is_named_and_the_rows_are_found_without_it(filled, rows, caplog):
    filled.pack()
    index = the_pack(filled).with_suffix(".index")
    for data in (b"", index.read_bytes()[:-1], b"nothing of the kind"):
        index.write_bytes(data)
        caplog.clear()
        check(collection_in(filled.root), rows)
        assert f"damaged index {index}" in caplog.text


def test_a_damaged_row_is_not_packed(filled, rows):
    content = sorted(rows)[0]
    file = row_files(filled)[0]
    flip(file, -1)
    assert filled.pack() == N - 1
    assert row_files(filled) == [file]
    assert filled.read(content, SPANS) is None
    assert filled.damaged == [str(file)]


KILL = """
import os, signal, sys
from tune.store.prune import pack
from tune.store.store import Store
for line in sys.stdin:
    k, root = line.split()
    pid = os.fork()
    if not pid:
        seen = [0]
        def count():
            seen[0] += 1
            if seen[0] == int(k):
                os.kill(os.getpid(), signal.SIGKILL)
        def hook(event, args):
            changes = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.utime")
            if event in changes and str(args[0]).startswith(root):
                count()
        def fsync(file, real=os.fsync):
            count()
            real(file)
        sys.addaudithook(hook)
        os.fsync = fsync
        pack(root)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_before_every_change_of_a_file_no_row_is_lost(tmp_path, rows):
    few, killed, k = dict(list(rows.items())[:3]), 0, 0
    clean = collection_in(tmp_path / "clean")
    for content, row in few.items():
        clean.write(content, 250, row)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", KILL], **pipes) as killer:
        while True:
            k, root = k + 1, tmp_path / f"at-{k + 1}"
            shutil.copytree(clean.root, root)
            before = collection_in(root)
            assert before.read("00" * 32, SPANS) is None
            killer.stdin.write(f"{k} {root}\n")
            killer.stdin.flush()
            end = int(killer.stdout.readline())
            check(before, few)
            check(collection_in(root), few)
            if end == 0:
                break
            assert end == -signal.SIGKILL
            killed += 1
            collection_in(root).pack()
            check(collection_in(root), few)
            assert row_files(before) == []
    assert killed >= 15
    assert row_files(before) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_the_command_killed_at_random_moments_loses_no_row(tmp_path, rng):
    rows, ends, longest = {rng.bytes(32).hex(): row_of(rng) for _ in range(60)}, [], 0.0
    clean = collection_in(tmp_path / "clean")
    for content, row in rows.items():
        clean.write(content, 250, row)
    for k in range(11):
        root = tmp_path / f"round-{k}"
        shutil.copytree(clean.root, root)
        command = [sys.executable, "-m", "tune.store", "pack", "--store", str(root)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as packer:
            while packer.poll() is None and not list(root.glob("locks/pack-*.lock")):
                time.sleep(0.001)
            started = time.perf_counter()
            if k:
                time.sleep(rng.uniform(0, 1.5 * longest))
                packer.kill()
            else:  # the first isn't killed, to know how long packing takes
                while packer.poll() is None and list(root.glob("*/*/??/*.safetensors")):
                    time.sleep(0.001)
                longest = time.perf_counter() - started
            ends.append(packer.wait())
        check(collection_in(root), rows)
        collection_in(root).pack()
        check(collection_in(root), rows)
        assert row_files(collection_in(root)) == []
        shutil.rmtree(root)
    assert ends[0] == 0
    assert set(ends[1:]) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in ends


def test_packing_beside_writers_and_readers_loses_nothing(filled, rows, rng):
    """Each has its own collection, as in processes of their own."""
    stop, failures = threading.Event(), []

    def keep(work):
        def loop():
            mine = collection_in(filled.root)
            try:
                while not stop.is_set():
                    work(mine)
            except Exception as error:
                failures.append(error)

        return threading.Thread(target=loop)

    def read(mine):
        for content, row in rows.items():
            found = mine.read(content, SPANS)
            assert found is not None
            assert same(found, row)

    def write(mine):
        for content, row in list(rows.items())[:4]:
            mine.write(content, 250, row)

    workers = [keep(work) for work in (read, read, write, lambda mine: mine.pack())]
    for worker in workers:
        worker.start()
    threading.Event().wait(3)
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []
    check(collection_in(filled.root), rows)


@pytest.mark.parametrize("again", [False, True], ids=["a new row", "a row that is packed"])
def test_a_row_packed_the_moment_it_is_written_stays(filled, rows, monkeypatch, again):
    """The writer looks at packs for the first time; another process packs right behind its file."""
    content, row = next(iter(rows.items()))
    if again:
        filled.pack()
    write = module.atomic_write

    def write_and_pack(path, *args, **kwargs):
        write(path, *args, **kwargs)
        if path.suffix == ".safetensors":
            collection_in(filled.root).pack()

    monkeypatch.setattr(module, "atomic_write", write_and_pack)
    collection_in(filled.root).write(content, 250, row)
    check(collection_in(filled.root), rows)


def test_rows_that_are_packed_already_are_not_packed_twice(filled, rows):
    copies = {path: path.read_bytes() for path in row_files(filled)}
    filled.pack()
    for path, data in copies.items():
        path.write_bytes(data)  # as when a process is killed before it deletes them
    assert filled.pack() == 0
    assert row_files(filled) == []
    assert the_pack(filled).exists()
    check(collection_in(filled.root), rows)


def test_what_a_killed_process_left_of_a_pack_goes_after_a_day(filled, rows):
    filled.pack()
    left = filled.packs.rows_file("0" * 16)
    left.write_bytes(b"half a pack")
    filled.write(CONTENT, 250, rows[next(iter(rows))])
    filled.pack()
    assert left.exists()
    os.utime(left, (1e9, 1e9))
    filled.write("cd" * 32, 250, rows[next(iter(rows))])
    filled.pack()
    assert not left.exists()
    assert len(list(filled.rows())) == N + 2


def test_a_full_disk_leaves_the_rows_where_they_are(filled, rows, monkeypatch):
    def fsync(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tune.system.files.os.fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            filled.pack()
    assert len(row_files(filled)) == N
    assert [p for p in filled.packs.folder.iterdir() if p.suffix != ".rows"] == []
    check(collection_in(filled.root), rows)


def test_packs_are_listed_and_pruned(filled, rows, capsys, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 5)
    for age, file in enumerate(row_files(filled)):
        os.utime(file, (1e9 - age,) * 2)
    assert main(["pack", "--store", str(filled.root)]) == 0
    assert capsys.readouterr().out == f"{N} rows moved into packs\n"
    packs = sorted(filled.packs.folder.glob("*.rows"))
    assert len(packs) == 3
    (item,) = describe(filled.root)
    assert (item["tracks"], item["rows"]) == (N, N)
    for age, pack in enumerate(packs):
        os.utime(pack, (1e9 - age,) * 2)
    assert evict_least_recently_used(filled.root, item["bytes"]) == []
    (gone,) = evict_least_recently_used(filled.root, item["bytes"] - 1)
    assert not packs[2].exists()
    assert packs[1].exists()
    (left,) = describe(filled.root)
    assert left["rows"] == N - gone["rows"] == len(list(collection_in(filled.root).rows()))
    assert left["bytes"] == item["bytes"] - gone["bytes"]
    prune(filled.root, encoder="muq")
    assert describe(filled.root) == []
    assert collection_in(filled.root).read(next(iter(rows)), SPANS) is None


def test_a_pack_that_vanishes_under_a_reader_is_missing(filled, rows):
    filled.pack()
    reader = collection_in(filled.root)
    assert reader.has(next(iter(rows)), SPANS)
    Packs(filled.folder).remove(the_pack(filled).stem)
    assert all(reader.read(content, SPANS) is None for content in rows)
    assert reader.damaged == []


def test_an_error_of_a_network_folder_that_passes_is_tried_again():
    errors = [OSError(5, "EIO"), OSError(116, "ESTALE")]

    def read():
        if errors:
            raise errors.pop()
        return 7

    assert try_again(read, wait_s=0) == 7
    errors += [OSError(5, "EIO")] * 9
    with pytest.raises(OSError, match="EIO"):
        try_again(read, wait_s=0)
    errors[:] = [PermissionError(13, "no")]
    with pytest.raises(PermissionError):
        try_again(read, wait_s=0)
