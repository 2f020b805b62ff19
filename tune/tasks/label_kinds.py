"""The table of kinds of label: all that depends on what a label is stands in its kind's row.

A kind is a `LabelKind` in `KINDS`; whatever else needs to know something about it asks the row, so
that a new kind is a new row here and its test. "classes" are names; "keys" names of
`tune.tasks.musical_keys.KEYS`; "numbers" lists of target values; "tags" lists of names, which may
be empty. Rows are read by command lines, so what is slow to import is imported where it is used:
torch and `datasets` in the functions here, and metrics, whose implementations are in
`tune.tasks.label_metrics`, by `LabelKind.metrics`.

Shapes: S seeds, M probes, B tracks of a batch, n tracks, C outputs (classes, tags or targets).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from tune.tasks import label_readers
from tune.tasks.label_readers import defined_tags, folded
from tune.tasks.musical_keys import KEYS, bare_keys
from tune.tasks.rows import TaskError


@dataclass(frozen=True)
class Recipe:
    """MARBLE's training recipe: Adam's learning rate, and when and by how much it is lowered.

    `main_metric` is the metric that chooses epochs: the first of the kind's.
    """

    lr: float
    plateau_patience: int
    main_metric: str
    plateau_factor: float = 0.5


@dataclass(frozen=True)
class Column:
    """The labels of a task as a column.

    Attributes
    ----------
    rows : those whose label has a place in the column, with what is put there
    feature : the column's type, a feature of `datasets`
    classes, targets : names of what the labels are made of; one of the two is empty
    unknown : tag -> rows that have it, of tags that no training row has
    """

    rows: list[dict]
    feature: object
    classes: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelKind:
    """A kind of label: a row of `KINDS`.

    Labels in a task's column are (n,) class numbers, (n, C) truth values or (n, C) values;
    predictions have S in front. "names" are the classes, tags or targets, in the order of outputs.

    Attributes
    ----------
    name : as --kind and result.json have it
    about : what a label is, for `python -m tune.tasks show`; {targets} are the targets' names
    wanted : the same, in the message on a label that is none
    parts : "classes" or "targets": which names of a task and of result.json the outputs stand for;
        of "targets" each label is a list with one value a target
    noun : what one part is called
    several : whether a track may have any number of the classes, instead of one
    standardised : whether a probe learns labels standardised by training statistics; what it says
        is brought back after `decide`
    recipe : of training, where a task has none of its own
    about_metrics : the metrics in words
    read : label as it came -> the form that `column` takes, or None when it is none
    column : (task's name, rows, skipped, targets) -> `Column`; rows that find no place are added to
        skipped, and `TaskError` is raised where there is nothing to make a column of
    strata : labels as read -> what each is stratified by where a split is made
    why_unusable : (training labels, names) -> why nothing can be learnt from them, or None
    loss : (outputs (M, B, C), labels (M, B) or (M, B, C)) -> (M, B)
    decide : outputs (M, n, C) -> predictions, an ndarray
    chance : (training labels, n) -> what one would say of n tracks without listening
    metrics : () -> `tune.tasks.label_metrics.Metrics`; of each metric a higher value is better
    looks_so : labels as they came -> whether they are of this kind where --kind is auto; None
        where that is never guessed
    notes : labels as they came -> a line on each reading that isn't plain
    unscored : (labels, names) -> the names that the metrics leave out, since nothing can be said
    to_columns : (labels, predictions, probabilities (S, n, C), names) -> columns of
        predictions.parquet beside seed and id
    from_columns : (name -> column (S, n), names) -> labels and predictions, each (S, n[, C])
    show : (a track's label, names) -> text
    disagreement : (labels, [predictions of each strategy]) -> spread (n,) over strategies and
        distance of each from the label (strategies, n)
    spread_of : what the spread is the deviation of
    by_part : (labels, predictions, names, metric: name -> value) -> (C,), what each part scores,
        NaN where undefined; None where no such table makes sense
    heading : what `by_part` gives
    hub_task : what the hub calls such tasks
    """

    name: str
    about: str
    wanted: str
    parts: str
    noun: str
    recipe: Recipe
    about_metrics: str
    read: Callable
    column: Callable
    strata: Callable
    why_unusable: Callable
    loss: Callable
    decide: Callable
    chance: Callable
    metrics: Callable
    to_columns: Callable
    from_columns: Callable
    show: Callable
    disagreement: Callable
    spread_of: str
    by_part: Callable | None = None
    heading: str = ""
    several: bool = False
    standardised: bool = False
    looks_so: Callable | None = None
    notes: Callable = lambda labels: []
    unscored: Callable = lambda labels, names: []
    hub_task: str = "audio-classification"

    @property
    def of_targets(self) -> bool:
        """Whether a label is a list with one value a target."""
        return self.parts == "targets"


def label_kind(name: str) -> LabelKind:
    """A kind by its name; ValueError when there is none of that name."""
    if name not in KINDS:
        raise ValueError(f"unknown kind of label {name!r}: it is none of {', '.join(KINDS)}")
    return KINDS[name]


def guess_kind(labels: list) -> LabelKind:
    """Read the kind off labels as they came: the first that they look like, else classes."""
    found = (kind for kind in KINDS.values() if kind.looks_so and kind.looks_so(labels))
    return next(found, CLASSES)


def check_labels(rows, skipped, kind: LabelKind, n_targets: int | None) -> list[dict]:
    """Normalise labels, setting aside rows whose label is not of the task's kind.

    Where the number of targets isn't given it is what most rows have.
    """
    labels = [kind.read(r["label"]) for r in rows]
    if kind.of_targets:
        sizes = Counter(len(label) for label in labels if label)
        n_targets = n_targets or (max(sizes, key=sizes.get) if sizes else None)
    good = []
    for row, label in zip(rows, labels, strict=True):
        if label is None:
            reason = f"label {row['label']!r} is not {kind.wanted}"
        elif kind.of_targets and len(label) != n_targets:
            reason = f"label {row['label']!r} has not {n_targets} values"
        else:
            good.append({**row, "label": label})
            continue
        skipped.append({"where": row["where"], "reason": reason})
    return good


def _metrics(name: str) -> Callable:
    """Metrics by their name in `label_metrics`, which takes seconds to import."""

    def load():
        from tune.tasks import label_metrics

        return getattr(label_metrics, name)

    return load


# Classes: one of many


def _class_column(_, rows, skipped, targets, *, classes=None) -> Column:
    """Rows with a class of the list, or that some training track has; the others are set aside."""
    from datasets import ClassLabel

    classes = list(classes or sorted({r["label"] for r in rows if r["split"] == "train"}))
    known, similar = set(classes), {folded(name): name for name in reversed(classes)}
    for row in rows:
        if row["label"] not in known:
            reason = f"unknown label {row['label']!r}: no training track has it"
            if near := similar.get(folded(row["label"])):
                reason += f" (is it {near!r}?)"
            skipped.append({"where": row["where"], "reason": reason})
    rows = [r for r in rows if r["label"] in known]
    return Column(rows, ClassLabel(names=classes), classes, list(targets))


def _one_class_only(labels, names) -> str | None:
    """Whether all training tracks are of one class."""
    if len(set(labels.tolist())) < 2:
        return (
            f"all training tracks have the label {names[labels[0]]!r}; a classifier needs two "
            "classes or more"
        )
    return None


def _cross_entropy(outputs, labels):
    """Cross-entropy of every track under every probe."""
    from torch.nn import functional as F

    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none").view(
        labels.shape
    )


def _class_columns(labels, predictions, probabilities, names) -> dict:
    """label, prediction and p_<class>."""
    out = {
        "label": [names[i] for i in labels] * len(predictions),
        "prediction": [names[i] for i in predictions.reshape(-1)],
    }
    return out | {
        f"p_{n}": probabilities[:, :, c].reshape(-1).tolist() for c, n in enumerate(names)
    }


def _read_class_columns(column, names) -> tuple[np.ndarray, ...]:
    """Class numbers."""
    number = {name: i for i, name in enumerate(names)}
    return tuple(np.vectorize(number.__getitem__)(column(n)) for n in ("label", "prediction"))


def _class_disagreement(labels, predictions) -> tuple[np.ndarray, np.ndarray]:
    """How often a strategy's seeds are right: its spread, and how often they are wrong."""
    right = np.stack([(each == labels).mean(0) for each in predictions])
    return right.std(0), 1 - right


def class_accuracy(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Share of each class's tracks that is named rightly, over seeds: (C,); NaN without a track."""
    right = (predictions == labels).mean(0)  # (n,)
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, right, minlength=n_classes)
    return np.divide(sums, counts, out=np.full(n_classes, np.nan), where=counts > 0)


# Numbers: regression


def _number_column(_, rows, skipped, targets) -> Column:
    """Lists of values, named by the task or in their order."""
    from datasets import List, Value

    size = len(rows[0]["label"])
    targets = list(targets) or (["value"] if size == 1 else [f"target_{i}" for i in range(size)])
    return Column(rows, List(Value("float64"), length=size), targets=targets)


def _number_strata(labels) -> list:
    """Fifths of the first target, fewer parts below 20 rows."""
    values = np.array([label[0] for label in labels])
    n_parts = min(5, max(1, len(labels) // 4))
    bounds = np.quantile(values, np.linspace(0, 1, n_parts + 1)[1:-1])
    return np.searchsorted(bounds, values).tolist()


def _constant_target(labels, names) -> str | None:
    """Whether a target doesn't vary."""
    if (labels.std(0) == 0).any():
        return "a target has the same value on all training tracks"
    return None


def _squared_error(outputs, labels):
    """Squared error of every track under every probe, averaged over targets."""
    from torch.nn import functional as F

    return F.mse_loss(outputs, labels, reduction="none").mean(-1)


def _mean_label(labels, n: int) -> np.ndarray:
    """The mean of the training labels: of tags how frequent each is, which ranks no track."""
    return np.tile(labels.mean(0), (n, 1))


def _value_columns(labels, predictions, probabilities, names, *, prefix: str) -> dict:
    """label_<name> and <prefix>_<name>."""
    out = {}
    for c, name in enumerate(names):
        out[f"label_{name}"] = labels[:, c].tolist() * len(predictions)
        out[f"{prefix}_{name}"] = predictions[:, :, c].reshape(-1).tolist()
    return out


def _read_value_columns(column, names, *, prefix: str) -> tuple[np.ndarray, ...]:
    """(S, n, C) of labels and predictions."""
    return tuple(
        np.stack([column(f"{part}_{name}") for name in names], -1) for part in ("label", prefix)
    )


def _number_disagreement(labels, predictions) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of the predicted values and distance from the label, relative to the labels'."""
    values = np.stack([each.mean(0) for each in predictions])
    scale = np.where(labels.std(0) > 0, labels.std(0), 1.0)
    return (values.std(0) / scale).mean(1), (np.abs(values - labels) / scale).mean(2)


def _target_r2(labels, predictions, names, metric) -> np.ndarray:
    """R² of each target."""
    return np.array([metric(n) for n in ([f"r2_{t}" for t in names] if len(names) > 1 else ["r2"])])


# Tags: any of many


def _tag_column(name, rows, skipped, targets) -> Column:
    """Put truth values in place of tags, one for each tag that a training track has."""
    from datasets import List, Value

    tags = sorted({tag for r in rows if r["split"] == "train" for tag in r["label"]})
    unknown = Counter(tag for r in rows for tag in r["label"] if tag not in set(tags))
    if not tags:
        raise TaskError(f"task {name}: no training track has a tag")
    for row in rows:
        own = set(row["label"])
        row["label"] = [tag in own for tag in tags]
    feature = List(Value("bool"), length=len(tags))
    return Column(rows, feature, tags, list(targets), dict(unknown))


def _rarest_tag(labels) -> list:
    """Each track's rarest tag."""
    counts = Counter(tag for label in labels for tag in label)
    return [min(label, key=lambda t: (counts[t], t), default="") for label in labels]


def _same_tags(labels, names) -> str | None:
    """Whether there is no tag that some have and some have not."""
    return None if defined_tags(labels).any() else "all training tracks have the same tags"


def _binary_cross_entropy(outputs, labels):
    """Binary cross-entropy of every track under every probe, averaged over tags."""
    from torch.nn import functional as F

    each = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
    return each.mean(-1)


def _tag_disagreement(labels, predictions) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of the scores and their distance from the label, mean over tags."""
    values = np.stack([each.mean(0) for each in predictions])
    return values.std(0).mean(1), np.abs(values - labels).mean(2)


def _tag_auc(labels, predictions, names, metric) -> np.ndarray:
    """ROC-AUC of each tag, mean over seeds: (C,); NaN where all or no tracks have it."""
    from tune.tasks.tag_ranking import roc_auc

    return np.mean([roc_auc(labels, scores) for scores in predictions], axis=0)


CLASSES = LabelKind(
    name="classes",
    about="the name of a class",
    wanted="one class",
    parts="classes",
    noun="class",
    recipe=Recipe(lr=5e-3, plateau_patience=5, main_metric="accuracy"),
    about_metrics="accuracy, macro F1",
    read=label_readers.one_class,
    column=_class_column,
    strata=list,
    why_unusable=_one_class_only,
    loss=_cross_entropy,
    decide=lambda outputs: outputs.argmax(-1).cpu().numpy(),
    chance=lambda labels, n: np.full(n, np.bincount(labels).argmax()),  # the most frequent class
    metrics=_metrics("CLASS_METRICS"),
    to_columns=_class_columns,
    from_columns=_read_class_columns,
    show=lambda label, names: names[label],
    disagreement=_class_disagreement,
    spread_of="how often a strategy's seeds are right",
    by_part=lambda labels, predictions, names, _: class_accuracy(labels, predictions, len(names)),
    heading="share of a class's tracks named rightly",
)
KINDS = {
    kind.name: kind
    for kind in (
        CLASSES,
        replace(
            CLASSES,
            name="keys",
            about="a key such as 'Eb minor'",
            wanted="a key such as 'Eb minor'",
            recipe=Recipe(
                lr=1e-3, plateau_patience=5, main_metric="weighted_score", plateau_factor=0.1
            ),
            about_metrics="weighted score (mir_eval), accuracy",
            read=label_readers.key,
            notes=bare_keys,
            column=partial(_class_column, classes=KEYS),
            metrics=_metrics("KEY_METRICS"),
        ),
        LabelKind(
            name="numbers",
            about="a list of values: {targets}",
            wanted="a finite number",
            parts="targets",
            noun="target",
            standardised=True,
            recipe=Recipe(lr=1e-3, plateau_patience=5, main_metric="r2"),
            about_metrics="R², mean and each target",
            read=label_readers.numbers,
            looks_so=label_readers.mostly_numbers,
            column=_number_column,
            strata=_number_strata,
            why_unusable=_constant_target,
            loss=_squared_error,
            decide=lambda outputs: outputs.cpu().numpy(),
            chance=_mean_label,
            metrics=_metrics("NUMBER_METRICS"),
            to_columns=partial(_value_columns, prefix="prediction"),
            from_columns=partial(_read_value_columns, prefix="prediction"),
            show=lambda label, names: ", ".join(
                f"{name} {value:.2f}" for name, value in zip(names, label, strict=True)
            ),
            disagreement=_number_disagreement,
            spread_of="the predicted values, relative to that of the labels",
            by_part=_target_r2,
            heading="R² of each target",
            hub_task="audio-regression",
        ),
        LabelKind(
            name="tags",
            about="a list of tags, which may be empty",
            wanted="a list of tags",
            parts="classes",
            noun="tag",
            several=True,
            recipe=Recipe(lr=1e-3, plateau_patience=3, main_metric="roc_auc"),
            about_metrics="ROC-AUC and average precision, macro over tags",
            read=label_readers.tags,
            looks_so=label_readers.mostly_lists,
            column=_tag_column,
            strata=_rarest_tag,
            why_unusable=_same_tags,
            loss=_binary_cross_entropy,
            decide=lambda outputs: outputs.sigmoid().cpu().numpy(),
            chance=_mean_label,
            metrics=_metrics("TAG_METRICS"),
            unscored=lambda labels, names: [
                name for name, told in zip(names, defined_tags(labels), strict=True) if not told
            ],
            to_columns=partial(_value_columns, prefix="score"),
            from_columns=partial(_read_value_columns, prefix="score"),
            show=lambda label, names: ", ".join(np.array(names)[label]) or "no tag",
            disagreement=_tag_disagreement,
            spread_of="the scores, mean over tags",
            by_part=_tag_auc,
            heading="ROC-AUC of each tag",
        ),
    )
}
