"""Tracks' tokens for pretraining: read from the store, batched by length, the same on any machine.

A step's batch is made of whole tracks and divided into micro-batches of tracks of like length.
What is masked depends on the seed, the epoch and the track only: not on the batch, the number of
processes, or whether the run was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from tune.aggregators.transformer.masking import draw_masked
from tune.store.encode import read_row

POOL_BATCHES = 16  # batches that are sorted by length together
VALIDATION = -1  # the "epoch" whose masks the validation tracks have, always


class TokenTracks(Dataset):
    """Tracks as tokens of one layer; an item is (index of the track, epoch).

    Parameters
    ----------
    collection : tune.store.Collection of one layer
    paths : tracks
    rows : path -> (content, spans), as `encode_tracks` reports
    mask_prob, span : see `draw_masked`
    seed : of the masks
    """

    def __init__(self, collection, paths: Sequence[str], rows, *, mask_prob, span, seed):
        self.collection, self.rows = collection, rows
        self.mask_prob, self.span, self.seed = mask_prob, span, seed
        counts = {p: sum(read_row(collection, p, *rows[p]).counts) for p in paths}
        self.paths = [p for p in paths if counts[p] > 1]
        self.single = [p for p in paths if counts[p] == 1]  # nothing to predict from
        self.lengths = [counts[p] for p in self.paths]

    def __len__(self) -> int:
        """Tracks that have two tokens or more."""
        return len(self.paths)

    def tokens(self, i: int) -> torch.Tensor:
        """A track's tokens, (N, D) float32."""
        row = read_row(self.collection, self.paths[i], *self.rows[self.paths[i]])
        return torch.from_numpy(row.tokens[:, 0])

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, D) and which of them are masked (N,)."""
        i, epoch = item
        tokens = self.tokens(i)
        # The content, not the index: a track's mask stays when others come or go.
        content = int(self.rows[self.paths[i]][0][:15], 16)
        seed = np.random.SeedSequence([self.seed, epoch + 1, content]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> 1))
        return tokens, draw_masked(len(tokens), self.mask_prob, self.span, generator)


def collate(items: Sequence) -> dict[str, torch.Tensor]:
    """Pad tracks to the longest: tokens (B, N, D), masked (B, N), attention_mask (B, N)."""
    longest = max(len(tokens) for tokens, _ in items)
    size = items[0][0].shape[1]
    tokens = torch.zeros(len(items), longest, size)
    masked = torch.zeros(len(items), longest, dtype=torch.bool)
    attention_mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for i, (track, holes) in enumerate(items):
        tokens[i, : len(track)] = track
        masked[i, : len(track)] = holes
        attention_mask[i, : len(track)] = True
    return {"tokens": tokens, "masked": masked, "attention_mask": attention_mask}


def plan_epoch(
    lengths: Sequence[int], batch_size: int, micro_tokens: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """Divide an epoch into steps, and steps into micro-batches of tracks.

    Tracks are shuffled, sorted by length within pools of a few batches, cut into batches, and the
    batches shuffled: neighbours in a batch are alike in length, and chance decides the rest.

    Parameters
    ----------
    lengths : tokens of each track
    batch_size : tracks of one optimiser step
    micro_tokens : tokens (with padding) that may go through the model at once; a longer track goes
        alone
    seed, epoch : what chance is drawn from

    Returns
    -------
    list of steps; a step is a list of micro-batches; a micro-batch a list of track indices
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = batch_size * POOL_BATCHES
    ordered = [
        i
        for start in range(0, len(order), pool)
        for i in sorted(order[start : start + pool].tolist(), key=lambda i: lengths[i])
    ]
    steps = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [micro_batches(steps[i], lengths, micro_tokens) for i in rng.permutation(len(steps))]


def micro_batches(tracks: Sequence[int], lengths: Sequence[int], micro_tokens: int) -> list:
    """Cut a batch so that no part has more than `micro_tokens` tokens, padding counted."""
    parts: list[list[int]] = []
    for i in sorted(tracks, key=lambda i: lengths[i]):  # ascending: the new one is the longest
        if parts and (len(parts[-1]) + 1) * lengths[i] <= micro_tokens:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch.

    Attributes
    ----------
    tracks : indices
    step_tracks : tracks of the whole step, over all processes
    last : whether the step ends with it
    weight : 1, or 0 for a stand-in that keeps processes in step
    """

    tracks: list[int]
    step_tracks: int
    last: bool
    weight: float


def distribute(steps: Sequence, rank: int, n_processes: int) -> list[MicroBatch]:
    """Deal every step's micro-batches out to the processes, as many to each; return one's share."""
    share = []
    for step in steps:
        size = sum(len(part) for part in step)
        rounds = -(-len(step) // n_processes)
        for i in range(rounds):
            at = i * n_processes + rank
            real = at < len(step)
            part = step[at] if real else step[0][:1]
            share.append(MicroBatch(list(part), size, i == rounds - 1, float(real)))
    return share


class EpochData(Dataset):
    """Micro-batches of one epoch, as `collate` gives them, with the fields of `MicroBatch`."""

    def __init__(self, tracks: TokenTracks, micros: Sequence[MicroBatch], epoch: int):
        self.tracks, self.micros, self.epoch = tracks, micros, epoch

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self.micros)

    def __getitem__(self, i: int) -> dict:
        """A micro-batch."""
        micro = self.micros[i]
        batch = collate([self.tracks[track, self.epoch] for track in micro.tracks])
        return batch | vars(micro)
