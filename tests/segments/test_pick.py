"""Which of a track's segments are used: by hand, and the store's rows of them."""

import pickle

import numpy as np
import pytest
from conftest import tone
from soundfile import write

from tune.segments.pick import Pick, PickedSpans, pick_row, read_pick
from tune.segments.rules import parse_rule
from tune.store import Extractor
from tune.store.collection import Row

SPANS = [(i * 10, i * 10 + 10) for i in range(6)] + [(60, 64)]  # six segments and a tail


def chosen(seconds, how):
    return [start // 10 for start, _ in Pick(seconds, how).choose(SPANS, 1)]


def test_each_pick_by_hand():
    assert [chosen(30, how) for how in ("first", "middle", "spread")] == [
        [0, 1, 2],
        [2, 3, 4],
        [1, 3, 5],
    ]
    assert chosen(10, "spread") == [3]
    assert chosen(39, "first") == [0, 1, 2]  # whole segments only
    assert chosen(4, "first") == [0]  # at least one
    assert chosen(30, "central") == list(range(7))  # which needs all
    assert chosen(70, "spread") == list(range(7))
    assert not isinstance(Pick(70).choose(SPANS, 1), PickedSpans)  # the row of all is used


def test_pieces_of_other_lengths_are_counted_by_their_mean():
    assert len(Pick(20).choose([(0, 5), (5, 25), (25, 30)], 1, even=False)) == 2


@pytest.mark.parametrize("n", range(1, 40))
def test_spread_takes_each_segment_once_and_keeps_away_from_the_ends(n):
    spans = [(i, i + 1) for i in range(n)]
    for k in range(1, n + 1):
        at = [start for start, _ in Pick(k, "spread").choose(spans, 1)]
        assert len(set(at)) == k
        assert at == sorted(at)
        assert abs(at[0] - (n - 1 - at[-1])) <= 1  # as far from the one end as from the other


def test_central_segments_are_nearest_to_the_mean():
    angles = np.array([0.0, 0.1, 0.2, 1.5, -1.2])
    tokens = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None].astype(np.float32)
    row = Row(tokens, [(i, i + 1) for i in range(5)], [1] * 5, False, 1.0)
    mean = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
    nearest = sorted(np.argsort(abs(angles - mean))[:2].tolist())
    spans = Pick(2, "central").choose_central(row, 1)
    assert [start for start, _ in spans] == nearest
    assert len(spans.whole) == 5
    frames = Row(np.repeat(tokens, 3, 0), row.spans, [3] * 5, False, 1.0)
    assert Pick(2, "central").choose_central(frames, 1) == spans
    part = pick_row(frames, spans)
    np.testing.assert_array_equal(part.tokens[::3], tokens[nearest])
    assert (part.counts, part.seconds) == ([3, 3], 0.4)


def test_picked_spans_go_from_process_to_process():
    spans = pickle.loads(pickle.dumps(Pick(20).choose(SPANS, 1)))
    assert (spans, spans.whole) == (SPANS[:2], SPANS)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: read_pick(None, "first"), "give --use_seconds as well"),
        (lambda: Pick(0), "needs seconds above 0"),
        (lambda: Pick(9, "last"), "--pick must be first, middle, spread, central"),
        (lambda: parse_rule("full", pick=Pick(9)), "the full track is one"),
    ],
)
def test_what_does_not_fit_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize("stored_before", [False, True])
def test_only_picked_segments_are_encoded_and_stored_ones_are_free(tmp_path, stored_before):
    path = str(tmp_path / "a.wav")
    sweep = np.concatenate([tone(1.0, hz) for hz in (220, 330, 440, 550, 660)])
    write(path, sweep, 24_000)

    def extractor(pick):
        rules = [parse_rule("1", pick=pick)]
        return Extractor("mel", rules, store=tmp_path / "store")

    def rows(pick):
        made = extractor(pick)
        (report,) = made.encode([path])
        return made.rows(path, [report.rows[path]])[0], report

    if stored_before:
        rows(None)
    found = {how: rows(Pick(2, how)) for how in ("first", "middle", "spread")}
    passes = [report.encoder_passes for _, report in found.values()]
    assert passes == ([0, 0, 0] if stored_before else [2, 2, 2])
    whole, report = rows(None)
    assert report.encoder_passes == (0 if stored_before else 5)
    for how, at in {"first": [0, 1], "middle": [1, 2], "spread": [1, 3]}.items():
        row, report = found[how]
        np.testing.assert_allclose(row.tokens, whole.tokens[at], rtol=1e-5, atol=1e-6)
        if stored_before:
            assert report.stored_seconds == pytest.approx(whole.seconds * 2 / 5)
    row, report = rows(Pick(2, "central"))
    assert report.encoder_passes == 0
    assert report.stored_seconds == whole.seconds  # all are needed to find them
    assert len(row.tokens) == 2


def test_pieces_by_structure_are_picked_too(tmp_path):
    path = str(tmp_path / "a.wav")
    write(path, np.concatenate([tone(8.0, hz) for hz in (220, 880, 330)]), 24_000)
    limits = {"min_seg_s": 2.0, "max_seg_s": 8.0}
    whole = Extractor("mel", [parse_rule("structure", **limits)], store=tmp_path / "a")
    (every,) = whole.encode([path])
    spans = every.rows[path][1]
    assert len(spans) > 2
    pick = Pick(8, "middle")
    part = Extractor("mel", [parse_rule("structure", **limits, pick=pick)], store=tmp_path / "b")
    (report,) = part.encode([path])
    assert report.rows[path][1] == pick.choose(spans, 24_000, even=False)
    assert 0 < report.encoder_passes < every.encoder_passes
    assert [r.encoder_passes for r in part.encode([path])] == [0]
