"""tune.store.batches: segments of several tracks in one batch, as on a GPU, here on a CPU."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone

from tune.encoders.base import DTYPES, Encoder
from tune.segments.rules import parse_rule
from tune.store import Extractor
from tune.store.batches import HELD_BATCHES, SharedBatches
from tune.system.memory import MOST_BATCH_SECONDS, batch_seconds_that_fit

RATE = 24_000
SECONDS = [2.5, 3.0, 1.0, 0.4, 2.5, 1.2, 4.0]


@pytest.fixture
def files(tmp_path):
    """Tracks of different lengths and pitches."""
    paths = [str(tmp_path / f"{i}.wav") for i in range(len(SECONDS))]
    for i, (path, seconds) in enumerate(zip(paths, SECONDS, strict=True)):
        soundfile.write(path, tone(seconds, 110 * (i + 1), seed=i), RATE)
    return paths


@pytest.fixture
def extractor(tmp_path):
    """Makes an extractor, by default one whose batches hold four seconds of several tracks."""

    def make(store="shared", share=True, seg="1", **settings):
        given = {"batch_seconds": 4.0, "layer": "all", "store": tmp_path / store} | settings
        rules = [parse_rule(seg, min_tail_s=0.2)]
        return Extractor("muq-nano", rules, _share_batches=share, **given)

    return make


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that encoders are given."""
    seen, begin = [], Encoder.begin

    def noted(self, audio, *what):
        seen.append((len(audio), len(audio[0]) / RATE))
        return begin(self, audio, *what)

    monkeypatch.setattr(Encoder, "begin", noted)
    return seen


def rows(extractor, paths):
    """The report, and each track's row."""
    (report,) = extractor.encode(paths)
    return report, {p: extractor.rows(p, [found])[0] for p, found in report.rows.items()}


def assert_close(found, expected):
    """Each token has the direction and the size that it has alone."""
    assert found.tokens.shape == expected.tokens.shape
    assert (found.spans, found.counts) == (expected.spans, expected.counts)
    a, b = found.tokens.astype(np.float64), expected.tokens.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    assert ((a * b).sum(-1) / norms[0] / norms[1]).min() > 0.99999
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_rows_are_those_of_the_tracks_alone(files, extractor, batches):
    _, alone = rows(extractor("alone", share=False), files)
    del batches[:]
    report, shared = rows(extractor(), files)
    assert set(shared) == set(alone) == set(files)
    for path in files:
        assert_close(shared[path], alone[path])
        assert shared[path].seconds > 0
    # 2 + 3 + 1 + 0 + 2 + 1 + 4 segments of a second, by fours; a tail has the length of its own.
    assert sorted(batches, reverse=True)[:4] == [(4, 1.0), (4, 1.0), (4, 1.0), (2, 0.5)]
    assert report.encoder_passes == 13 + 4
    assert report.encoded_tracks == len(files)
    assert report.audio_seconds == pytest.approx(sum(SECONDS))
    assert report.encode_seconds == pytest.approx(report.stored_seconds)
    again, _ = rows(extractor(), files)
    assert again.encoder_passes == 0


def test_frames_and_silence_stay_with_their_track(files, extractor, tmp_path):
    silent = str(tmp_path / "silent.wav")
    soundfile.write(silent, np.zeros(2 * RATE), RATE)
    paths = [*files[:3], silent, *files[3:]]
    _, alone = rows(extractor("alone", share=False, frame_rate=5), paths)
    report, shared = rows(extractor(frame_rate=5), paths)
    assert report.silent == [silent]
    for path in paths:
        assert_close(shared[path], alone[path])


def test_a_track_that_waits_for_its_batch_is_not_held_for_ever(files, extractor, tmp_path):
    """One length that comes once, and many tracks behind it."""
    paths = [str(tmp_path / f"many-{i:02d}.wav") for i in range(40)]
    for i, path in enumerate(paths):
        soundfile.write(path, tone(1.0 if i else 0.7, 100 + i, seed=i), RATE)
    held, add = [], SharedBatches.add

    def noted(self, track, samples, spans):
        add(self, track, samples, spans)
        held.append(sum(len(t.samples) for t in self._tracks) / RATE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedBatches, "add", noted)
        report, _ = rows(extractor(batch_seconds=3.0), paths)
    assert report.encoded_tracks == 40
    assert max(held) <= HELD_BATCHES * 3.0
    order = list(report.rows)
    assert order.index(paths[0]) < 20  # stored on the way, not at the end


def test_bad_files_cost_no_other_track(files, extractor, tmp_path):
    bad, short = tmp_path / "bad.wav", tmp_path / "short.wav"
    bad.write_bytes(b"no audio at all")
    soundfile.write(short, np.zeros(10), RATE)
    paths = [files[0], str(bad), *files[1:4], str(short), *files[4:]]
    _, alone = rows(extractor("alone", share=False), files)
    report, shared = rows(extractor(), paths)
    assert {item["path"] for item in report.skipped} == {str(bad), str(short)}
    for path in files:
        assert_close(shared[path], alone[path])
    strict = extractor("strict")
    with pytest.raises(ValueError, match=r"bad\.wav: "):
        strict.encode(paths, strict=True)
    assert strict.collection.read(*report.rows[files[0]])  # what came before it is stored


def test_states_that_are_not_finite_cost_no_other_track_its_row(files, extractor, monkeypatch):
    _, alone = rows(extractor("alone", share=False), files)
    broken = extractor()
    states, marked = broken.encoder.states, soundfile.read(files[1], dtype="float32")[0][:RATE]

    def spoilt(audio, layers, dtype):
        mine = [np.array_equal(x, marked[: len(x)]) for x in audio.numpy()]
        for state in states(audio, layers, dtype):
            state[torch.tensor(mine)] = float("nan")
            yield state

    monkeypatch.setattr(broken.encoder, "states", spoilt)
    with pytest.raises(ValueError, match=r"1\.wav: muq-nano gives NaN"):
        broken.encode(files)
    (report,) = extractor("shared").encode([p for p in files if p != files[1]])
    assert report.encoded_tracks < len(files) - 1  # its neighbours' rows were stored
    for path, found in report.rows.items():
        assert_close(broken.collection.read(*found), alone[path])


def test_only_the_segments_that_overflow_are_computed_again(files, extractor, monkeypatch):
    half = extractor(precision="bf16")
    _, plain = rows(extractor("plain", precision="bf16"), files)
    pooled, redone = half.encoder._pooled, []

    def overflowing(batch, layers, frame_rate, dtype):
        out = pooled(batch, layers, frame_rate, dtype)
        if dtype == DTYPES["bf16"] and len(batch) > 1:
            out[1] = float("inf")
        elif dtype == torch.float32:
            redone.append(len(batch))
        return out

    monkeypatch.setattr(half.encoder, "_pooled", overflowing)
    report, found = rows(half, files)
    assert redone == [1] * report.redone
    assert report.redone > 0
    changed = [(found[p].tokens != plain[p].tokens).any(axis=(1, 2)).sum() for p in files]
    assert sum(changed) == report.redone


@pytest.mark.parametrize("when", ["begin", "result"])
def test_out_of_memory_halves_the_batch(files, extractor, batches, monkeypatch, caplog, when):
    _, alone = rows(extractor("alone", share=False), files)
    tight = extractor(batch_seconds=8.0)
    compute, tried = tight.encoder._pooled, []

    def small_memory(batch, *what):
        tried.append(len(batch))
        if when == "begin" and len(batch) > 3:
            raise torch.OutOfMemoryError("pretended")
        return compute(batch, *what)

    monkeypatch.setattr(tight.encoder, "_pooled", small_memory)
    if when == "result":
        from tune.encoders.base import PendingBatch

        result = PendingBatch.result

        def failing(self, **how):
            if len(self.states) > 3:
                raise RuntimeError("CUDA error: out of memory")
            return result(self, **how)

        monkeypatch.setattr(PendingBatch, "result", failing)
    report, shared = rows(tight, files)
    assert "going on with 4 segments a batch" in caplog.text
    assert "going on with 2 segments a batch" in caplog.text
    assert tried[:2] == [8, 4] if when == "begin" else tried[0] == 8
    assert max(tried[tried.index(2) :]) <= 4
    for path in files:
        assert_close(shared[path], alone[path])
    assert report.encoder_passes == 17


def test_a_segment_that_never_fits_is_a_clear_error(files, extractor, monkeypatch):
    tight = extractor()

    def no_memory(*what):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(tight.encoder, "_pooled", no_memory)
    monkeypatch.setattr(tight.encoder, "shrink", lambda: False)
    with pytest.raises(ValueError, match=r"a segment of 1\.0 s does not fit"):
        tight.encode(files)
    assert [tight.store.claim("0" * 64)]  # nothing stays claimed


def test_the_same_audio_under_two_names_and_one_lock(files, extractor, tmp_path, monkeypatch):
    """A claim that this process itself holds is waited for by finishing what holds it."""
    copy = tmp_path / "copy.wav"
    copy.write_bytes((tmp_path / "0.wav").read_bytes())
    some = extractor()
    claim, held = some.store.claim, []

    def one_lock(content, timeout_s=0.0):
        lock = claim("f" * 64, timeout_s=0.0)
        held.append(lock is not None)
        return lock

    monkeypatch.setattr(some.store, "claim", one_lock)
    report, found = rows(some, [*files, str(copy)])
    assert report.encoded_tracks == len(files)
    assert set(found) == {*files, str(copy)}
    np.testing.assert_array_equal(found[str(copy)].tokens, found[files[0]].tokens)
    assert held.count(True) == len(files) + 1
    assert False in held


def test_a_row_that_cannot_be_written_is_an_error_and_the_others_are_kept(
    files, extractor, monkeypatch
):
    for share in (True, False):
        full = extractor(f"full-{share}", share=share)
        write, n = full.collection.write, []

        def no_space(*row, write=write, n=n):
            n.append(row)
            if len(n) == 3:
                raise OSError(28, "No space left on device")
            write(*row)

        monkeypatch.setattr(full.collection, "write", no_space)
        with pytest.raises(OSError, match="No space left"):
            full.encode(files)
        monkeypatch.undo()
        report, _ = rows(extractor(f"full-{share}", share=share), files)
        assert report.encoded_tracks <= len(files) - 2


def test_batches_grow_with_the_memory_that_is_free():
    per_second = 20e6
    sizes = [batch_seconds_that_fit(per_second, n * 10**9, 60.0) for n in (1, 4, 8, 80)]
    assert sizes == [60.0, 100.0, 200.0, MOST_BATCH_SECONDS]


def test_on_a_cpu_batches_stay_within_a_track(files, extractor, batches):
    rows(extractor(share=None), files)
    together = list(batches)
    del batches[:]
    for path in files:
        rows(extractor("one by one", share=None), [path])
    assert batches == together
