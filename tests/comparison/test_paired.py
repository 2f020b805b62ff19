"""Paired comparison: against a plain loop, by hand, and through the command."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from probe_data import paired_bootstrap
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, r2_score

from tune.comparison.jackknife import paired_difference
from tune.comparison.paired import compare, main
from tune.probing.intervals import bootstrap_curves
from tune.runs.predictions import read_predictions

CLASSES = ["a", "b", "c"]


def write_run(folder, predictions, labels, *, task="t", kind="classes", ids=None, shuffle=None):
    """A run's folder with predictions (n_seeds, n[, C]) for labels (n[, C])."""
    folder.mkdir(parents=True)
    n_seeds, n = predictions.shape[:2]
    ids = ids or [f"track{i:02d}" for i in range(n)]
    table = {"seed": np.repeat(np.arange(n_seeds), n).tolist(), "id": list(ids) * n_seeds}
    if kind == "classes":
        table["label"] = [CLASSES[i] for i in labels] * n_seeds
        table["prediction"] = [CLASSES[i] for i in predictions.reshape(-1)]
        name, values = "accuracy", [float((p == labels).mean()) for p in predictions]
    else:
        table["label_x"] = labels[:, 0].tolist() * n_seeds
        table["prediction_x"] = predictions[..., 0].reshape(-1).tolist()
        name, values = "r2", [r2_score(labels, p) for p in predictions]
    table = pa.table(table)
    if shuffle is not None:
        table = table.take(shuffle.permutation(len(table)))
    pq.write_table(table, folder / "predictions.parquet")
    result = {
        "task": task,
        "kind": kind,
        "classes": CLASSES,
        "targets": ["x"],
        "metrics": {name: {"mean": float(np.mean(values))}},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def labels(rng):
    return rng.integers(0, 3, 40)


def guesses(rng, labels, right, n_seeds=3):
    """Predictions of which about a share is right."""
    wrong = (labels + rng.integers(1, 3, (n_seeds, len(labels)))) % 3
    return np.where(rng.random((n_seeds, len(labels))) < right, labels, wrong)


def test_against_a_plain_loop(rng, labels):
    first, second = (guesses(rng, labels, right, n_seeds=1) for right in (0.5, 0.7))
    found = paired_bootstrap("classes", labels, first, second, [], n_resamples=200)
    draws = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=200)
    for name, metric in (
        ("accuracy", accuracy_score),
        ("macro_f1", lambda t, p: f1_score(t, p, labels=np.unique(t), average="macro")),
    ):

        def scored(runs, picked, metric=metric):
            return np.mean([metric(labels[picked], p[picked]) for p in runs])

        differences = []
        for draw in draws:
            picked = np.repeat(np.arange(40), draw)
            differences.append(scored(second, picked) - scored(first, picked))
        every = np.arange(40)
        expected = scored(second, every) - scored(first, every)
        assert found[name] == pytest.approx((expected, *np.percentile(differences, [2.5, 97.5])))


def with_seed_effects(rng, labels, spread, n_seeds=5):
    """Predictions of seeds that are better or worse as a whole, by a deviation of `spread`."""
    right = np.clip(0.6 + spread * rng.standard_normal((n_seeds, 1)), 0, 1)
    return np.where(rng.random((n_seeds, len(labels))) < right, labels, (labels + 1) % 3)


@pytest.mark.parametrize("spread", [0.0, 0.08])
def test_what_the_seeds_add_is_in_the_interval(rng, spread):
    """Runs of the same distribution have zero in about 95 of 100 intervals, whatever the seeds."""
    labels = rng.integers(0, 3, 100)
    low_high = []
    for _ in range(300):
        runs = [with_seed_effects(rng, labels, spread) for _ in range(2)]
        low_high.append(paired_bootstrap("classes", labels, *runs, [], n_resamples=500)["accuracy"])
    assert 0.92 <= np.mean([low <= 0 <= high for _, low, high in low_high]) <= 0.99
    if spread:  # as wide as SciPy's interval of a difference of means of seeds, or nearly
        seeds = [
            stats.ttest_ind(
                *(with_seed_effects(rng, labels, spread).__eq__(labels).mean(1) for _ in range(2))
            ).confidence_interval()
            for _ in range(300)
        ]
        wanted = np.median([c.high - c.low for c in seeds])
        found = np.median([high - low for _, low, high in low_high])
        assert found == pytest.approx(wanted, rel=0.3)


def test_a_single_seed_is_taken_as_it_is(rng, labels):
    p = guesses(rng, labels, 0.6, n_seeds=1)
    curve = bootstrap_curves("classes", labels, p, [])["accuracy"]
    draws = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=2000)
    assert np.allclose(curve[1:], draws @ (p[0] == labels) / 40)


def test_regression_against_a_plain_loop(rng):
    labels = rng.normal(0, 1, (30, 1))
    first, second = (labels + rng.normal(0, s, (2, 30, 1)) for s in (0.8, 0.3))
    difference, low, high = paired_bootstrap("numbers", labels, first, second, ["x"])["r2"]
    expected = np.mean([r2_score(labels, p) for p in second]) - np.mean(
        [r2_score(labels, p) for p in first]
    )
    assert difference == pytest.approx(expected)
    assert 0 < low < difference < high


def test_a_run_against_itself_differs_by_nothing(rng, labels):
    p = guesses(rng, labels, 0.5)
    assert set(paired_bootstrap("classes", labels, p, p, []).values()) == {(0.0, 0.0, 0.0)}


def test_pairing_narrows_the_interval(rng, labels):
    """The same tracks are hard for both runs; only two tracks tell them apart."""
    first = np.where(np.arange(40) % 2 == 0, labels, (labels + 1) % 3)[None]
    second = first.copy()
    second[0, [1, 3]] = labels[[1, 3]]
    difference, low, high = paired_bootstrap("classes", labels, first, second, [])["accuracy"]
    assert difference == pytest.approx(0.05)
    assert high - low < 0.15  # alone, each accuracy's interval is 0.3 wide
    assert low >= 0


def test_rows_in_any_order_and_tracks_that_only_one_run_has(tmp_path, rng, labels):
    first, second = guesses(rng, labels, 0.5), guesses(rng, labels, 0.8)
    names = [f"track{i:02d}" for i in range(40)]
    a = write_run(tmp_path / "a", first, labels, shuffle=rng)
    b = write_run(tmp_path / "b", second[:, 5:], labels[5:], ids=names[5:], shuffle=rng)
    found = compare(read_predictions(a), read_predictions(b))
    expected = paired_difference("classes", labels[5:], first[:, 5:], second[:, 5:])
    assert list(found) == list(expected)
    for name, difference in found.items():
        assert difference.n_tracks == 35
        assert difference.value == pytest.approx(expected[name].value)
        assert difference.interval() == pytest.approx(expected[name].interval())


def test_runs_that_cannot_be_compared(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    a = read_predictions(write_run(tmp_path / "a", p, labels))
    other = read_predictions(write_run(tmp_path / "b", p, labels, task="other"))
    with pytest.raises(ValueError, match="different tasks: t and other"):
        compare(a, other)
    names = [f"other{i}" for i in range(40)]
    apart = read_predictions(write_run(tmp_path / "c", p, labels, ids=names))
    with pytest.raises(ValueError, match="no test track in common"):
        compare(a, apart)
    changed = read_predictions(write_run(tmp_path / "d", p, (labels + 1) % 3))
    with pytest.raises(ValueError, match="different labels for the same tracks"):
        compare(a, changed)
    with pytest.raises(ValueError, match="is no run"):
        read_predictions(tmp_path)


def test_command(tmp_path, rng, labels, capsys):
    a = write_run(tmp_path / "base", guesses(rng, labels, 0.3), labels)
    b = write_run(tmp_path / "good", guesses(rng, labels, 0.95), labels)
    c = write_run(tmp_path / "alike", guesses(rng, labels, 0.3), labels)
    main([str(a), str(b), str(c)])
    out = capsys.readouterr().out
    assert "against base" in out
    assert "better" in out
    assert "margin 0.02; 2 comparisons, corrected over all (Holm); each word is one-sided" in out
    assert "alike: can't tell (" in out
    main([str(a), str(b), str(c), "--margin=0.9", "--correction=none"])
    out = capsys.readouterr().out
    assert "margin 0.9; 2 comparisons, not corrected" in out
    assert "equivalent" in out
    with pytest.raises(ValueError, match="doesn't say the chance of accuracy; give --margin"):
        main([str(a), str(b), "--retain=0.9"])
    single = write_run(tmp_path / "single", guesses(rng, labels, 0.95, n_seeds=1), labels)
    main([str(a), str(single)])
    assert "one seed: probe noise is not in it" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(a)])
    assert "at least one other run" in capsys.readouterr().err


def test_command_on_what_is_no_run_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tune.comparison", "paired", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "is no run of train_probe.py" in done.stderr
