"""Whitening by what varies within tracks: learnt from tracks alone, without labels.

Directions in which a track's own tokens differ much (what was being played at the moment) say
little about the track; those that stay the same throughout say much. Dividing by the within-track
covariance weighs them accordingly: within-class covariance normalisation (Hatch, Kajarekar and
Stolcke 2006, for speakers), with every track as a class of its own.
"""

from collections.abc import Callable, Iterable

import torch

SHRINKAGE = 0.01


def accumulate(tracks: Iterable[torch.Tensor], make: Callable) -> list:
    """Take in tracks' tokens, layer by layer.

    Parameters
    ----------
    tracks : (N, L, D) each
    make : D -> what takes in a layer's tokens by `add`, such as `WithinTrack`

    Returns
    -------
    list of L of them
    """
    layers = []
    for tokens in tracks:
        layers = layers or [make(tokens.shape[2]) for _ in range(tokens.shape[1])]
        for layer, found in zip(tokens.unbind(1), layers, strict=True):
            found.add(layer)
    return layers


class WithinTrack:
    """Accumulates the within-track covariance of tokens, then gives the whitening.

    Parameters
    ----------
    size : D of a token
    """

    def __init__(self, size: int):
        self.scatter = torch.zeros(size, size, dtype=torch.float64)
        self.total = torch.zeros(size, dtype=torch.float64)
        self.squares = torch.zeros(size, size, dtype=torch.float64)
        self.origin = None
        self.n_tokens = self.n_tracks = 0

    def add(self, tokens: torch.Tensor) -> None:
        """Take in a track's tokens (N, D)."""
        tokens = tokens.double()
        around = tokens - tokens.mean(0)
        self.scatter += around.T @ around
        if self.origin is None:
            self.origin = tokens.mean(0)  # near the mean, so that the squares stay small
        tokens = tokens - self.origin
        self.squares += tokens.T @ tokens
        self.total += tokens.sum(0)
        self.n_tokens += len(tokens)
        self.n_tracks += 1

    @property
    def mean(self) -> torch.Tensor:
        """Mean of all tokens, (D,)."""
        return self.origin + self.total / self.n_tokens

    def covariance(self) -> torch.Tensor:
        """Covariance of all tokens, within and between tracks, (D, D)."""
        mean = self.total / self.n_tokens
        return self.squares / self.n_tokens - torch.outer(mean, mean)

    def fit(self, shrinkage: float = SHRINKAGE) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) and whitening matrix (D, D): tokens become (x - mean) @ matrix.

        Parameters
        ----------
        shrinkage : share of the mean variance that is added to every direction, so that directions
            which hardly vary are not blown up

        Raises
        ------
        ValueError
            When no track has two different tokens: nothing varies within tracks.
        """
        freedom = self.n_tokens - self.n_tracks
        variance = self.scatter.diagonal().mean() / max(freedom, 1)
        if not variance > 0:
            raise ValueError(
                "nothing varies within the training tracks: whitening needs tracks of two or more "
                "tokens (a shorter --seg, or --tokens frame)"
            )
        covariance = self.scatter / freedom / variance
        return self.mean, inverse_root(covariance, shrinkage)


class AllTokens(WithinTrack):
    """PCA (ZCA) whitening by the covariance of all tokens, within and between tracks.

    As Jégou and Chum (2012) do it to image descriptors. It is defined for tracks of one token too.
    """

    keep = 1.0  # share of the variance whose directions are kept

    def fit(self, shrinkage: float = SHRINKAGE) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and whitening matrix, as of `WithinTrack`.

        Raises
        ------
        ValueError
            When all tokens are the same.
        """
        covariance = self.covariance()
        variance = covariance.diagonal().mean()
        if not variance > 0:
            raise ValueError("all tokens of the training tracks are the same: nothing to whiten")
        return self.mean, inverse_root(covariance / variance, shrinkage, self.keep)


class MainDirections(AllTokens):
    """`AllTokens` cut to the directions of the most variance (Jégou and Chum 2012, section 3)."""

    keep = 0.95


def inverse_root(covariance: torch.Tensor, shrinkage: float, keep: float = 1.0) -> torch.Tensor:
    """Inverse square root of a covariance (D, D) whose mean variance is 1.

    Parameters
    ----------
    shrinkage : what is added to the variance of every direction
    keep : share of the variance; directions beyond it are projected out
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values = values.clamp(min=0)
    scaled = vectors * (values + shrinkage).rsqrt()
    if keep < 1:
        scaled = scaled * (values.cumsum(0) > (1 - keep) * values.sum())
    return scaled @ vectors.T
