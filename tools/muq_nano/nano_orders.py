"""Pieces of songs in several orders, which muq-nano learns to distinguish by a time mean.

A mean over time forgets when things were heard, unless every frame knows what came before and
after it. So some steps of the pretraining play the same pieces in several orders, every order
twice, and by the time means alone each has to find its other take (`nano.order_contrastive_loss`).
Takes differ in where exactly the pieces are cut and in level. Half of the groups take their pieces
from one song, one after the other, half from as many songs. Nothing is masked here.

Shuffled pieces as a lesson are an old idea (Misra et al. 2016 verify the order of a video's frames,
Carr et al. 2021 undo the permutation of a spectrogram's pieces); here the lesson is a contrast,
because the order to find is that of the other take, not an original one.
"""

from collections.abc import Sequence

import numpy as np
import torch

TAKES = 2
SHORT_S = 30  # up to here three pieces in four orders, beyond six pieces in two
BATCH_S = 96  # seconds of audio of one step, unless a single group is longer
LEVEL_DB = 2.0  # deviation of a take's level


def draw(
    tracks,
    train: Sequence[int],
    seconds: float,
    rng: np.random.Generator,
    chances: np.ndarray | None = None,
) -> dict:
    """Draw the groups of one step.

    Parameters
    ----------
    tracks : muq_nano.mel_corpus.MelCorpus
    train : numbers of the tracks to draw from
    seconds : length of an example
    chances : (len(train),) of each to be drawn; default: all the same

    Returns
    -------
    dict of mel (G * 2 * O, 4 T, 128) in dB, and orders, O; sorted by group, take and order
    """
    pieces, n_orders = (3, 4) if seconds <= SHORT_S else (6, 2)
    length = int(seconds * 25) // pieces
    fits = np.array([tracks.lengths[i] >= length * pieces for i in train])
    long_enough, chances = np.array(train)[fits], among(chances, fits)
    groups = max(1, int(BATCH_S // (seconds * TAKES * n_orders)))
    examples = []
    for _ in range(groups):
        one = rng.random() < 0.5
        again = len(long_enough) < pieces
        songs = rng.choice(long_enough, 1 if one else pieces, again, chances)
        songs = np.repeat(songs, pieces) if one else songs
        starts = [
            _start(tracks.lengths[s], i, pieces, length, one, rng) for i, s in enumerate(songs)
        ]
        orders = draw_orders(pieces, n_orders, rng)
        for _ in range(TAKES):
            moved = np.array(starts) + rng.integers(-(length // 4), length // 4 + 1, pieces)
            last = [tracks.lengths[s] - length for s in songs]
            moved = np.clip(moved, 0, last)
            level = rng.normal(0, LEVEL_DB)
            heard = [tracks.mel(s, at, at + length) for s, at in zip(songs, moved, strict=True)]
            examples += [
                np.concatenate([heard[i] for i in order]).astype(np.float32) + level
                for order in orders
            ]
    return {"mel": torch.from_numpy(np.stack(examples)), "orders": n_orders}


def draw_orders(pieces: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Draw `count` orders of the pieces, all different; each other one is that before it reversed.

    A reversed order has the same neighbours and the same middle: it is the hardest to tell apart.
    """
    orders: list[tuple[int, ...]] = []
    while len(orders) < count:
        order = tuple(int(i) for i in rng.permutation(pieces))
        if order not in orders:
            orders += [order, order[::-1]]
    return orders[:count]


def among(chances: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
    """Chances of the chosen ones, made to add up to one again."""
    return None if chances is None else chances[chosen] / chances[chosen].sum()


def _start(frames: int, i: int, pieces: int, length: int, one: bool, rng) -> int:
    """Start of piece i: in its own part of the one song, or anywhere in a song of its own."""
    if not one:
        return int(rng.integers(frames - length + 1))
    part = frames // pieces
    return i * part + int(rng.integers(part - length + 1))
