"""The store's key holds the decoder and the channels; what an older decoder made is told as old."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from audio_variants import encoded, music
from conftest import tone

from tune import store as rooms
from tune.encoders.registry import load_encoder
from tune.segments.rules import SegmentRule
from tune.segments.structure import StructureRule
from tune.store import command, prune
from tune.store.collection import digest_of
from tune.store.encode import encode_tracks
from tune.store.store import DECODER, Store, is_old

RULE = SegmentRule(1.0, min_tail_s=0.2)
ADDED = ("decoder", "channels")  # to the key, by the second decoder


@pytest.fixture(scope="module")
def mel():
    """The log-mel encoder."""
    return load_encoder("mel")


@pytest.fixture
def files(tmp_path):
    """A wav, a FLAC and an mp3."""
    paths = [tmp_path / name for name in ("a.wav", "b.flac", "c.mp3")]
    soundfile.write(paths[0], tone(2.0, 220), 24_000)
    soundfile.write(paths[1], tone(2.0, 330), 44_100)
    paths[2].write_bytes(encoded("libmp3lame", "mp3"))
    return [str(path) for path in paths]


def encode(paths, encoder, root, rule=RULE, channels="mix"):
    """Encode; the report and the collection."""
    store = Store(root)
    collection = store.collection(encoder, [0], None, channels)
    return encode_tracks(paths, encoder, rule, store, collection), collection


def as_decoder_1_left_it(root):
    """Take the decoder out of a store's keys, as it was before there were two."""
    for file in root.glob("*/layers-*/collection.json"):
        key = {k: v for k, v in json.loads(file.read_text()).items() if k not in ADDED}
        file.write_text(json.dumps(key))
        named = {k: v for k, v in key.items() if k not in ("encoder", "layers", "window_s")}
        file.parent.parent.rename(root / f"mel-{digest_of(named)}")


def test_only_files_that_are_decoded_otherwise_are_encoded_again(files, mel, tmp_path):
    root = tmp_path / "store"
    first, before = encode(files, mel, root)
    rows = {path: before.read(*row) for path, row in first.rows.items()}
    as_decoder_1_left_it(root)
    assert all(item["old"] for item in prune.describe(root))
    again, collection = encode(files, mel, root)
    assert again.encoded_tracks == 1  # the mp3
    for path, row in again.rows.items():
        np.testing.assert_array_equal(collection.read(*row).tokens, rows[path].tokens)
    assert sorted(item["rows"] for item in prune.describe(root)) == [3, 3]
    assert sum(item["old"] for item in prune.describe(root)) == 1
    assert encode(files, mel, root)[0].encoded_tracks == 0


def test_packed_rows_of_an_older_decoder_are_taken_over_too(files, mel, tmp_path):
    root = tmp_path / "store"
    first, before = encode(files, mel, root)
    rows = {path: before.read(*row) for path, row in first.rows.items()}
    assert before.pack() == 3
    as_decoder_1_left_it(root)
    again, collection = encode(files, mel, root)
    assert again.encoded_tracks == 1  # the mp3
    for path, row in again.rows.items():
        np.testing.assert_array_equal(collection.read(*row).tokens, rows[path].tokens)


def test_a_shortened_row_of_an_older_decoder_is_not_served(files, mel, tmp_path):
    root = tmp_path / "store"
    report, collection = encode(files[2:], mel, root)
    content, spans = report.rows[files[2]]
    row = collection.read(content, spans)
    (path,) = collection.folder.glob("??/*.safetensors")
    path.unlink()
    short = type(row)(row.tokens, [(0, 9_000)], row.counts, False, 0.1)
    collection.write(content, 9_000, short)
    as_decoder_1_left_it(root)
    report, collection = encode(files[2:], mel, root)
    assert report.encoded_tracks == 1
    assert report.rows[files[2]][1][-1][1] == round(1.3 * 24_000)
    (kept,) = collection.rows()
    assert kept[2].spans[-1][1] == round(1.3 * 24_000)


def test_an_old_collection_is_told_as_old_and_pruned_as_such(files, mel, tmp_path, capsys):
    root = tmp_path / "store"
    encode(files, mel, root)
    as_decoder_1_left_it(root)
    with pytest.raises(ValueError, match=r"of another version of TUNE \(format 1, decoder 1\)"):
        rooms.open(root)
    encode(files, mel, root)
    assert rooms.open(root).key["decoder"] == DECODER
    command.main(["--store", str(root)])
    assert capsys.readouterr().out.count(", old") == 1
    command.main(["prune", "--old", "--store", str(root)])
    (left,) = prune.describe(root)
    assert not left["old"]
    assert encode(files, mel, root)[0].encoded_tracks == 0  # what was taken over stays


def test_boundaries_of_files_that_are_decoded_as_before_are_taken_over(files, mel, tmp_path):
    root, rule = tmp_path / "store", StructureRule()
    encode(files, mel, root, rule)
    (folder,) = (root / "boundaries").iterdir()
    store = Store(root)
    for path in files:
        old = folder / store.content(path)[:2] / f"{store.content(path)}.json"
        spans = json.loads(old.read_text())["spans"]
        store.write_boundaries(store.content(path), rule.key(), 24_000, spans)
    shutil.rmtree(folder)
    as_decoder_1_left_it(root)
    report, _ = encode(files, mel, root, rule)
    assert report.encoded_tracks == 1
    assert len(list(folder.rglob("*.json"))) == 3


def test_each_choice_of_channels_has_its_own_rows(tmp_path, mel):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, music(1.0, 24_000), 24_000)
    root, found = tmp_path / "store", {}
    for channels in ("mix", "left", "right", "first", "mid"):
        report, collection = encode([path], mel, root, channels=channels)
        assert report.encoded_tracks == 1
        found[channels] = collection.read(*report.rows[path]).tokens
    np.testing.assert_array_equal(found["left"], found["first"])
    np.testing.assert_array_equal(found["mid"], found["mix"])
    assert np.abs(found["left"] - found["right"]).max() > 0.1
    with pytest.raises(ValueError, match="5 collections match"):
        rooms.open(root)
    assert rooms.open(root, channels="right").key["channels"] == "right"
    with pytest.raises(ValueError, match="channels must be one of mix, first, left, right, mid"):
        encode([path], mel, root, channels="centre")


def test_channels_that_cancel_are_warned_about_and_counted(tmp_path, mel, caplog):
    path = str(tmp_path / "opposite.wav")
    left = tone(2.0, 220)
    soundfile.write(path, np.stack([left, -0.999 * left], 1), 24_000)
    for encoded_tracks in (1, 0):  # also when the row is stored
        caplog.clear()
        report, _ = encode([path], mel, tmp_path / "store")
        assert report.encoded_tracks == encoded_tracks
        (warned,) = report.warned
        assert warned["path"] == path
        assert "of opposite phase" in warned["reason"]
        assert f"{path}: its channels are of opposite phase" in caplog.text
    assert encode([path], mel, tmp_path / "store", channels="left")[0].warned == []


def test_what_is_old_follows_from_the_key():
    assert not is_old({"format": 1, "decoder": DECODER})
    assert is_old({"format": 1})
    assert is_old({"format": 2, "decoder": DECODER})
    assert is_old({"format": 1, "decoder": DECODER + 1})
