"""Test tracks that an aggregator was trained on: the same file, audio, copies, excerpts."""

import shutil

import numpy as np
import pytest
import soundfile
from audio_variants import music

from tune.aggregators.transformer import trained_on
from tune.store import Store

RATE = 22_050


def tune_of(seed, seconds=12.0):
    return music(seconds, RATE, 1, seed)[:, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three tracks and what is kept of them; a folder for test tracks, and a store."""
    root = tmp_path_factory.mktemp("trained")
    paths = []
    for seed in range(3):
        paths.append(str(root / f"{seed}.wav"))
        soundfile.write(paths[-1], tune_of(seed), RATE, subtype="PCM_16")
    store = Store(root / "store")
    trained_on.write(root, paths, store)
    return root, paths, store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_copies_are_found_and_other_music_is_not(made, tmp_path):
    root, paths, store = made
    files = {name: str(tmp_path / name) for name in ("a.wav", "b.flac", "c.mp3", "d.wav", "e.wav")}
    shutil.copyfile(paths[0], files["a.wav"])
    soundfile.write(files["b.flac"], soundfile.read(paths[1], dtype="int16")[0], RATE)
    quiet = (0.5 * tune_of(2)).astype(np.float32)
    soundfile.write(files["c.mp3"], quiet, RATE)
    soundfile.write(files["d.wav"], tune_of(1)[3 * RATE : 10 * RATE], RATE)
    soundfile.write(files["e.wav"], tune_of(7), RATE)
    known = trained_on.read(str(root))
    asked = [*files.values(), str(tmp_path / "missing.wav")]
    found = trained_on.find_seen(known, asked, store)
    how = {name: found.get(path, "") for name, path in files.items()}
    assert (how["a.wav"], how["b.flac"], how["e.wav"]) == ("the same file", "the same audio", "")
    assert how["c.mp3"].startswith("a copy or excerpt: ")
    assert how["d.wav"].startswith("a copy or excerpt: ")
    assert len(found) == 4


def test_a_file_is_listened_to_once(made, tmp_path, monkeypatch):
    root, _, store = made
    path = str(tmp_path / "new.wav")
    soundfile.write(path, tune_of(1), RATE // 2)
    known = trained_on.read(str(root))
    first = trained_on.find_seen(known, [path], store)

    def fail(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(trained_on, "inspect_file", fail)
    assert trained_on.find_seen(known, [path], store) == first


def test_seen_tracks_are_refused_or_marked(made, caplog):
    root, paths, store = made
    message = "was trained on 2 of 2 test tracks, such as .*0.wav .the same file.: .*--allow_seen"
    with pytest.raises(ValueError, match=message):
        trained_on.check_unseen(str(root), paths[:2], store, allow=False)
    found = trained_on.check_unseen(str(root), paths[:2], store, allow=True)
    assert found == {"n_test": 2, "tracks": dict.fromkeys(paths[:2], "the same file")}
    assert "the result is marked" in caplog.text


def test_an_older_aggregator_does_not_say(tmp_path, caplog):
    assert trained_on.check_unseen(str(tmp_path), ["a.wav"], None, allow=False) is None
    assert "doesn't say what it was trained on" in caplog.text


def test_a_damaged_file_is_one_line(made, tmp_path):
    root, _, _ = made
    data = (root / trained_on.FILE).read_bytes()
    (tmp_path / trained_on.FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        trained_on.read(str(tmp_path))
