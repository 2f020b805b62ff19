"""From chords to notes: comping, bass lines and melodies.

A note is a tuple (beat, length in beats, MIDI pitch, velocity). Patterns are explained in
:mod:`tune.demo.styles`.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from tune.demo.theory import ladder, local_scale, nearest, voice_lead

Note = tuple[float, float, int, float]
Chart = list[tuple[float, float, tuple[int, ...]]]  # (start beat, end beat, pitch classes)

STEPS = (0, 1, 1, 1, 2, 3)  # a melody's steps, in tones of the scale

# Which of a phrase's motifs each bar plays: 0 the motif, 1 the answer, 2 the close.
_PHRASES = ((0, 1, 0, 2), (0, 0, 1, 2), (0, 1, 1, 2), (0, 2, 0, 2), (0, 0, 0, 2))


def chart(chords: list[tuple[int, ...]], bars: int, beats: int, verse_bars: int) -> Chart:
    """Lay chords over bars: one a bar, or faster where a verse could not hold them otherwise."""
    total = bars * beats
    span = beats * min(1.0, verse_bars / len(chords))
    count = round(total / span)
    return [(i * span, (i + 1) * span, chords[i % len(chords)]) for i in range(count)]


def chord_at(chords: Chart, beat: float) -> tuple[int, ...]:
    """Pitch classes sounding at a beat; past the end, those of the beginning."""
    i = bisect_right([c[0] for c in chords], beat + 1e-6) - 1
    return chords[i][2] if beat < chords[-1][1] - 1e-6 else chords[0][2]


def events(pattern: str, bars: int, beats: int) -> list[tuple[float, float, str]]:
    """(beat, length, mark) of a pattern of sixteenths, repeated in every bar."""
    steps = (pattern * 2)[: beats * 4]
    bar_events = []
    for i, mark in enumerate(steps):
        if mark in "-.":
            continue
        end = i + 1
        while end < len(steps) and steps[end] == "-":
            end += 1
        bar_events.append((i / 4, (end - i) / 4, mark))
    return [(bar * beats + b, n, m) for bar in range(bars) for b, n, m in bar_events]


def comp(pattern: str, chords: Chart, bars: int, beats: int, center: float) -> list[Note]:
    """Chords (or their tones in turn) in a rhythm, with voice leading."""
    voicings: dict[float, list[int]] = {}
    previous = None
    for start, _, tones in chords:
        previous = voicings[start] = voice_lead(previous, tones, center)
    starts = [c[0] for c in chords]
    notes = []
    for beat, length, mark in events(pattern, bars, beats):
        end = beat + length
        while beat < end - 1e-6:  # a chord that changes under a held mark is struck again
            i = bisect_right(starts, beat + 1e-6) - 1
            until = min(end, chords[i][1])
            voicing = voicings[starts[i]]
            accent = 0.8 if beat % beats == 0 else 0.68
            if mark == "x":
                pitches = voicing
            else:
                octave, tone = divmod(int(mark), len(voicing))
                pitches = [voicing[tone] + 12 * octave]
            notes += [(beat, until - beat, p, accent) for p in pitches]
            beat = until
    return notes


def bass_line(
    pattern: str, chords: Chart, bars: int, beats: int, scale: tuple[int, ...], low: int
) -> list[Note]:
    """A bass line over [low, low + 12): roots, fifths, thirds, octaves and approach notes."""
    notes = []
    for beat, length, mark in events(pattern, bars, beats):
        tones = chord_at(chords, beat)
        root = low + (tones[0] - low) % 12
        if mark == "R":
            pitch = root
        elif mark == "8":
            pitch = root + 12
        elif mark == "3":
            pitch = root + (tones[1] - tones[0]) % 12
        elif mark == "5":
            fifth = root + (tones[min(2, len(tones) - 1)] - tones[0]) % 12
            pitch = fifth if fifth < low + 14 else fifth - 12
        else:  # "a": the scale's neighbour of the next root, on the side we come from
            following = chord_at(chords, beat + length)
            goal = low + (following[0] - low) % 12
            steps = ladder(local_scale(scale, following), low - 4, low + 18)
            steps = steps[steps < goal] if root < goal else steps[steps > goal]
            pitch = nearest(steps, goal)
        notes.append((beat, length, pitch, 0.85 if beat % beats == 0 else 0.7))
    return notes


def _motif(rng: np.random.Generator, beats: int, density: float, sizes) -> list[tuple]:
    """A bar of melody as (beat, length, steps from the bar's first pitch)."""
    weight = np.array(
        [1.0 if i % 4 == 0 else 0.75 if i % 2 == 0 else 0.12 for i in range(beats * 4)]
    )
    onsets = np.flatnonzero(rng.random(beats * 4) < weight * density * 1.15)
    if len(onsets) == 0:
        onsets = np.array([int(rng.choice([0, 4]))])
    ends = np.append(onsets[1:], beats * 4)
    steps, direction, notes = 0, int(rng.choice([-1, 1])), []
    for i, end in zip(onsets, ends, strict=True):
        length = min(int(end - i), 6) * (0.95 if rng.random() < 0.7 else 0.6)
        notes.append((i / 4, length / 4, steps))
        if rng.random() < 0.35 or abs(steps) > 4:
            direction = -direction if abs(steps) <= 4 else -int(np.sign(steps))
        steps += direction * int(rng.choice(sizes))
    return notes


def melody(
    rng: np.random.Generator,
    chords: Chart,
    bars: int,
    beats: int,
    scale: tuple[int, ...],
    density: float,
    center: float,
    steps: tuple[int, ...] = STEPS,
) -> list[Note]:
    """A melody of three motifs that return over the changing chords.

    Strong beats fall on chord tones, the rest on the scale bent to the chord, and every phrase
    of (at most) four bars closes on a long chord tone.

    Parameters
    ----------
    density
        Share of the eighths that sound, 0 to 1.
    center
        MIDI pitch the melody keeps returning to.
    steps
        Sizes of a step, in tones of the scale; one is drawn for every note.
    """
    low, high = int(center) - 11, int(center) + 13
    motifs = [_motif(rng, beats, d, steps) for d in (density, density, 0.6 * density)]
    phrase = _PHRASES[int(rng.integers(len(_PHRASES)))]
    arch = rng.uniform(1, 5)
    notes: list[Note] = []
    for bar in range(bars):
        place = bar % 4
        closing = place == 3 or bar == bars - 1
        motif = motifs[2 if closing else phrase[place]]
        base = center + arch * np.sin(np.pi * (place + 0.5) / 4)
        anchor = nearest(ladder(chord_at(chords, bar * beats), low, high), base)
        for i, (offset, length, steps) in enumerate(motif):
            beat = bar * beats + offset
            tones = chord_at(chords, beat)
            scale_here = ladder(local_scale(scale, tones), low, high)
            at = int(np.argmin(np.abs(scale_here - anchor))) + steps
            pitch = int(scale_here[np.clip(at, 0, len(scale_here) - 1)])
            last = closing and i == len(motif) - 1
            if offset % 1 == 0 or last:
                pitch = nearest(ladder(tones, low, high), pitch)
            if last:
                length = max(length, min(2.0, (bar + 1) * beats - beat - 0.25))
            accent = 0.85 if offset == 0 else 0.75 if offset % 1 == 0 else 0.65
            notes.append((beat, length, pitch, accent))
    return notes
