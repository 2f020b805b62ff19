"""demo-key, demo-tempo, demo-instruments, demo-artist: the labels are true of the notes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import pearsonr

from tune.demo.attributes import INSTRUMENTS, TEMPO_RANGE, instruments_piece, key_piece, tempo_piece
from tune.demo.compose import write_song
from tune.demo.composers import ARTIST_STYLES, COMPOSERS, FOLLOWED, Habits, artist_piece
from tune.demo.moods import mood_recipe
from tune.demo.patches import PATCHES
from tune.demo.recipes import form_recipe, style_recipe
from tune.demo.styles import STYLES
from tune.demo.synth import SAMPLE_RATE
from tune.demo.tasks import TASKS, make_track, n_tracks
from tune.tasks.musical_keys import KEYS, key_weights

ROLES = ("lead", "chords", "pad", "arp")  # beside bass and drums
# Krumhansl and Kessler's: how well each pitch class fits a key, from its tonic up.
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
PIECES = {
    "demo": lambda i, rng: ("", style_recipe(sorted(STYLES)[i], rng)),
    "demo-mood": lambda i, rng: ("", mood_recipe(0.5, -0.5, rng)),
    "demo-form": lambda i, rng: ("", form_recipe(rng)),
    "demo-key": key_piece,
    "demo-tempo": tempo_piece,
    "demo-instruments": instruments_piece,
    "demo-artist": artist_piece,
}


def compose(task: str, index: int):
    """A piece's label, recipe and notes by role, each kind of section once."""
    rng = np.random.default_rng(index)
    label, recipe = PIECES[task](index, rng)
    parts: dict[str, list] = {}
    kinds = "ABC" if task == "demo-form" else dict.fromkeys(recipe.form)
    for section in write_song(recipe, kinds, rng).values():
        for role, notes in section.items():
            parts.setdefault(role, []).extend(notes)
    return label, recipe, parts


def edges(task: str) -> list[tuple[int, int]]:
    """Pieces of each split, as ranges."""
    return list(pairwise(np.cumsum((0, *TASKS[task].units))))


# Of the notes, not of the samples: those may differ in the last bit with numpy's SIMD code.
NOTES = {
    "demo": "06333e835546aa90",
    "demo-mood": "91a66cc8b856a91a",
    "demo-form": "5af31bcdca6ad223",
    "demo-key": "2fa176ecde707068",
    "demo-tempo": "5d5793bb797610c8",
    "demo-instruments": "fca7c7f8486dc4ff",
    "demo-artist": "1ca4bfe82f175987",
}


@pytest.mark.parametrize("task", PIECES)
def test_notes_are_those_recorded(task):
    found = hashlib.sha256()
    for index in range(3):
        label, recipe, parts = compose(task, index)
        notes = {r: [(round(n[0], 3), str(n[-2])) for n in x] for r, x in parts.items()}
        found.update(json.dumps([label, recipe.tempo, recipe.form, notes]).encode())
    assert found.hexdigest()[:16] == NOTES[task]


def test_key_estimated_from_the_notes_is_the_label():
    weights, scores = key_weights(), []
    for index in range(72):
        label, _, parts = compose("demo-key", index)
        classes = np.zeros(12)
        for role in ("bass", *ROLES):
            for _, length, pitch, _ in parts.get(role, ()):
                classes[pitch % 12] += length
        fit = [
            pearsonr(classes, np.roll(PROFILES[mode], tonic)).statistic
            for mode in ("major", "minor")
            for tonic in range(12)
        ]
        scores.append(weights[KEYS.index(label), int(np.argmax(fit))])
    assert np.mean(scores) > 0.7
    assert np.mean(np.array(scores) == 1) > 0.6


def test_a_key_moves_the_chords_and_nothing_else():
    at_c, at_g = (key_piece(i, np.random.default_rng(5))[1] for i in (0, 7))
    for kind, chords in at_c.chords.items():
        moved = [tuple((p + 7) % 12 for p in chord) for chord in chords]
        assert at_g.chords[kind] == moved
    assert (at_c.patches, at_c.tempo, at_c.groove) == (at_g.patches, at_g.tempo, at_g.groove)


def test_keys_are_balanced_in_every_split():
    for low, high in edges("demo-key"):
        labels = Counter(key_piece(i, np.random.default_rng(0))[0] for i in range(low, high))
        assert set(labels) == set(KEYS)
        assert set(labels.values()) == {(high - low) // 24}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_audio_repeats_at_the_labelled_tempo(index):
    _, row, audio = make_track("demo-tempo", index)
    assert 2 ** row["label"][0] == pytest.approx(row["tempo"], rel=1e-5)
    hop = SAMPLE_RATE // 200
    power = np.square(audio[: len(audio) // hop * hop].reshape(-1, hop)).mean(1)
    onsets = np.maximum(0, np.diff(np.log(power + 1e-4)))
    onsets -= onsets.mean()
    bar = 4 * 60 / 2 ** row["label"][0] * 200  # in hops

    def repeats(period: float) -> float:
        """Autocorrelation near a lag."""
        lags = range(round(period) - 1, round(period) + 2)
        return max(float(onsets[lag:] @ onsets[:-lag]) for lag in lags)

    assert all(repeats(bar) > 1.5 * repeats(bar * ratio) for ratio in (0.95, 1.05))


def test_tempi_cover_the_range_in_every_style():
    found = [tempo_piece(i, np.random.default_rng(i)) for i in range(150)]
    low, high = np.log2(TEMPO_RANGE)
    for style in {recipe.style for _, recipe in found}:
        values = [label[0] for label, recipe in found if recipe.style == style]
        assert low <= min(values) < low + 0.2
        assert high - 0.2 < max(values) <= high


def test_instruments_are_those_that_sound():
    def built(patch):
        """The settings in which no two instruments are alike, and which no maker varies."""
        kept = ("engine", "shape", "sustain", "voices", "vibrato", "breath", "ratio", "gain")
        return tuple(getattr(patch, name) for name in (*kept, "drive"))

    names = {built(PATCHES[name]): name for name in INSTRUMENTS}
    assert len(names) == len(INSTRUMENTS)
    where = Counter()
    for index in range(60):
        label, recipe, parts = compose("demo-instruments", index)
        heard = {role: names[built(recipe.patches[role])] for role in ROLES if parts.get(role)}
        assert sorted(heard.values()) == label
        where.update((name, role) for role, name in heard.items())
    assert {role for _, role in where} == set(ROLES)
    assert {name for name, _ in where} == set(INSTRUMENTS)


def test_composers_share_styles_and_sounds():
    for low, high in edges("demo-artist"):
        pieces = [artist_piece(i, np.random.default_rng(i)) for i in range(low, high)]
        each = Counter((name, recipe.style) for name, recipe in pieces)
        assert len(each) == len(COMPOSERS) * len(ARTIST_STYLES)
        assert len(set(each.values())) == 1, "a composer has a style more often than another"
    sounds = {"lead", "chords", "bass", "pad", "arp", "kits", "grooves", "reverb", "delay"}
    sounds |= {"tempo", "beats", "tilt_db", "loose_s"}
    assert not sounds & {f.name for f in fields(Habits)}


def test_composers_follow_their_habits():
    pieces = [artist_piece(i, np.random.default_rng(i)) for i in range(n_tracks("demo-artist"))]
    for name, habits in COMPOSERS.items():
        own = [recipe for who, recipe in pieces if who == name]
        followed = np.mean([recipe.steps == habits.steps for recipe in own])
        assert followed == pytest.approx(FOLLOWED, abs=0.17)
        assert np.mean([recipe.scale in habits.scales for recipe in own]) > 0.75
    assert len({tuple(vars(h).items()) for h in COMPOSERS.values()}) == len(COMPOSERS)


def test_pieces_of_the_splits_differ():
    for task in ("demo-key", "demo-tempo", "demo-instruments", "demo-artist"):
        first = [low for low, _ in edges(task)]
        notes = [str(compose(task, index)[2]) for index in first]
        assert len(set(notes)) == 3
