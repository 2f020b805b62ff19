"""A store that a group shares: what one user writes the others may read, replace and pack."""

import os
import stat
import traceback
from dataclasses import replace

import pytest
from test_packs import collection_in
from test_store import CONTENT, SPANS, row_of, same

from tune.store.prune import pack, prune
from tune.store.store import Store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no group permissions")
RULE = {"rule": "structure", "min_s": 5.0}
GROUP, ANN, BOB = 54_321, 54_322, 54_323  # numbers suffice, no accounts


@pytest.fixture
def umask():
    """Sets the umask, until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def fill(root, row, content=CONTENT, n_packed=1):
    """Use a store in every way that writes to it; one row is left in a file of its own."""
    store, collection = Store(root), collection_in(root)
    lock = store.claim(content)
    collection.write(content, 250, row)
    store.write_boundaries(content, RULE, 24_000, SPANS)
    lock.release()
    music = root.parent / f"{content[:8]}.wav"
    music.write_bytes(content.encode())
    os.utime(music, (1e9, 1e9))  # hashes of young files aren't remembered
    store.content(music)
    assert pack(root) == n_packed
    (place,) = collection.packs.refresh().find(content)
    collection.write(content, 250, replace(row, tokens=row.tokens + 1))  # deletes the packed row
    collection.write(content, 250, row)
    assert collection.packs.find(content) == []
    prune(root)
    assert place.content == content


def below(root) -> dict:
    """Files and folders of a store, and their modes."""
    return {path.relative_to(root): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_and_folders_have_the_group_permissions_of_the_store(tmp_path, rng, umask, mask):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    umask(mask)
    fill(root, row_of(rng))
    modes = below(root)
    endings = {path.suffix for path in modes}
    assert {".safetensors", ".json", ".lock", ".rows", ".index", ".gone", ".txt"} <= endings
    for path, mode in modes.items():
        wanted = 0o2070 if (root / path).is_dir() else 0o060
        assert mode & 0o2070 == wanted, path


def test_a_store_without_group_permissions_is_written_by_the_umask(tmp_path, rng, umask):
    root = tmp_path / "store"
    tmp_path.chmod(0o2777)  # the folder around the store says nothing
    fill(root, row_of(rng))
    modes = below(root)
    assert stat.S_IMODE(root.stat().st_mode) & 0o020 == 0
    assert not any(mode & 0o020 for mode in modes.values())


def as_user(user: int, action) -> None:
    """Do something as another user of the group, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([GROUP])
            os.setgid(user)
            os.setuid(user)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can act as two users"
)
def test_two_users_of_a_group_write_and_read_pack_and_delete(tmp_path, rng, umask):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o001)
    tmp_path.chmod(0o777)
    root = tmp_path / "store"
    root.mkdir()
    os.chown(root, ANN, GROUP)
    root.chmod(0o2770)
    row, other = row_of(rng), row_of(rng)
    second = CONTENT[:4] + "0" * 60  # the same folders and the same lock

    def read_and_write():
        assert same(collection_in(root).read(CONTENT, SPANS), row)
        fill(root, other, second, n_packed=2)  # its own and the first user's

    as_user(ANN, lambda: fill(root, row))
    as_user(BOB, read_and_write)
    as_user(ANN, lambda: fill(root, row, n_packed=1))  # its own row is packed already
    assert same(collection_in(root).read(second, SPANS), other)
    assert len((root / "hashes.txt").read_bytes().split()) == 3 * 3
    with pytest.raises(AssertionError):
        as_user(BOB + 1, lambda: os.setgroups([]) or fill(root, other))
