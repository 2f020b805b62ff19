"""From the store to what the probe sees: one embedding a track and view, or the tokens themselves.

A view is a layer at a scale (a segment rule, or one of the means of `whitened`, or of the
views of a Transformer); views are counted scale by scale, layer by layer.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import DatasetDict

from tune.aggregators.registry import AggregatorRow, find_row, pool_track
from tune.aggregators.whitening import accumulate
from tune.store.collection import Collection, Row
from tune.store.encode import read_row
from tune.system.memory import check_room

log = logging.getLogger(__name__)


@dataclass
class Features:
    """Embeddings of a split.

    Attributes
    ----------
    values : (V, n, D') float64
    valid : (V, n, D') bool, False at padding values
    truncated : tracks that had more tokens than the aggregator takes
    whitening : mean (D,) and matrix (D, D) of each layer, where the values are whitened by them
    """

    values: torch.Tensor
    valid: torch.Tensor
    truncated: int
    whitening: list[tuple[torch.Tensor, torch.Tensor]] | None = None


@dataclass
class Tokens:
    """Tokens of a split, one track after the other, each with its own number of them.

    Attributes
    ----------
    flat : (S, V, D) float32, of all tracks; V counts layers
    counts : (n,) int64, tokens of each track
    times : per track, (N, 2): where each of its tokens begins and ends, in seconds
    """

    flat: torch.Tensor
    counts: torch.Tensor
    times: list[np.ndarray]

    @classmethod
    def from_padded(cls, values: torch.Tensor, mask: torch.Tensor, times: list) -> "Tokens":
        """Of padded values (V, n, N, D) and a mask (n, N)."""
        return cls(values[:, mask].transpose(0, 1).contiguous(), mask.sum(1), times)

    @property
    def mask(self) -> torch.Tensor:
        """(n, N) bool, True at real tokens, when all are padded to the longest track."""
        return torch.arange(int(self.counts.max())) < self.counts[:, None]

    @property
    def values(self) -> torch.Tensor:
        """All tracks padded with zeros to the longest one, (V, n, N, D)."""
        mask = self.mask
        out = self.flat.new_zeros(self.flat.shape[1], *mask.shape, self.flat.shape[2])
        out[:, mask] = self.flat.transpose(0, 1)
        return out


def load_task_features(
    splits: DatasetDict,
    collection: Collection,
    scales: Sequence[Mapping[str, tuple]],
    agg: str,
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[dict[str, Features], int]:
    """Aggregate every split; an aggregator with a fixed number takes the training tracks' largest.

    Parameters
    ----------
    scales : for each segment rule, path -> (content, spans) as `encode_tracks` reports
    agg : an aggregator (`find_row`)
    embed : for an aggregator that was trained before, on one layer: tokens (N, D) float32 ->
        (K, D'), K views

    Returns
    -------
    {split: Features}, and how many tracks have more tokens than the aggregator takes
    """
    row = find_row(agg)
    parts: dict[str, list[Features]] = {name: [] for name in splits}
    for rows in scales:
        n_tokens = None
        if row.fixed_n:
            n_tokens = max(count_tokens(collection, splits["train"]["path"], rows))
        for name, split in splits.items():
            found = load_features(collection, split["path"], rows, agg, n_tokens, embed)
            parts[name].append(found if row.n_parts == 1 else split_parts(found, row.n_parts))
        truncated = sum(found[-1].truncated for found in parts.values())
        if truncated:
            log.warning(
                "%s: %d tracks have more than %d tokens and are cut", agg, truncated, n_tokens
            )
        if row.whitening:
            fitted = fit_whitening(row.whitening, collection, splits["train"]["path"], rows)
            for found in parts.values():
                found.append(whitened(found[-1], fitted))  # of the means, which come first
    features = {
        name: Features(
            _cat([p.values for p in found]),
            _cat([p.valid for p in found]),
            sum(p.truncated for p in found),
            found[-1].whitening,
        )
        for name, found in parts.items()
    }
    return features, sum(f.truncated for f in features.values())


def _cat(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of several; a single one isn't copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_segments(
    splits: DatasetDict, collection: Collection, rows: Mapping[str, tuple]
) -> tuple[dict[str, Features], dict[str, torch.Tensor]]:
    """Read every token as an embedding of its own, for probes that judge tokens (late fusion).

    Parameters
    ----------
    rows : path -> (content, spans), as `encode_tracks` reports

    Returns
    -------
    {split: Features} whose n are the tokens of all tracks in order, and {split: (n,) int64}, the
    number of the track that each token belongs to
    """
    features, owners = {}, {}
    for name, split in splits.items():
        found = [read_row(collection, path, *rows[path]).tokens for path in split["path"]]
        values = torch.from_numpy(np.concatenate(found)).double().transpose(0, 1)  # (L, n, D)
        features[name] = Features(values, torch.ones_like(values, dtype=torch.bool), 0)
        counts = torch.tensor([len(tokens) for tokens in found])
        owners[name] = torch.arange(len(found)).repeat_interleave(counts)
    return features, owners


def fit_whitening(
    whitening: Callable, collection: Collection, paths: Sequence[str], rows: Mapping
) -> list[tuple]:
    """Mean and matrix of each layer (`AggregatorRow.whitening`), fitted on the training tracks."""
    # (N, L, D) each
    tokens = (torch.from_numpy(read_row(collection, p, *rows[p]).tokens) for p in paths)
    return [found.fit() for found in accumulate(tokens, whitening)]


def whitened(features: Features, fitted: Sequence[tuple]) -> Features:
    """Means of whitened tokens from means of tokens, the first L of (V, n, D): it is linear."""
    layers = zip(features.values[: len(fitted)], fitted, strict=True)
    values = torch.stack([(means - mean) @ matrix for means, (mean, matrix) in layers])
    return Features(values, torch.ones_like(values, dtype=torch.bool), 0, list(fitted))


def split_parts(features: Features, n: int) -> Features:
    """Embeddings of n parts of one size, (L, n tracks, n D), as views (n L, n tracks, D)."""
    values, valid = (
        x.unflatten(-1, (n, -1)).movedim(-2, 0).flatten(0, 1)
        for x in (features.values, features.valid)
    )
    return Features(values, valid, features.truncated)


def count_tokens(collection: Collection, paths: Sequence[str], rows: Mapping) -> list[int]:
    """Tokens of each track (without keeping them in memory)."""
    return [sum(read_row(collection, p, *rows[p]).counts) for p in paths]


def token_times(row: Row, sample_rate: int, window_s: float | None = None) -> np.ndarray:
    """Where each token begins and ends, in seconds: (N, 2).

    Pooled frames are windows of `window_s`, of which the last in a segment may be shorter.
    """
    return row.times(sample_rate, window_s)


def load_features(
    collection: Collection,
    paths: Sequence[str],
    rows: Mapping[str, tuple],
    agg: str,
    n_tokens: int | None,
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Features:
    """Aggregate each track's tokens, one track at a time.

    Parameters
    ----------
    paths : tracks, in the order wanted
    rows : path -> (content, spans), as `encode_tracks` reports
    agg : an aggregator (`find_row`)
    n_tokens : fixed number of tokens for an aggregator that needs one
    embed : see `load_task_features`

    Returns
    -------
    Features; equal for a track whichever other tracks are loaded with it
    """
    aggregator = find_row(agg)
    if aggregator.function is None and embed is None:
        raise ValueError(f"{agg} needs a model")
    values, holes, truncated = None, {}, 0
    for i, path in enumerate(paths):
        row = read_row(collection, path, *rows[path])
        seconds = token_seconds(row, collection.key["sample_rate"], collection.window_s)
        layers = track_views(row, seconds, aggregator, agg, n_tokens, embed)
        here = torch.stack([embedding for embedding, _, _ in layers])  # (V, D')
        if values is None:
            check_room(
                here.nbytes * len(paths),
                f"the embeddings of {len(paths)} tracks ({len(here)} x {here.shape[1]} each)",
                "take one --layer, or an --agg with fewer values",
            )
            values = here.new_empty(len(here), len(paths), here.shape[1])
        values[:, i] = here
        valid = torch.stack([valid for _, valid, _ in layers])
        if not valid.all():
            holes[i] = valid
        truncated += layers[0][2]
    valid = torch.ones((), dtype=torch.bool).expand(values.shape)
    if holes:
        valid = valid.clone(memory_format=torch.contiguous_format)
        for i, here in holes.items():
            valid[:, i] = here
    return Features(values, valid, truncated)


def token_seconds(row: Row, sample_rate: int, window_s: float | None) -> torch.Tensor:
    """How long each token lasts, (N,)."""
    times = token_times(row, sample_rate, window_s)
    return torch.from_numpy(times[:, 1] - times[:, 0])


def track_views(
    row: Row,
    seconds: torch.Tensor,
    aggregator: AggregatorRow,
    agg: str,
    n_tokens: int | None = None,
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    """One track's views at one scale: (embedding (D') float64, valid (D'), truncated) each.

    A view is a layer, or one of the views of an aggregator that was trained before (`embed`).

    Parameters
    ----------
    row : its tokens
    seconds : (N,), how long each lasts
    aggregator, agg : the row of the registry, and its name
    """
    tokens = torch.from_numpy(row.tokens)  # (N, L, D)
    if aggregator.function is None:
        views = embed(tokens.squeeze(1)).double()  # (K, D'); there is one layer
        return [(view, torch.ones_like(view, dtype=torch.bool), False) for view in views]
    layers = tokens.double().unbind(1)
    return [pool_track(aggregator, layer, n_tokens, seconds, agg) for layer in layers]


def load_tokens(splits: DatasetDict, collection: Collection, rows: Mapping) -> dict[str, Tokens]:
    """Read the tokens of every split.

    Raises
    ------
    ValueError
        When they don't fit into the memory that is free.
    """
    out, room = {}, None
    for name, split in splits.items():
        found = []
        for path in split["path"]:
            found.append(read_row(collection, path, *rows[path]))
            if room is None:
                each = found[0].tokens.nbytes / len(found[0].spans)
                room = sum(len(rows[p][1]) for s in splits.values() for p in s["path"]) * each
                check_room(room, "the tracks' tokens", "take one --layer, or a longer --seg")
        rate = collection.key["sample_rate"]
        times = [token_times(row, rate, collection.window_s) for row in found]
        counts = torch.tensor([len(row.tokens) for row in found])
        flat = torch.from_numpy(np.concatenate([row.tokens for row in found]))  # (S, L, D)
        out[name] = Tokens(flat, counts, times)
    return out
