"""Verdicts: words by hand, corrections, what would be needed, and how often they err."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import binom

from tune.comparison.jackknife import Estimate, estimates
from tune.comparison.verdicts import holm, needed, retained_margin, smallest_detectable, verdicts


def difference(value, half, n=400, n_seeds=5, seed_variance=0.0):
    """A difference whose 95 % interval reaches about `half` to either side."""
    deviation = half / 1.966 * np.sqrt(n - 1)
    contributions = np.tile([deviation, -deviation], n // 2)
    return Estimate(value, contributions, ((seed_variance, 4.0),), n, n, n_seeds, False)


@pytest.mark.parametrize(
    ("value", "half", "word"),
    [
        (0.050, 0.04, "better"),
        (0.010, 0.005, "better"),  # by less than the margin, but better
        (0.000, 0.015, "equivalent"),
        (-0.010, 0.005, "equivalent"),  # lower, but by less than the margin
        (0.010, 0.020, "as good"),
        (-0.050, 0.04, "worse"),
        (-0.022, 0.01, "worse"),
        (0.000, 0.03, "can't tell"),
        (-0.015, 0.02, "can't tell"),
    ],
)
def test_word(value, half, word):
    (found,) = verdicts([difference(value, half)], 0.02)
    assert found.word == word
    assert found.as_good == (word in ("better", "equivalent", "as good"))
    assert (found.low, found.high) == pytest.approx((value - half, value + half), abs=2e-4)


def test_a_family_needs_more_evidence_and_better_is_also_as_good():
    alone = verdicts([difference(0.05, 0.045)])[0]
    family = verdicts([difference(0.05, 0.045)] + [difference(0.0, 0.1)] * 9)
    assert (alone.word, family[0].word) == ("better", "as good")
    assert family[0].alone == "better"
    assert "), alone it would be better" in str(family[0])
    assert "alone" not in str(alone)
    assert family[0].p["better"] == pytest.approx(10 * alone.p["better"])
    assert all(v.p["better"] >= v.p["as good"] for v in family)
    assert all(v.p["equivalent"] >= v.p["as good"] for v in family)
    none = verdicts([difference(0.05, 0.045)] + [difference(0.0, 0.1)] * 9, correction="none")
    assert none[0].word == "better"
    assert family[0].detectable > none[0].detectable


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1])


def test_each_comparison_may_have_its_own_margin():
    words = [v.word for v in verdicts([difference(0.0, 0.03)] * 2, [0.02, 0.05])]
    assert words == ["can't tell", "equivalent"]


def test_what_is_needed_would_do():
    found = difference(0.0, 0.06, seed_variance=1e-4)
    want = needed(found, 0.02)
    assert want.seeds > found.n_seeds  # the seeds' variance alone is too much
    more = replace(
        found,
        contributions=np.tile(found.contributions, 100)[: want.tracks],
        n_tracks=want.tracks,
        n_groups=want.tracks,
        seed_terms=((1e-4 * found.n_seeds / want.seeds, 1e6),),
    )
    assert smallest_detectable(more) == pytest.approx(0.02, rel=0.03)
    assert want.tracks > found.n_tracks


def test_what_is_shown_is_shown_that_often(rng):
    """A true difference of `smallest_detectable` is called better in four of five."""
    found = difference(0.0, 0.06, n=100)
    size, error = smallest_detectable(found), found.standard_error
    values = size + error * rng.standard_normal(600)
    words = [verdicts([replace(found, value=float(v))])[0].word for v in values]
    assert np.mean([w == "better" for w in words]) == pytest.approx(0.8, abs=0.06)


def test_text_says_what_is_missing():
    text = str(verdicts([difference(-0.01, 0.06)])[0])
    assert text.startswith(
        "can't tell (-0.010, -0.070 to +0.050): 400 tracks show differences from"
    )
    assert "a margin of 0.02 needs about 7," in text
    one = str(verdicts([difference(0.1, 0.06, n_seeds=1)])[0])
    assert one.startswith("better (+0.100, ")
    assert one.endswith("; one seed: probe noise is not in it")


def test_where_nothing_varies_nothing_can_be_told():
    labels = np.array([[0.0], [1], [2], [3]])
    exact = estimates("numbers", labels, labels[None], ["x"])["r2"]
    found = verdicts([exact - exact])[0]
    assert (found.word, found.needed) == ("can't tell", None)


def test_retained_margin():
    assert retained_margin(0.85, 0.10, 0.98) == pytest.approx(0.015)
    with pytest.raises(ValueError, match=r"0\.100 is not above chance, 0\.250"):
        retained_margin(0.1, 0.25, 0.98)
    with pytest.raises(ValueError, match="between 0 and 1, got 98"):
        retained_margin(0.85, 0.1, 98)


def test_refused():
    with pytest.raises(ValueError, match="a margin must be above 0, got 0"):
        verdicts([difference(0, 1)], 0.0)
    with pytest.raises(ValueError, match="or \"none\", got 'bonferroni'"):
        verdicts([difference(0, 1)], correction="bonferroni")


@pytest.fixture
def calibration(monkeypatch):
    """benchmarks/verdict_calibration.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "verdict_calibration", raising=False)
    import verdict_calibration

    return verdict_calibration


def at_most_the_level(share, reps, level=0.025):
    """Whether a simulated share of errors may be that of the level: one chance in a thousand."""
    return share * reps <= binom.ppf(0.999, reps, level)


@pytest.mark.parametrize(
    ("kind", "metric", "n"), [("classes", "accuracy", 46), ("numbers", "r2", 46)]
)
def test_verdicts_err_as_rarely_as_they_say(calibration, kind, metric, n):
    (row,) = calibration.four_strategies(kind, metric, n, (5,), reps=300)
    for error in ("false_better", "false_worse", "false_as_good"):
        assert at_most_the_level(row[error], 300), (error, row)
    assert row["shown_better"] > max(row["false_better"], 0.05)  # it is not mute


def test_verdicts_on_rare_tags_err_as_rarely_as_they_say(calibration):
    reps, rng = 80, np.random.default_rng(3)
    words = {"roc_auc": [], "average_precision": []}
    for _ in range(reps):
        labels, (a, b) = calibration.draw_tags(rng, (0.0, 0.0), 46, 5)
        a, b = (estimates("tags", labels, p) for p in (a, b))
        for name, found in words.items():
            found.append(verdicts([b[name] - a[name]])[0].word)
    for found in words.values():
        for word in ("better", "worse"):
            assert at_most_the_level(np.mean([w == word for w in found]), reps)


def test_groups_are_needed_where_tracks_belong_together(calibration):
    rows = [
        calibration.four_strategies("classes", "accuracy", 72, (5,), 200, 24, as_groups)[0]
        for as_groups in (True, False)
    ]
    errors = [row["false_better"] + row["false_worse"] for row in rows]
    assert at_most_the_level(errors[0], 200, level=0.05)
    assert not at_most_the_level(errors[1], 200, level=0.05)


def test_one_seed_errs_more_often_than_it_says_and_says_so(calibration):
    draw = partial(calibration.draw_numbers, n=290, s=1)
    rng, wrong = np.random.default_rng(4), []
    for _ in range(150):
        labels, predictions = draw(rng, (0.0, 0.0))
        a, b = (estimates("numbers", labels, p, ["a", "b"])["r2"] for p in predictions)
        (found,) = verdicts([b - a])
        assert "one seed" in str(found)
        wrong.append(found.word in ("better", "worse"))
    assert not at_most_the_level(np.mean(wrong), 150, level=0.05)
