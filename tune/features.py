"""From the store to what the probe sees: one embedding a track and layer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import DatasetDict

from tune.aggregators import AGGREGATORS, aggregate_track
from tune.encoding import read_row
from tune.store import Collection

log = logging.getLogger(__name__)


@dataclass
class Features:
    """Embeddings of a split.

    Attributes
    ----------
    values : (L, n, D') float64
    valid : (L, n, D') bool, False at values that only fill a hole
    truncated : tracks that had more tokens than the aggregator takes
    """

    values: torch.Tensor
    valid: torch.Tensor
    truncated: int


def load_task_features(
    splits: DatasetDict, collection: Collection, rows: Mapping[str, tuple], agg: str
) -> tuple[dict[str, Features], int]:
    """Aggregate every split; an aggregator with a fixed number takes the training tracks' largest.

    Returns
    -------
    {split: Features}, and how many tracks have more tokens than the aggregator takes
    """
    n_tokens = None
    if agg in AGGREGATORS and AGGREGATORS[agg].fixed_n:
        n_tokens = max(count_tokens(collection, splits["train"]["path"], rows))
    features = {
        name: load_features(collection, split["path"], rows, agg, n_tokens)
        for name, split in splits.items()
    }
    truncated = sum(f.truncated for f in features.values())
    if truncated:
        log.warning("%s: %d tracks have more than %d tokens and are cut", agg, truncated, n_tokens)
    return features, truncated


def count_tokens(collection: Collection, paths: Sequence[str], rows: Mapping) -> list[int]:
    """Tokens of each track (without keeping them in memory)."""
    return [sum(read_row(collection, p, *rows[p]).counts) for p in paths]


def load_features(
    collection: Collection,
    paths: Sequence[str],
    rows: Mapping[str, tuple],
    agg: str,
    n_tokens: int | None,
) -> Features:
    """Aggregate each track's tokens, one track at a time.

    Parameters
    ----------
    paths : tracks, in the order wanted
    rows : path -> (content, spans), as `encode_tracks` reports
    agg : a name of `AGGREGATORS`
    n_tokens : fixed number of tokens for an aggregator that needs one

    Returns
    -------
    Features; equal for a track whichever other tracks are loaded with it
    """
    if agg not in AGGREGATORS:
        raise ValueError(f"--agg must be one of {', '.join(AGGREGATORS)}, got {agg!r}")
    values, valids, truncated = [], [], 0
    for path in paths:
        tokens = torch.from_numpy(read_row(collection, path, *rows[path]).tokens).double()
        layers = [aggregate_track(agg, layer, n_tokens) for layer in tokens.unbind(1)]  # (N, D)
        values.append(torch.stack([embedding for embedding, _, _ in layers]))
        valids.append(torch.stack([valid for _, valid, _ in layers]))
        truncated += layers[0][2]
    return Features(torch.stack(values, 1), torch.stack(valids, 1), truncated)
