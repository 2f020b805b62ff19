"""Lines under a run's table: what its interval leaves out, or resamples."""

import pytest

from tune.runs.result import describe_scoring

RESULT = {
    "seeds": [1, 2],
    "probe": "mlp",
    "groups": None,
    "folds": None,
    "n_test_scored": 48,
    "n_tracks": {"test": 48},
    "tags_left_out": [],
    "seen_by_aggregator": None,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": [1]}, "one: the probe's noise is in no interval; give several --seeds"),
        (
            {"groups": {"column": "song", "n_test": 12}},
            "12 in the test split, by song: the interval resamples groups",
        ),
        (
            {"seen_by_aggregator": {"n_test": 48, "tracks": {"a.wav": "the same file"}}},
            "the aggregator was trained on 1 test tracks: no fair score",
        ),
    ],
)
def test_what_an_interval_leaves_out_is_said(changes, line):
    assert describe_scoring(RESULT) == []
    assert [text for _, text in describe_scoring(RESULT | changes)] == [line]


def test_a_probe_without_chance_needs_one_seed():
    assert describe_scoring(RESULT | {"seeds": [1], "probe": "ridge"}) == []
