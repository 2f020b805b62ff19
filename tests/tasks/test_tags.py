"""Tags and keys: metrics by hand, against scikit-learn and mir_eval, and their intervals."""

import math

import mir_eval
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from compare_runs import write_run
from probe_data import paired_bootstrap
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.paired import compare
from tune.probing.intervals import bootstrap, bootstrap_curves, main_score, score
from tune.runs.load import read_folders
from tune.runs.predictions import read_predictions
from tune.tasks.label_kinds import KINDS
from tune.tasks.label_metrics import KeyScore, TagRanking
from tune.tasks.musical_keys import KEYS, key_name, key_weights
from tune.tasks.tag_ranking import BLOCK, roc_auc, weighted_ranking

NAMES = ["roc_auc", "average_precision"]
BOTH = {"roc_auc": roc_auc_score, "average_precision": average_precision_score}


@pytest.fixture
def tags(rng):
    """Labels (60, 5), of which one tag is rare, and scores of three seeds (3, 60, 5) with ties."""
    labels = rng.random((60, 5)) < [0.5, 0.3, 0.2, 0.05, 0.4]
    labels[:2, 3] = True, False
    return labels, np.round(0.4 * labels + rng.random((3, 60, 5)), 1)


def draws(n: int, n_resamples: int) -> np.ndarray:
    """How often each of n tracks is in each resample: (n_resamples, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=n_resamples)


def plainly(metric, labels, scores) -> float:
    """Mean of a metric over the tags that some tracks have and some have not."""
    told = [t for t in range(labels.shape[1]) if 0 < labels[:, t].sum() < len(labels)]
    return np.mean([metric(labels[:, t], scores[:, t]) for t in told]) if told else math.nan


def test_ranking_by_hand():
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.8, 0.3], [0.3, 0.3], [0.1, 0.2]])
    # Tag 0: of four pairs three are in order; precision 1 at the first hit, 2/3 at the second.
    # Tag 1: its one track is above two others and level with the third; precision 1/2.
    got = score("tags", labels, scores, [])
    assert got == pytest.approx(
        {"roc_auc": (3 / 4 + 2.5 / 3) / 2, "average_precision": ((1 + 2 / 3) / 2 + 1 / 2) / 2}
    )
    assert list(got) == NAMES


def test_ranking_is_scikit_learns_macro_average(tags):
    labels, guesses = tags
    for scores in guesses:
        got = score("tags", labels, scores, [])
        assert got["roc_auc"] == pytest.approx(roc_auc_score(labels, scores, average="macro"))
        assert got["average_precision"] == pytest.approx(
            average_precision_score(labels, scores, average="macro")
        )
        assert main_score("tags", labels, scores) == pytest.approx(got["roc_auc"], abs=1e-12)
        each = [roc_auc_score(labels[:, t], scores[:, t]) for t in range(5)]
        assert roc_auc(labels, scores) == pytest.approx(each, abs=1e-12)


def test_a_tag_that_no_track_or_every_track_has_is_left_out_of_the_mean(tags):
    labels, (scores, *_) = tags
    labels = labels.copy()
    labels[:, 1], labels[:, 4] = False, True
    rest = [0, 2, 3]
    for name, value in score("tags", labels, scores, []).items():
        assert value == pytest.approx(BOTH[name](labels[:, rest], scores[:, rest], average="macro"))
    assert np.isnan(roc_auc(labels, scores)).tolist() == [False, True, False, False, True]
    labels[:] = False
    assert all(math.isnan(v) for v in score("tags", labels, scores, []).values())
    assert math.isnan(main_score("tags", labels, scores))
    assert all(
        math.isnan(v)
        for low_high in bootstrap("tags", labels, scores[None], []).values()
        for v in low_high
    )


def test_guessing_scores_a_half_and_how_frequent_tags_are(tags):
    labels, _ = tags
    got = score("tags", labels, np.tile(labels.mean(0), (60, 1)), [])
    assert got == pytest.approx({"roc_auc": 0.5, "average_precision": labels.mean()})


@pytest.mark.parametrize("cut", [[60], [59, 1], [7] * 8 + [4]])
def test_batches_add_up_to_the_whole(tags, cut):
    labels, (scores, *_) = tags
    pieces, start = TagRanking(keep_in_memory=True), 0
    for size in cut:
        part = slice(start, start + size)
        pieces.add_batch(predictions=scores[part], references=labels[part])
        start += size
    assert pieces.compute() == score("tags", labels, scores, [])


def test_intervals_are_those_of_scikit_learn_on_each_resample(tags):
    labels, guesses = tags[0][:25], tags[1][:2, :25]  # so few that tags go missing
    every = draws(25, 30)
    picks = [np.repeat(np.arange(25), w) for w in every]
    assert any(not labels[p].any(0).all() for p in picks)
    got = bootstrap("tags", labels, guesses, [], n_resamples=30)
    assert list(got) == NAMES
    for name, metric in BOTH.items():
        each = [np.mean([plainly(metric, labels[p], g[p]) for g in guesses]) for p in picks]
        assert got[name] == pytest.approx(np.percentile(each, [2.5, 97.5]), abs=1e-12)


def test_blocks_of_resamples_do_not_matter(tags):
    labels, guesses = tags
    weights = draws(60, 2 * BLOCK + 3)
    whole = weighted_ranking(labels, guesses, weights)
    for rows in (slice(0, 1), slice(BLOCK - 1, BLOCK + 2), slice(2 * BLOCK, None)):
        part = weighted_ranking(labels, guesses, weights[rows])
        for a, b in zip(whole, part, strict=True):
            assert a[rows] == pytest.approx(b, abs=1e-12)


def test_differences_are_paired(tags, rng):
    labels, first = tags[0], tags[1][:1]
    second = np.round(labels + rng.random((1, 60, 5)), 1)
    got = paired_bootstrap("tags", labels, first, second, [], n_resamples=15)
    picks = [np.repeat(np.arange(60), w) for w in draws(60, 15)]
    for name, metric in BOTH.items():

        def scored(runs, p, metric=metric):
            return np.mean([plainly(metric, labels[p], g[p]) for g in runs])

        each = [scored(second, p) - scored(first, p) for p in picks]
        value = scored(second, np.arange(60)) - scored(first, np.arange(60))
        assert got[name] == pytest.approx((value, *np.percentile(each, [2.5, 97.5])), abs=1e-12)
    same = paired_bootstrap("tags", labels, first, first, [], n_resamples=50)
    assert set(same.values()) == {(0.0, 0.0, 0.0)}


def test_the_loss_is_binary_cross_entropy_over_tags(rng):
    outputs = torch.from_numpy(rng.normal(0, 2, (3, 7, 4)))
    labels = torch.from_numpy(rng.integers(0, 2, (3, 7, 4)).astype(float))
    got = KINDS["tags"].loss(outputs, labels)
    p = 1 / (1 + np.exp(-outputs.numpy()))
    expected = -np.log(np.where(labels.numpy() == 1, p, 1 - p)).mean(-1)
    assert got.numpy() == pytest.approx(expected)
    whole = torch.nn.BCEWithLogitsLoss()(outputs, labels)
    assert got.mean().item() == pytest.approx(whole.item())


# Keys


def test_every_pair_of_keys_scores_as_in_mir_eval():
    expected = [[mir_eval.key.weighted_score(true, guess) for guess in KEYS] for true in KEYS]
    assert key_weights() == pytest.approx(np.array(expected), abs=0)
    assert set(np.unique(key_weights())) == {0, 0.2, 0.3, 0.5, 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("C major", "C major"),
        ("c# Minor", "Db minor"),
        ("Eb minor", "Eb minor"),
        (" A#  MAJOR ", "Bb major"),
        ("H major", None),
        ("C", "C major"),
        ("c", None),
        ("X", None),
        ("C other", None),
        ("", None),
        ("Cb major", "B major"),
        ("E# minor", "F minor"),
        ("B♭ minor", "Bb minor"),
        ("F♯m", "Gb minor"),
        ("Am", "A minor"),
        ("am", "A minor"),
        ("CM", "C major"),
        ("Cm", "C minor"),
        ("C:maj", "C major"),
        ("A:min", "A minor"),
        ("Bbmaj", "Bb major"),
        ("a flat Minor", "Ab minor"),
        ("B-flat major", "Bb major"),
        ("F##:min", "G minor"),
        ("A:minmaj", None),
        ("N", None),
        ("Amix", None),
        ("C major/E", None),
    ],
)
def test_names_of_keys(text, name):
    assert key_name(text) == name


def test_the_weighted_score_by_hand_and_by_mir_eval(rng):
    c, g, a_minor, c_minor, gb = (
        KEYS.index(k) for k in ("C major", "G major", "A minor", "C minor", "Gb major")
    )
    labels, guess = np.array([c] * 5), np.array([c, g, a_minor, c_minor, gb])
    got = score("keys", labels, guess, [])
    assert got == {"weighted_score": pytest.approx((1 + 0.5 + 0.3 + 0.2) / 5), "accuracy": 0.2}
    labels, guess = rng.integers(0, 24, (2, 50))
    each = [
        mir_eval.key.weighted_score(KEYS[t], KEYS[p]) for t, p in zip(labels, guess, strict=True)
    ]
    got = score("keys", labels, guess, [])
    assert got["weighted_score"] == pytest.approx(np.mean(each))
    assert got["accuracy"] == accuracy_score(labels, guess)
    assert main_score("keys", labels, guess) == pytest.approx(np.mean(each))
    pieces = KeyScore(keep_in_memory=True)
    for part in (slice(0, 1), slice(1, 50)):
        pieces.add_batch(predictions=guess[part], references=labels[part])
    assert pieces.compute()["weighted_score"] == pytest.approx(np.mean(each))


def test_intervals_of_keys_are_those_of_mir_eval_on_each_resample(rng):
    labels = rng.integers(0, 24, 30)
    first, second = np.where(rng.random((2, 1, 30)) < 0.5, labels, rng.integers(0, 24, (2, 1, 30)))
    picks = [np.repeat(np.arange(30), w) for w in draws(30, 40)]

    def scored(runs, p):
        return np.mean(
            [mir_eval.key.weighted_score(KEYS[labels[i]], KEYS[g[i]]) for g in runs for i in p]
        )

    got = bootstrap("keys", labels, first, [], n_resamples=40)
    each = [scored(first, p) for p in picks]
    assert got["weighted_score"] == pytest.approx(np.percentile(each, [2.5, 97.5]), abs=1e-12)
    paired = paired_bootstrap("keys", labels, first, second, [], n_resamples=40)
    each = [scored(second, p) - scored(first, p) for p in picks]
    assert paired["weighted_score"][1:] == pytest.approx(np.percentile(each, [2.5, 97.5]))
    assert list(got) == list(paired) == ["weighted_score", "accuracy"]


# Runs of tags, read and compared


@pytest.fixture
def runs(tmp_path, tags, rng):
    """Two runs on a task of five tags, of which the second is better."""
    labels, weak = tags
    strong = labels + 0.5 * rng.random((3, 60, 5))
    names = ["slow", "guitar", "no vocals", "opera", "new age"]
    for name, scores, seg in (("weak", weak, "full"), ("strong", strong, "10")):
        write_run(tmp_path, name, labels, scores, kind="tags", classes=names, seg=seg)
    return tmp_path, names, weak, strong


def test_runs_of_tags_are_read_as_they_were_written_and_compared(runs, tags):
    root, _, weak, strong = runs
    table = pq.read_table(root / "weak" / "predictions.parquet")
    assert table.column_names[2:4] == ["label_slow", "score_slow"]
    read = read_predictions(root / "weak")
    assert np.array_equal(read.labels, tags[0])
    assert np.array_equal(read.predictions, weak)
    found = compare(read, read_predictions(root / "strong"))
    assert found["roc_auc"].value == pytest.approx(
        paired_bootstrap("tags", tags[0], weak, strong, [])["roc_auc"][0]
    )
    assert found["roc_auc"].interval()[0] > 0


def test_compare_breaks_tags_down(runs, tags):
    root, names, weak, strong = runs
    read, left = read_folders([root])
    assert left == []
    (view,) = analyse(merge(read)[0])
    assert view.metric == "roc_auc"
    found = {row.configuration.label: row for row in view.rows}
    assert found["10 s mean"].verdict == "better"
    curves = bootstrap_curves("tags", tags[0], weak, [])
    assert found["full mean"].mean == pytest.approx(curves["roc_auc"][0])
    assert view.breakdown.parts == names
    for column, scores in zip(view.breakdown.values.T, (weak, strong), strict=True):
        each = [[roc_auc_score(tags[0][:, t], s[:, t]) for s in scores] for t in range(5)]
        assert column == pytest.approx(np.mean(each, 1))
    (first, *_) = view.breakdown.disputed
    own = [names[t] for t in range(5) if tags[0][int(first.id.removeprefix("track")), t]]
    assert first.label == (", ".join(own) or "no tag")
    assert first.best == "10 s mean"
