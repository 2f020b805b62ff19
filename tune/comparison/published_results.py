"""Published results, to show beside ours: the original study's, the MuQ paper's, MERT-v2's card's.

The study's cost is in `tune.profiling.arithmetic`. Figures are those of our metrics, from 0 to 1.
The study's are of strategies; the others are of encoders, each under its source's protocol. They
differ for the same encoder by up to 4.5 points: the protocol spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune.comparison.configurations import Configuration
from tune.profiling.arithmetic import STUDY
from tune.segments.rules import seg_text

# The columns are metrics of a result; the study reports EMO's targets one by one.
STUDY_METRICS = {
    "gtzan": {"accuracy": "accuracy"},
    "emo": {"r2_valence": "R² valence", "r2_arousal": "R² arousal"},
}
# (seg, agg) -> GTZAN accuracy, EMO valence, EMO arousal
STRATEGIES = {
    ("full", "mean"): (0.845, 0.574, 0.737),
    ("10", "mean"): (0.830, 0.547, 0.760),
    ("10", "concat"): (0.828, 0.547, 0.760),
    ("10", "transformer"): (0.795, 0.492, 0.707),
    ("30", "mean"): (0.835, 0.542, 0.756),
    ("60", "transformer"): (0.805, 0.506, 0.726),
}


@dataclass(frozen=True)
class Source:
    """Where figures were published.

    Attributes
    ----------
    encoders : name as published -> the encoder's name, by which sources are compared
    protocol : how the figures came about, as far as the source says
    settings : the encoder's name -> task -> its own probe settings
    figures : task -> a row for each metric, a figure in per cent for each encoder; with a pair the
        second is the deviation over seeds
    """

    name: str
    encoders: Mapping[str, str]
    protocol: str
    figures: Mapping[str, Mapping[str, tuple]]
    settings: Mapping[str, Mapping[str, str]] | None = None


MUQ_PAPER = Source(
    "MuQ paper",
    {
        "MERT": "MERT",
        "MusicFM": "MusicFM",
        "MuQ (160k h, in-house weights)": "MuQ",
        "MuQ iter (160k h, in-house weights)": "MuQ iter",
    },
    "MARBLE",
    {
        "gtzan": {"accuracy": (78.6, 83.8, (85.5, 0.9), (85.6, 0.7))},
        "emo": {
            "r2_valence": (61.2, 60.3, (60.9, 0.2), (62.8, 0.1)),
            "r2_arousal": (74.7, 76.3, (75.4, 0.2), (76.1, 0.1)),
        },
        "gs": {"weighted_score": (65.6, 63.9, (63.5, 0.7), (65.0, 0.8))},
        "vocalset-singer": {"accuracy": (87.1, 92.0, 95.8, 96.2)},
        "vocalset-technique": {"accuracy": (76.9, 78.4, 82.4, 81.6)},
        "mtt": {"roc_auc": (91.3, 91.3, 91.4, 91.4), "average_precision": (40.2, 40.0, 40.3, 40.1)},
        "nsynth-instrument": {"accuracy": (72.6, 76.2, 79.2, 79.7)},
        "nsynth-pitch": {"accuracy": (94.4, 91.1, 92.3, 91.3)},
    },
)
PUPUJEPA = Source(
    "MERT-v2's card, others",
    {"MERT-Large": "MERT", "MuQ": "MuQ", "MusicFM": "MusicFM", "PupuJEPA-Large": "PupuJEPA"},
    "PupuJEPA paper's",  # arXiv 2606.25713, whose rows the card copies
    {
        "mtt": {"roc_auc": (90.6, 90.5, 90.9, 91.7), "average_precision": (37.9, 38.5, 38.3, 40.8)},
        "gs": {"weighted_score": (64.1, 63.2, 63.0, 66.1)},
        "gtzan": {"accuracy": (77.6, 83.8, 84.1, 86.9)},
        "emo": {"r2_valence": (56.7, 58.3, 57.2, 62.5), "r2_arousal": (76.1, 76.4, 74.4, 76.8)},
        "mtg-instrument": {
            "roc_auc": (75.5, 74.8, 74.6, 78.4),
            "average_precision": (18.8, 19.1, 18.5, 21.2),
        },
        "mtg-moodtheme": {
            "roc_auc": (75.3, 73.7, 74.9, 76.2),
            "average_precision": (13.5, 13.2, 14.1, 15.3),
        },
        "mtg-genre": {
            "roc_auc": (86.1, 85.4, 85.3, 86.1),
            "average_precision": (18.0, 19.1, 19.4, 20.1),
        },
        "mtg-top50": {
            "roc_auc": (82.6, 83.0, 81.9, 82.8),
            "average_precision": (29.1, 30.2, 29.7, 30.5),
        },
    },
)
MERT_V2 = Source(
    "MERT-v2's card",
    {"MERT-v2-30s": "MERT-v2-30s", "MERT-v2-FullSong": "MERT-v2-FullSong"},
    "layer and learning rate chosen for each task",
    {
        "mtt": {"roc_auc": (91.91, 91.74), "average_precision": (41.29, 41.20)},
        "gs": {"weighted_score": (66.97, 67.05)},
        "gtzan": {"accuracy": (91.72, 90.69)},
        "emo": {"r2_valence": (63.23, 63.52), "r2_arousal": (80.01, 78.14)},
        "mtg-instrument": {"roc_auc": (80.27, 80.27), "average_precision": (22.89, 23.51)},
        "mtg-moodtheme": {"roc_auc": (79.44, 78.74), "average_precision": (16.68, 15.74)},
        "mtg-genre": {"roc_auc": (88.01, 87.98), "average_precision": (21.22, 20.66)},
        "mtg-top50": {"roc_auc": (84.18, 84.13), "average_precision": (32.17, 31.62)},
    },
    {
        "MERT-v2-30s": {
            "gtzan": "layer 23, lr 5e-3",
            "gs": "layer 4, lr 1e-3",
            "emo": "MLP over all layers, lr 5e-5",
            "mtt": "layer 22",
            "mtg-instrument": "layer 14, lr 1e-3",
            "mtg-moodtheme": "layer 16, lr 1e-3",
            "mtg-genre": "layer 19, lr 1e-3",
            "mtg-top50": "layer 13, lr 1e-3",
        },
        "MERT-v2-FullSong": {
            "gtzan": "layer 24, lr 5e-4",
            "gs": "layer 23, lr 1e-3",
            "emo": "layer 24, lr 5e-4",
            "mtt": "layer 23",
            "mtg-instrument": "layer 12, lr 1e-3",
            "mtg-moodtheme": "layer 13, lr 1e-3",
            "mtg-genre": "layer 16, lr 1e-3",
            "mtg-top50": "layer 22, lr 1e-3",
        },
    },
)
SOURCES = (MUQ_PAPER, PUPUJEPA, MERT_V2)
# Our name of an encoder, or the last part of a path or hub id -> its names above. The public
# weights are MuQ iter's method on less data, so they are neither of the MuQ paper's two.
ENCODERS = {
    "muq": ("MuQ", "MuQ iter"),
    "MuQ-large-msd-iter": ("MuQ", "MuQ iter"),
    "MERT-v1-330M": ("MERT",),
    "MERT-v2-30s": ("MERT-v2-30s",),
    "MERT-v2-FullSong": ("MERT-v2-FullSong",),
}
METRIC_NAMES = {
    "r2_valence": "R² valence",
    "r2_arousal": "R² arousal",
    "weighted_score": "weighted score",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
}


@dataclass(frozen=True)
class PublishedLine:
    """An encoder's published figures on a task, and where they lie against ours.

    Attributes
    ----------
    name : of the encoder, as published
    encoder : the name by which sources are compared
    figures : metric -> (value, deviation over seeds or None), from 0 to 1
    ours : configuration -> metric -> "inside", "above" or "below": the published figure against
        the 95 % interval of ours
    """

    name: str
    encoder: str
    source: str
    protocol: str
    figures: dict[str, tuple[float, float | None]]
    ours: dict[Configuration, dict[str, str]]


@dataclass(frozen=True)
class Published:
    """A task's published figures beside ours.

    Attributes
    ----------
    ours : our configurations -> metric -> (mean, low, high): each encoder's baseline
    spread : encoder -> metric -> the published figures' (lowest, highest), over sources; where
        several have the encoder
    """

    lines: list[PublishedLine]
    ours: dict[Configuration, dict[str, tuple[float, float, float]]]
    spread: dict[str, dict[str, tuple[float, float]]]


def metric_name(metric: str) -> str:
    """A metric as papers write it."""
    return METRIC_NAMES.get(metric, metric)


def same_encoder(configuration: Configuration, line: PublishedLine) -> bool:
    """Whether ours is the published encoder, though its weights and protocol may be others."""
    name = configuration.result["encoder"].rstrip("/").rsplit("/", 1)[-1]
    return line.encoder in ENCODERS.get(name, ())


def published_table(task: str, ours: Sequence[Configuration], scores) -> Published | None:
    """The published figures of a public task beside ours; None for any other task.

    Parameters
    ----------
    task : as in result.json
    ours : configurations to compare
    scores : gives a configuration's `summary`
    """
    lines = []
    mine = {c: scores.summary(c) for c in ours}
    for source in SOURCES:
        for at, (name, encoder) in enumerate(source.encoders.items()):
            figures = {
                metric: _figure(values[at])
                for metric, values in source.figures.get(task, {}).items()
            }
            if not figures:
                continue
            protocol = (source.settings or {}).get(name, {}).get(task, source.protocol)
            against = {
                c: {m: _against(v, summary[m]) for m, (v, _) in figures.items() if m in summary}
                for c, summary in mine.items()
            }
            lines.append(PublishedLine(name, encoder, source.name, protocol, figures, against))
    if not lines:
        return None
    metrics = lines[0].figures
    shown = {c: {m: v for m, v in summary.items() if m in metrics} for c, summary in mine.items()}
    return Published(lines, shown, protocol_spread(lines))


def protocol_spread(lines: Sequence[PublishedLine]) -> dict:
    """How far apart sources are for the same encoder: encoder -> metric -> (lowest, highest)."""
    sources: dict[str, set[str]] = {}
    for line in lines:
        sources.setdefault(line.encoder, set()).add(line.source)
    out = {}
    for encoder in (name for name, found in sources.items() if len(found) > 1):
        mine = [line.figures for line in lines if line.encoder == encoder]
        out[encoder] = {
            metric: (min(f[metric][0] for f in mine), max(f[metric][0] for f in mine))
            for metric in mine[0]
        }
    return out


def _figure(value) -> tuple[float, float | None]:
    """A figure in per cent, or a pair with its deviation, to (value, deviation) from 0 to 1."""
    value, std = value if isinstance(value, tuple) else (value, None)
    return round(value / 100, 5), None if std is None else round(std / 100, 5)


def _against(value: float, ours: tuple[float, float, float]) -> str:
    """Where a published figure lies against our interval; "" where that is undefined."""
    _, low, high = ours
    if low != low:
        return ""
    return "below" if value < low else "above" if value > high else "inside"


@dataclass(frozen=True)
class StudyLine:
    """A line of the study's table: its figures, and ours.

    Attributes
    ----------
    study : metric -> the published figure as text
    study_cost : peak GB and seconds over the test split, as text
    ours : our configurations of the strategy -> metric -> (mean, low, high)
    """

    strategy: str
    study: dict[str, str]
    study_cost: str
    ours: dict[Configuration, dict[str, tuple[float, float, float]]]

    def texts(self, configuration: Configuration) -> list[str]:
        """Each metric of ours with its interval, and where the study's figure lies against it."""
        return [
            f"{mean:.3f} ({low:.3f} to {high:.3f}; study "
            f"{_against(float(self.study[name]), (mean, low, high)) or '-'})"
            for name, (mean, low, high) in self.ours[configuration].items()
        ]


def study_table(task: str, configurations: Sequence[Configuration], scores) -> list[StudyLine]:
    """The study's table for one of its tasks, with ours beside it; [] for any other task.

    Parameters
    ----------
    task : as in result.json
    scores : gives a configuration's `summary`
    """
    if task not in STUDY_METRICS:
        return []
    names = list(STUDY_METRICS[task])
    columns = slice(0, 1) if task == "gtzan" else slice(1, 3)
    lines = []
    for (seg, agg), figures in STRATEGIES.items():
        # The full track is one segment: its cost doesn't depend on the aggregator.
        peak, seconds = STUDY[task.upper(), seg, "any" if seg == "full" else agg]
        mine = [c for c in configurations if (c.result["seg"], c.result["agg"]) == (seg, agg)]
        ours = {c: {n: scores.summary(c)[n] for n in names if n in scores.summary(c)} for c in mine}
        text = f"{'full track' if seg == 'full' else seg_text(seg)} {agg}"
        study = {n: f"{v:.3f}" for n, v in zip(names, figures[columns], strict=True)}
        lines.append(StudyLine(text, study, f"{peak:.2f} GB, {seconds:.0f} s", ours))
    return lines
