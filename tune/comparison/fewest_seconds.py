"""The fewest seconds of each track that are as good as all of it.

Runs of one strategy that differ in --use_seconds and --pick make a curve: quality against seconds,
a line for each pick. Each point is compared with the run that uses all of each track, and all
points of a curve are one family, so that the fewest seconds which are *as good* can be read off it
without another correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tune.comparison.configurations import Configuration, details, layer_of, pick_text, task_key
from tune.comparison.significance import Scores, compare_to_baseline
from tune.comparison.verdicts import Verdict
from tune.segments.pick import PICKS


@dataclass(frozen=True, eq=False)
class Point:
    """Some seconds of each track, against all of it.

    Attributes
    ----------
    verdict : against all of each track, or the reason (str) why the two can't be compared
    """

    configuration: Configuration
    seconds: float
    pick: str
    mean: float
    verdict: Verdict | str

    @property
    def as_good(self) -> bool:
        """Whether a loss beyond the margin is ruled out."""
        return isinstance(self.verdict, Verdict) and self.verdict.as_good

    @property
    def word(self) -> str:
        """The verdict's word, or - where there is none."""
        return self.verdict.word if isinstance(self.verdict, Verdict) else "-"


@dataclass(frozen=True, eq=False)
class SecondsCurve:
    """One strategy by the seconds of each track that it uses.

    Attributes
    ----------
    whole : the configuration that uses all of each track
    mean, low, high : its main metric
    points : by pick, then by seconds
    """

    encoder: str
    whole: Configuration
    mean: float
    low: float
    high: float
    points: list[Point]

    @property
    def picks(self) -> dict[str, list[Point]]:
        """Each pick's points, from few seconds to many."""
        return {
            pick: found
            for pick in PICKS
            if (found := [point for point in self.points if point.pick == pick])
        }

    @property
    def seconds(self) -> list[float]:
        """All seconds that were tried."""
        return sorted({point.seconds for point in self.points})

    def fewest(self, pick: str) -> Point | None:
        """The fewest seconds of a pick that are as good as all of each track."""
        return next((point for point in self.picks[pick] if point.as_good), None)

    def texts(self) -> list[list[str]]:
        """Rows of a table: seconds, then each pick's metric and verdict."""
        at = {(point.seconds, point.pick): point for point in self.points}
        return [
            [f"{seconds:g} s"]
            + [
                f"{point.mean:.3f} {point.word}" if (point := at.get((seconds, pick))) else ""
                for pick in self.picks
            ]
            for seconds in self.seconds
        ] + [["all", *[f"{self.mean:.3f}"] * len(self.picks)]]

    def answers(self) -> list[str]:
        """A line for each pick: its fewest seconds, or what the most of them were."""
        lines = []
        for pick, points in self.picks.items():
            found = self.fewest(pick)
            if found is None:
                text = (
                    f"none is shown to be as good; {points[-1].seconds:g} s: {points[-1].verdict}"
                )
            else:
                text = f"{found.seconds:g} s: {found.verdict}"
            lines.append(f"fewest seconds as good as all, {pick}: {text}")
        return lines


def seconds_curves(
    configurations: Sequence[Configuration], scores: Scores, correction: str, margin: float
) -> list[SecondsCurve]:
    """Curves of an encoder's strategies that were run with --use_seconds and without.

    Parameters
    ----------
    configurations : of one task and encoder
    correction : "holm" or "none", over the points of a curve
    margin : the greatest loss that is put up with
    """
    strategies: dict[tuple, list[Configuration]] = {}
    for configuration in configurations:
        strategies.setdefault(_strategy(configuration), []).append(configuration)
    curves = []
    for group in strategies.values():
        whole = [c for c in group if not c.result.get("use_seconds")]
        some = [c for c in group if c.result.get("use_seconds")]
        if not whole or not some:
            continue
        verdicts = compare_to_baseline(whole[0], some, scores, correction, margin)
        points = [
            Point(c, c.result["use_seconds"], c.result["pick"], _main(scores, c)[0], verdict)
            for c, verdict in verdicts.items()
        ]
        points.sort(key=lambda point: (PICKS.index(point.pick), point.seconds))
        name = whole[0].result["encoder"]
        curves.append(SecondsCurve(name, whole[0], *_main(scores, whole[0]), points))
    return curves


def _main(scores: Scores, configuration: Configuration) -> tuple[float, float, float]:
    """The main metric: mean, low, high."""
    return next(iter(scores.summary(configuration).values()))


def _strategy(configuration: Configuration) -> tuple:
    """What a strategy is but for the seconds that it uses."""
    r = configuration.result
    rest = [text for text in details(configuration.runs[0], True) if text != pick_text(r)]
    key = (r["encoder"], layer_of(r), r["seg"], r["agg"], r["tokens"], r.get("precision"))
    return (*task_key(configuration), *key, *rest)
