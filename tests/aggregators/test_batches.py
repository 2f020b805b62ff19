"""Batches of pretraining: tokens from the store, what is masked, how an epoch is divided."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tune.aggregators.transformer.batches import (
    VALIDATION,
    EpochData,
    TokenTracks,
    collate,
    distribute,
    micro_batches,
    plan_epoch,
)
from tune.aggregators.transformer.recipes import standardisation
from tune.store.collection import Row
from tune.store.store import Store

LENGTHS = [5, 1, 3, 8, 2, 30, 4]
SIZE = 6


def content_of(i):
    """A made-up content hash."""
    return hashlib.sha256(str(i).encode()).hexdigest()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A collection with a row for each of LENGTHS: collection, paths, rows, tokens."""
    encoder = SimpleNamespace(
        name="fake", fingerprint="f" * 64, precision="no", sample_rate=100, n_layers=0
    )
    store = Store(tmp_path_factory.mktemp("store"))
    collection = store.collection(encoder, [0], None)
    rng = np.random.default_rng(5)
    rows, every = {}, {}
    for i, n in enumerate(LENGTHS):
        path = f"{i}.wav"
        tokens = rng.normal(3, 2, (n, 1, SIZE)).astype(np.float32)
        tokens[:, :, 4] = 0.1  # a constant dimension
        spans = [(100 * k, 100 * (k + 1)) for k in range(n)]
        collection.write(content_of(i), 100 * n, Row(tokens, spans, [1] * n, False, 0.0))
        rows[path], every[path] = (content_of(i), spans), tokens[:, 0]
    return collection, list(rows), rows, every


def make(stored, paths=None, **kwargs):
    """The data set over some of the paths."""
    collection, every, rows, _ = stored
    settings = {"mask_prob": 0.4, "span": 1, "seed": 7} | kwargs
    return TokenTracks(collection, every if paths is None else paths, rows, **settings)


def test_tokens_are_those_of_the_store_and_single_ones_are_set_aside(stored):
    data = make(stored)
    assert data.single == ["1.wav"]
    assert len(data) == 6
    assert data.lengths == [5, 3, 8, 2, 30, 4]
    for i, path in enumerate(data.paths):
        tokens, masked = data[i, 1]
        np.testing.assert_array_equal(tokens, stored[3][path])
        assert tokens.dtype == torch.float32
        assert 1 <= masked.sum() < len(tokens)


def test_statistics_against_numpy(stored):
    data = make(stored)
    each = (data.tokens(i) for i in range(len(data)))
    mean, scale = standardisation(each, "dimension")
    every = np.concatenate([stored[3][path] for path in data.paths]).astype(np.float64)
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-12)
    expected = 1 / np.delete(every.std(0), 4)
    np.testing.assert_allclose(np.delete(scale.numpy(), 4), expected, rtol=1e-9)
    assert scale[4] == 0  # exactly: what never varies says nothing


def test_what_is_hidden_follows_from_seed_epoch_and_content(stored):
    data = make(stored)
    long = data.paths.index("5.wav")
    masked = data[long, 3][1]
    assert torch.equal(masked, data[long, 3][1])
    # Other tracks, another order, another name for the same audio: nothing changes.
    assert torch.equal(masked, make(stored, ["2.wav", "5.wav"])[1, 3][1])
    collection, _, rows, _ = stored
    renamed = TokenTracks(
        collection, ["copy.wav"], {"copy.wav": rows["5.wav"]}, mask_prob=0.4, span=1, seed=7
    )
    assert torch.equal(masked, renamed[0, 3][1])
    torch.manual_seed(0)
    assert torch.equal(masked, data[long, 3][1])
    assert not torch.equal(masked, data[long, 4][1])
    assert not torch.equal(masked, data[long, VALIDATION][1])
    assert not torch.equal(masked, make(stored, seed=8)[long, 3][1])


def test_tracks_of_one_length_hide_different_tokens(stored, tmp_path):
    collection, _, rows, _ = stored
    spans = rows["5.wav"][1]
    rng = np.random.default_rng(0)
    more = {}
    for i in range(100, 104):
        tokens = rng.normal(size=(30, 1, SIZE)).astype(np.float32)
        collection.write(content_of(i), 3000, Row(tokens, spans, [1] * 30, False, 0.0))
        more[f"{i}.wav"] = (content_of(i), spans)
    data = TokenTracks(collection, list(more), more, mask_prob=0.4, span=1, seed=7)
    assert len({tuple(data[i, 0][1].tolist()) for i in range(4)}) == 4


def test_collate_pads_and_marks_padding(stored):
    data = make(stored)
    items = [data[i, 1] for i in (0, 2, 3)]
    batch = collate(items)
    assert batch["tokens"].shape == (3, 8, SIZE)
    for row, (tokens, masked) in enumerate(items):
        n = len(tokens)
        assert torch.equal(batch["tokens"][row, :n], tokens)
        assert torch.equal(batch["masked"][row, :n], masked)
        assert batch["attention_mask"][row].tolist() == [True] * n + [False] * (8 - n)
        assert not batch["tokens"][row, n:].any()
        assert not batch["masked"][row, n:].any()


@pytest.fixture
def lengths(rng):
    """Lengths of 203 tracks."""
    return rng.integers(2, 400, 203).tolist()


def flat(steps):
    """Every track of a plan."""
    return [i for step in steps for part in step for i in part]


def test_an_epoch_has_every_track_once(lengths):
    steps = plan_epoch(lengths, 8, 1000, seed=1, epoch=1)
    assert sorted(flat(steps)) == list(range(203))
    sizes = [len(flat([step])) for step in steps]
    assert len(sizes) == 26
    assert sorted(sizes) == [3] + [8] * 25


def test_micro_batches_keep_the_limit_with_padding(lengths):
    for step in plan_epoch(lengths, 32, 1000, seed=1, epoch=1):
        for part in step:
            padded = len(part) * max(lengths[i] for i in part)
            assert padded <= 1000 or len(part) == 1


def test_a_track_above_the_limit_goes_alone():
    assert micro_batches([0, 1, 2, 3], [5, 50, 5, 5], 10) == [[0, 2], [3], [1]]
    assert micro_batches([0, 1, 2], [5, 5, 5], 15) == [[0, 1, 2]]
    assert micro_batches([0, 1], [3, 2], 1) == [[1], [0]]
    assert micro_batches([], [], 10) == []


def test_the_plan_follows_from_seed_and_epoch(lengths):
    torch.manual_seed(0)
    first = plan_epoch(lengths, 8, 1000, seed=1, epoch=1)
    np.random.default_rng(0).random(3)
    torch.manual_seed(1)
    assert plan_epoch(lengths, 8, 1000, seed=1, epoch=1) == first
    assert plan_epoch(lengths, 8, 1000, seed=1, epoch=2) != first
    assert plan_epoch(lengths, 8, 1000, seed=2, epoch=1) != first


def test_the_micro_limit_changes_no_step(lengths):
    def tracks(micro_tokens):
        return [sorted(flat([step])) for step in plan_epoch(lengths, 8, micro_tokens, 1, 1)]

    assert tracks(10) == tracks(1000) == tracks(10**9)


def test_batches_are_alike_in_length_and_come_in_any_order(lengths):
    steps = plan_epoch(lengths, 8, 10**9, seed=1, epoch=1)
    padded = sum(len(s[0]) * max(lengths[i] for i in s[0]) for s in steps)
    assert padded < 1.2 * sum(lengths)
    longest = [max(lengths[i] for i in s[0]) for s in steps]
    assert longest != sorted(longest)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_tokens", [1, 700, 10**9])
def test_processes_get_as_many_micro_batches_and_each_real_one_once(
    lengths, n_processes, micro_tokens
):
    steps = plan_epoch(lengths, 8, micro_tokens, seed=1, epoch=1)
    shares = [distribute(steps, rank, n_processes) for rank in range(n_processes)]
    assert len({len(share) for share in shares}) == 1
    real = [m for share in shares for m in share if m.weight == 1]
    assert sorted(i for m in real for i in m.tracks) == list(range(203))
    assert {m.weight for share in shares for m in share} <= {0.0, 1.0}
    for together in zip(*shares, strict=True):
        assert len({m.last for m in together}) == 1  # all synchronise at once
        assert len({m.step_tracks for m in together}) == 1  # they are of the same step
        assert together[0].weight == 1  # never a round of stand-ins only
    assert sum(m.last for m in shares[0]) == len(steps)
    # Between two ends of steps lie exactly that step's tracks.
    at = 0
    for step in steps:
        seen: list[int] = []
        while True:
            seen += [i for share in shares if share[at].weight for i in share[at].tracks]
            at += 1
            if shares[0][at - 1].last:
                break
        assert sorted(seen) == sorted(flat([step]))
        assert shares[0][at - 1].step_tracks == len(seen)


def test_one_process_needs_no_stand_ins(lengths):
    steps = plan_epoch(lengths, 8, 700, seed=1, epoch=1)
    share = distribute(steps, 0, 1)
    assert all(m.weight == 1 for m in share)
    assert [m.tracks for m in share] == [part for step in steps for part in step]


def test_a_loader_gives_micro_batches_as_planned(stored):
    data = make(stored)
    steps = plan_epoch(data.lengths, 4, 20, seed=0, epoch=2)
    micros = distribute(steps, 1, 2)
    loader = DataLoader(EpochData(data, micros, 2), batch_size=None)
    batches = list(loader)
    assert len(batches) == len(micros)
    for batch, micro in zip(batches, micros, strict=True):
        assert list(batch["tracks"]) == micro.tracks
        assert batch["weight"] == micro.weight
        assert bool(batch["last"]) is micro.last
        assert batch["step_tracks"] == micro.step_tracks
        for i, masked, attention_mask in zip(
            micro.tracks, batch["masked"], batch["attention_mask"], strict=True
        ):
            assert torch.equal(masked[attention_mask], data[i, 2][1])
