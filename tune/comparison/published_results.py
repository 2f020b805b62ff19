"""The original study's results and other published ones, to show beside ours.

The study's cost is in `tune.profiling.arithmetic`. Figures are accuracy (GTZAN) and R² (EMO), from
0 to 1; those of the MuQ paper use its in-house weights or other encoders, and are no strategies
but references.
"""

from collections.abc import Sequence
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
PUBLISHED = {
    "MERT": (0.786, 0.612, 0.747),
    "MusicFM": (0.838, 0.603, 0.763),
    "MuQ (160k h, in-house weights)": (0.855, 0.609, 0.754),
    "MuQ iter (160k h, in-house weights)": (0.856, 0.628, 0.761),
}
SPREAD = {
    "MuQ (160k h, in-house weights)": (0.009, 0.002, 0.002),
    "MuQ iter (160k h, in-house weights)": (0.007, 0.001, 0.001),
}


@dataclass(frozen=True)
class StudyLine:
    """A line of the study's table: its figures, and ours (None for a reference).

    Attributes
    ----------
    study : metric -> the published figure as text
    study_cost : peak GB and seconds over the test split, as text; "" for a reference
    ours : our configurations of the strategy -> metric -> (mean, low, high)
    """

    strategy: str
    study: dict[str, str]
    study_cost: str
    ours: dict[Configuration, dict[str, tuple[float, float, float]]]


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
    for name, figures in PUBLISHED.items():
        spread = SPREAD.get(name, (None,) * 3)[columns]
        study = {
            n: f"{v:.3f}" + (f" ± {s:.3f}" if s else "")
            for n, v, s in zip(names, figures[columns], spread, strict=True)
        }
        lines.append(StudyLine(f"{name}, MuQ paper", study, "", {}))
    return lines
