"""Poolings that learn with the probe, as plain modules: (B, N, D) and a mask (B, N) to (B, D').

`tune.aggregators.trainable.OwnPooling` wraps them as it wraps a module of one's own: a row of the
registry is all that another one needs. Padding changes nothing, and none has dropout.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tune.aggregators.trainable import HIDDEN

DIRECTIONS = 32
PROTOTYPES = 64
SMALLEST_VARIANCE = 1e-6  # of standardised tokens


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling (Okabe, Koshinaka and Shinoda 2018): (B, 2 D).

    A token's score is v · tanh(W x + b); the softmax over the track weighs mean and deviation. v
    starts at zero: it begins as `stats`.
    """

    def __init__(self, size: int):
        super().__init__()
        self.hidden, self.score = nn.Linear(size, HIDDEN), nn.Linear(HIDDEN, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weighted mean and deviation."""
        scores = self.score(self.hidden(x).tanh()).masked_fill(~mask[..., None], -torch.inf)
        weights = scores.softmax(1)  # (B, N, 1)
        mean = (weights * x).sum(1)
        variance = (weights * (x - mean[:, None]) ** 2).sum(1)
        return torch.cat([mean, variance.clamp(min=SMALLEST_VARIANCE).sqrt()], -1)


class Correlations(nn.Module):
    """Correlation pooling (Stafylakis, Rohdin and Burget 2021), beside the mean.

    Tokens are projected onto 32 directions, whose 496 correlations over a track say which go
    together; the paper pools correlations alone.
    """

    def __init__(self, size: int):
        super().__init__()
        self.project = nn.Linear(size, DIRECTIONS, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean (D) and correlations (496), 0 where nothing varies, as in a track of one token."""
        weight = mask[..., None] / mask.sum(1)[:, None, None].to(x.dtype)  # (B, N, 1)
        mean = (weight * x).sum(1)
        around = self.project(x - mean[:, None])
        covariance = (around * weight).transpose(1, 2) @ around
        scale = (covariance.diagonal(dim1=1, dim2=2) + SMALLEST_VARIANCE).rsqrt()
        correlations = covariance * scale[:, :, None] * scale[:, None]
        rows, columns = torch.triu_indices(DIRECTIONS, DIRECTIONS, 1, device=x.device)
        return torch.cat([mean, correlations[:, rows, columns]], -1)


class Prototypes(nn.Module):
    """Binarised prototypes (Rauch et al. 2025, arXiv 2509.24901): (B, 64).

    Each prototype is a vector of signs; a track's value is the largest cosine of any of its tokens
    to it, which the probe classifies. Signs have no gradient: it passes through them (Bengio et al.
    2013). The paper has a linear layer behind the prototypes, here it is the probe.
    """

    def __init__(self, size: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(PROTOTYPES, size) * size**-0.5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Largest cosine over the tokens."""
        signs = self.vectors + (self.vectors.sign() - self.vectors).detach()
        cosines = F.normalize(x, dim=-1) @ F.normalize(signs, dim=-1).T  # (B, N, 64)
        return cosines.masked_fill(~mask[..., None], -torch.inf).amax(1)
