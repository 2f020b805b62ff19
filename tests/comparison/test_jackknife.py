"""Scores with their variance by tracks and seeds: by hand, against SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from tune.comparison import jackknife
from tune.comparison.jackknife import Estimate, average, estimates, leave_out, paired_difference


def guesses(rng, labels, right, n_seeds):
    """Predictions of classes of which about a share is right."""
    wrong = (labels + 1) % 3
    return np.where(rng.random((n_seeds, len(labels))) < right, labels, wrong)


def test_one_seed_of_accuracy_is_scipys_paired_t_interval(rng, monkeypatch):
    monkeypatch.setattr(jackknife, "SHARES", ())  # no tracks added
    labels = rng.integers(0, 3, 60)
    a, b = (guesses(rng, labels, right, 1) for right in (0.5, 0.7))
    found = paired_difference("classes", labels, a, b)["accuracy"]
    per_track = (b == labels)[0] * 1.0 - (a == labels)[0]
    test = stats.ttest_1samp(per_track, 0)
    assert found.value == pytest.approx(per_track.mean())
    assert found.interval() == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_above(0) == pytest.approx(
        stats.ttest_1samp(per_track, 0, alternative="greater")[1]
    )
    assert found.p_above(0.1) + found.p_below(0.1) == pytest.approx(1)


def test_one_track_is_added_in_favour_of_either_side_of_shares_only(rng):
    labels = rng.integers(0, 3, 60)
    right = estimates("classes", labels, labels[None])  # without an error nothing varies
    assert right["accuracy"].standard_error == pytest.approx(np.sqrt(2) / 60)
    values = rng.normal(size=(60, 1))
    assert estimates("numbers", values, values[None], ["x"])["r2"].standard_error == 0


def test_leaving_out_is_scoring_without(rng):
    labels = rng.random((30, 3)) < 0.3
    scores = rng.random((2, 30, 3))
    groups = np.repeat(np.arange(10), 3)
    found = leave_out("tags", labels, scores, groups=groups)
    assert found["roc_auc"].shape == (11, 2)
    kept = groups != 4
    for name, metric in (
        ("roc_auc", roc_auc_score),
        ("average_precision", average_precision_score),
    ):
        expected = metric(labels[kept], scores[1][kept], average="macro")
        assert found[name][5, 1] == pytest.approx(expected)
    values, guess = rng.normal(size=(2, 30, 2))
    without = leave_out("numbers", values, guess[None], ["a", "b"])["r2"]
    assert without[1 + 7, 0] == pytest.approx(
        r2_score(np.delete(values, 7, 0), np.delete(guess, 7, 0))
    )


def test_copies_of_a_track_in_one_group_count_once(rng):
    values = rng.normal(size=(40, 1))
    a, b = values + rng.normal(0, 0.5, (2, 1, 40, 1))
    once = paired_difference("numbers", values, a, b, ["x"])["r2"]
    copies = [np.repeat(x, 3, axis=-2) for x in (values, a, b)]
    names = np.repeat([f"song {i:02d}" for i in range(40)], 3)
    thrice = paired_difference("numbers", *copies, ["x"], groups=names)["r2"]
    assert thrice.standard_error == pytest.approx(once.standard_error)
    assert (thrice.n_tracks, thrice.n_groups) == (120, 40)
    alone = paired_difference("numbers", *copies, ["x"])["r2"]
    assert alone.standard_error < 0.7 * once.standard_error


def test_variances_are_right_on_average(rng):
    """Of the mean over five seeds, on tracks and seeds drawn again and again."""
    values, tracks, seeds = [], [], []
    for _ in range(400):
        latent = rng.normal(0, 1.5, 80) + rng.normal(0, 0.4, (5, 1)) + rng.normal(size=(5, 80))
        found = estimates("classes", np.zeros(80, int), (latent < 0).astype(int))["accuracy"]
        values.append(found.value)
        tracks.append(found.track_variance - 2 / 80**2)
        seeds.append(sum(variance for variance, _ in found.seed_terms))
    assert np.mean(tracks) + np.mean(seeds) == pytest.approx(np.var(values), rel=0.2)
    assert np.mean(seeds) / np.mean(tracks) > 0.3  # neither of the two is the whole
    assert np.mean(seeds) / np.mean(tracks) < 3


def test_a_single_seed_hides_the_variance_of_seeds(rng):
    labels = rng.integers(0, 3, 50)
    a, b = guesses(rng, labels, 0.6, 1), guesses(rng, labels, 0.6, 5)
    found = paired_difference("classes", labels, a, b)["accuracy"]
    assert found.n_seeds == 1
    assert len(estimates("classes", labels, a)["accuracy"].seed_terms) == 0


def test_differences_of_averages_are_averages_of_differences(rng):
    labels = rng.integers(0, 3, 50)
    one, two, three, four = (
        estimates("classes", labels, guesses(rng, labels, 0.6, 4))["accuracy"] for _ in range(4)
    )
    left = average([one, two]) - average([three, four])
    right = average([one - three, two - four])
    assert left.value == pytest.approx(right.value)
    assert left.contributions == pytest.approx(right.contributions)
    assert left.standard_error == pytest.approx(right.standard_error)


def test_blocks_of_many_tracks_give_about_the_same(rng, monkeypatch):
    labels = rng.integers(0, 3, 900)
    a, b = guesses(rng, labels, 0.6, 3), guesses(rng, labels, 0.6, 3)
    blocks = paired_difference("classes", labels, a, b)["accuracy"]
    assert len(blocks.contributions) == jackknife.MAX_GROUPS
    monkeypatch.setattr(jackknife, "MAX_GROUPS", 900)
    tracks = paired_difference("classes", labels, a, b)["accuracy"]
    assert len(tracks.contributions) == 900
    assert blocks.value == tracks.value
    assert blocks.standard_error == pytest.approx(tracks.standard_error, rel=0.15)


def test_groups_of_another_length_are_refused(rng):
    labels = rng.integers(0, 3, 10)
    with pytest.raises(ValueError, match="groups of 9 tracks, but there are labels of 10"):
        estimates("classes", labels, labels[None], groups=range(9))


def test_a_single_group_has_no_interval(rng):
    labels = rng.integers(0, 3, 10)
    found = estimates("classes", labels, guesses(rng, labels, 0.5, 2), groups=["song"] * 10)
    assert np.isnan(found["accuracy"].interval()).all()


def test_seed_terms_that_cancel_leave_an_interval():
    """Satterthwaite's formula alone gives 0.0004 degrees of freedom here: an endless interval."""
    terms = ((0.0016, 19), (-0.0016, 19), (0.00001, 19))
    found = Estimate(0.0, np.zeros(50), terms, 50, 50, 20, share=False)
    low, high = found.interval()
    assert found.degrees_of_freedom == 1
    assert high == -low == pytest.approx(12.706 * found.standard_error, rel=1e-4)
