"""From a recipe to audio: write each section once, perform the form, mix, master."""

from __future__ import annotations

import numpy as np

from tune.demo import mix
from tune.demo.drums import GROOVES, fill, hit, play
from tune.demo.parts import bass_line, chart, comp, melody
from tune.demo.recipes import TAIL_S, PieceRecipe, section_bars
from tune.demo.styles import HOLD, SECTIONS
from tune.demo.synth import SAMPLE_RATE, note
from tune.demo.theory import SCALES, transpose

# What each part sends to the room and to the echo.
_ROOM = {"bass": 0.05, "chords": 0.7, "lead": 1.0, "pad": 1.0, "arp": 0.9, "drums": 0.35}
_ECHO = {"bass": 0.0, "chords": 0.6, "lead": 1.0, "pad": 0.0, "arp": 0.7, "drums": 0.1}

Parts = dict[str, list[tuple]]  # role: notes, or hits under "drums"; beats from the section's start


def write_section(recipe: PieceRecipe, kind: str, bars: int, rng: np.random.Generator) -> Parts:
    """Compose one section; every repeat of its kind plays this material."""
    row = SECTIONS[kind]
    beats, scale = recipe.beats, transpose(SCALES[recipe.scale], recipe.key)
    chords = chart(recipe.chords[kind], bars, beats, recipe.bars)
    roles = set(row.roles) & {*recipe.patches, "drums", "shaker"}
    middle = recipe.middle + row.lift / 2
    parts: Parts = {}
    if "bass" in roles:
        parts["bass"] = bass_line(recipe.lines[kind], chords, bars, beats, scale, 31)
    if "chords" in roles:
        parts["chords"] = comp(recipe.comps[kind], chords, bars, beats, middle)
    if "pad" in roles:
        parts["pad"] = comp(HOLD, chords, bars, beats, middle + 7)
    if "arp" in roles:
        parts["arp"] = comp(recipe.arp, chords, bars, beats, middle + 10)
    if "lead" in roles:
        density, center = recipe.density * row.busy, recipe.center + row.lift
        parts["lead"] = melody(rng, chords, bars, beats, scale, density, center, recipe.steps)
    if "drums" in roles:
        parts["drums"] = play(recipe.groove, row.drums, bars, beats)
    elif "shaker" in roles:
        parts["drums"] = play(GROOVES["shaker"], 1.0, bars, beats)
    return parts


def write_song(recipe: PieceRecipe, kinds, rng: np.random.Generator) -> dict[str, Parts]:
    """The material of every kind of section, in the order given."""
    return {
        kind: write_section(recipe, kind, section_bars(kind, recipe.bars), rng) for kind in kinds
    }


def take(parts: Parts, kind: str, beats: float, first: bool, rng: np.random.Generator) -> Parts:
    """A performance of a section: other velocities, perhaps a fill, a crash or a ghosted part."""
    level = SECTIONS[kind].level
    played: Parts = {}
    for role, notes in parts.items():
        if kind == "chorus" and not first and role == "arp" and rng.random() < 0.25:
            continue  # a repeat may leave the arpeggio out
        swell = rng.normal(1, 0.05, len(notes))
        played[role] = [
            (*n[:-1], float(np.clip(n[-1] * level * s, 0.05, 1.0)))
            for n, s in zip(notes, swell, strict=True)
        ]
    names = {h[1] for h in parts.get("drums", ())} & {"snare", "tom", "kick", "rim"}
    if names and rng.random() < (0.4 if first else 0.8):
        end = beats
        played["drums"] = [h for h in played["drums"] if h[0] < end - 1] + fill(
            rng, end, sorted(names)
        )
    if kind in ("chorus", "B") and "snare" in names:
        played["drums"].append((0.0, "crash", 0.6))
    return played


def _seconds(beat: float, recipe: PieceRecipe) -> float:
    """Time of a beat, with the off-beat eighths swung."""
    whole, part = divmod(beat, 1.0)
    s = recipe.swing
    part = part * 2 * s if part < 0.5 else s + (part - 0.5) * 2 * (1 - s)
    return (whole + part) * 60 / recipe.tempo


def perform(
    recipe: PieceRecipe, played: Parts, n: int, rng: np.random.Generator, cache: dict
) -> np.ndarray:
    """Render and mix notes into `n` samples, before mastering.

    Parameters
    ----------
    cache
        Notes and drums made so far, by role; share it between the takes of one song.

    Returns
    -------
    ndarray, shape (n,), float32
    """
    mixed, room, echoes = (np.zeros(n, dtype=np.float32) for _ in range(3))
    beat_s = 60 / recipe.tempo
    for role, notes in played.items():
        bus = np.zeros(n, dtype=np.float32)
        sounds = cache.setdefault(role, {})
        late = rng.normal(0, recipe.loose_s, len(notes)) if recipe.loose_s else np.zeros(len(notes))
        for item, drift in zip(notes, late, strict=True):
            start = int(max(0.0, _seconds(item[0], recipe) + drift) * SAMPLE_RATE)
            if role == "drums":
                sound = hit(item[1], recipe.kit, sounds, recipe.key)
            else:
                # Lengths in steps of 10 ms, so that equal notes share one rendering.
                held = max(4, round(item[1] * beat_s * 100 * 0.97)) * (SAMPLE_RATE // 100)
                sound = note(recipe.patches[role], item[2], held, item[3], sounds)
            end = min(n, start + len(sound))
            if start < end:
                bus[start:end] += sound[: end - start] * np.float32(item[-1] ** 1.5)
        if role != "drums" and recipe.patches[role].drive:
            bus = mix.overdrive(bus, recipe.patches[role].drive)
        bus *= np.float32(recipe.levels[role])
        mixed += bus
        room += bus * np.float32(_ROOM[role])
        if _ECHO[role] and recipe.delay:
            echoes += bus * np.float32(_ECHO[role])
    if recipe.delay:
        repeats = mix.echo(echoes, 0.75 * beat_s, 0.6) * np.float32(recipe.delay)
        mixed += repeats
        room += repeats
    mixed += np.float32(recipe.reverb) * mix.reverb(room, recipe.rt60_s, rng)
    mixed = mix.block_dc(mix.tilt(mixed, recipe.tilt_db))
    return mixed


def render(recipe: PieceRecipe, rng: np.random.Generator) -> np.ndarray:
    """A whole song, mastered.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        Peak at `recipe.peak_db`, silent at both ends.
    """
    song = write_song(recipe, dict.fromkeys(recipe.form), rng)
    played: Parts = {}
    beat, seen = 0.0, set()
    for kind in recipe.form:
        length = section_bars(kind, recipe.bars) * recipe.beats
        for role, notes in take(song[kind], kind, length, kind not in seen, rng).items():
            played.setdefault(role, []).extend((n[0] + beat, *n[1:]) for n in notes)
        seen.add(kind)
        beat += length
    seconds = beat * 60 / recipe.tempo
    if not recipe.fades:  # close on the tonic and let it ring
        tonic = chart(recipe.chords["verse"][:1], 1, recipe.beats, 1)
        ring = TAIL_S * recipe.tempo / 60
        for role, center in (("bass", 38), ("chords", recipe.middle), ("pad", recipe.middle + 6)):
            if role in recipe.patches:
                last = comp(HOLD, tonic, 1, recipe.beats, center)[: 1 if role == "bass" else 9]
                played.setdefault(role, []).extend((beat, ring, n[2], 0.7) for n in last)
        seconds += TAIL_S
    n = round(seconds * SAMPLE_RATE)
    audio = perform(recipe, played, n, rng, {})
    noise = rng.standard_normal(n, dtype=np.float32)
    audio = mix.block_dc(mix.limit(audio, recipe.peak_db, recipe.push))
    audio += np.float32(10 ** (recipe.noise_db / 20)) * noise
    audio *= np.float32(10 ** (recipe.peak_db / 20) / np.max(np.abs(audio)))
    return mix.fade(audio, 0.01, 6.0 if recipe.fades else 1.8)
