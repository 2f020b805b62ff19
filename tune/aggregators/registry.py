"""Aggregators: a track's tokens (N, D) into one embedding (D').

A table of functions over tokens (B, N, D) and a mask (B, N) that is True at real tokens. Padding
never changes a result. Each returns the embeddings (B, D') and a mask of the same shape that is
False at values which only fill a hole (a segment that the track doesn't have); the probe's
standardisation leaves those at zero.

What learns is elsewhere: with the probe in `tune.aggregators.trainable`, before it in
`tune.aggregators.transformer.model`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens: (B, N, D) -> (B, D). The study's `mean`: a short tail counts fully."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    out = (tokens * weight).sum(1) / weight.sum(1)
    return out, torch.ones_like(out, dtype=torch.bool)


def duration_mean(
    tokens: torch.Tensor, mask: torch.Tensor, seconds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens by how long each one lasts: (B, N, D) -> (B, D).

    `seconds` (B, N) are the tokens' durations: a tail of 2 s weighs a fifth of a 10 s segment.
    """
    weight = (seconds * mask).unsqueeze(-1).to(tokens.dtype)
    out = (tokens * weight).sum(1) / weight.sum(1)
    return out, torch.ones_like(out, dtype=torch.bool)


def maximum(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take each dimension's largest value: (B, N, D) -> (B, D)."""
    out = tokens.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    return out, torch.ones_like(out, dtype=torch.bool)


def stats(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population deviation of each dimension: (B, N, D) -> (B, 2 D)."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    centre = (tokens * weight).sum(1) / weight.sum(1)
    spread = (((tokens - centre.unsqueeze(1)) * weight) ** 2).sum(1) / weight.sum(1)
    out = torch.cat([centre, spread.sqrt()], -1)
    return out, torch.ones_like(out, dtype=torch.bool)


def concat(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the tokens end to end, then the mask: (B, N, D) -> (B, N D + N).

    N is the same for all tracks (`fit_tokens`). Missing tokens are zeros, and the last N values
    tell the probe which tokens are real.
    """
    real = mask.unsqueeze(-1).expand_as(tokens).flatten(1)  # (B, N D)
    out = torch.cat([tokens.flatten(1).masked_fill(~real, 0), mask.to(tokens.dtype)], -1)
    return out, torch.cat([real, torch.ones_like(mask)], -1)


@dataclass(frozen=True)
class AggregatorRow:
    """A row of the table of aggregators.

    Attributes
    ----------
    function : (tokens, mask[, seconds]) -> (embeddings, valid); for attention the pooling that it
        starts from, for hierarchical the pooling inside each scale, None for what is fitted first
    about : one line for --help
    fixed_n : whether all tracks need the same number of tokens
    needs_seconds : whether the function takes the tokens' durations
    """

    function: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None
    about: str
    fixed_n: bool = False
    needs_seconds: bool = False


AGGREGATORS = {
    "mean": AggregatorRow(mean, "average of the tokens"),
    "duration_mean": AggregatorRow(
        duration_mean, "average of the tokens by their duration", needs_seconds=True
    ),
    "max": AggregatorRow(maximum, "largest value of each dimension"),
    "concat": AggregatorRow(
        concat, "tokens end to end, as many as the longest training track has", fixed_n=True
    ),
    "stats": AggregatorRow(stats, "mean and deviation of each dimension"),
    "whitened": AggregatorRow(
        mean, "the mean, and the mean whitened by what varies within tracks, mixed by the probe"
    ),
    "attention": AggregatorRow(mean, "gated attention over the tokens, learned with the probe"),
    "hierarchical": AggregatorRow(mean, "means at several segment lengths, mixed by the probe"),
    "transformer": AggregatorRow(None, "BERT-style Transformer, pretrained by masked modelling"),
}


def fit_tokens(tokens: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Pad with zeros or truncate one track's tokens to a number.

    Parameters
    ----------
    tokens : (N, D)
    n : number of tokens wanted

    Returns
    -------
    tokens (n, D), mask (n,) True at real ones, and whether tokens were cut off
    """
    kept = tokens[:n]
    mask = torch.arange(n) < len(kept)
    padded = torch.cat([kept, kept.new_zeros(n - len(kept), *kept.shape[1:])])
    return padded, mask, len(tokens) > n


def aggregate_track(
    name: str, tokens: torch.Tensor, n: int | None = None, seconds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Join one track's tokens.

    Parameters
    ----------
    name : a name of `AGGREGATORS` that has a function
    tokens : (N, D)
    n : fixed number of tokens, for aggregators that need one
    seconds : (N,), each token's duration, for aggregators that need it

    Returns
    -------
    embedding (D'), valid (D'), and whether tokens were cut off
    """
    row = AGGREGATORS[name]
    truncated = False
    mask = torch.ones(len(tokens), dtype=torch.bool)
    if row.fixed_n:
        if n is None:
            raise ValueError(f"{name} needs the number of tokens")
        tokens, mask, truncated = fit_tokens(tokens, n)
    if row.needs_seconds and seconds is None:
        raise ValueError(f"{name} needs the tokens' durations")
    more = (seconds[None],) if row.needs_seconds else ()
    embedding, valid = row.function(tokens[None], mask[None], *more)
    return embedding[0], valid[0], truncated
