"""What one looks at in a W&B run: confusion or scatter, curves, scores by class, disputed tracks.

All are of the test split, and light: a few tables of at most some thousand rows. Audio is uploaded
only where it is asked for.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from tune.runs.predictions import Predictions
from tune.system.files import hide_home
from tune.tasks.label_kinds import LabelKind, label_kind

log = logging.getLogger(__name__)

MOST_CLASSES = 50  # of a confusion matrix, which has their square in rows
MOST_POINTS = 2000  # of a scatter plot
MOST_TRACKS = 20
EXCERPT_S, EXCERPT_RATE = 10.0, 22_050  # of a player: 441 kB each


def result_tables(
    result: Mapping,
    test: Predictions,
    probabilities: Mapping[str, list],
    files: Mapping[str, str] | None = None,
    n_players: int = 0,
    curves: Sequence[Sequence[float]] = (),
) -> dict:
    """Tables and charts of a probe's test, by the names that W&B shows.

    Parameters
    ----------
    result : as in result.json
    test : the run's predictions
    probabilities : columns of the predictions table, of which id and p_<class> are used
    files : track -> audio file, for the players
    n_players : as many of the most disputed tracks get an audio player of 10 s, mono
    curves : of each seed its validation score by epoch; with folds those of the first

    Returns
    -------
    dict of what `wandb.Run.log` takes
    """
    kind = label_kind(result["kind"])
    parts = result[kind.parts]
    out = {}
    if kind.of_targets:
        for i, name in enumerate(parts):
            out[f"details/predicted_{name}"] = _scatter(result, test, i, name)
    elif not kind.several and len(parts) <= MOST_CLASSES:
        out["details/confusion_matrix"] = _confusion(result, test, parts)
    if kind.by_part:
        out[f"details/by_{kind.noun}"] = _by_part(result, test, kind, parts)
    own = _own_probability(test, parts, probabilities)
    if any(curves):
        out["details/validation_by_seed"] = _curves(result, curves)
    out["details/disputed_tracks"] = _tracks(kind, test, parts, own, files or {}, n_players)
    return out


def disputed(kind: LabelKind, test: Predictions, own: np.ndarray | None) -> np.ndarray:
    """Positions of the test tracks, the one furthest from its label first, over all seeds.

    Of a class that is the share of seeds which name another one, of numbers and tags the distance
    of the values.

    Parameters
    ----------
    own : (n,) probability of the track's own class, which orders tracks that are wrong as often
    """
    wrong = _distance(kind, test)
    return np.lexsort((np.zeros(len(wrong)) if own is None else own, -wrong))


def _distance(kind: LabelKind, test: Predictions) -> np.ndarray:
    """How far a track's predictions are from its label, (n,): the share of seeds, or a distance."""
    return kind.disagreement(test.labels, [test.predictions])[1][0]


def _own_probability(test, parts, columns) -> np.ndarray | None:
    """The probability of each track's own class, mean over seeds: (n,); None without classes."""
    if any(f"p_{name}" not in columns for name in parts):
        return None
    at = {name: i for i, name in enumerate(test.ids)}
    sums = np.zeros(len(at))
    for row, name in enumerate(columns["id"]):
        i = at[name]
        sums[i] += columns[f"p_{parts[test.labels[i]]}"][row]
    return sums / len(test.predictions)


def _confusion(result, test, classes):
    """A class's tracks by what was said of them, over all seeds."""
    import wandb

    n_seeds = len(test.predictions)
    return wandb.plot.confusion_matrix(
        y_true=np.tile(test.labels, n_seeds).tolist(),
        preds=test.predictions.reshape(-1).tolist(),
        class_names=list(classes),
        title=f"{result['task']}: test tracks over {n_seeds} seed{'s' * (n_seeds > 1)}",
    )


def _scatter(result, test, i: int, name: str):
    """Predicted values of a target against the true ones, mean over seeds."""
    import wandb

    every = max(1, -(-len(test.ids) // MOST_POINTS))
    said = test.predictions.mean(0)
    rows = [
        [hide_home(track), float(test.labels[at, i]), float(said[at, i])]
        for at, track in list(enumerate(test.ids))[::every]
    ]
    table = wandb.Table(columns=["track", "true", "predicted"], data=rows)
    title = f"{result['task']}: {name}, predicted against true"
    return wandb.plot.scatter(table, "true", "predicted", title=title)


def _curves(result, curves):
    """A line a seed."""
    import wandb

    return wandb.plot.line_series(
        xs=[list(range(1, len(curve) + 1)) for curve in curves],
        ys=[list(curve) for curve in curves],
        keys=[f"seed {seed}" for seed in result["seeds"]],
        title=f"{result['task']}: validation {next(iter(result['metrics']))} by seed",
        xname="epoch",
    )


def _by_part(result, test, kind, parts):
    """A score for each class, tag or target."""
    import wandb

    def metric(name):
        return result["metrics"][name]["mean"]

    values = kind.by_part(test.labels, test.predictions, parts, metric)
    table = wandb.Table(columns=[kind.noun, kind.heading, "test tracks"])
    for i, (name, value) in enumerate(zip(parts, values, strict=True)):
        if kind.of_targets:
            n = len(test.ids)
        else:
            n = int(test.labels[:, i].sum() if kind.several else (test.labels == i).sum())
        table.add_data(name, float(value) if np.isfinite(value) else None, n)
    return table


def _tracks(kind, test, parts, own, files, n_players):
    """The most disputed tracks, the first `n_players` with a player."""
    import wandb

    distance = _distance(kind, test)
    columns = ["track", "label", "predicted", "distance from the label"]
    columns += ["probability of the label"] * (own is not None) + ["audio"] * bool(n_players)
    table = wandb.Table(columns=columns)
    for place, at in enumerate(disputed(kind, test, own)[: max(MOST_TRACKS, n_players)]):
        said = _consensus(kind, test.predictions[:, at])
        row = [hide_home(test.ids[at]), kind.show(test.labels[at], parts)]
        row += [kind.show(said, parts), float(distance[at])]
        row += [float(own[at])] if own is not None else []
        if n_players:
            row.append(_player(files, test.ids[at]) if place < n_players else None)
        table.add_data(*row)
    return table


def _consensus(kind, predictions):
    """What the seeds say of a track together: the most frequent class, tags above 0.5, or means."""
    if kind.of_targets:
        return predictions.mean(0)
    if kind.several:
        return predictions.mean(0) > 0.5
    return np.bincount(predictions).argmax()


def _player(files: Mapping[str, str], track: str):
    """A player of 10 s from a track's middle; None, with a warning, where it can't be decoded."""
    import wandb

    from tune.audio import AudioError, read_audio, read_header

    try:
        length = read_header(files[track]).seconds
        start = max(0.0, (length - EXCERPT_S) / 2) if length == length else 0.0
        samples = read_audio(files[track], EXCERPT_RATE, start, start + EXCERPT_S)
    except (AudioError, OSError) as error:
        log.warning("W&B gets no audio of %s: %s", track, error)
        return None
    return wandb.Audio(np.clip(samples, -1, 1), sample_rate=EXCERPT_RATE, caption=hide_home(track))
