"""Choosing views: errors against refits without each track, and when the mean is kept."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.linear_model import Ridge

from tune.aggregators.view_selection import (
    STRENGTHS,
    held_out_errors,
    relu_kernel,
    select_views,
    weigh,
)


def refitted(x, targets, groups):
    """The same errors by fitting scikit-learn's ridge anew without each group."""
    around = x - x.mean(0)
    unit = np.trace(around @ around.T) / len(x)
    best = None
    for strength in STRENGTHS:
        errors = np.empty(len(x))
        for group in np.unique(groups):
            out = groups == group
            model = Ridge(alpha=strength * unit).fit(x[~out], targets[~out])
            guess = model.predict(x[out]).reshape(targets[out].shape)
            errors[out] = ((targets[out] - guess) ** 2).mean(1)
        if best is None or errors.sum() < best.sum():
            best = errors
    return best


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [3, 60])
def test_errors_are_those_of_fits_without_the_track(rng, grouped, size):
    x = rng.normal(3, 2, (30, size))
    targets = x[:, :2] @ rng.normal(size=(2, 2)) + rng.normal(size=(30, 2))
    groups = rng.integers(0, 9, 30) if grouped else np.arange(30)
    got = held_out_errors(x @ x.T, targets, groups if grouped else None)
    np.testing.assert_allclose(got, refitted(x, targets, groups), rtol=1e-6)


def test_kernel_is_that_of_many_random_relus(rng):
    x = rng.normal(size=(5, 3))
    hidden = np.maximum(x @ rng.normal(size=(3, 400_000)), 0)
    np.testing.assert_allclose(
        relu_kernel(x @ x.T), 2 * hidden @ hidden.T / hidden.shape[1], rtol=0.03, atol=0.02
    )
    assert not relu_kernel(np.zeros((2, 2))).any()


def test_a_curve_of_the_mean_is_no_news_to_the_probe(rng):
    """A view that is the mean squared helps a linear probe alone."""
    x = rng.normal(size=(150, 4))
    targets = (x[:, :1] ** 2) + 0.1 * rng.normal(size=(150, 1))
    squares = x**2
    alone, beside = (
        held_out_errors(k, targets).sum() for k in (x @ x.T, x @ x.T + squares @ squares.T)
    )
    assert beside < 0.5 * alone
    noisy = squares + rng.normal(size=x.shape)  # what is left to learn of it is noise
    assert select_views([x, noisy], targets) == [0]


def planted(rng, n, told):
    """Four views of n tracks (the last of 5 D), of which those in `told` know the class of four."""
    labels = rng.integers(0, 4, n)
    views = []
    for i, size in enumerate([16, 16, 16, 80]):
        middle = rng.normal(size=(4, size)) * (i in told)
        views.append(middle[labels] + rng.normal(size=(n, size)))
    return views, np.eye(4)[labels]


@pytest.mark.parametrize(
    ("told", "expected"), [([0], [0]), ([0, 3], [0, 3]), ([2], [0, 2]), ([3], [0, 3]), ([], [0])]
)
def test_views_that_tell_are_found_and_no_others(rng, told, expected):
    views, targets = planted(rng, 120, told)
    assert select_views(views, targets) == expected


def test_the_mean_is_kept_when_the_others_know_nothing_more():
    """Also when they are noisy copies of it: as wrong as the rule's level says, not more."""
    rng = np.random.default_rng(1)
    more = 0
    for _ in range(40):
        (view, *_), targets = planted(rng, 60, [0])
        copies = [view + rng.normal(size=view.shape) for _ in range(3)]
        more += len(select_views([view, *copies], targets)) > 1
    assert more <= 6


def test_groups_are_left_out_together(rng):
    """Takes of a song are alike in a view that says nothing of other songs."""
    songs = np.repeat(np.arange(24), 4)
    labels = rng.integers(0, 2, 24)[songs]
    song = rng.normal(size=(24, 20))[songs] + 0.1 * rng.normal(size=(96, 20))
    views, targets = [rng.normal(size=(96, 20)), song], np.eye(2)[labels]
    assert select_views(views, targets) == [0, 1]  # known songs are recognised
    assert select_views(views, targets, songs) == [0]


def test_a_handful_of_tracks_chooses_nothing(rng):
    views, targets = planted(rng, 9, [3])
    assert select_views(views, targets) == [0]


def test_views_of_a_kind_weigh_together_as_much_as_the_first(rng):
    views, targets = planted(rng, 80, [3])
    parts = np.split(views[3], 5, 1)
    inputs = torch.from_numpy(np.stack([*views[:3], *parts], 1))
    names = ["mean", "deviation", "whitened", *(f"cosine {k}" for k in range(1, 6))]
    weights = weigh(inputs, torch.from_numpy(targets), names)
    torch.testing.assert_close(
        weights, torch.tensor([1, 0, 0, *[5**-0.5] * 5], dtype=torch.float64)
    )


def test_the_simulation_prints_what_was_let_in(capsys):
    spec = importlib.util.spec_from_file_location("sim", ROOT / "benchmarks" / "view_selection.py")
    simulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulation)
    simulation.main(simulation.parse_args(["--tracks", "80", "--reps", "3"]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * 3
    rule = {line.split()[2]: line for line in lines if " 2 standard errors" in line}
    assert "let in 100%" in rule["order"]
