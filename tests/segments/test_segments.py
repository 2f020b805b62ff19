"""Where tracks are cut: numbers of segments, tails, hops, and rules from the command line."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.segments.rules import SegmentRule, describe_counts, is_degenerate, parse_rule

RATE = 10  # samples a second: spans can be read off by eye


def cut(seconds: float, seg: float | None, **kwargs) -> list[tuple[float, float]]:
    """Spans of a track in seconds."""
    spans = SegmentRule(seg, **kwargs).spans(round(seconds * RATE), RATE)
    return [(start / RATE, end / RATE) for start, end in spans]


# Without a hop


def test_track_of_whole_segments_is_cut_without_a_rest():
    assert cut(30, 10) == [(0, 10), (10, 20), (20, 30)]


def test_tail_is_kept_at_its_own_length():
    assert cut(24.5, 10) == [(0, 10), (10, 20), (20, 24.5)]


@pytest.mark.parametrize(
    ("seconds", "seg", "n"),
    [(45, 10, 5), (45, 30, 2), (45, 60, 1), (30.5, 10, 3), (30.0, 30, 1), (240, 2.5, 96)],
)
def test_number_of_segments_is_the_ceiling_of_duration_over_length(seconds, seg, n):
    spans = cut(seconds, seg)
    assert len(spans) == n
    dropped = seconds - spans[-1][1]
    assert 0 <= dropped < 1
    assert math.ceil((seconds - dropped) / seg) == n


def test_tail_shorter_than_min_is_dropped():
    assert cut(20.9, 10) == [(0, 10), (10, 20)]


def test_tail_as_long_as_min_is_kept():
    assert cut(21, 10) == [(0, 10), (10, 20), (20, 21)]


def test_min_tail_of_zero_keeps_a_tail_of_one_sample():
    assert cut(20.1, 10, min_tail_s=0) == [(0, 10), (10, 20), (20, 20.1)]


def test_padded_tail_is_a_whole_segment_or_dropped():
    assert cut(28, 10, min_tail_s=8, pad=True) == [(0, 10), (10, 20), (20, 30)]
    assert cut(27.9, 10, min_tail_s=8, pad=True) == [(0, 10), (10, 20)]
    assert cut(20, 10, pad=True) == cut(20, 10)


def test_padding_lengthens_a_track_that_is_shorter_than_a_segment():
    assert cut(3, 10, min_tail_s=8, pad=True) == [(0, 10)]
    assert not is_degenerate(SegmentRule(10, pad=True), [1, 1])
    assert is_degenerate(SegmentRule(10), [1, 1])


@pytest.mark.parametrize("seg", ["full", "structure"])
def test_padding_needs_a_segment_length(seg):
    with pytest.raises(ValueError, match="padding needs a segment length"):
        parse_rule(seg, pad=True)


def test_min_tail_beyond_the_length_drops_tails_but_no_whole_segment():
    assert cut(25, 10, min_tail_s=60) == [(0, 10), (10, 20)]
    assert cut(30, 10, min_tail_s=60) == [(0, 10), (10, 20), (20, 30)]


def test_track_shorter_than_a_segment_is_one_segment():
    assert cut(7.3, 10) == [(0, 7.3)]


def test_only_segment_is_kept_however_short():
    assert cut(0.1, 10) == [(0, 0.1)]
    assert cut(0.1, 10, min_tail_s=5) == [(0, 0.1)]


def test_segment_of_a_fractional_number_of_samples_is_rounded():
    assert SegmentRule(0.26).spans(9, 10) == [(0, 3), (3, 6), (6, 9)]


def test_segment_shorter_than_a_sample_is_one_sample():
    assert SegmentRule(1e-9, min_tail_s=0).spans(3, 10) == [(0, 1), (1, 2), (2, 3)]


# The full track


@pytest.mark.parametrize("seconds", [0.1, 10, 3600])
def test_full_is_one_segment_of_the_whole_track(seconds):
    assert cut(seconds, None) == [(0, seconds)]


@pytest.mark.parametrize(
    "rule", [SegmentRule(None), SegmentRule(10), SegmentRule(10, 3), SegmentRule(0.1, 50)]
)
def test_track_of_one_sample_is_one_segment(rule):
    assert rule.spans(1, 24_000) == [(0, 1)]


@pytest.mark.parametrize("rule", [SegmentRule(None), SegmentRule(10)])
@pytest.mark.parametrize("n_samples", [0, -1])
def test_track_without_samples_raises(rule, n_samples):
    with pytest.raises(ValueError, match=f"at least 1 sample, got {n_samples}"):
        rule.spans(n_samples, 24_000)


# Hops


def test_shorter_hop_overlaps_until_the_end_is_reached():
    assert cut(20, 10, hop_s=5) == [(0, 10), (5, 15), (10, 20)]
    assert cut(21, 10, hop_s=5) == [(0, 10), (5, 15), (10, 20), (15, 21)]


def test_hop_equal_to_the_length_changes_nothing():
    assert cut(34, 10, hop_s=10) == cut(34, 10)


def test_longer_hop_samples_the_track():
    assert cut(50, 10, hop_s=20) == [(0, 10), (20, 30), (40, 50)]
    assert cut(43, 10, hop_s=20) == [(0, 10), (20, 30), (40, 43)]


def test_longer_hop_may_end_in_the_gap_before_the_next_start():
    assert cut(35, 10, hop_s=20) == [(0, 10), (20, 30)]
    assert cut(40, 10, hop_s=20) == [(0, 10), (20, 30)]
    assert cut(40, 10, hop_s=20, min_tail_s=0) == [(0, 10), (20, 30)]


def test_tail_after_a_longer_hop_is_dropped_when_too_short():
    assert cut(40.5, 10, hop_s=20) == [(0, 10), (20, 30)]


def test_hop_beyond_the_track_leaves_the_first_segment():
    assert cut(30, 10, hop_s=300) == [(0, 10)]


# Properties

SECONDS = st.floats(1e-3, 400)
steady = settings(derandomize=True, database=None, deadline=None)


@steady
@given(
    st.integers(1, 5000), SECONDS, st.none() | SECONDS, st.floats(0, 500), st.sampled_from([1, 10])
)
def test_spans_lie_in_the_track_in_order_none_empty_none_too_long(n, seg, hop, min_tail, rate):
    spans = SegmentRule(seg, hop, min_tail).spans(n, rate)
    length = max(1, round(seg * rate))
    step = length if hop is None else max(1, round(hop * rate))
    assert spans
    assert [start for start, _ in spans] == [i * step for i in range(len(spans))]
    assert all(0 <= start < end <= n and end - start <= length for start, end in spans)
    assert all(end - start == length for start, end in spans[:-1])


@steady
@given(st.integers(1, 5000), SECONDS, st.floats(0, 500), st.sampled_from([1, 10]))
def test_segments_side_by_side_cover_the_track_up_to_the_shortest_tail(n, seg, min_tail, rate):
    spans = SegmentRule(seg, None, min_tail).spans(n, rate)
    length = max(1, round(seg * rate))
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    missing = n - spans[-1][1]
    assert missing < max(1, min(length, min_tail * rate))
    assert len(spans) == math.ceil((n - missing) / length)


@steady
@given(st.integers(1, 5000), SECONDS, SECONDS)
def test_overlapping_segments_cover_the_track_when_every_tail_is_kept(n, seg, hop):
    spans = SegmentRule(seg, min(seg, hop), 0).spans(n, 10)
    assert spans[0][0] == 0
    assert spans[-1][1] == n
    assert all(b[0] <= a[1] for a, b in pairwise(spans))
    assert all(end < n for _, end in spans[:-1])  # no segment that lies inside the one before


# Rules


def test_rules_are_read_from_the_command_line():
    assert parse_rule("10") == SegmentRule(10.0, None, 1.0)
    assert parse_rule("2.5", 1.25, 0.5) == SegmentRule(2.5, 1.25, 0.5)
    assert parse_rule("full") == SegmentRule(None)


@pytest.mark.parametrize("name", ["10", "30", "60", "2.5", "full"])
def test_name_is_what_was_written(name):
    assert parse_rule(name).name == name


@pytest.mark.parametrize("seg", ["0", "-5", "nan", "inf", "-inf"])
def test_length_out_of_range_raises(seg):
    with pytest.raises(ValueError, match=rf"segment length .* above 0, got {seg}$"):
        parse_rule(seg)


@pytest.mark.parametrize("seg", ["abc", "", "10s", "Full", "1,5"])
def test_length_that_is_no_number_raises(seg):
    with pytest.raises(ValueError, match=f"of seconds, 'full' or 'structure', got '{seg}'"):
        parse_rule(seg)


@pytest.mark.parametrize("hop", [0.0, -1.0, math.nan, math.inf])
def test_hop_out_of_range_raises(hop):
    with pytest.raises(ValueError, match="the hop must be a number of seconds above 0"):
        parse_rule("10", hop)


@pytest.mark.parametrize("min_tail", [-0.1, math.nan, math.inf])
def test_shortest_tail_out_of_range_raises(min_tail):
    with pytest.raises(ValueError, match="the shortest tail must be 0 s or more"):
        parse_rule("10", None, min_tail)


def test_hop_of_the_full_track_raises():
    with pytest.raises(ValueError, match="a hop needs a segment length"):
        parse_rule("full", 5.0)


# Summaries


def test_counts_are_summarised_by_min_median_max():
    assert describe_counts([5, 1, 2, 9]) == {"min": 1, "median": 3.5, "max": 9}


def test_rule_that_cuts_nothing_is_degenerate():
    assert is_degenerate(SegmentRule(60), [1, 1, 1])
    assert not is_degenerate(SegmentRule(60), [1, 2, 1])
    assert not is_degenerate(SegmentRule(None), [1, 1, 1])


def test_a_hop_that_samples_the_track_is_not_degenerate():
    assert is_degenerate(SegmentRule(10.0, hop_s=5.0), [1, 1])
    assert not is_degenerate(SegmentRule(10.0, hop_s=60.0), [1, 1])
