"""How often does the gate let in a view that knows nothing, and how often one that is needed?

    python benchmarks/view_selection.py
    python benchmarks/view_selection.py --tracks 50 --reps 10

Tracks of eight classes with four views are made up: a mean (48 values), two more of that size, and
one of 7 x 48 as the cosines have. "noise": the others know nothing. "copy": they are noisy mixtures
of the mean. "order": only the last knows the class. "sharper": the second knows it better than the
mean does. Views are chosen on n tracks as `--agg gated` does, by one, two (the gate's rule) and
three standard errors, and kernel ridge regression with the same kernel is tested on 500 others.
Prints how often a view was let in, and the accuracy gained or lost against the mean alone.
"""

import numpy as np

from tune.aggregators.view_selection import STRENGTHS, held_out_errors, relu_kernel, select_views
from tune.cli.parser import Parser, positive_int, run_script

CLASSES, SIZE, LATENT, TEST = 8, 48, 8, 500
RULES = (1.0, 2.0, 3.0)


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="view_selection.py", description=__doc__)
    parser.add_argument("--tracks", type=positive_int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--reps", type=positive_int, default=40)
    return parser.parse_args(argv)


def draw(kind: str, n: int, maps: dict, rng) -> tuple[list[np.ndarray], np.ndarray]:
    """Views (n, D) of n tracks and their classes (n,)."""

    def told(strength: float, view: int) -> np.ndarray:
        latent = strength * maps["classes"][labels] + (strength > 0) * noise(LATENT)
        return latent @ maps["views"][view] + noise(SIZE)

    def noise(size: int) -> np.ndarray:
        return rng.normal(size=(n, size))

    labels = rng.integers(0, CLASSES, n)
    first = told({"noise": 0.6, "copy": 0.6, "order": 0.0, "sharper": 0.5}[kind], 0)
    others = [noise(SIZE) for _ in range(3)]
    if kind == "copy":
        others = [first @ mixing / SIZE**0.5 + 0.5 * noise(SIZE) for mixing in maps["copies"]]
    elif kind == "order":
        others[2] = maps["classes"][labels] @ maps["views"][3] + noise(SIZE)
    elif kind == "sharper":
        others[0] = told(1.0, 1)
    return [first, *others[:2], np.concatenate([others[2], noise(6 * SIZE)], 1)], labels


def accuracy(train, labels, test, truth, chosen) -> float:
    """Of kernel ridge regression on the chosen views, each of the same total variance."""
    n = len(labels)
    products = np.zeros((n + len(truth),) * 2)
    for i in chosen:
        both = np.concatenate([train[i], test[i]])
        each = both @ both.T
        products += each / np.trace(each[:n, :n])
    kernel = relu_kernel(products)
    inside, across = kernel[:n, :n], kernel[n:, :n]
    targets = np.eye(CLASSES)[labels]
    unit = np.trace(inside - inside.mean(0)) / n
    errors = [held_out_errors(inside, targets, strengths=(s,)).sum() for s in STRENGTHS]
    ridge = STRENGTHS[int(np.argmin(errors))] * unit * np.eye(n)
    centred = inside - inside.mean(0) - inside.mean(1)[:, None] + inside.mean()
    weights = np.linalg.solve(centred + ridge, targets - targets.mean(0))
    new = across - inside.mean(0) - across.mean(1)[:, None] + inside.mean()
    return float(((new @ weights + targets.mean(0)).argmax(1) == truth).mean())


def main(args):
    """Simulate each kind of task with each number of tracks."""
    rng = np.random.default_rng(0)
    for n in args.tracks:
        for kind in ("noise", "copy", "order", "sharper"):
            found = {rule: [] for rule in RULES}
            for _ in range(args.reps):
                maps = {
                    "classes": rng.normal(size=(CLASSES, LATENT)),
                    "views": rng.normal(size=(4, LATENT, SIZE)) / LATENT**0.5,
                    "copies": rng.normal(size=(3, SIZE, SIZE)),
                }
                train, labels = draw(kind, n, maps, rng)
                test, truth = draw(kind, TEST, maps, rng)
                scale = [(view.mean(0), view.std(0)) for view in train]
                train, test = (
                    [(view - m) / s for view, (m, s) in zip(views, scale, strict=True)]
                    for views in (train, test)
                )
                alone = accuracy(train, labels, test, truth, [0])
                for rule, rows in found.items():
                    chosen = select_views(train, np.eye(CLASSES)[labels], None, rule)
                    more = len(chosen) > 1
                    gain = accuracy(train, labels, test, truth, chosen) - alone if more else 0.0
                    rows.append((more, gain))
            for rule, rows in found.items():
                opened, gain = np.mean(rows, 0)
                print(
                    f"{n:4d} tracks  {kind:8}{rule:2g} standard errors: let in {opened:4.0%}, "
                    f"accuracy {gain:+.3f} (worst {min(g for _, g in rows):+.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
