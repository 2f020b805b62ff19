"""Composed music in any amount, for pretraining; none of it is in the demo tasks.

The composer of `tune.demo` gets seeds that no task uses, and more variety than in the tasks: half
of the songs are styles and moods, the others mix instruments, grooves, harmony and tempo of any
styles, or repeat ten-second sections in any order. Half of all are then equalised and levelled at
random, as recordings differ. Nothing here has a label.

A song is identified by the hash of its 16 bit samples, and one that is in a val or test split of a
task is refused (`held_out`).
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import fields

import numpy as np
import soundfile
from scipy.fft import irfft, next_fast_len, rfft

from tune.demo import mix
from tune.demo.compose import perform, render, take, write_song
from tune.demo.moods import mood_recipe
from tune.demo.recipes import (
    NoFormFitsError,
    PieceRecipe,
    form_recipe,
    from_row,
    pick,
    style_recipe,
)
from tune.demo.styles import STYLES, Style
from tune.demo.synth import SAMPLE_RATE

VERSION = 1  # raised when a sample of this music changes
# Kinds take turns in this order, so that any run of ten holds all of them.
TURNS = ("style", "mood", "wild", "style", "form", "mood", "wild", "style", "form", "wild")
SECTION_SAMPLES = 10 * SAMPLE_RATE


def compose(seed: int, index: int) -> tuple[np.ndarray, str]:
    """Song `index` of a corpus, and its hash.

    Returns
    -------
    samples : ndarray, float32, mono at 24 kHz, about a minute
    song_hash : SHA-256 of its 16 bit samples before it was equalised
    """
    kind = TURNS[index % len(TURNS)]
    rng = np.random.default_rng((zlib.crc32(b"pretraining"), VERSION, seed, index))
    audio = _sections(rng) if kind == "form" else render(_recipe(kind, rng), rng)
    song_hash = samples_hash(np.round(audio * 32767).astype(np.int16))
    return (_recorded(audio, rng) if rng.random() < 0.5 else audio), song_hash


def samples_hash(samples: np.ndarray) -> str:
    """SHA-256 of 16 bit samples."""
    assert samples.dtype == np.int16
    return hashlib.sha256(samples.tobytes()).hexdigest()


def held_out(tasks: Iterable) -> dict[str, str]:
    """Hashes of the tracks in the val and test splits of (demo) tasks, with the task's name."""
    found = {}
    for task in tasks:
        for split in ("val", "test"):
            for path in task.splits[split]["path"]:
                samples, _ = soundfile.read(path, dtype="int16")
                found[samples_hash(samples)] = task.name
    return found


def _recipe(kind: str, rng: np.random.Generator) -> PieceRecipe:
    """Draw a song of a kind."""
    styles = sorted(STYLES)
    if kind == "style":
        return style_recipe(pick(rng, styles), rng, hybrid=0.5)
    if kind == "mood":
        return mood_recipe(*rng.standard_normal(2), rng)
    while True:
        # Every field of the row from a style of its own.
        row = Style(**{f.name: getattr(STYLES[pick(rng, styles)], f.name) for f in fields(Style)})
        rows = (row, *(STYLES[pick(rng, styles)] for _ in range(3)))
        try:
            return from_row(rng, "wild", *rows)
        except NoFormFitsError:
            continue  # one style's slow tempo with another's bars; drawn anew


def _sections(rng: np.random.Generator) -> np.ndarray:
    """Six ten-second sections of two or three kinds in any order."""
    recipe = form_recipe(rng)
    song = write_song(recipe, "ABC", rng)
    order = pick(rng, ("AABBCC", "AABBCA", "ABABCC", "ABCABC"))
    order = [order[i] for i in rng.permutation(6)] if rng.random() < 0.7 else list(order)
    cache: dict = {}
    takes = []
    for i, kind in enumerate(order):
        played = take(song[kind], kind, recipe.bars * recipe.beats, kind not in order[:i], rng)
        takes.append(perform(recipe, played, SECTION_SAMPLES, rng, cache))
    audio = mix.limit(np.concatenate(takes), recipe.peak_db - 0.1, recipe.push)
    audio += 10 ** (recipe.noise_db / 20) * rng.standard_normal(len(audio))
    peak = 10 ** (recipe.peak_db / 20)
    pieces = np.clip(audio, -peak, peak).astype(np.float32).reshape(6, -1)
    return np.concatenate([mix.fade(piece, 0.005, 0.08) for piece in pieces])


def _recorded(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equalise by a smooth random curve (sd 4 dB at 8 points an even ratio apart) and level."""
    size = next_fast_len(len(audio), real=True)
    spectrum = rfft(audio, size)
    hertz = np.arange(len(spectrum)) * SAMPLE_RATE / size
    points = np.geomspace(40, 12_000, 8)
    curve = np.interp(np.log(np.maximum(hertz, 20)), np.log(points), rng.normal(0, 4, 8))
    audio = irfft(spectrum * 10 ** (curve / 20).astype(np.float32), size)[: len(audio)]
    peak_db = rng.uniform(-16, -0.5)
    return (audio * (10 ** (peak_db / 20) / np.max(np.abs(audio)))).astype(np.float32)
