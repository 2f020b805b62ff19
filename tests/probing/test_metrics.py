"""Metrics against values by hand and scikit-learn; intervals against scikit-learn and SciPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, r2_score

from tune.probing.intervals import bootstrap, bootstrap_curves, main_score, score
from tune.tasks.label_metrics import R2, Accuracy, MacroF1

MOODS = ["arousal", "valence"]


@pytest.fixture
def classes(rng):
    """Labels (60,) of four classes and predictions of three seeds (3, 60), half of them right."""
    labels = rng.integers(0, 4, 60)
    wrong = rng.random((3, 60)) < 0.5
    return labels, np.where(wrong, rng.integers(0, 4, (3, 60)), labels)


@pytest.fixture
def numbers(rng):
    """Labels (60, 2) of two targets, and the predictions of three seeds (3, 60, 2)."""
    labels = rng.normal([0.3, -2], [0.5, 3], (60, 2))
    return labels, labels + rng.normal(0, [0.3, 2], (3, 60, 2))


def compute(metric, labels, predictions, **kwargs) -> dict:
    """Run one of our metrics over everything at once."""
    metric = metric(keep_in_memory=True)
    metric.add_batch(predictions=predictions, references=labels)
    return metric.compute(**kwargs)


def draws(n: int, n_resamples: int, seed: int = 0) -> np.ndarray:
    """How often each of n tracks is in each resample: (n_resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)


def percentiles(values) -> tuple[float, float]:
    """The 95 % percentile interval of one value a resample."""
    return tuple(np.percentile(values, [2.5, 97.5]))


# Point values


def test_accuracy_and_macro_f1_by_hand():
    got = score("classes", np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), [])
    # Class 0: precision 1, recall 1/2; class 1: 1/2, 1/2; class 2 was only guessed, no part of it.
    assert got == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 2)}


def test_r2_by_hand():
    labels = np.array([[1.0, 0], [2, 0], [3, 0], [4, 4]])
    guesses = np.array([[1.0, 1], [2, 1], [3, 1], [6, 1]])
    # Target a: 1 - 4/5; target b is guessed by its mean.
    got = score("numbers", labels, guesses, ["a", "b"])
    assert got == pytest.approx({"r2": 0.1, "r2_a": 0.2, "r2_b": 0.0})
    assert next(iter(got)) == "r2"


def test_r2_of_a_single_target_has_no_second_name():
    assert list(score("numbers", np.array([[1.0], [2]]), np.array([[1.0], [2]]), ["a"])) == ["r2"]


def test_metrics_give_scikit_learns_values(classes, numbers):
    labels, (guess, *_) = classes
    assert compute(Accuracy, labels, guess) == {"accuracy": accuracy_score(labels, guess)}
    f1 = f1_score(labels, guess, labels=np.unique(labels), average="macro")
    assert compute(MacroF1, labels, guess) == {"macro_f1": pytest.approx(f1, abs=1e-12)}
    labels, (guess, *_) = numbers
    each = r2_score(labels, guess, multioutput="raw_values")
    assert compute(R2, labels, guess, targets=MOODS) == pytest.approx(
        {"r2": r2_score(labels, guess), "r2_arousal": each[0], "r2_valence": each[1]}, abs=1e-12
    )


@pytest.mark.parametrize("sizes", [[60], [59, 1], [7] * 8 + [4]])
def test_batches_add_up_to_the_whole(classes, numbers, sizes):
    bounds = np.cumsum([0, *sizes])
    for metric, (labels, (guess, *_)), extra in [
        (Accuracy, classes, {}),
        (MacroF1, classes, {}),
        (R2, numbers, {"targets": MOODS}),
    ]:
        pieces = metric(keep_in_memory=True)
        for start, end in pairwise(bounds):
            pieces.add_batch(predictions=guess[start:end], references=labels[start:end])
        assert pieces.compute(**extra) == compute(metric, labels, guess, **extra)


def test_order_of_tracks_does_not_matter(classes, numbers, rng):
    order = rng.permutation(60)
    for kind, (labels, (guess, *_)), targets in [
        ("classes", classes, []),
        ("numbers", numbers, MOODS),
    ]:
        shuffled = score(kind, labels[order], guess[order], targets)
        assert shuffled == pytest.approx(score(kind, labels, guess, targets), abs=1e-12)


def test_perfect_predictions_score_one(classes, numbers):
    for kind, (labels, _), targets in [("classes", classes, []), ("numbers", numbers, MOODS)]:
        assert set(score(kind, labels, labels, targets).values()) == {1.0}


def test_all_wrong_scores_zero():
    labels = np.array([0, 0, 1])
    assert score("classes", labels, 1 - labels, []) == {"accuracy": 0, "macro_f1": 0}


@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1])  # the mean of three 0.1 is not 0.1
@pytest.mark.parametrize("n", [2, 3, 1000])
def test_constant_target_has_no_r2(constant, n):
    labels = np.stack([np.full(n, constant), np.arange(n)], 1)
    guess = labels + 0.5 * (np.arange(n) % 2)[:, None]
    got = score("numbers", labels, guess, MOODS)
    assert math.isnan(got["r2"])
    assert math.isnan(got["r2_arousal"])
    assert got["r2_valence"] == pytest.approx(r2_score(labels[:, 1], guess[:, 1]))
    assert math.isnan(score("numbers", labels, labels, MOODS)["r2_arousal"])


def test_one_track_has_no_r2():
    got = score("numbers", np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]), MOODS)
    assert list(got) == ["r2", "r2_arousal", "r2_valence"]
    assert all(math.isnan(value) for value in got.values())


def test_main_score_is_the_first_of_the_scores(classes, numbers):
    for kind, (labels, guesses), targets in [("classes", classes, []), ("numbers", numbers, MOODS)]:
        for guess in guesses:
            first = next(iter(score(kind, labels, guess, targets).values()))
            assert main_score(kind, labels, guess) == pytest.approx(first, abs=1e-12)


def test_main_score_is_undefined_where_the_metric_is():
    guess = np.array([[1.0, 2], [3, 4], [5, 7]])
    assert math.isnan(main_score("numbers", guess[:1], guess[:1]))
    constant = np.array([[0.1, 1], [0.1, 2], [0.1, 3]])
    assert math.isnan(main_score("numbers", constant, guess))
    assert math.isnan(main_score("numbers", constant[:, :1], guess[:, :1]))


# Intervals


def test_accuracy_interval_is_that_of_scikit_learns_weighted_accuracy(classes):
    labels, guesses = classes
    each = [
        np.mean([accuracy_score(labels, guess, sample_weight=w) for guess in guesses])
        for w in draws(60, 100)
    ]
    got = bootstrap("classes", labels, guesses, [], n_resamples=100)
    assert got["accuracy"] == pytest.approx(percentiles(each), abs=1e-12)


def test_macro_f1_interval_is_that_of_scikit_learns_weighted_f1(classes):
    labels, guesses = classes[0][:12], classes[1][:2, :12]  # so few that classes go missing
    guesses[0, :2] = 4  # a class that is only guessed

    def one(guess, w):
        """Macro F1 over the classes that the resample's tracks have."""
        drawn = w > 0
        return f1_score(
            labels[drawn],
            guess[drawn],
            labels=np.unique(labels[drawn]),
            sample_weight=w[drawn],
            average="macro",
        )

    weights = draws(12, 100)
    assert any(len(set(labels[w > 0])) < len(set(labels)) for w in weights)
    each = [np.mean([one(guess, w) for guess in guesses]) for w in weights]
    got = bootstrap("classes", labels, guesses, [], n_resamples=100)
    assert got["macro_f1"] == pytest.approx(percentiles(each), abs=1e-12)


def test_r2_intervals_are_those_of_scikit_learns_weighted_r2(numbers):
    labels, guesses = numbers
    each = [
        np.mean(
            [r2_score(labels, g, sample_weight=w, multioutput="raw_values") for g in guesses], 0
        )
        for w in draws(60, 100)
    ]  # (100, 2)
    got = bootstrap("numbers", labels, guesses, MOODS, n_resamples=100)
    assert list(got) == ["r2", "r2_arousal", "r2_valence"]
    assert got["r2"] == pytest.approx(percentiles(np.mean(each, 1)), abs=1e-10)
    assert got["r2_arousal"] == pytest.approx(percentiles([r[0] for r in each]), abs=1e-10)
    assert got["r2_valence"] == pytest.approx(percentiles([r[1] for r in each]), abs=1e-10)


def test_intervals_agree_with_scipys_bootstrap(classes, numbers):
    def mean_accuracy(labels, *guesses, axis=-1):
        return np.mean([(g == labels).mean(axis) for g in guesses], 0)

    def r2(labels, guess, axis=-1):
        error = ((labels - guess) ** 2).sum(axis)
        return 1 - error / ((labels - labels.mean(axis, keepdims=True)) ** 2).sum(axis)

    def scipys(data, statistic):
        interval = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=5000,
            rng=np.random.default_rng(99),
        ).confidence_interval
        return interval.low, interval.high

    labels, guesses = classes
    got = bootstrap("classes", labels, guesses, [])["accuracy"]
    assert got == pytest.approx(scipys((labels, *guesses), mean_accuracy), abs=0.015)
    labels, guesses = numbers[0][:, :1], numbers[1][:1, :, :1]
    got = bootstrap("numbers", labels, guesses, ["arousal"])["r2"]
    assert got == pytest.approx(scipys((labels[:, 0], guesses[0, :, 0]), r2), abs=0.02)


def test_interval_holds_the_point_value(classes, numbers):
    for kind, (labels, guesses), targets in [("classes", classes, []), ("numbers", numbers, MOODS)]:
        for name, (low, high) in bootstrap(kind, labels, guesses, targets).items():
            point = np.mean([score(kind, labels, guess, targets)[name] for guess in guesses])
            assert low < point < high


def test_intervals_have_the_names_of_the_scores(classes, numbers):
    for kind, (labels, guesses), targets in [
        ("classes", classes, []),
        ("numbers", numbers, MOODS),
        ("numbers", (numbers[0][:, :1], numbers[1][:, :, :1]), MOODS[:1]),
    ]:
        names = list(score(kind, labels, guesses[0], targets))
        assert list(bootstrap(kind, labels, guesses, targets, n_resamples=10)) == names


def test_perfect_predictions_have_the_interval_from_one_to_one(classes, numbers):
    for kind, (labels, _), targets in [("classes", classes, []), ("numbers", numbers, MOODS)]:
        perfect = np.stack([labels, labels])
        for interval in bootstrap(kind, labels, perfect, targets).values():
            assert interval == (1.0, 1.0)


def test_equal_seeds_have_the_interval_of_one(classes):
    labels, (guess, *_) = classes
    one = bootstrap("classes", labels, guess[None], [])
    for name, interval in bootstrap("classes", labels, np.stack([guess] * 3), []).items():
        assert one[name] == pytest.approx(interval, abs=1e-12)


def test_same_tracks_and_seed_mean_the_same_resamples(rng):
    # In every resample, right guesses of one run are wrong guesses of its mirror image: the two
    # intervals mirror each other to the last digit only if the resamples are the same.
    labels, guess = rng.integers(0, 2, (2, 41))
    low, high = bootstrap("classes", labels, guess[None], [])["accuracy"]
    mirrored = bootstrap("classes", labels, 1 - guess[None], [])["accuracy"]
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert low < high


def test_seed_draws_the_resamples(numbers):
    labels, guesses = numbers
    one, same, other = (
        bootstrap("numbers", labels, guesses, MOODS, n_resamples=50, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one["r2"] != other["r2"]


@pytest.mark.parametrize(("scale", "offset"), [(1e-7, 0), (1e9, 0), (1, 1e6)])
def test_unit_of_the_target_does_not_matter(numbers, scale, offset):
    labels, guesses = numbers
    got = bootstrap("numbers", labels * scale + offset, guesses * scale + offset, MOODS)
    for name, interval in bootstrap("numbers", labels, guesses, MOODS).items():
        assert got[name] == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 3.0, 0.1])
def test_constant_target_has_no_interval(numbers, constant):
    labels, guesses = numbers[0].copy(), numbers[1]
    labels[:, 0] = constant
    got = bootstrap("numbers", labels, guesses, MOODS, n_resamples=200)
    assert all(math.isnan(v) for v in (*got["r2"], *got["r2_arousal"]))
    assert got["r2_valence"][0] < got["r2_valence"][1] < 1


def test_one_track_has_no_interval_of_r2():
    got = bootstrap("numbers", np.array([[1.0]]), np.array([[[2.0]]]), ["a"])
    assert all(math.isnan(v) for v in got["r2"])


def test_one_track_has_an_interval_of_accuracy():
    got = bootstrap("classes", np.array([1]), np.array([[1], [0]]), [])
    assert got == {"accuracy": (0.5, 0.5), "macro_f1": (0.5, 0.5)}


def test_resamples_without_an_r2_are_left_out():
    labels, guess = np.array([0.0, 1.0, 3.0]), np.array([0.5, 1.0, 2.0])
    weights = draws(3, 300)
    drawn = [w for w in weights if (w > 0).sum() > 1]
    assert len(drawn) < 300
    each = [r2_score(labels, guess, sample_weight=w) for w in drawn]
    got = bootstrap("numbers", labels[:, None], guess[None, :, None], ["a"], n_resamples=300)
    assert got["r2"] == pytest.approx(percentiles(each), abs=1e-9)


def test_a_single_group_has_no_interval():
    labels, guesses = np.array([0, 1, 0, 1]), np.array([[0, 1, 1, 1]])
    found = bootstrap("classes", labels, guesses, [], groups=["a"] * 4)
    assert all(math.isnan(end) for ends in found.values() for end in ends)
    curves = bootstrap_curves("classes", labels, guesses, [], groups=["a"] * 4)
    assert curves["accuracy"][0] == 0.75
    assert np.isnan(curves["accuracy"][1:]).all()
