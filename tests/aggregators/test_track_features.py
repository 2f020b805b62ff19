"""From the store to the probe: when tokens are, views of scales and layers, padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tune.aggregators.registry import AGGREGATORS
from tune.aggregators.track_features import (
    count_tokens,
    load_features,
    load_task_features,
    load_tokens,
    token_times,
)
from tune.store.collection import Row
from tune.store.store import Store
from tune.system import memory

RATE = 100
ENCODER = SimpleNamespace(
    name="tiny", fingerprint="f", precision="no", sample_rate=RATE, n_layers=1
)
# Samples of each track; it is cut into 2 s, with a tail, and not at all.
LENGTHS = {"train": [250, 600, 80], "val": [400], "test": [430, 200]}


def cut(n: int, length: int) -> list[tuple[int, int]]:
    """Spans of a length, and the rest."""
    return [(at, min(at + length, n)) for at in range(0, n, length)]


@pytest.fixture
def stored(tmp_path, rng):
    """Six tracks in a store with two layers of four dimensions at two scales, 2 s and full.

    Returns
    -------
    splits, collection, and for each scale {path: (content, spans)}
    """
    collection = Store(tmp_path / "store").collection(ENCODER, [0, 1], None)
    splits, scales = {}, [{}, {}]
    for split, lengths in LENGTHS.items():
        splits[split] = {"path": [f"{split}{i}.wav" for i in range(len(lengths))]}
        for path, n in zip(splits[split]["path"], lengths, strict=True):
            content = f"{len(scales[0]):02d}" * 32
            for rows, length in zip(scales, (200, n), strict=True):
                spans = cut(n, length)
                tokens = rng.standard_normal((len(spans), 2, 4)).astype(np.float32)
                collection.write(content, n, Row(tokens, spans, [1] * len(spans), False, 0.1))
                rows[path] = (content, spans)
    return splits, collection, scales


def tokens_of(collection, rows, path) -> np.ndarray:
    """What the store has for a track, (N, L, D)."""
    return collection.read(*rows[path]).tokens


# Times


def test_a_segment_is_its_own_time():
    row = Row(np.zeros((3, 1, 2)), [(0, 200), (200, 400), (400, 450)], [1, 1, 1], False, 0)
    assert token_times(row, RATE).tolist() == [[0, 2], [2, 4], [4, 4.5]]


def test_overlapping_and_distant_segments_keep_their_times():
    row = Row(np.zeros((3, 1, 2)), [(0, 200), (100, 300), (500, 700)], [1, 1, 1], False, 0)
    assert token_times(row, RATE).tolist() == [[0, 2], [1, 3], [5, 7]]


def test_frames_are_windows_of_their_segment_and_the_last_one_may_be_shorter():
    row = Row(np.zeros((6, 1, 2)), [(0, 200), (200, 230)], [4, 1], False, 0)
    expected = [[0, 0.6], [0.6, 1.2], [1.2, 1.8], [1.8, 2], [2, 2.3]]
    np.testing.assert_allclose(token_times(row, RATE, 0.6), expected)


# Features


@pytest.mark.parametrize("agg", ["mean", "attention", "hierarchical"])
def test_what_learning_starts_from_is_the_mean(stored, agg):
    splits, collection, (rows, _) = stored
    got = load_features(collection, splits["train"]["path"], rows, agg, None)
    assert got.values.shape == got.valid.shape == (2, 3, 4)
    for i, path in enumerate(splits["train"]["path"]):
        expected = tokens_of(collection, rows, path).astype(np.float64).mean(0)
        np.testing.assert_allclose(got.values[:, i], expected, rtol=1e-12)


def test_short_tail_weighs_less_in_the_mean_by_duration(stored):
    splits, collection, (rows, _) = stored
    got = load_features(collection, splits["train"]["path"], rows, "duration_mean", None)
    first = tokens_of(collection, rows, "train0.wav").astype(np.float64)  # 2 s and 0.5 s
    np.testing.assert_allclose(got.values[:, 0], first[0] * 0.8 + first[1] * 0.2, rtol=1e-12)
    plain = load_features(collection, splits["train"]["path"], rows, "mean", None)
    # 600 samples are three whole segments, 80 are one piece: there is nothing to weigh.
    torch.testing.assert_close(got.values[:, 1:], plain.values[:, 1:], rtol=1e-12, atol=0)


def test_views_are_counted_scale_by_scale_layer_by_layer(stored):
    splits, collection, scales = stored
    features, truncated = load_task_features(splits, collection, scales, "hierarchical")
    assert truncated == 0
    for split, found in features.items():
        assert found.values.shape == (4, len(LENGTHS[split]), 4)
        assert found.valid.all()
        for view in range(4):
            scale, layer = divmod(view, 2)
            for i, path in enumerate(splits[split]["path"]):
                tokens = tokens_of(collection, scales[scale], path)[:, layer]
                expected = tokens.astype(np.float64).mean(0)
                np.testing.assert_allclose(found.values[view, i], expected, rtol=1e-12)


def test_concat_takes_as_many_tokens_as_the_longest_training_track(stored, caplog):
    splits, collection, (rows, _) = stored
    assert count_tokens(collection, splits["train"]["path"], rows) == [2, 3, 1]
    splits["train"]["path"] = ["train0.wav", "train2.wav"]  # of two tokens and of one
    features, truncated = load_task_features(splits, collection, [rows], "concat")
    assert {f.values.shape[-1] for f in features.values()} == {2 * 4 + 2}
    assert truncated == 1  # test0 has three
    assert "1 tracks have more than 2 tokens and are cut" in caplog.text


def test_a_model_gives_its_views_of_one_layer(stored, tmp_path):
    splits, collection, (rows, _) = stored
    last = Store(tmp_path / "store").collection(ENCODER, [1], None)
    got = load_features(
        last,
        splits["train"]["path"],
        rows,
        "transformer",
        None,
        embed=lambda tokens: torch.stack([tokens.sum(0), tokens[0], tokens[-1]]),
    )
    assert got.values.shape == (3, 3, 4)  # views, tracks, dimensions
    assert got.values.dtype == torch.float64
    for i, path in enumerate(splits["train"]["path"]):
        tokens = tokens_of(collection, rows, path)[:, 1]
        expected = np.stack([tokens.sum(0), tokens[0], tokens[-1]])
        np.testing.assert_allclose(got.values[:, i], expected, rtol=1e-6, atol=1e-6)


def test_whitened_is_the_mean_beside_the_mean_of_whitened_tokens(stored):
    splits, collection, (rows, _) = stored
    features, _ = load_task_features(splits, collection, [rows], "whitened")
    plain, _ = load_task_features(splits, collection, [rows], "mean")
    for layer in range(2):
        tracks = [
            tokens_of(collection, rows, path)[:, layer].astype(np.float64)
            for path in splits["train"]["path"]
        ]
        scatter = sum((t - t.mean(0)).T @ (t - t.mean(0)) for t in tracks)
        covariance = scatter / sum(len(t) - 1 for t in tracks)
        ridge = 0.01 * np.trace(covariance) / 4 * np.eye(4)
        for split, found in features.items():
            torch.testing.assert_close(found.values[layer], plain[split].values[layer])
            values = plain[split].values[layer].numpy() - np.concatenate(tracks).mean(0)
            # Distances are Mahalanobis's, up to one factor: W W' is the covariance's inverse.
            expected = values @ np.linalg.inv(covariance + ridge) @ values.T
            got = (found.values[2 + layer] @ found.values[2 + layer].T).numpy()
            got *= 1 / (np.trace(covariance) / 4)
            np.testing.assert_allclose(got, expected, rtol=1e-8)


def test_a_transformer_without_a_model_raises(stored):
    splits, collection, (rows, _) = stored
    with pytest.raises(ValueError, match="transformer needs a model"):
        load_features(collection, splits["val"]["path"], rows, "transformer", None)


def test_unknown_aggregator_is_answered_with_the_known_ones(stored):
    splits, collection, (rows, _) = stored
    with pytest.raises(ValueError, match=r"must be one of mean, duration_mean.*got 'median'"):
        load_features(collection, splits["val"]["path"], rows, "median", None)


def test_vanished_row_is_named(stored):
    splits, collection, (rows, _) = stored
    content, spans = rows["val0.wav"]
    rows["val0.wav"] = content, spans[:1]
    with pytest.raises(ValueError, match=r"val0\.wav has vanished"):
        load_tokens(splits, collection, rows)


@pytest.mark.parametrize("agg", [n for n, r in AGGREGATORS.items() if r.function])
def test_a_tracks_features_are_the_same_alone_and_among_others(stored, agg):
    splits, collection, (rows, _) = stored
    paths = splits["train"]["path"]
    together = load_features(collection, paths, rows, agg, 3)
    for i, path in enumerate(paths):
        alone = load_features(collection, [path], rows, agg, 3)
        assert torch.equal(alone.values[:, 0], together.values[:, i])


# Tokens


def test_tokens_are_padded_to_the_longest_track_of_a_split(stored):
    splits, collection, (rows, _) = stored
    got = load_tokens(splits, collection, rows)
    assert {s: tuple(t.values.shape) for s, t in got.items()} == {
        "train": (2, 3, 3, 4),
        "val": (2, 1, 2, 4),
        "test": (2, 2, 3, 4),
    }
    for split, tokens in got.items():
        assert tokens.values.dtype == torch.float32
        for i, path in enumerate(splits[split]["path"]):
            stored_tokens = tokens_of(collection, rows, path)
            n = len(stored_tokens)
            assert tokens.mask[i].tolist() == [k < n for k in range(tokens.mask.shape[1])]
            np.testing.assert_array_equal(tokens.values[:, i, :n], stored_tokens.swapaxes(0, 1))
            assert (tokens.values[:, i, n:] == 0).all()
            assert tokens.times[i].shape == (n, 2)
            assert tokens.times[i][-1, 1] == LENGTHS[split][i] / RATE


# Memory


def test_what_does_not_fit_is_refused_with_its_size(stored, monkeypatch):
    splits, collection, scales = stored
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 190)
    with pytest.raises(
        ValueError, match=r"the embeddings of 3 tracks \(2 x 4 each\) take 1\.9e-07"
    ):
        load_task_features(splits, collection, scales[:1], "mean")
    with pytest.raises(
        ValueError, match=r"the tracks' tokens take .* 1\.9e-07 GB are free: take one"
    ):
        load_tokens(splits, collection, scales[0])
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 10**4)
    load_task_features(splits, collection, scales[:1], "mean")
    load_tokens(splits, collection, scales[0])


def test_tokens_take_the_room_of_their_own_number(stored):
    splits, collection, scales = stored
    for split, tokens in load_tokens(splits, collection, scales[0]).items():
        expected = [tokens_of(collection, scales[0], path) for path in splits[split]["path"]]
        np.testing.assert_array_equal(tokens.flat, np.concatenate(expected))
        assert tokens.counts.tolist() == [len(track) for track in expected]
