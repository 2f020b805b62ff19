"""The test: the layer chosen on validation, every seed, scored once; and folds put together."""

from collections.abc import Sequence

import numpy as np
import torch

from tune.aggregators import trainable
from tune.aggregators.track_aggregator import TrackAggregator
from tune.probing.bank import ProbeBank, ProbeData, join_clips
from tune.probing.intervals import bootstrap, score
from tune.runs.result import prediction_columns, summarise
from tune.tasks.label_kinds import label_kind
from tune.tasks.load import Task


def score_test(
    outputs: torch.Tensor,
    task: Task,
    data: ProbeData,
    bank: ProbeBank,
    selection,
    aggregator: TrackAggregator,
    seeds: Sequence[int],
    layers: Sequence[int],
) -> dict:
    """Score the test split, by the probes of the layer that is best on validation.

    Parameters
    ----------
    outputs : (M, n, C), of all probes for the test split's tracks
    bank, selection : the probes, and of each the validation score and epoch of its weights
        (`tune.probing.bank.EarlyStopping`, or what `tune.probing.closed_form` gives)
    seeds : of a layer's probes
    layers : hidden layers that there are tokens of

    Returns
    -------
    dict of all that a run's folder holds of it: metrics, chance, predictions, probe, attention, ...
    """
    by_layer = selection.score.reshape(data.n_layers, len(seeds)).mean(1)
    chosen = int(by_layer.argmax())
    names = ["reduce" if aggregator.reduce else "mix"] if aggregator.mix else list(layers)
    mine = slice(chosen * len(seeds), (chosen + 1) * len(seeds))
    # (S, n, C), where a track may be several files
    out, truth, ids = join_clips(outputs[mine], data.truth["test"], task.splits["test"])
    predictions = data.predict(out)  # (S, n) or (S, n, C)
    each = [score(task.kind, truth, prediction, task.targets) for prediction in predictions]
    per_seed = {name: [scores[name] for scores in each] for name in each[0]}
    groups = _groups(task.splits["test"], ids) if task.group_column else None
    chance = data.chance_prediction("test")[: len(truth)]
    return {
        "scored": (truth, predictions, ids),
        "groups": groups,
        "metrics": summarise(
            per_seed, bootstrap(task.kind, truth, predictions, task.targets, groups=groups)
        ),
        "chance": score(task.kind, truth, chance, task.targets),
        "n_test_scored": len(ids),
        "tags_left_out": data.kind.unscored(truth, getattr(task, data.kind.parts)),
        "unknown_tags": task.unknown_tags,
        "layer": names[chosen],
        "layer_scores": dict(zip(map(str, names), by_layer.tolist(), strict=True)),
        "best_epochs": selection.best_epoch[mine].tolist(),
        "tested_epochs": selection.epoch[mine].tolist(),
        "curves": selection.curves[mine],
        "chosen": {name: values[mine].tolist() for name, values in selection.chosen.items()},
        "embedding_dim": getattr(getattr(bank.probes[mine][0], "joiner", None), "n_out", bank.n_in),
        "predictions": prediction_columns(
            task.kind,
            ids,
            seeds,
            truth,
            predictions,
            out.softmax(-1).cpu().numpy(),
            task.classes,
            task.targets,
        )
        | ({"group": groups * len(seeds)} if groups else {}),
    } | _learned(bank.probes[mine], data, chosen, aggregator, seeds, layers, task.splits["test"])


def join_folds(outcomes: Sequence[dict], task: Task) -> dict:
    """Put the folds' outcomes together: every track is tested once, and all are scored as one.

    The interval resamples tracks, or groups of tracks where a column groups them. It ignores that
    folds share training tracks, which makes it slightly too narrow (Bengio and Grandvalet 2004).
    The layer, what was learned and its size are those of the first fold.

    Parameters
    ----------
    outcomes : of the folds, as `score_test` returns; a single one comes back as it is
    task : whose `folds` they are of

    Returns
    -------
    dict as `score_test` returns, with `folds`: what result.json says of them
    """
    if not task.folds:
        return outcomes[0]
    truth = np.concatenate([each["scored"][0] for each in outcomes])
    predictions = np.concatenate([each["scored"][1] for each in outcomes], 1)
    sizes = [len(each["scored"][2]) for each in outcomes]
    scores = [score(task.kind, truth, each, task.targets) for each in predictions]
    per_seed = {name: [each[name] for each in scores] for name in scores[0]}
    extra = {"fold": [k for k, n in enumerate(sizes, 1) for _ in range(n)]}
    groups = [group for each in outcomes for group in each["groups"]] if task.group_column else None
    intervals = bootstrap(task.kind, truth, predictions, task.targets, groups=groups)
    columns = _concatenated([each["predictions"] for each in outcomes])
    # A fold's rows are its tracks under each seed.
    extra = {
        name: [
            value
            for fold in np.split(np.array(values), np.cumsum(sizes)[:-1])
            for value in fold.tolist() * len(predictions)
        ]
        for name, values in extra.items()
    }
    attention = [each["attention"] for each in outcomes]
    kind = label_kind(task.kind)
    return outcomes[0] | {
        "metrics": summarise(per_seed, intervals),
        "groups": groups,
        "chance": {
            name: float(np.average([each["chance"][name] for each in outcomes], weights=sizes))
            for name in outcomes[0]["chance"]
        },
        "n_test_scored": sum(sizes),
        "tags_left_out": kind.unscored(truth, getattr(task, kind.parts)),
        "predictions": columns | extra,
        "attention": _concatenated(attention) if all(attention) else None,
        "folds": {
            "n": len(outcomes),
            "group_column": task.group_column,
            "n_groups": task.n_groups,
            "each": [
                {
                    "n_tracks": {split: len(data) for split, data in fold.splits.items()},
                    **{k: each[k] for k in ("layer", "best_epochs", "metrics", "chance")},
                }
                for fold, each in zip(task.folds, outcomes, strict=True)
            ],
        },
    }


def audio_of_test(task: Task) -> dict[str, str]:
    """The audio file of each test track, of several the first; over all folds."""
    found: dict[str, str] = {}
    for fold in task.folds or [task]:
        split = fold.splits["test"]
        names = split["track" if "track" in split.column_names else "id"]
        for name, path in zip(names, split["path"], strict=True):
            found.setdefault(name, path)
    return found


def _groups(split, ids: Sequence[str]) -> list[str]:
    """The group of each scored track."""
    names = split["track" if "track" in split.column_names else "id"]
    group = dict(zip(names, split["group"], strict=True))
    return [group[name] for name in ids]


def _concatenated(parts: Sequence[dict]) -> dict:
    """Columns of several tables, one below the other."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _learned(probes, data, chosen, aggregator, seeds, layers, split) -> dict:
    """What the probes and the aggregator in front of them have learned."""
    weights = {
        f"seed{seed}.{name}": value
        for seed, probe in zip(seeds, probes, strict=True)
        for name, value in probe.state_dict().items()
    }
    views = data.view_names(aggregator.scales, layers)
    return {
        "aggregator": trainable.describe(
            probes,
            seeds,
            views=views,
            checkpoint=aggregator.checkpoint,
            tuned=aggregator.tune,
            readout=aggregator.readout_used,
        )
        | aggregator.row.record,
        "attention": trainable.attention_columns(probes, seeds, data, chosen, split),
        "probe": weights | data.constants(chosen, inputs=not aggregator.tune),
    }
