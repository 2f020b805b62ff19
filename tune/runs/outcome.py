"""The test: the layer chosen on validation, every seed, scored once."""

from collections.abc import Sequence

import torch

from tune.aggregators import trainable
from tune.aggregators.track_aggregator import TrackAggregator
from tune.probing.bank import ProbeBank, ProbeData, join_clips
from tune.probing.intervals import bootstrap, score
from tune.runs.result import prediction_columns, summarise
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
    chance = data.chance_prediction("test")[: len(truth)]
    return {
        "metrics": summarise(per_seed, bootstrap(task.kind, truth, predictions, task.targets)),
        "chance": score(task.kind, truth, chance, task.targets),
        "n_test_scored": len(ids),
        "tags_left_out": data.kind.unscored(truth, getattr(task, data.kind.parts)),
        "unknown_tags": task.unknown_tags,
        "layer": names[chosen],
        "layer_scores": dict(zip(map(str, names), by_layer.tolist(), strict=True)),
        "best_epochs": selection.best_epoch[mine].tolist(),
        "tested_epochs": selection.epoch[mine].tolist(),
        "chosen": {name: values[mine].tolist() for name, values in selection.chosen.items()},
        "embedding_dim": bank.n_in,
        "predictions": prediction_columns(
            task.kind,
            ids,
            seeds,
            truth,
            predictions,
            out.softmax(-1).cpu().numpy(),
            task.classes,
            task.targets,
        ),
    } | _learned(bank.probes[mine], data, chosen, aggregator, seeds, layers, task.splits["test"])


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
