"""The store read without its encoder, as a `datasets.Dataset`."""

from types import SimpleNamespace

import numpy as np
import pytest

import tune
from tune.store.collection import Row
from tune.store.store import Store

RATE = 24_000
A, B = "ab" * 32, "cd" * 32


def encoder(name="muq", fingerprint="f" * 64):
    """What a store wants to know of an encoder."""
    return SimpleNamespace(
        name=name,
        fingerprint=fingerprint,
        precision="no",
        sample_rate=RATE,
        n_layers=2,
        frame_rate=25.0,
        pool_width=lambda rate: round(25 / rate),
    )


def write(collection, content, seconds, counts, rng, layers):
    """A row of segments that end at the given seconds."""
    ends = [round(s * RATE) for s in seconds]
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    tokens = rng.standard_normal((sum(counts), layers, 3)).astype(np.float32)
    collection.write(content, ends[-1], Row(tokens, spans, list(counts), False, 0.1))
    return tokens


def test_every_token_and_layer_is_a_row_with_its_place(tmp_path, rng):
    collection = Store(tmp_path).collection(encoder(), [0, 1, 2], None)
    first = write(collection, B, (10, 14.5), (1, 1), rng, 3)
    second = write(collection, A, (3.25,), (1,), rng, 3)
    data = tune.store.open(tmp_path).to_dataset()
    assert data.features["embedding"].length == 3
    assert data["content"][:] == [A] * 3 + [B] * 6
    assert data["layer"][:] == [0, 1, 2] * 3
    assert data["segment"][:] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert data["start_s"][:] == [0.0] * 6 + [10.0] * 3
    assert data["end_s"][:] == [3.25] * 3 + [10.0] * 3 + [14.5] * 3
    expected = np.concatenate([second, first]).reshape(9, 3)
    np.testing.assert_array_equal(np.array(data["embedding"][:], np.float32), expected)
    write(collection, A, (1, 2, 3.25), (1, 1, 1), rng, 3)  # the same track, cut otherwise
    grown = tune.store.open(tmp_path).to_dataset(contents=[A])
    assert len(grown) == 3 + 9  # nothing stale
    assert len(set(grown["cut"][:])) == 2
    stream = list(tune.store.open(tmp_path).to_dataset(contents=[A], streaming=True))
    assert [row["end_s"] for row in stream] == grown["end_s"][:]


def test_pooled_frames_have_their_own_times(tmp_path, rng):
    collection = Store(tmp_path).collection(encoder(), [2], 2.0)
    write(collection, A, (1.0, 1.7), (2, 2), rng, 1)
    data = tune.store.open(tmp_path, tokens="frame at 2 Hz").to_dataset()
    window = 12 / 25  # 25 frames a second pooled to 2 are windows of 12
    np.testing.assert_allclose(data["start_s"][:], [0, window, 1, 1 + window])
    np.testing.assert_allclose(data["end_s"][:], [window, 1, 1 + window, 1.7])
    assert data["segment"][:] == [0, 0, 1, 1]


def test_what_is_opened_is_one_collection(tmp_path, rng):
    store = Store(tmp_path)
    for name, fingerprint, layers in (
        ("muq", "f" * 64, [2]),
        ("muq", "f" * 64, [0, 1, 2]),
        ("mel", "e" * 64, [2]),
    ):
        write(
            store.collection(encoder(name, fingerprint), layers, None),
            A,
            (1,),
            (1,),
            rng,
            len(layers),
        )
    assert tune.store.open(tmp_path, encoder="mel").key["encoder"] == "mel"
    opened = tune.store.open(tmp_path, encoder="muq", layers=2)
    assert opened.layers == [2]
    assert tune.store.open(opened.folder).folder == opened.folder
    with pytest.raises(ValueError, match=r"2 collections match, choose one .*layers='all'"):
        tune.store.open(tmp_path, encoder="muq")
    with pytest.raises(ValueError, match=r"no such collection \(encoder='mel'"):
        tune.store.open(tmp_path, encoder="mert")
    with pytest.raises(ValueError, match="the first run creates it"):
        tune.store.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not by colour"):
        tune.store.open(tmp_path, colour="red")


def test_a_damaged_row_is_named_and_left_out(tmp_path, rng, caplog):
    collection = Store(tmp_path).collection(encoder(), [2], None)
    write(collection, A, (1,), (1,), rng, 1)
    write(collection, B, (1,), (1,), rng, 1)
    next(tmp_path.glob(f"*/*/ab/{A}*")).write_bytes(b"nothing")
    caplog.set_level("WARNING", "tune")
    assert tune.store.open(tmp_path).to_dataset()["content"][:] == [B]
    assert f"damaged row {tmp_path}" in caplog.text
    assert len(tune.store.open(tmp_path).to_dataset(contents=[])) == 0
    next(tmp_path.glob(f"*/*/cd/{B}*")).unlink()
    with pytest.raises(ValueError, match="holds no rows"):
        tune.store.open(tmp_path).to_dataset()
