"""What a track is known by: the hash of its bytes, and the cache of such hashes."""

import hashlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tune.audio import hashing
from tune.audio.decode import AudioError
from tune.audio.hashing import HashCache, content_hash

LONG_AGO = 1_000_000_000  # a modification time that is surely older than the clock's grain
# Linux has names that are not UTF-8; elsewhere every name is.
ODD_NAME = os.fsdecode(b"caf\xe9") if sys.platform == "linux" else "caf\u00e9"


@pytest.fixture
def cache(tmp_path):
    """An empty cache."""
    return HashCache(tmp_path / "hashes.txt")


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by a path whenever a file's bytes are hashed."""
    calls = []

    def counting(path):
        calls.append(path)
        return content_hash(path)

    monkeypatch.setattr(hashing, "content_hash", counting)
    return calls


def write(path, data: bytes, age=LONG_AGO):
    """Write a file as if long ago."""
    path.write_bytes(data)
    os.utime(path, (age, age))
    return path


def test_hash_is_sha256_of_the_bytes(tmp_path):
    path = write(tmp_path / "abc", b"abc")
    # FIPS 180-2, appendix B.1
    golden = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(path) == golden
    assert content_hash(str(path)) == golden


def test_hash_of_a_file_larger_than_a_read_buffer(tmp_path, rng):
    data = rng.bytes(3_000_001)
    assert content_hash(write(tmp_path / "big", data)) == hashlib.sha256(data).hexdigest()


def test_name_and_time_do_not_matter_but_each_byte_does(tmp_path):
    one = write(tmp_path / "one.wav", b"x" * 1000)
    same = write(tmp_path / "other.mp3", b"x" * 1000, age=LONG_AGO + 5)
    other = write(tmp_path / "two.wav", b"x" * 999 + b"y")
    assert content_hash(one) == content_hash(same) != content_hash(other)


@pytest.mark.parametrize("ask", [content_hash, lambda p: HashCache(p.parent / "h").get(p)])
def test_unusable_files_raise_the_reason(tmp_path, ask):
    (tmp_path / "empty").touch()
    with pytest.raises(AudioError, match="no such file"):
        ask(tmp_path / "missing")
    with pytest.raises(AudioError, match="not a regular file"):
        ask(tmp_path)
    with pytest.raises(AudioError, match="0 bytes"):
        ask(tmp_path / "empty")


def test_file_that_cannot_be_opened_raises_the_reason(tmp_path, monkeypatch):
    path = write(tmp_path / "secret", b"abc")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match="unreadable: Permission denied"):
        content_hash(path)


def test_cache_reads_an_unchanged_file_once(tmp_path, cache, counted):
    path = write(tmp_path / "a", b"abc")
    assert [cache.get(path) for _ in range(3)] == [content_hash(path)] * 3
    assert counted == [path]


def test_cache_outlives_its_object(tmp_path, cache, counted):
    path = write(tmp_path / "a", b"abc")
    first = cache.get(path)
    assert HashCache(tmp_path / "hashes.txt").get(path) == first
    assert len(counted) == 1


def test_relative_and_absolute_path_share_an_entry(tmp_path, cache, counted, monkeypatch):
    path = write(tmp_path / "a", b"abc")
    monkeypatch.chdir(tmp_path)
    assert cache.get(path) == cache.get(path.relative_to(tmp_path))
    assert len(counted) == 1


def test_changed_time_or_size_means_a_new_hash(tmp_path, cache):
    path = write(tmp_path / "a", b"abc")
    before = cache.get(path)
    write(path, b"abd", age=LONG_AGO + 1)  # same size, other time
    after = cache.get(path)
    write(path, b"abcd", age=LONG_AGO + 1)  # same time, other size
    assert len({before, after, cache.get(path)}) == 3
    assert cache.get(path) == content_hash(path)


def test_other_bytes_with_the_old_size_and_time_have_their_own_hash(tmp_path, cache):
    path = write(tmp_path / "a", b"abc")
    before = cache.get(path)
    time.sleep(0.02)  # the clock's grain
    write(path, b"abd")  # as by `cp -p`, `rsync -t` or a clock that was set back
    assert cache.get(path) == content_hash(path) != before


def test_file_written_just_now_is_not_remembered(tmp_path, cache):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    stamp = path.stat().st_mtime_ns
    before = cache.get(path)
    path.write_bytes(b"abd")
    os.utime(path, ns=(stamp, stamp))  # within the clock's grain: size and time are the same
    assert cache.get(path) == content_hash(path) != before


@pytest.mark.parametrize("age", [4_102_444_800, 10_413_792_000])  # the years 2100 and 2300
def test_file_from_the_future_is_not_remembered(tmp_path, cache, counted, age):
    path = write(tmp_path / "a", b"abc", age=age)
    assert cache.get(path) == cache.get(path)
    assert len(counted) == 2


def test_deleted_file_is_missing_although_its_hash_is_known(tmp_path, cache):
    path = write(tmp_path / "a", b"abc")
    cache.get(path)
    path.unlink()
    with pytest.raises(AudioError, match="no such file"):
        cache.get(path)


def test_damaged_cache_costs_only_time(tmp_path, counted):
    (tmp_path / "hashes.txt").write_bytes(b"this is no cache, but long enough to be read" * 99)
    cache, path = HashCache(tmp_path / "hashes.txt"), write(tmp_path / "a", b"abc")
    assert cache.get(path) == cache.get(path) == content_hash(path)
    assert len(counted) == 1  # a line that is appended to it is good


def test_cache_in_a_missing_folder_costs_only_time(tmp_path):
    path = write(tmp_path / "a", b"abc")
    assert HashCache(tmp_path / "nowhere" / "hashes.txt").get(path) == content_hash(path)


def test_no_flipped_bit_of_the_cache_gives_another_hash(tmp_path, cache, counted):
    paths = [write(tmp_path / name, name.encode()) for name in "ab"]
    hashes = [cache.get(path) for path in paths]
    sound = cache.path.read_bytes()
    for at in range(len(sound)):
        for bit in (1, 16):
            damaged = bytearray(sound)
            damaged[at] ^= bit
            cache.path.write_bytes(damaged)
            assert [HashCache(cache.path).get(path) for path in paths] == hashes
    assert len(counted) > 2 + len(sound)  # damaged lines weren't used


def test_a_torn_line_costs_only_its_own_file(tmp_path, cache, counted):
    paths = [write(tmp_path / name, name.encode()) for name in "ab"]
    hashes = [cache.get(paths[0])]
    cache.path.write_bytes(cache.path.read_bytes()[:-20])
    hashes.append(HashCache(cache.path).get(paths[1]))
    counted.clear()
    assert [HashCache(cache.path).get(path) for path in paths] == hashes
    assert counted == paths[:1]


def test_a_link_and_its_file_share_an_entry_and_a_link_is_followed_anew(tmp_path, cache, counted):
    a, b = (write(tmp_path / name, name.encode()) for name in "ab")
    link = tmp_path / "link"
    link.symlink_to(a)
    assert cache.get(link) == cache.get(a) == content_hash(a)
    assert len(counted) == 1
    link.unlink()
    link.symlink_to(b)
    assert cache.get(link) == content_hash(b)


def test_name_that_is_not_utf8_is_remembered_too(tmp_path, cache, counted):
    path = write(tmp_path / ODD_NAME, b"abc")
    assert cache.get(path) == cache.get(path) == content_hash(path)
    assert len(counted) == 1


def test_threads_share_a_cache(cache, tmp_path):
    paths = [write(tmp_path / f"{i}", bytes([i]) * 9) for i in range(40)]
    hashes = [content_hash(path) for path in paths]
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(cache.get, paths * 3)) == hashes * 3
    lines = cache.path.read_bytes().split()
    assert {line.decode() for line in lines[1::3]} == set(hashes)
    assert len(lines) % 3 == 0
