"""Do verdicts err as rarely as they say? Strategies are made up whose true scores are known.

    python benchmarks/verdict_calibration.py
    python benchmarks/verdict_calibration.py --parts accuracy choices --reps 200

Four strategies are made up: a baseline, one as good as it in truth, one worse by just the margin,
one better by 0.05. A verdict errs if it calls the second *better* or *worse*, or the third *as
good* (*equivalent* and *better* included). Then a choice among ten strategies, of which the
cheapest is worse by 0.05, and the highest of 13. Each is done again and again, with other tracks
and seeds each time. Writes results/verdict_calibration.json, in which parts that aren't asked for
stay, and prints the tables of docs/verdicts.md. --reps is what each part is done at most; parts
that take long are done less often, as their rows say.

What tracks, strategies and seeds have in common is as in real runs (`mel`, 10 s, `mean`, `max`,
`stats` and `whitened`, 20 seeds). On demo and gamemusic: accuracies of 0.47 to 0.65, contributions
of tracks with a deviation of 0.35 to 0.44, a correlation of 0.5 to 0.9 between two strategies'
contributions, seeds with a deviation of 0 to 0.05 beyond what tracks explain, and no correlation
between the same seeds of two strategies. On demo-mood: predictions of 0.5 to 0.7 times the value,
a correlation of 0.84 to 0.94, and seeds that move a track's prediction by 0.2. There are no such
runs of tags: tracks and seeds have the shares that they have on demo-mood.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from scipy.stats import norm

from tune.cli.parser import Parser, positive_int, run_script
from tune.comparison.jackknife import LEVEL, estimate, estimates, leave_out
from tune.comparison.selection import choose, optimism
from tune.comparison.verdicts import BETTER, CANT_TELL, MARGIN, WORSE, verdicts
from tune.runs.result import git_sha
from tune.tasks.tag_ranking import weighted_ranking

RESULTS = Path(__file__).parent / "results"
TRACKS, SEEDS = (46, 125, 290, 1000), (1, 5, 20)
GAIN = 0.05  # of the better strategy, and what the cheapest of ten lacks
OFFSETS = (0.0, 0.0, -MARGIN, GAIN)  # of the four strategies
CLASS_TRACK, CLASS_BOTH, CLASS_SEED = (
    5.5**0.5,
    2.0**0.5,
    0.18,
)  # deviations; that of a prediction: 1
NUMBER_TRACK, NUMBER_BOTH, NUMBER_REST = 0.40, 0.22, 0.20
NUMBER_SLOPE, NUMBER_SEED_SLOPE, NUMBER_SEED_SHIFT = 0.5, 0.05, 0.05
TAG_TRACK, TAG_BOTH, TAG_REST, TAG_SEED, TAG_MEAN = 0.8, 0.5, 0.35, 0.06, 1.2
PREVALENCES = (0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4)  # with 46 tracks 2 to 18 have a tag


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="verdict_calibration.py", description=__doc__)
    parser.add_argument("--reps", type=positive_int, default=1000, help="times that each is done")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "verdict_calibration.json")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Simulation:
    """A kind of label: its metrics, and how predictions of known worth are drawn.

    Attributes
    ----------
    draw : (rng, offsets (K,), n tracks, S seeds, number of groups or None, metric) -> labels and
        predictions (K, S, n[, C]); each offset is that of the metric's expected value
    targets : their names
    """

    draw: Callable
    targets: tuple[str, ...] = ()


def draw_classes(rng, offsets, n, s, n_groups=None, metric="accuracy", base=0.55):
    """Right or wrong by a sum of normal variables: P(right) = base + offset."""
    spread = np.sqrt(1 + CLASS_TRACK**2 + CLASS_BOTH**2 + CLASS_SEED**2)
    strength = spread * norm.ppf(base + np.asarray(offsets))[:, None, None]
    latent = strength + _effects(
        rng, (len(offsets), s, n), n_groups, (CLASS_TRACK, CLASS_BOTH, CLASS_SEED, 1.0)
    )
    labels = rng.integers(0, 10, n)
    wrong = (labels + rng.integers(1, 10, latent.shape)) % 10
    return labels, np.where(latent > 0, labels, wrong)


def draw_numbers(rng, offsets, n, s, n_groups=None, metric="r2"):
    """Two targets, predicted by a part of the value and errors; some tracks are harder."""
    k, c = len(offsets), 2
    y = _track_effect(rng, (n, c), n_groups)
    hard = np.exp(0.4 * _track_effect(rng, (n, 1), n_groups) - 0.4**2)  # E hard² = 1
    slope = NUMBER_SLOPE + NUMBER_SEED_SLOPE * rng.standard_normal((k, s, 1, c))
    shift = NUMBER_SEED_SHIFT * rng.standard_normal((k, s, 1, c))
    # R² = 1 - mean square of the error, which the offset is taken from.
    noise = NUMBER_TRACK**2 + NUMBER_BOTH**2 + NUMBER_REST**2
    scale = np.sqrt(1 - np.asarray(offsets) / noise)[:, None, None, None]
    error = NUMBER_TRACK * _track_effect(rng, (n, c), n_groups)
    error = (
        error + NUMBER_BOTH * _track_effect(rng, (n, k, c), n_groups).transpose(1, 0, 2)[:, None]
    )
    error = error + NUMBER_REST * rng.standard_normal((k, s, n, c))
    return y, slope * y + shift + scale * hard * error


def draw_tags(rng, offsets, n, s, n_groups=None, metric="roc_auc"):
    """Tags with the prevalences of `PREVALENCES`; a tag's tracks score higher by a distance."""
    k, c = len(offsets), len(PREVALENCES)
    labels = norm.cdf(_track_effect(rng, (n, c), n_groups)) < PREVALENCES
    distance = np.array([_distance(metric, float(o), n) for o in offsets])[:, None, None, None]
    distance = distance + TAG_SEED * rng.standard_normal((k, s, 1, c))
    scores = distance * labels + TAG_TRACK * _track_effect(rng, (n, c), n_groups)
    scores = scores + TAG_BOTH * _track_effect(rng, (n, k, c), n_groups).transpose(1, 0, 2)[:, None]
    return labels, scores + TAG_REST * rng.standard_normal((k, s, n, c))


def _track_effect(rng, shape, n_groups):
    """Standard normal values by track (n, ...); the tracks of a group share four fifths of them."""
    each = rng.standard_normal(shape)
    if n_groups is None:
        return each
    shared = rng.standard_normal((n_groups, *shape[1:]))[np.arange(shape[0]) % n_groups]
    return np.sqrt(0.8) * shared + np.sqrt(0.2) * each


def _effects(rng, shape, n_groups, deviations):
    """Sum of the effects of tracks, of tracks on a strategy, of seeds, and the rest: (K, S, n)."""
    k, s, n = shape
    track, both, seed, rest = deviations
    out = track * _track_effect(rng, (n,), n_groups)
    out = out + both * _track_effect(rng, (n, k), n_groups).T[:, None]
    out = out + seed * rng.standard_normal((k, s, 1))
    return out + rest * rng.standard_normal(shape)


@lru_cache
def _distance(metric: str, offset: float, n: int) -> float:
    """How far a tag's tracks lie above the others for the baseline's metric plus an offset."""
    if offset == 0:
        return TAG_MEAN
    grid = TAG_MEAN + np.linspace(-0.5, 0.5, 11)
    means = _mean_by_distance(n)[metric]
    at_mean = np.interp(TAG_MEAN, grid, means)
    return float(np.interp(at_mean + offset, means, grid))


@lru_cache
def _mean_by_distance(n: int, reps: int = 1000) -> dict[str, np.ndarray]:
    """Both metrics' expected values on n tracks at eleven distances, on the same random numbers."""
    rng = np.random.default_rng(1)
    spread = np.sqrt(TAG_TRACK**2 + TAG_BOTH**2 + TAG_REST**2)
    found = []
    for _ in range(reps):
        labels = rng.random((n, len(PREVALENCES))) < PREVALENCES
        noise = spread * rng.standard_normal(labels.shape)
        shift = TAG_SEED * rng.standard_normal(labels.shape[1])
        distances = TAG_MEAN + np.linspace(-0.5, 0.5, 11)[:, None, None] + shift
        found.append(weighted_ranking(labels, distances * labels + noise, np.ones((1, n))))
    auc, precision = np.nanmean(found, axis=0)[:, 0]
    return {"roc_auc": auc, "average_precision": precision}


SIMULATIONS = {
    "classes": Simulation(draw_classes),
    "numbers": Simulation(draw_numbers, targets=("a", "b")),
    "tags": Simulation(draw_tags),
}


def four_strategies(kind, metric, n, seeds=SEEDS, reps=1000, n_groups=None, as_groups=True, **how):
    """How often verdicts on the four strategies are wrong, and right: a row a number of seeds.

    Parameters
    ----------
    n_groups : groups that the tracks belong to; None: each is alone
    as_groups : whether the groups are told to the test
    how : more for the simulation
    """
    simulation = SIMULATIONS[kind]
    groups = np.arange(n) % n_groups if n_groups and as_groups else None
    units = n_groups if groups is not None else n
    rng = np.random.default_rng(n)
    words, detectable = {s: [] for s in seeds}, {s: [] for s in seeds}
    for _ in range(reps):
        labels, predictions = simulation.draw(rng, OFFSETS, n, max(seeds), n_groups, metric, **how)
        left_out = [
            leave_out(kind, labels, p, simulation.targets, groups)[metric] for p in predictions
        ]
        for s in seeds:
            each = [estimate(metric, values[:, :s], n, units) for values in left_out]
            judged = [verdicts([one - each[0]])[0] for one in each[1:]]
            words[s].append([v.word for v in judged])
            detectable[s].append(judged[0].detectable)
    out = []
    for s in seeds:
        same, worse, better = np.array(words[s]).T
        out.append(
            {
                "metric": metric,
                **how,
                "tracks": n,
                "groups": n_groups,
                "as_groups": bool(n_groups and as_groups),
                "seeds": s,
                "reps": reps,
                "false_better": float((same == BETTER).mean()),
                "false_worse": float((same == WORSE).mean()),
                "false_as_good": float((~np.isin(worse, (WORSE, CANT_TELL))).mean()),
                "shown_as_good": float((~np.isin(same, (WORSE, CANT_TELL))).mean()),
                "shown_better": float((better == BETTER).mean()),
                "detectable": float(np.median(detectable[s])),
            }
        )
    return out


def choices(n, seeds=5, reps=1000, k=10, margin=MARGIN):
    """A choice among strategies, the cheapest worse by `GAIN`: how often that one is advised."""
    rng = np.random.default_rng(n)
    advised, some = [], []
    for _ in range(reps):
        labels, predictions = draw_classes(rng, [-GAIN] + [0.0] * (k - 1), n, seeds)
        each = [estimates("classes", labels, p)["accuracy"] for p in predictions]
        found = choose(each, range(k), margin)
        advised.append(found.chosen == 0)
        some.append(found.chosen is not None)
    return {
        "strategies": k,
        "margin": margin,
        "tracks": n,
        "seeds": seeds,
        "reps": reps,
        "worse_advised": float(np.mean(advised)),
        "some_advised": float(np.mean(some)),
    }


def highest(n, spread, seeds=5, reps=1000, k=13):
    """By how much the highest of k scores is too high, before and after `optimism` is taken off."""
    rng = np.random.default_rng(n)
    before, after = [], []
    for _ in range(reps):
        offsets = spread * rng.standard_normal(k)
        labels, predictions = draw_classes(rng, offsets, n, seeds)
        each = [estimates("classes", labels, p)["accuracy"] for p in predictions]
        best = int(np.argmax([e.value for e in each]))
        before.append(each[best].value - (0.55 + offsets[best]))
        after.append(before[-1] - optimism(each))
    return {
        "strategies": k,
        "spread": spread,
        "tracks": n,
        "seeds": seeds,
        "reps": reps,
        "too_high": float(np.mean(before)),
        "too_high_corrected": float(np.mean(after)),
        "simulation_error": float(np.std(before) / np.sqrt(reps)),
    }


def _verdicts(kind, metric, reps):
    """Rows of a metric for all numbers of tracks and seeds."""
    return [row for n in TRACKS for row in four_strategies(kind, metric, n, reps=reps)]


def _near_one(reps):
    """Rows of an accuracy of 0.9, where few tracks tell strategies apart."""
    how = {"seeds": (5,), "reps": reps, "base": 0.9}
    return [row for n in TRACKS for row in four_strategies("classes", "accuracy", n, **how)]


def _groups(reps):
    """Rows of tracks that belong together, with the groups told and not told."""
    return [
        row
        for told in (True, False)
        for row in four_strategies("classes", "accuracy", 144, (5,), reps, 36, told)
    ]


PARTS = {
    "accuracy": partial(_verdicts, "classes", "accuracy"),
    "near_one": _near_one,
    "groups": _groups,
    "r2": partial(_verdicts, "numbers", "r2"),
    "roc_auc": lambda reps: _verdicts("tags", "roc_auc", min(reps, 400)),
    "average_precision": lambda reps: _verdicts("tags", "average_precision", min(reps, 400)),
    "choices": lambda reps: [
        *(choices(n, reps=min(reps, 400)) for n in TRACKS),
        choices(1000, seeds=20, reps=min(reps, 200), margin=GAIN),
    ],
    "highest": lambda reps: [
        highest(n, spread, reps=min(reps, 200)) for n in TRACKS[:2] for spread in (0.0, GAIN)
    ],
}


def markdown(parts: dict[str, list[dict]]) -> str:
    """The tables of docs/verdicts.md."""
    lines = [
        "| metric | test tracks | seeds | false *better* | false *worse* | false *as good* "
        "| equal: shown *as good* | +0.05: shown *better* | smallest difference shown |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in PARTS:
        if name not in ("choices", "highest"):
            lines += map(_verdict_line, parts.get(name, []))
    lines += ["", "| test tracks | seeds | margin | the worse one advised | another advised |"]
    lines += ["|---|---|---|---|---|"]
    for r in parts.get("choices", []):
        others = r["some_advised"] - r["worse_advised"]
        lines.append(
            f"| {r['tracks']:,} | {r['seeds']} | {r['margin']:g} "
            f"| {100 * r['worse_advised']:.1f} % | {100 * others:.1f} % |"
        )
    lines += ["", "| test tracks | strategies differ by | highest too high by | corrected |"]
    lines += ["|---|---|---|---|"]
    for r in parts.get("highest", []):
        lines.append(
            f"| {r['tracks']:,} | {r['spread']:g} | {r['too_high']:+.3f} "
            f"| {r['too_high_corrected']:+.3f} |"
        )
    return "\n".join(lines)


def _verdict_line(r: dict) -> str:
    """A row of the first table."""
    tracks = f"{r['tracks']:,}" + (f" in {r['groups']} groups" if r["groups"] else "")
    tracks += ", groups unknown" if r["groups"] and not r["as_groups"] else ""
    about = f"{r['metric']} of {r['base']:g}" if "base" in r else r["metric"]
    wrong = (f"{100 * r[k]:.1f} %" for k in ("false_better", "false_worse", "false_as_good"))
    right = (f"{100 * r[k]:.0f} %" for k in ("shown_as_good", "shown_better"))
    cells = (about, tracks, str(r["seeds"]), *wrong, *right, f"{r['detectable']:.3f}")
    return "| " + " | ".join(cells) + " |"


def main(args):
    """Simulate, write after each part, and print."""
    old = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    parts = dict(old.get("parts", {}))
    for name in args.parts:
        parts[name] = PARTS[name](args.reps)
        print(name, *map(json.dumps, parts[name]), sep="\n", flush=True)
        report = {
            "benchmark": "verdict_calibration",
            "git_sha": git_sha(),
            "level": LEVEL,
            "margin": MARGIN,
            "parts": parts,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        args.out.write_text(text, encoding="utf-8")
    print(markdown(parts), f"\nwritten to {args.out}")


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
