"""Aggregators: a track's tokens (N, D) into one embedding (D').

A table of functions over tokens (B, N, D) and a mask (B, N) that is True at real tokens. Padding
never changes a result. Each returns the embeddings (B, D') and a mask of the same shape that is
False at padding values (a segment that the track doesn't have); the probe's
standardisation leaves those at zero.

What learns is elsewhere: with the probe in `tune.aggregators.trainable`, before it in
`tune.aggregators.transformer.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune.system import plugins
from tune.system.plugins import Own

if TYPE_CHECKING:  # the scripts read --agg by this table before they import torch
    import torch

# Cosines of dct and of the Transformer's states: they tell apart eighths of a track, which in a
# song of three or four minutes are about as long as its sections.
COSINES = 8


def everywhere(values: torch.Tensor) -> torch.Tensor:
    """A mask of values that are all real."""
    import torch

    return torch.ones_like(values, dtype=torch.bool)


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens: (B, N, D) -> (B, D). The study's `mean`: a short tail counts fully."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    out = (tokens * weight).sum(1) / weight.sum(1)
    return out, everywhere(out)


def duration_mean(
    tokens: torch.Tensor, mask: torch.Tensor, seconds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens by how long each one lasts: (B, N, D) -> (B, D).

    `seconds` (B, N) are the tokens' durations: a tail of 2 s weighs a fifth of a 10 s segment.
    """
    weight = (seconds * mask).unsqueeze(-1).to(tokens.dtype)
    out = (tokens * weight).sum(1) / weight.sum(1)
    return out, everywhere(out)


def maximum(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take each dimension's largest value: (B, N, D) -> (B, D)."""
    out = tokens.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
    return out, everywhere(out)


def stats(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population deviation of each dimension: (B, N, D) -> (B, 2 D)."""
    import torch

    weight = mask.unsqueeze(-1).to(tokens.dtype)
    centre = (tokens * weight).sum(1) / weight.sum(1)
    spread = (((tokens - centre.unsqueeze(1)) * weight) ** 2).sum(1) / weight.sum(1)
    out = torch.cat([centre, spread.sqrt()], -1)
    return out, everywhere(out)


def concat(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the tokens end to end, then the mask: (B, N, D) -> (B, N D + N).

    N is the same for all tracks (`fit_tokens`). Missing tokens are zeros, and the last N values
    tell the probe which tokens are real.
    """
    import torch

    real = mask.unsqueeze(-1).expand_as(tokens).flatten(1)  # (B, N D)
    out = torch.cat([tokens.flatten(1).masked_fill(~real, 0), mask.to(tokens.dtype)], -1)
    return out, torch.cat([real, torch.ones_like(mask)], -1)


def dct(
    tokens: torch.Tensor, mask: torch.Tensor, n: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """First n cosines over relative time: (B, N, D) -> (B, n D), whatever N is.

    The discrete cosine transform (DCT-II; Ahmed, Natarajan and Rao 1974) of each dimension, divided
    by N: the first cosine is the mean, the others are the track's slow changes in their order. A
    track of N tokens has N cosines; those beyond are holes.

    Examples
    --------
    >>> import torch
    >>> tokens = torch.tensor([[[1.0], [3.0]]])
    >>> dct(tokens, torch.ones(1, 2, dtype=torch.bool), 2)[0].round(decimals=3)
    tensor([[ 2., -1.]])
    """
    import torch

    real = mask.to(tokens.dtype)
    length = real.sum(1, keepdim=True)  # (B, 1)
    k = torch.arange(n or COSINES, dtype=tokens.dtype, device=tokens.device)
    at = (real.cumsum(1) - 0.5) / length  # (B, N), the middle of each token
    basis = torch.cos(torch.pi * k[:, None] * at[:, None])  # (B, n, N)
    basis = basis * real[:, None] * torch.where(k > 0, 2**0.5, 1.0)[:, None].to(real)
    valid = (k < length)[..., None].expand(-1, -1, tokens.shape[2])  # (B, n, D)
    out = (basis @ tokens / length[..., None]).masked_fill(~valid, 0)
    return out.flatten(1), valid.flatten(1)


def changes(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, deviation and the cosines after the first, side by side: (B, N, D) -> (B, 9 D)."""
    import torch

    parts, size = (stats(tokens, mask), dct(tokens, mask)), tokens.shape[2]
    starts = (0, size)  # the first cosine is the mean once more
    values, valid = (
        torch.cat([part[i][:, start:] for part, start in zip(parts, starts, strict=True)], -1)
        for i in (0, 1)
    )
    return values, valid


@dataclass(frozen=True)
class AggregatorRow:
    """A row of the table of aggregators; nothing outside this package asks for a name.

    Attributes
    ----------
    function : (tokens, mask[, seconds]) -> (embeddings, valid); for attention the pooling that it
        starts from, for hierarchical the pooling inside each scale, None for what is pretrained
    about : one line for --help
    fixed_n : whether all tracks need the same number of tokens
    needs_seconds : whether the function takes the tokens' durations
    whitening : called with D, returns an object whose `add(tokens)` accumulates a track's tokens
        and whose `fit()` returns a mean (D,) and a matrix (D, D): the probe mixes the embedding x
        and (x - mean) @ matrix
    views : names of what the probe mixes, where it isn't layers or segment rules: the parts of size
        D that the function gives, then the whitened mean; views whose names begin with the same
        word are of one kind
    gated : whether views are chosen by the labels (`tune.aggregators.view_selection`), not mixed
    pooling : gives the class that pools tokens and learns with the probe (as
        `tune.aggregators.trainable.GatedAttention`)
    pretrained : whether it is a Transformer, from a checkpoint or trained with the probe
    several_segs : whether it joins several segment rules
    learns : whether something learns in front of the probe
    needs_run : whether an embedding needs a run of train_probe.py that learned it
    of_one_piece : the aggregator that it is over a single token; None is itself
    needs_several : whether it is undefined over single tokens
    own : the source of a plug-in, None for what is built in
    """

    function: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None
    about: str
    fixed_n: bool = False
    needs_seconds: bool = False
    whitening: Callable | None = None
    views: tuple[str, ...] = ()
    gated: bool = False
    pooling: Callable[[], type] | None = None
    pretrained: bool = False
    several_segs: bool = False
    learns: bool = False
    needs_run: bool = False
    of_one_piece: str | None = None
    needs_several: bool = False
    own: Own | None = None

    @property
    def n_parts(self) -> int:
        """How many views the function gives, side by side."""
        return max(len(self.views) - (self.whitening is not None), 1)

    @property
    def record(self) -> dict:
        """What results say of an aggregator of one's own: its name and its source's digest."""
        return {"plugin": self.own.as_json()} if self.own else {}


def whitening_by(name: str) -> Callable:
    """A class of `tune.aggregators.whitening`, imported when it is called with D."""

    def make(size: int):
        from tune.aggregators import whitening

        return getattr(whitening, name)(size)

    return make


def pooling_of(name: str) -> Callable[[], type]:
    """A function that gives a class of `tune.aggregators.trainable`, or `.poolings` as one."""

    def get() -> type:
        from tune.aggregators import poolings, trainable

        if hasattr(trainable, name):
            return getattr(trainable, name)
        return trainable.own_pooling(getattr(poolings, name), f"--agg {name}")

    return get


AGGREGATORS = {
    "mean": AggregatorRow(mean, "average of the tokens"),
    "duration_mean": AggregatorRow(
        duration_mean,
        "average of the tokens by their duration",
        needs_seconds=True,
        of_one_piece="mean",
    ),
    "max": AggregatorRow(maximum, "largest value of each dimension", of_one_piece="mean"),
    "concat": AggregatorRow(
        concat, "tokens end to end, as many as the longest training track has", fixed_n=True
    ),
    "stats": AggregatorRow(stats, "mean and deviation of each dimension"),
    "whitened": AggregatorRow(
        mean,
        "the mean, and the mean whitened by what varies within tracks, mixed by the probe",
        whitening=whitening_by("WithinTrack"),
        views=("mean", "whitened"),
        learns=True,
        needs_several=True,
    ),
    "pca_whitened": AggregatorRow(
        mean,
        "the mean, and the mean whitened by the covariance of all tokens, mixed by the probe",
        whitening=whitening_by("AllTokens"),
        views=("mean", "whitened"),
        learns=True,
    ),
    "pca_cut": AggregatorRow(
        mean,
        "pca_whitened without the directions of the last 5 % of the variance",
        whitening=whitening_by("MainDirections"),
        views=("mean", "whitened"),
        learns=True,
    ),
    "dct": AggregatorRow(
        dct, f"first {COSINES} cosines over relative time: order, for any number of tokens"
    ),
    "gated": AggregatorRow(
        changes,
        "the mean, and beside it those of deviation, cosines and whitened mean that are better on "
        "tracks left out of training and validation",
        whitening=whitening_by("AllTokens"),
        views=("mean", "deviation", *(f"cosine {k}" for k in range(1, COSINES)), "whitened"),
        gated=True,
        learns=True,
        needs_run=True,
    ),
    "attention": AggregatorRow(
        mean,
        "gated attention over the tokens, learned with the probe",
        pooling=pooling_of("GatedAttention"),
        learns=True,
        needs_run=True,
    ),
    "attentive_stats": AggregatorRow(
        mean,
        "mean and deviation weighted by attention, learned with the probe",
        pooling=pooling_of("AttentiveStatistics"),
        learns=True,
        needs_run=True,
    ),
    "correlation": AggregatorRow(
        mean,
        "the mean, and how 32 learned directions go together over the track",
        pooling=pooling_of("Correlations"),
        learns=True,
        needs_run=True,
    ),
    "prototypes": AggregatorRow(
        mean,
        "largest similarity of a token to each of 64 prototypes, learned with the probe",
        pooling=pooling_of("Prototypes"),
        learns=True,
        needs_run=True,
    ),
    "hierarchical": AggregatorRow(
        mean,
        "means at several segment lengths, mixed by the probe",
        several_segs=True,
        learns=True,
        needs_run=True,
    ),
    "transformer": AggregatorRow(
        None, "BERT-style Transformer, pretrained by masked modelling", pretrained=True, learns=True
    ),
}
# For --help.
CHOICES = f"{', '.join(AGGREGATORS)}, or FILE.py:NAME, a function or torch module of your own"
EXPECTED = f"--agg must be one of {', '.join(AGGREGATORS)} (or transformer:DIR, FILE.py:NAME)"
ENTRY_POINTS = "tune.aggregators"


def find_row(name: str) -> AggregatorRow:
    """The row of an aggregator: of the table, of an installed package, or of one's own.

    Parameters
    ----------
    name : a name of `AGGREGATORS`, of the entry points `tune.aggregators`, FILE.py:NAME or
        PACKAGE.MODULE:NAME

    Raises
    ------
    ValueError
        When there is none, or what is named is neither a function nor a torch module's class.
    """
    if name in AGGREGATORS:
        return AGGREGATORS[name]
    spec = name if ":" in name else plugins.registered(ENTRY_POINTS).get(name)
    if spec is None:
        raise ValueError(f"{EXPECTED}, got {name!r}")
    try:
        function = plugins.load_object(spec)
    except ValueError as error:
        raise ValueError(f"--agg {name}: {error}") from error
    if not callable(function):
        raise ValueError(
            f"--agg {name} must be a function (tokens (B, N, D), mask (B, N)) -> (B, D'), or a "
            f"torch module's class, got a {type(function).__name__}"
        )
    own = Own.of(spec, function)
    if isinstance(function, type):
        from tune.aggregators.trainable import own_pooling

        pooling = own_pooling(function, f"--agg {name}")
        about = function.__doc__ or ""
        return AggregatorRow(
            mean, about, pooling=lambda: pooling, learns=True, needs_run=True, own=own
        )
    return AggregatorRow(checked(function, own), function.__doc__ or "", own=own)


def readable_name(agg: str) -> str:
    """The name that results and tables have: a plug-in's slug, else the name itself.

    Examples
    --------
    >>> readable_name("folder/mine.py:median_range"), readable_name("mean")
    ('mine-median_range', 'mean')
    """
    where, colon, _ = agg.rpartition(":")
    built_in = agg in AGGREGATORS or not colon or where in AGGREGATORS
    return agg if built_in else plugins.slug_of(agg)


def split_name(text: str, checkpoint: str | None = None) -> tuple[str, str | None]:
    """Read a --agg: the aggregator, and the checkpoint that transformer:DIR names as well.

    Parameters
    ----------
    checkpoint : that was given by a flag of its own

    Raises
    ------
    ValueError
        When a checkpoint is named that isn't a Transformer's, or two are.
    """
    name, colon, named = text.partition(":")
    if name not in AGGREGATORS or not colon:
        return text, checkpoint
    if not AGGREGATORS[name].pretrained or not named:
        raise ValueError(f"{EXPECTED}, got {text!r}")
    if checkpoint:
        raise ValueError("the checkpoint is given twice: in --agg and as --aggregator_checkpoint")
    return name, named


def checked(function: Callable, own: Own) -> Callable:
    """A function of one's own as the table's: a plain tensor becomes a pair, mistakes an error."""

    def call(tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        out = function(tokens, mask)
        values, valid = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        if not isinstance(values, torch.Tensor) or values.ndim != 2 or len(values) != len(tokens):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(
                f"--agg {own.slug} must make a tensor (B, D') of tokens {tuple(tokens.shape)}, "
                f"got {got}"
            )
        values = values.to(tokens.dtype)
        if valid is None:
            valid = torch.ones_like(values, dtype=torch.bool)
        if not isinstance(valid, torch.Tensor) or valid.shape != values.shape:
            raise ValueError(
                f"--agg {own.slug}: its second value must be a mask of which values "
                f"are real, {tuple(values.shape)}"
            )
        if not torch.isfinite(values).all():
            raise ValueError(
                f"--agg {own.slug} gave values that are not finite for tokens {tuple(tokens.shape)}"
            )
        return values, valid.bool()

    return call


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
    import torch

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
    name : an aggregator that has a function (`find_row`)
    tokens : (N, D)
    n : fixed number of tokens, for aggregators that need one
    seconds : (N,), each token's duration, for aggregators that need it

    Returns
    -------
    embedding (D'), valid (D'), and whether tokens were cut off
    """
    return pool_track(find_row(name), tokens, n, seconds, name)


def pool_track(
    row: AggregatorRow, tokens: torch.Tensor, n: int | None, seconds: torch.Tensor | None, name: str
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Join one track's tokens by a row; see `aggregate_track`."""
    import torch

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
