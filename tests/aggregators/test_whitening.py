"""Whitening by the within-track covariance: against scikit-learn's parts, and what it must do."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tune.aggregators.whitening import AllTokens, MainDirections, WithinTrack


def fitted(tracks, kind=WithinTrack, **kwargs):
    """Mean and matrix from a list of tracks."""
    within = kind(tracks[0].shape[1])
    for track in tracks:
        within.add(track)
    return within.fit(**kwargs)


@pytest.fixture
def tracks(rng):
    """Forty tracks of 2 to 9 tokens, four dimensions: far from zero, correlated, of two scales."""
    mixing = rng.normal(0, 1, (4, 4)) * [10, 1, 1, 0.1]
    return [
        torch.from_numpy(
            rng.normal(0, 1, (rng.integers(2, 10), 4)) @ mixing + 100 + rng.normal(0, 5)
        )
        for _ in range(40)
    ]


def test_whitened_tokens_vary_alike_in_all_directions_within_tracks(tracks):
    mean, matrix = fitted(tracks, shrinkage=0.0)
    around = torch.cat([(t - t.mean(0)) @ matrix for t in tracks])
    covariance = around.T @ around / (sum(map(len, tracks)) - len(tracks))
    torch.testing.assert_close(
        covariance / covariance.diagonal().mean(),
        torch.eye(4, dtype=torch.float64),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(mean, torch.cat(tracks).mean(0))


def test_against_numpy(tracks):
    _, matrix = fitted(tracks, shrinkage=0.3)
    around = np.concatenate([t.numpy() - t.numpy().mean(0) for t in tracks])
    covariance = around.T @ around / (len(around) - len(tracks))
    covariance = covariance / np.trace(covariance) * 4 + 0.3 * np.eye(4)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(matrix, vectors @ np.diag(values**-0.5) @ vectors.T, rtol=1e-8)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-8, atol=1e-12)


def test_covariance_of_all_tokens(tracks):
    within = WithinTrack(4)
    for track in tracks:
        within.add(track.float())
    every = torch.cat(tracks).float().double()
    torch.testing.assert_close(within.covariance(), torch.cov(every.T, correction=0))
    torch.testing.assert_close(within.mean, every.mean(0))


def test_order_of_tracks_changes_nothing_but_rounding(tracks):
    for a, b in zip(fitted(tracks), fitted(tracks[::-1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_shrinkage_bounds_what_hardly_varies():
    tracks = [torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) + i for i in range(3)]  # one flat direction
    _, matrix = fitted(tracks, shrinkage=0.01)
    assert torch.isfinite(matrix).all()
    assert matrix[1, 1] == pytest.approx(0.01**-0.5)


def test_it_brings_out_what_tells_tracks_apart(rng):
    """Two classes differ by 1 in a quiet direction; a loud one changes from token to token."""
    labels = np.arange(60) % 2
    tracks = [torch.from_numpy(rng.normal([0, y], [30, 0.3], (6, 2))) for y in labels]
    _, matrix = fitted(tracks)
    means = torch.stack([t.mean(0) for t in tracks])

    def spread(x):
        """Distance of the class means over the deviation inside the classes."""
        a, b = x[labels == 0], x[labels == 1]
        return (
            (a.mean(0) - b.mean(0)).norm() / torch.cat([a - a.mean(0), b - b.mean(0)]).std()
        ).item()

    assert spread(means @ matrix) > 5 * spread(means)


@pytest.mark.parametrize("n_tokens", [1, 3])
def test_nothing_varies_within_tracks(n_tokens):
    tracks = [torch.full((n_tokens, 3), float(i)) for i in range(5)]
    with pytest.raises(ValueError, match="nothing varies within the training tracks"):
        fitted(tracks)


def test_pca_whitening_is_scikit_learns_up_to_a_rotation_and_a_factor(tracks):
    mean, matrix = fitted(tracks, AllTokens, shrinkage=0.0)
    every = torch.cat(tracks).numpy()
    expected = PCA(whiten=True).fit_transform(every)
    got = (every - mean.numpy()) @ matrix.numpy()
    factor = np.trace(np.cov(every.T, bias=True)) / 4
    np.testing.assert_allclose(got @ got.T / factor, expected @ expected.T, atol=0.1)


def test_pca_whitening_of_tracks_of_one_token(rng):
    tracks = [torch.from_numpy(rng.normal(size=(1, 3))) for _ in range(30)]
    mean, matrix = fitted(tracks, AllTokens, shrinkage=0.0)
    white = (torch.cat(tracks) - mean) @ matrix
    covariance = white.T @ white / 30
    torch.testing.assert_close(
        covariance, covariance[0, 0] * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_cut_whitening_is_blind_to_the_last_directions(rng):
    deviations = np.array([10.0, 5.0, 1.0, 0.1])  # variances: 79, 20, 0.8 and 0.008 % of all
    tracks = [torch.from_numpy(rng.normal(size=(50, 4)) * deviations) for _ in range(20)]
    _, matrix = fitted(tracks, MainDirections)
    assert torch.linalg.matrix_rank(matrix) == 2
    _, whole = fitted(tracks, AllTokens)
    torch.testing.assert_close(matrix[:2, :2], whole[:2, :2], rtol=0.05, atol=0.01)
    assert matrix[2:].abs().max() < 0.1 * whole[2, 2]


def test_tokens_that_are_all_the_same():
    with pytest.raises(ValueError, match="all tokens of the training tracks are the same"):
        fitted([torch.ones(3, 2)] * 4, AllTokens)
