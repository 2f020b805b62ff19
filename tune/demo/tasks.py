"""The table of the demo tasks, and how their tracks are made.

Every track is seeded by (version, task, its number) alone, so that the music does not depend on
what else is made, or in which order. Audio is float32, mono, at `SAMPLE_RATE`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tune.demo import mix
from tune.demo.attributes import INSTRUMENTS, TEMPO_RANGE, instruments_piece, key_piece, tempo_piece
from tune.demo.compose import perform, render, take, write_song
from tune.demo.composers import COMPOSERS, artist_piece
from tune.demo.moods import mood_recipe, rate_moods
from tune.demo.recipes import PieceRecipe, form_recipe, style_recipe
from tune.demo.styles import STYLES
from tune.demo.synth import SAMPLE_RATE
from tune.demo.theory import KEYS

VERSION = 1  # of the samples, which are drawn from it; a task whose rows alone change has its own
SPLITS = ("train", "val", "test")

# At each position the four forms show two kinds of section, twice each, and the three ways of
# pairing the forms take turns: no single segment tells more than half, and none tells all.
FORM_ORDERS = ("AABBCC", "ABCABC", "CACBBA", "CBBACA")
SECTION_SAMPLES = 10 * SAMPLE_RATE

Track = tuple[str, dict, np.ndarray]  # name, what its row says beyond the audio, float32 samples


def _rng(task: str, *index: int) -> np.random.Generator:
    """The generator of one track."""
    return np.random.default_rng((VERSION, zlib.crc32(task.encode()), *index))


def _describe(recipe: PieceRecipe) -> dict:
    """The fields of a row that describe the composition."""
    return {
        "tempo": recipe.tempo,
        "key": f"{KEYS[recipe.key]} {recipe.scale}",
        "meter": f"{recipe.beats}/4",
        "form": " ".join(recipe.form),
        "borrowed": recipe.borrowed,
    }


def style_tracks(index: int) -> list[Track]:
    """Track `index` of ``demo``; styles take turns, so any run of ten has all of them."""
    styles = sorted(STYLES)
    style, number = styles[index % len(styles)], index // len(styles)
    rng = _rng("demo", index)
    recipe = style_recipe(style, rng)
    row = {"label": style, "style": style, **_describe(recipe)}
    return [(f"{style}.{number:03d}", row, render(recipe, rng))]


def moods() -> tuple[np.ndarray, np.ndarray]:
    """Latent moods and labels of all tracks of ``demo-mood``; see :func:`rate_moods`."""
    return rate_moods(_rng("demo-mood"), n_tracks("demo-mood"))


def mood_tracks(index: int) -> list[Track]:
    """Track `index` of ``demo-mood``."""
    latent, labels = moods()
    rng = _rng("demo-mood", index)
    recipe = mood_recipe(*latent[index], rng)
    label = [round(float(x), 6) for x in labels[index]]
    return [(f"mood.{index:03d}", {"label": label, **_describe(recipe)}, render(recipe, rng))]


def form_tracks(index: int) -> list[Track]:
    """Song `index` of ``demo-form``: the same six sections in each of the `FORM_ORDERS`."""
    rng = _rng("demo-form", index)
    recipe = form_recipe(rng)
    song = write_song(recipe, "ABC", rng)
    cache: dict = {}
    takes = {}
    for kind in "ABC":
        for repeat in range(2):
            beats = recipe.bars * recipe.beats
            played = take(song[kind], kind, beats, repeat == 0, rng)
            takes[kind, repeat] = perform(recipe, played, SECTION_SAMPLES, rng, cache)
    noise = 10 ** (recipe.noise_db / 20) * rng.standard_normal((6, SECTION_SAMPLES))
    # One limiter for the whole song; it has no memory, so where a section stands changes nothing.
    six = np.concatenate(list(takes.values()))
    six = mix.limit(six, recipe.peak_db - 0.1, recipe.push).reshape(6, -1) + noise * 0.5
    six = np.clip(six, -(10 ** (recipe.peak_db / 20)), 10 ** (recipe.peak_db / 20))
    pieces = {
        k: mix.fade(x, 0.005, 0.08) for k, x in zip(takes, six.astype(np.float32), strict=True)
    }
    tracks = []
    for order in FORM_ORDERS:
        # Which take comes first is a toss for every track, lest a take give its place away.
        swap = {kind: int(rng.integers(2)) for kind in "ABC"}
        picks = [(kind, order[:i].count(kind) ^ swap[kind]) for i, kind in enumerate(order)]
        row = {"label": order, "song": index, "style": recipe.style, **_describe(recipe)}
        row["form"] = " ".join(order)
        tracks.append((f"song{index:02d}.{order}", row, np.concatenate([pieces[p] for p in picks])))
    return tracks


def piece_tracks(task: str, piece: Callable, index: int) -> list[Track]:
    """Track `index` of a task whose every piece is one track: `piece` gives label and recipe."""
    rng = _rng(task, index)
    label, recipe = piece(index, rng)
    row = {"label": label, "style": recipe.style, **_describe(recipe)}
    return [(f"{task.removeprefix('demo-')}.{index:03d}", row, render(recipe, rng))]


@dataclass(frozen=True)
class DemoTask:
    """A task: what it asks, how to make its units (songs), how many units each split has."""

    summary: str
    labels: str
    make: Callable[[int], list[Track]]
    units: tuple[int, int, int]  # train, val, test
    tracks_per_unit: int = 1
    version: int = VERSION


TASKS: dict[str, DemoTask] = {
    "demo": DemoTask(
        "style classification of songs of about a minute",
        ", ".join(sorted(STYLES)),
        style_tracks,
        (70, 20, 50),
    ),
    "demo-mood": DemoTask(
        "mood regression (simulated raters)",
        "[arousal, valence], z-scored",
        # Version 1 had 70, 20 and 50: too few for differences between encoders.
        mood_tracks,
        (200, 40, 140),
        version=2,
    ),
    "demo-form": DemoTask(
        "order of six sections: an aggregator that ignores order is at chance",
        ", ".join(FORM_ORDERS),
        form_tracks,
        (18, 6, 12),
        len(FORM_ORDERS),
    ),
    "demo-key": DemoTask(
        "name the key, which takes turns over all styles",
        "the 24 keys, such as Eb minor",
        partial(piece_tracks, "demo-key", key_piece),
        (168, 24, 96),
    ),
    "demo-tempo": DemoTask(
        "predict the tempo, which no style gives away (regression)",
        "[log2 of beats a minute], {} to {} beats a minute".format(*TEMPO_RANGE),
        partial(piece_tracks, "demo-tempo", tempo_piece),
        (140, 30, 90),
    ),
    "demo-instruments": DemoTask(
        "name the two to four instruments beside bass and drums (tags)",
        ", ".join(INSTRUMENTS),
        partial(piece_tracks, "demo-instruments", instruments_piece),
        (140, 30, 90),
    ),
    "demo-artist": DemoTask(
        "name the composer: habits of melody, harmony and rhythm, over the same styles and sounds",
        ", ".join(COMPOSERS),
        partial(piece_tracks, "demo-artist", artist_piece),
        (160, 32, 96),
    ),
}


def check_task(task: str) -> DemoTask:
    """The row of a task.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"expected a demo task ({', '.join(TASKS)}), got {task!r}")
    return TASKS[task]


def make_track(task: str, index: int) -> Track:
    """Track `index` of a task, composed here and now.

    Raises
    ------
    ValueError
        If the task is unknown or has no such track.
    """
    row = check_task(task)
    if not 0 <= index < n_tracks(task):
        raise ValueError(f"expected an index from 0 to {n_tracks(task) - 1}, got {index}")
    return row.make(index // row.tracks_per_unit)[index % row.tracks_per_unit]


def n_tracks(task: str) -> int:
    """Tracks of a task, all splits together."""
    row = check_task(task)
    return sum(row.units) * row.tracks_per_unit


def style_indices(task: str, style: str | None) -> list[int]:
    """Tracks of a task, or those of one style of ``demo``.

    Raises
    ------
    ValueError
        If the task or the style is unknown, or the task isn't sorted into styles.
    """
    count = n_tracks(task)
    if style is None:
        return list(range(count))
    if task != "demo":
        raise ValueError(f"only the task demo is sorted by style, {task} is not")
    if style not in STYLES:
        raise ValueError(f"expected a style ({', '.join(sorted(STYLES))}), got {style!r}")
    return list(range(sorted(STYLES).index(style), count, len(STYLES)))
