"""Runs made up for the tests of compare.py, in train_probe.py's layout."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from tune.runs.result import prediction_columns

CLASSES = ["a", "b", "c"]


def guesses(rng, labels, right, n_seeds=3):
    """Predictions of classes (S, n) of which about a share is right."""
    wrong = (labels + rng.integers(1, 3, (n_seeds, len(labels)))) % 3
    return np.where(rng.random((n_seeds, len(labels))) < right, labels, wrong)


def write_run(
    root,
    name,
    labels,
    predictions,
    *,
    seeds=None,
    age=0,
    config=None,
    cost=None,
    classes=CLASSES,
    targets=(),
    ids=None,
    kind=None,
    **fields,
):
    """Write a run's folder; `age` in seconds makes it older, `fields` go into result.json."""
    folder = root / name
    folder.mkdir(parents=True)
    seeds = list(seeds or range(len(predictions)))
    ids = ids or [f"track{i:02d}" for i in range(len(labels))]
    kind = kind or ("numbers" if targets else "classes")
    measure = {"numbers": r2_score, "classes": accuracy_score, "tags": roc_auc_score}[kind]
    metric = {"numbers": "r2", "classes": "accuracy", "tags": "roc_auc"}[kind]
    each = [float(measure(labels, p)) for p in predictions]
    result = {
        "task": "t",
        "kind": kind,
        "encoder": "muq-nano",
        "encoder_untrained": True,
        "layer": 4,
        "layer_asked": "last",
        "seg": "10",
        "hop": None,
        "min_tail": 1.0,
        "min_seg": None,
        "max_seg": None,
        "agg": "mean",
        "tokens": "segment",
        "seeds": seeds,
        "precision": "no",
        "device": "cpu",
        "degenerate": None,
        "n_tracks": {"train": 60, "val": 10, "test": len(ids)},
        "aggregator": {"checkpoint": None, "tuned": False, "readout": None},
        "classes": [] if targets else list(classes),
        "targets": list(targets),
        "metrics": {metric: {"mean": float(np.mean(each)), "per_seed": each}},
        "chance": {metric: 0.0 if targets else 0.333},
        "cost": {
            "encode_seconds_stored": 10.0,
            "peak_memory_bytes": 10**9,
            "peak_memory_kind": "resident",
            "store_bytes": 5000,
            "embedding_dim": 192,
            "probe_seconds": 1.0,
            "encoder_passes": 100,
        }
        | (cost or {}),
    } | fields
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"lr": None} | (config or {})))
    shares = np.full((len(seeds), len(ids), len(classes)), 1 / len(classes))
    columns = prediction_columns(
        kind, ids, seeds, labels, np.asarray(predictions), shares, classes, targets
    )
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    os.utime(folder / "result.json", (1e9 - age, 1e9 - age))
    return folder


def write_grid(root, rng, *, n=40, good="whitened", **fields):
    """Write segments 10, 30, full x mean, max, `good`, of which only the last is any better."""
    labels = rng.integers(0, 3, n)
    chosen = {}
    for i, seg in enumerate(("10", "30", "full")):
        for agg in ("mean", "max", good):
            chosen[seg, agg] = guesses(rng, labels, 0.9 if agg == good else 0.5)
            cost = {
                "encode_seconds_stored": 10.0 + 10 * i,
                "peak_memory_bytes": (i + 1) * 10**9,
                "embedding_dim": 384 if agg == good else 192,
            }
            write_run(
                root,
                f"{seg}-{agg}",
                labels,
                chosen[seg, agg],
                seg=seg,
                agg=agg,
                min_tail=None if seg == "full" else 1.0,
                cost=cost,
                **fields,
            )
    return labels, chosen
