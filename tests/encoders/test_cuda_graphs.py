"""tune.encoders.cuda_graphs: when a pass is recorded, and what happens where that fails."""

import logging

import numpy as np
import pytest
import torch

from tune.encoders.cuda_graphs import KEPT, RECORD_AT, CudaGraphs
from tune.encoders.registry import load_encoder


class Recorder:
    """Records a function as a GPU would: replays give the same tensors, overwritten."""

    def __init__(self, error=0.0):
        self.error, self.recorded, self.replays = error, 0, 0

    def __call__(self, function, batch):
        self.recorded += 1
        out = tuple(x.clone() for x in function(batch))

        def replay(batch):
            self.replays += 1
            states, finite = function(batch)
            out[0].copy_(states + self.error)
            out[1].copy_(finite)
            return out

        return replay


@pytest.fixture(scope="module")
def nano():
    """The small MuQ."""
    return load_encoder("muq-nano")


@pytest.fixture
def batches(rng):
    """Batches of one shape."""
    return [rng.standard_normal((2, 12_000)).astype(np.float32) * 0.1 for _ in range(6)]


def test_the_third_batch_of_a_shape_is_recorded_and_later_ones_replayed(nano, batches, monkeypatch):
    expected = [nano.embed(batch, [4]) for batch in batches]
    recorder = Recorder()
    monkeypatch.setattr(nano, "graphs", CudaGraphs(recorder))
    for i, batch in enumerate(batches, 1):
        np.testing.assert_array_equal(nano.embed(batch, [4]), expected[i - 1])
        assert recorder.recorded == (0 if i < RECORD_AT else 1 if i == RECORD_AT else 2)
        nano.embed(batch[:, : 6000 + 240 * i], [4])  # shapes that don't come again
        nano.embed(batch, [0, 4])  # other layers: another graph
    assert recorder.recorded == 2
    assert recorder.replays == 2 * (1 + len(batches) - RECORD_AT)


def test_a_graph_that_gives_other_numbers_is_not_used(nano, batches, monkeypatch, caplog):
    expected = [nano.embed(batch, [4]) for batch in batches]
    recorder = Recorder(error=1.0)
    monkeypatch.setattr(nano, "graphs", CudaGraphs(recorder))
    with caplog.at_level(logging.WARNING, "tune"):
        found = [nano.embed(batch, [4]) for batch in batches]
    np.testing.assert_array_equal(found, expected)
    assert recorder.replays == 1  # the one that was compared
    assert "a CUDA graph can't be used (its states differ: cosine" in caplog.text


def test_where_recording_fails_it_is_said_once(nano, batches, monkeypatch, caplog):
    tried = []

    def refuse(function, batch):
        tried.append(batch.shape)
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    monkeypatch.setattr(nano, "graphs", CudaGraphs(refuse))
    with caplog.at_level(logging.WARNING, "tune"):
        for batch in batches:
            nano.embed(batch, [4])
            nano.embed(batch, [3])
    assert len(tried) == 1
    (record,) = caplog.records
    assert record.getMessage() == (
        "a CUDA graph can't be used (operation not permitted when stream is capturing): encoding "
        "goes on without"
    )


def test_only_the_graphs_used_last_are_kept(nano, batches, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(nano, "graphs", CudaGraphs(recorder))
    for length in range(KEPT + 1):
        for batch in batches[:RECORD_AT]:
            nano.embed(batch[:, : 6000 + 240 * length], [4])
    replays = recorder.replays
    nano.embed(batches[0][:, :6000], [4])  # the oldest is gone
    assert recorder.replays == replays
    nano.embed(batches[0][:, :6240], [4])
    assert recorder.replays == replays + 1
    nano.graphs.clear()
    nano.embed(batches[0][:, :6240], [4])
    assert recorder.replays == replays + 1


def test_a_batch_that_was_begun_keeps_its_numbers_when_the_next_one_runs(
    nano, batches, monkeypatch
):
    expected = [nano.embed(batch, [4]) for batch in batches]
    monkeypatch.setattr(nano, "graphs", None)
    pending = [nano.begin(list(batch), [4]) for batch in batches]
    for one, states in zip(pending, expected, strict=True):
        np.testing.assert_array_equal(one.result(each=True), states)
        assert one.seconds > 0


def test_kept_rotary_positions_are_those_of_transformers(nano):
    module = nano.model.conformer.embed_positions
    for n in (5, 250, 5, 7):
        x = torch.zeros(1, n, 192)
        assert torch.equal(nano._positions(nano.model.conformer, x), module(x))
    assert (7, torch.float32) in nano._rotary


@pytest.mark.gpu
def test_a_gpus_graph_gives_the_ordinary_passes_states(batches, caplog):
    muq = load_encoder("muq-nano", device="cuda", precision="fp16")
    graphs, muq.graphs = muq.graphs, None
    expected = [muq.embed(batch, [4]) for batch in batches]
    muq.graphs = graphs
    found = [muq.embed(batch, [4]) for batch in batches]
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert graphs._kept
    assert not caplog.records
