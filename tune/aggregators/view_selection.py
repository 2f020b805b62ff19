"""Which views of a track the probe gets: the mean, and others that are better on left-out tracks.

Views are chosen by forward selection (Guyon and Elisseeff 2003) from the mean onwards. A step is
scored by kernel ridge regression on the training and validation tracks, each track (or group of
tracks) left out once, in closed form (Allen 1974's PRESS). The kernel is that of the probe, a layer
of ReLUs, if it were infinitely wide (Cho and Saul 2009): with a linear one a view can win by
curvature that the probe gets from the mean alone. A view enters only if its squared errors are
smaller than those without it by more than `STANDARD_ERRORS` standard errors of the paired
difference: the rule of Breiman et al. (1984), with the mean as the simplest model. Where no view
does, the probe sees the mean and nothing else, and is the mean's to the bit.

The training loss can't choose: a probe with thousands of weights fits a hundred tracks by any view.
"""

from collections.abc import Sequence

import numpy as np
import torch

STANDARD_ERRORS = 2.0
STRENGTHS = tuple(10.0**k for k in range(-3, 4))
FEWEST_TRACKS = 10  # (or groups) below which nothing but the mean is chosen
MOST_TRACKS = 2000  # a kernel of more is slow; the first so many, drawn by a fixed seed, decide


def held_out_errors(
    kernel: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> np.ndarray:
    """Squared errors of kernel ridge regression for tracks that are left out, in closed form.

    Parameters
    ----------
    kernel : (n, n), inner products of the tracks
    targets : (n, C)
    groups : (n,) numbers; the tracks of a group are left out together. None: each by itself
    strengths : of the penalty, in units of the centred kernel's mean eigenvalue

    Returns
    -------
    (n,), means over the C targets, by the strength of the penalty with the smallest sum

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> held_out_errors(x @ x.T, 2 * x + 1).round(3)
    array([0., 0., 0., 0.])
    """
    n = len(kernel)
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(centred * (n / max(np.trace(centred), 1e-300)))
    values, rotated = values.clip(min=0), vectors.T @ targets
    members = None if groups is None else [np.flatnonzero(groups == g) for g in np.unique(groups)]
    best = None
    for strength in strengths:
        shrunk = values / (values + strength)
        residuals = targets - targets.mean(0) - vectors @ (shrunk[:, None] * rotated)
        if members is None:
            leverage = (vectors**2 * shrunk).sum(1) + 1 / n
            errors = residuals / (1 - leverage)[:, None]
        else:
            errors = np.empty_like(residuals)
            for at in members:  # the residuals of a group that had no part in the fit
                hat = (vectors[at] * shrunk) @ vectors[at].T + 1 / n
                errors[at] = np.linalg.solve(np.eye(len(at)) - hat, residuals[at])
        squares = (errors**2).mean(1)
        if best is None or squares.sum() < best.sum():
            best = squares
    return best


def relu_kernel(products: np.ndarray) -> np.ndarray:
    """Inner products of tracks behind an infinitely wide layer of ReLUs, from those in front of it.

    The arc-cosine kernel of degree 1 (Cho and Saul 2009, equation 3).

    Parameters
    ----------
    products : (n, n)

    Examples
    --------
    >>> relu_kernel(np.eye(2)).round(3)
    array([[1.   , 0.318],
           [0.318, 1.   ]])
    """
    norms = np.sqrt(np.diagonal(products).clip(min=0))
    scale = np.outer(norms, norms)
    cosines = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0).clip(-1, 1)
    angles = np.arccos(cosines)
    return scale * (np.sin(angles) + (np.pi - angles) * cosines) / np.pi


def select_views(
    views: Sequence[np.ndarray],
    targets: np.ndarray,
    groups: np.ndarray | None = None,
    standard_errors: float = STANDARD_ERRORS,
) -> list[int]:
    """Choose views by forward selection, beginning with the first.

    Parameters
    ----------
    views : (n, D) each; every view gets the same total variance
    targets : (n, C), numbers, or 0 and 1 for classes and tags
    groups : see `held_out_errors`
    standard_errors : by how many a view must be better than none

    Returns
    -------
    numbers of the chosen views in the order of their choice; 0 comes first
    """
    products = []
    for view in views:
        view = view - view.mean(0)
        each = view @ view.T
        products.append(each / max(np.trace(each), 1e-300))
    chosen, total = [0], products[0]
    if len(targets if groups is None else np.unique(groups)) < FEWEST_TRACKS:
        return chosen
    errors = held_out_errors(relu_kernel(total), targets, groups)
    while True:
        found = []
        for i in set(range(len(views))) - set(chosen):
            each = held_out_errors(relu_kernel(total + products[i]), targets, groups)
            gain = errors - each
            if groups is not None:
                gain = np.bincount(np.unique(groups, return_inverse=True)[1], gain)
            deviation = gain.std(ddof=1) / len(gain) ** 0.5
            if gain.mean() > standard_errors * deviation:
                found.append((each.sum(), i, each))
        if not found:
            return chosen
        _, i, errors = min(found, key=lambda item: item[0])
        chosen.append(i)
        total = total + products[i]


def weigh(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    views: Sequence[str],
    groups: np.ndarray | None = None,
) -> torch.Tensor:
    """Weights (S,) of views: 0 for one that isn't chosen.

    Views of one kind (such as the cosines) are chosen together, and weigh as much together as the
    first view does.

    Parameters
    ----------
    inputs : (n, S, D) of the tracks that choose
    labels : (n, C)
    views : names of the S views; those that begin with the same word are of one kind
    groups : (n,) numbers of what tracks have in common, or None
    """
    kinds = [name.split()[0] for name in views]
    names = list(dict.fromkeys(kinds))
    some = np.random.default_rng(0).permutation(len(inputs))[:MOST_TRACKS]
    x = inputs[some].double().cpu().numpy()
    at = [[i for i, kind in enumerate(kinds) if kind == name] for name in names]
    found = select_views(
        [x[:, columns].reshape(len(x), -1) for columns in at],
        labels[some].double().cpu().numpy(),
        None if groups is None else groups[some],
    )
    weights = torch.zeros(len(views), dtype=torch.float64)
    for kind in found:
        weights[at[kind]] = len(at[kind]) ** -0.5
    return weights
