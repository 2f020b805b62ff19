"""The table of kinds of label: each row is whole, and a new row is all that a new kind needs."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_task
from in_process import call

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.paired import compare, read_predictions
from tune.probing.intervals import bootstrap, main_score, score
from tune.runs.load import read_folders
from tune.runs.model_card import card_data
from tune.runs.tracking import CURVES
from tune.runs.wandb_report import main_metrics
from tune.tasks.label_kinds import KINDS, Column, LabelKind, Recipe, label_kind
from tune.tasks.load import SPLITS, load_task

N, NAMES = 40, ["a", "b", "c"]


def labels_of(kind: str, rng) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels (n[, C]), predictions of two seeds (2, n[, C]) and names of a kind of label."""
    if kind == "tags":
        return rng.random((N, 3)) < 0.4, rng.random((2, N, 3)), NAMES
    if kind == "numbers":
        return rng.normal(size=(N, 3)), rng.normal(size=(2, N, 3)), NAMES
    names = NAMES if kind == "classes" else [f"key {i}" for i in range(24)]
    return rng.integers(0, len(names), N), rng.integers(0, len(names), (2, N)), names


# Each row of the table


@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_of_the_metrics_agree_and_the_main_one_is_first(kind, rng):
    labels, predictions, names = labels_of(kind, rng)
    points = [score(kind, labels, each, names) for each in predictions]
    weighted = label_kind(kind).metrics().weighted(labels, predictions, np.ones((1, N)), names)
    assert list(points[0]) == list(weighted)  # what compare.py calls the main metric is the first
    for s, each in enumerate(points):
        assert each == pytest.approx({name: w[0, s] for name, w in weighted.items()})
        assert main_score(kind, labels, predictions[s]) == pytest.approx(next(iter(each.values())))
    assert label_kind(kind).recipe.main_metric == next(iter(weighted))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_predictions_are_read_back_as_they_were(kind, rng):
    labels, predictions, names = labels_of(kind, rng)
    row = label_kind(kind)
    columns = row.to_columns(labels, predictions, rng.random((2, N, len(names))), names)
    read = row.from_columns(lambda name: np.array(columns[name]).reshape(2, N), names)
    np.testing.assert_array_equal(read[0][0], labels)
    np.testing.assert_array_equal(read[1], predictions)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kinds_main_metric_is_named_in_wandbs_report(kind):
    name = label_kind(kind).recipe.main_metric
    assert f"{name} for {kind}" in main_metrics()


def test_a_loss_that_falls_is_kept_in_wandb():
    assert CURVES["train/loss"] == CURVES["val/loss"] == "min"


def test_a_kind_that_there_is_not_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown kind of label 'moods': it is none of classes"):
        label_kind("moods")


# A kind that only this file knows: shares of a whole, "40 %"


def read_share(label) -> list[float] | None:
    """The share that a text says, between 0 and 1, as the value of the one target."""
    number = str(label).removesuffix("%").strip()
    return [int(number) / 100] if number.isdecimal() and int(number) <= 100 else None


def share_column(name, rows, skipped, targets) -> Column:
    """One value a track."""
    return Column(rows, datasets.List(datasets.Value("float64"), length=1), targets=["share"])


def share_loss(outputs, labels) -> torch.Tensor:
    """Binary cross-entropy against the share."""
    each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
    return each.mean(-1)


def nearness(labels, predictions) -> float:
    """One less the mean absolute error."""
    return float(1 - np.abs(labels - predictions).mean())


def share_metrics():
    """Nearness, for a split and for weightings of its tracks."""
    import evaluate

    from tune.tasks.label_metrics import Metrics

    class Nearness(evaluate.Metric):
        def _info(self):
            value = datasets.Sequence(datasets.Value("float64"))
            features = datasets.Features({"predictions": value, "references": value})
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=features
            )

        def _compute(self, predictions, references):
            return {"nearness": nearness(np.asarray(references), np.asarray(predictions))}

    def weighted(labels, predictions, weights, names):
        error = np.abs(predictions - labels).mean(-1)  # (S, n)
        return {"nearness": 1 - weights @ error.T / weights.sum(1, keepdims=True)}

    return Metrics(points=(Nearness,), main=nearness, weighted=weighted)


SHARES = LabelKind(
    name="shares",
    about="a share such as 40 %",
    wanted="a share between 0 and 100 %",
    parts="targets",
    noun="share",
    recipe=Recipe(lr=1e-2, plateau_patience=5, main_metric="nearness"),
    about_metrics="nearness",
    read=read_share,
    column=share_column,
    strata=lambda labels: [label[0] > 0.5 for label in labels],
    why_unusable=lambda labels, names: None if np.ptp(labels) else "all shares are the same",
    loss=share_loss,
    decide=lambda outputs: outputs.sigmoid().cpu().numpy(),
    chance=lambda labels, n: np.tile(labels.mean(0), (n, 1)),
    metrics=share_metrics,
    to_columns=lambda labels, predictions, probabilities, names: {
        "label": labels[:, 0].tolist() * len(predictions),
        "prediction": predictions.reshape(-1).tolist(),
    },
    from_columns=lambda column, names: (
        column("label")[..., None],
        column("prediction")[..., None],
    ),
    show=lambda label, names: f"{label[0]:.0%}",
    disagreement=lambda labels, predictions: (
        np.std([each.mean((0, 2)) for each in predictions], axis=0),
        np.stack([np.abs(each.mean((0, 2)) - labels[:, 0]) for each in predictions]),
    ),
    spread_of="the predicted shares",
)


@pytest.fixture
def shares(tmp_path, monkeypatch):
    """A task whose labels are shares, 10 % for low tones and 90 % for high ones, and one isn't."""
    monkeypatch.setitem(KINDS, "shares", SHARES)
    folder = make_task(tmp_path / "shares")
    for split in SPLITS:
        file = folder / f"tones.{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["label"] = {"low": "10 %", "high": "90 %"}[row["label"]]
        if split == "train":
            rows[0]["label"] = "140 %"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_kind_of_ones_own_is_loaded_by_its_row_alone(shares, tmp_path):
    task = load_task(str(shares), cache_dir=tmp_path, kind="shares")
    assert (task.kind, task.recipe) == ("shares", SHARES.recipe)
    assert task.splits["test"]["label"][:2] == [[0.1], [0.9]]
    (skipped,) = task.skipped
    assert skipped["reason"] == "label '140 %' is not a share between 0 and 100 %"


def test_a_kind_of_ones_own_is_guessed_where_its_row_says_how(shares, tmp_path, monkeypatch):
    assert load_task(str(shares), cache_dir=tmp_path).kind == "classes"
    guessed = replace(SHARES, looks_so=lambda labels: all(label.endswith("%") for label in labels))
    monkeypatch.setitem(KINDS, "shares", guessed)
    assert load_task(str(shares), cache_dir=tmp_path).kind == "shares"


def test_a_kind_of_ones_own_is_learnt_scored_compared_and_shown(shares, tmp_path):
    for agg in ("mean", "max"):
        done = call(
            "train_probe.py",
            f"--task={shares}",
            "--kind=shares",
            "--encoder=mel",
            "--seg=1",
            f"--agg={agg}",
            "--seeds",
            "1",
            "2",
            "--epochs=30",
            "--report_to=none",
            f"--output_dir={tmp_path / 'runs'}",
            f"--name={agg}",
            f"--store={tmp_path / 'store'}",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    assert "nearness" in done.stdout
    assert "val nearness" in done.stdout
    folder = tmp_path / "runs" / "mean"
    result = json.loads((folder / "result.json").read_text())
    found = result["metrics"]["nearness"]
    table = pd.read_parquet(folder / "predictions.parquet")
    assert list(table) == ["seed", "id", "label", "prediction"]
    error = (table.label - table.prediction).abs().groupby(table.seed).mean()
    assert found["per_seed"] == pytest.approx((1 - error).tolist())
    assert found["mean"] > result["chance"]["nearness"] + 0.1
    assert result["chance"]["nearness"] == pytest.approx(0.6)  # half of the test tracks are high
    runs = [read_predictions(tmp_path / "runs" / agg) for agg in ("mean", "max")]
    low, high = bootstrap("shares", runs[0].labels, runs[0].predictions, [])["nearness"]
    assert (low, high) == pytest.approx((found["ci_low"], found["ci_high"]))
    assert list(compare(*runs)) == ["nearness"]
    read, left = read_folders([tmp_path / "runs"])
    assert not left
    (view,) = analyse(merge(read)[0])
    assert view.metric == "nearness"
    assert (view.breakdown.parts, view.breakdown.values.shape) == ([], (0, 2))
    assert all(row.label in ("10%", "90%") for row in view.breakdown.disputed)
    (card, *_) = card_data([folder]).eval_results
    assert (card.metric_type, card.task_type) == ("nearness", "audio-classification")
    html = call("compare.py", tmp_path / "runs", f"--html={tmp_path / 'report.html'}", cwd=tmp_path)
    assert html.returncode == 0, html.stderr
    checked = call("tune.tasks", "check", shares, "--kind=shares", cwd=tmp_path)
    assert "0.50 ± 0.40 (0.10 to 0.90)" in checked.stdout


def test_a_kind_says_why_a_task_is_unusable(shares, tmp_path, monkeypatch):
    never = replace(SHARES, why_unusable=lambda labels, names: f"no use for {names[0]}")
    monkeypatch.setitem(KINDS, "shares", never)
    with pytest.raises(ValueError, match="task shares: no use for share"):
        load_task(str(shares), cache_dir=tmp_path, kind="shares")
