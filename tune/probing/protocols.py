"""The table of protocols: presets of train_probe.py's flags, a source beside each row.

A protocol is rows of settings; a later row overrides an earlier one, and a flag of one's own
overrides all. What a row applies to is "" (everything), a kind of label or a task. Flags that
decide how tracks are cut and encoded (`CUT`) are needed before an own task's labels are read, so
no row of a kind has them.

`tune` is this project's own. `marble` is MARBLE v2 (github.com/a43992899/MARBLE at 938c03a) with
its configurations of MuQ. `study` is the original study, as far as its released code says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tune.segments.rules import fixed_length
from tune.tasks.label_kinds import Recipe
from tune.tasks.registry import TASKS, default_layer

CLOSED_FORM = ("ridge", "knn")  # probes that no seed changes
MIN_CLIP_RATIO = 0.8  # of MARBLE's configurations: a shorter last clip is dropped
CUT = ("seg", "min_tail", "pad_tail", "channels", "layer", "fusion", "mixed_precision")


@dataclass(frozen=True)
class ProtocolRow:
    """Settings of a protocol, and where they are from.

    Attributes
    ----------
    applies_to : "", a kind of label, or a task
    source : a file, a class, or a sentence
    settings : flag -> value
    """

    applies_to: str
    source: str
    settings: Mapping


def _clips(seconds: float, channels: str, layer: str) -> dict:
    """Settings of MARBLE's data modules."""
    return {
        "seg": [f"{seconds:g}"],
        "min_tail": round(MIN_CLIP_RATIO * seconds, 6),
        "channels": channels,
        "layer": layer,
    }


MARBLE = "MARBLE v2, "
MUQ = MARBLE + "configs/probe.MuQ.{}.yaml"
_TAGS = {"epochs": 20}
PROTOCOLS: dict[str, tuple[ProtocolRow, ...]] = {
    "tune": (
        ProtocolRow(
            "",
            "this project; lr and the plateau are the recipe's (tune.tasks.registry)",
            {
                "seg": ["10"],
                "min_tail": 1.0,
                "pad_tail": False,
                "channels": "mix",
                "layer": None,
                "mixed_precision": "auto",
                "fusion": "early",
                "standardise": "dimension",
                "target_scale": "standardised",
                "lr": None,
                "plateau_patience": None,
                "plateau_factor": None,
                "epochs": 50,
                "patience": 20,
                "batch_size": 64,
                "accumulation": 1,
                "val_unit": "track",
                "tie_break": "loss",
                "test_weights": "best",
                "averaged": "outputs",
            },
        ),
    ),
    "marble": (
        ProtocolRow(
            "",
            MARBLE + "tasks: a sample is a clip, test outputs are averaged a file",
            {"fusion": "late", "pad_tail": True, **_clips(30, "mix", "last")},
        ),
        ProtocolRow(
            "",
            MARBLE + "modules/decoders.py (MLPDecoder)",
            {"standardise": "none", "target_scale": "raw"},
        ),
        ProtocolRow(
            "",
            MARBLE + "ModelCheckpoint without a monitor, LoadLatestCheckpointCallback",
            {"test_weights": "last"},
        ),
        ProtocolRow(
            "", MARBLE + "lightning's EarlyStopping", {"tie_break": "none", "patience": 20}
        ),
        ProtocolRow("", MARBLE + "core/base_task.py (validation_step)", {"val_unit": "segment"}),
        ProtocolRow(
            "classes",
            MUQ.format("GTZANGenre"),
            {"lr": 5e-3, "plateau_patience": 6, "batch_size": 64, "accumulation": 8},
        ),
        ProtocolRow(
            "classes",
            MARBLE + "tasks/GTZANGenre/probe.py (test_step)",
            {"averaged": "probabilities"},
        ),
        ProtocolRow(
            "keys",
            MUQ.format("GS"),
            {
                "lr": 1e-3,
                "plateau_patience": 5,
                "plateau_factor": 0.1,
                "batch_size": 64,
                "accumulation": 4,
            },
        ),
        ProtocolRow(
            "numbers",
            MUQ.format("EMO"),
            {"lr": 1e-3, "plateau_patience": 5, "batch_size": 64, "accumulation": 4},
        ),
        ProtocolRow(
            "numbers",
            MARBLE + "core/base_task.py (log_dict of a batch's R²)",
            {"val_unit": "batch"},
        ),
        ProtocolRow(
            "tags",
            MUQ.format("MTT"),
            {"lr": 1e-3, "plateau_patience": 3, "patience": 10, "batch_size": 128},
        ),
        ProtocolRow(
            "tags",
            MARBLE + "tasks/MTGMood/probe.py (on_validation_epoch_end)",
            {"val_unit": "track"},
        ),
        ProtocolRow("emo", MUQ.format("EMO"), _clips(15, "first", "6")),
        ProtocolRow("gtzan", MUQ.format("GTZANGenre"), _clips(30.2, "first", "6")),
        ProtocolRow("gs", MUQ.format("GS"), _clips(30, "first", "reduce")),
        ProtocolRow("mtt", MUQ.format("MTT"), _clips(30, "mix", "reduce")),
        ProtocolRow("mtg-genre", MUQ.format("MTGGenre"), _clips(30, "mix", "reduce") | _TAGS),
        ProtocolRow(
            "mtg-instrument", MUQ.format("MTGInstrument"), _clips(30, "mix", "reduce") | _TAGS
        ),
        ProtocolRow("mtg-moodtheme", MUQ.format("MTGMood"), _clips(30, "mix", "reduce") | _TAGS),
        ProtocolRow("mtg-top50", MUQ.format("MTGTop50"), _clips(30, "mix", "reduce") | _TAGS),
    ),
    "study": (
        ProtocolRow(
            "",
            "the study's code: the last hidden state's mean over time, segments unpadded, the "
            "full track's embedding joined before the probe, float32",
            {"layer": "last", "fusion": "early", "mixed_precision": "no"},
        ),
        ProtocolRow(
            "",
            MARBLE + "on which the study's probe is built (not read off the study's code)",
            {
                "standardise": "none",
                "target_scale": "raw",
                "test_weights": "last",
                "tie_break": "none",
            },
        ),
        ProtocolRow("classes", MUQ.format("GTZANGenre"), {"lr": 5e-3, "plateau_patience": 6}),
        ProtocolRow("numbers", MUQ.format("EMO"), {"lr": 1e-3, "plateau_patience": 5}),
    ),
}
# Parts of MARBLE that are not done as it does them; a result says so.
DIFFERS = {
    "marble": (
        "the probe is trained in float64, not bf16",
        "a file shorter than 0.8 of a clip is one padded clip; MARBLE leaves it out",
        "a file is resampled once, by soxr, and then cut; MARBLE cuts and resamples each clip, by "
        "torchaudio",
        "draws: initial weights, order and dropout come from generators of our own for each seed",
        "4 GPUs with batches of 32 (MTT, MTG) are one batch of 128",
        "tasks that MARBLE v2 lacks have the training of the task of their kind, clips of 30 s "
        "and the last layer",
    ),
    "study": ("the study's probe is taken to be MARBLE v2's where its code wasn't read",),
}


def resolve(
    protocol: str, task: str, kind: str | None, given: Mapping, names: Sequence[str] | None = None
) -> dict:
    """Settings of a run: the protocol's, but for the flags that were given.

    Parameters
    ----------
    protocol : a name of `PROTOCOLS`
    task : a task's name, or a path
    kind : of label; None where it isn't known yet
    given : flag -> value, None where it wasn't given
    names : the settings wanted; None is all

    Returns
    -------
    dict of flag -> value; None where the task's recipe says

    Examples
    --------
    >>> resolve("marble", "gtzan", "classes", {"epochs": 5}, ["seg", "lr", "patience", "epochs"])
    {'seg': ['30.2'], 'lr': 0.005, 'patience': 20, 'epochs': 5}
    """
    preset = preset_of(protocol, task, kind)
    if preset["pad_tail"] and given.get("seg"):  # the same rule for clips of another length
        lengths = [fixed_length(seg) for seg in given["seg"]]
        preset["pad_tail"] = None not in lengths
        preset["min_tail"] = round(MIN_CLIP_RATIO * min(filter(None, lengths), default=0), 6)
    names = list(preset) if names is None else names
    return {k: preset[k] if given.get(k) is None else given[k] for k in names}


def preset_of(protocol: str, task: str, kind: str | None) -> dict:
    """A protocol's own settings for a task: flag -> value."""
    out = {}
    for row in rows_of(protocol, task, kind):
        out |= row.settings
    out["layer"] = out["layer"] or default_layer(task)
    return out


def rows_of(protocol: str, task: str, kind: str | None) -> list[ProtocolRow]:
    """The rows that apply to a task, in the order in which they do."""
    own = PROTOCOLS[protocol] if protocol != "tune" else ()
    return [row for row in (*PROTOCOLS["tune"], *own) if row.applies_to in ("", kind, task)]


def kind_of(task: str, kind: str) -> str | None:
    """The kind of label, as far as it is known without reading the task's rows."""
    if task in TASKS:
        return TASKS[task].kind
    return None if kind == "auto" else kind


def adapted(recipe: Recipe, settings: Mapping) -> Recipe:
    """A task's recipe with the plateau that the settings have."""
    names = ("plateau_patience", "plateau_factor")
    return replace(recipe, **{k: settings[k] for k in names if settings[k] is not None})


def describe(protocol: str, task: str, kind: str, settings: Mapping, recipe: Recipe) -> dict:
    """A protocol as results have it.

    Returns
    -------
    dict of name; settings, all of them with their values; changed, those that flags changed, with
    the protocol's own value; sources of its rows; differs, what isn't done as its source does it
    """
    preset = preset_of(protocol, task, kind)
    filled = {"lr": recipe.lr, "plateau_patience": recipe.plateau_patience}
    filled |= {"plateau_factor": recipe.plateau_factor}
    return {
        "name": protocol,
        "settings": {k: filled.get(k) if v is None else v for k, v in settings.items()},
        "changed": {k: preset[k] for k in settings if settings[k] != preset[k]},
        "sources": list(dict.fromkeys(row.source for row in rows_of(protocol, task, kind))),
        "differs": list(DIFFERS.get(protocol, ())),
    }


def default_seeds(probe: str) -> list[int]:
    """The seeds where none are given: five, or one for a probe that no seed changes."""
    return [1234] if probe in CLOSED_FORM else [1234, 1235, 1236, 1237, 1238]


def check_fusion(fusion: str, agg: str, segs: Sequence[str], given: Mapping) -> None:
    """Raise ValueError when late fusion is to join embeddings, or a flag of it comes without it.

    Parameters
    ----------
    agg : as --agg has it; late fusion has none but the mean (of outputs)
    given : flag -> value, None where it wasn't given
    """
    if fusion == "late" and (agg != "mean" or len(segs) > 1):
        raise ValueError(
            "--fusion late averages the outputs of each segment and joins no embeddings: it goes "
            f"with --agg mean and one --seg, got --agg {agg} and --seg {' '.join(segs)}"
        )
    if fusion == "early":
        for name, usual in (("val_unit", "track"), ("averaged", "outputs")):
            if given.get(name) not in (None, usual):
                raise ValueError(f"--{name} {given[name]} belongs to --fusion late")


def check_probe(probe: str, learns: bool, layer: str, lrs: Sequence[float] | None) -> None:
    """Raise ValueError when a probe without gradients is asked to train something."""
    if probe not in CLOSED_FORM:
        return
    if learns or layer in ("mix", "reduce"):
        raise ValueError(
            f"--probe {probe} has no gradient to learn an aggregator or a mix of layers by: take "
            "--agg mean, max, concat or stats with --layer last, all or K, or --probe mlp"
        )
    if lrs:
        raise ValueError(f"--probe {probe} has no learning rate: leave --lr out")
