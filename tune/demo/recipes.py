"""Recipes: all parameters of a song, drawn before its notes.

Drawn from a style (``demo``), for sections of exactly ten seconds (``demo-form``) or, in
:mod:`tune.demo.moods`, from a latent arousal and valence (``demo-mood``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tune.demo.drums import GROOVES, KITS
from tune.demo.parts import STEPS
from tune.demo.patches import PATCHES, Patch, vary_patch
from tune.demo.styles import EIGHTHS, FORMS, HALVES, HOLD, QUARTERS, STYLES, Style
from tune.demo.theory import PROGRESSIONS, chord, is_minor, transpose

LEVELS = {"bass": 0.42, "chords": 0.2, "lead": 0.34, "pad": 0.13, "arp": 0.24, "drums": 0.5}
TAIL_S = 2.6  # decay of the last chord
TARGET_S, SHORTEST_S, LONGEST_S = 58.0, 48.0, 74.0  # with the tail, which a fade-out lacks


@dataclass
class PieceRecipe:
    """A song's parameters. Tempo in beats a minute, levels in dB re full scale, pitches in MIDI."""

    style: str
    tempo: float
    beats: int  # in a bar
    key: int  # pitch class of the tonic
    scale: str
    swing: float
    chords: dict[str, list[tuple[int, ...]]]  # by kind of section
    comps: dict[str, str]
    lines: dict[str, str]
    arp: str
    patches: dict[str, Patch]
    levels: dict[str, float]
    groove: dict[str, str]
    kit: dict[str, float]
    density: float
    center: float  # of the melody
    middle: float  # of the chords
    form: tuple[str, ...]
    bars: int  # in a verse
    reverb: float
    rt60_s: float
    delay: float
    tilt_db: float
    noise_db: float
    peak_db: float
    push: float
    loose_s: float
    fades: bool
    borrowed: str | None = None
    steps: tuple[int, ...] = STEPS  # of the melody, see parts.melody


def pick(rng: np.random.Generator, options):
    """One of a sequence."""
    return options[int(rng.integers(len(options)))]


def section_bars(kind: str, bars: int) -> int:
    """Bars of a section, given those of a verse."""
    return max(1, bars // 2) if kind in ("intro", "outro") else bars


class NoFormFitsError(ValueError):
    """No form lasts about a minute at a tempo."""


def choose_form(rng, tempo: float, beats: int, options: tuple[int, ...]):
    """A form and the bars of its verse that last close to `TARGET_S` at this tempo.

    Raises
    ------
    NoFormFitsError
    """
    bar_s = beats * 60 / tempo
    found, weights = [], []
    for form in FORMS:
        for bars in options:
            kinds = tuple(form.split())
            seconds = bar_s * sum(section_bars(k, bars) for k in kinds) + TAIL_S
            if SHORTEST_S <= seconds <= LONGEST_S:
                found.append((kinds, bars))
                weights.append(np.exp(-(((seconds - TARGET_S) / 7) ** 2)))
    if not found:
        raise NoFormFitsError(f"no form fits {tempo} beats a minute in {beats}/4")
    return found[int(rng.choice(len(found), p=np.array(weights) / np.sum(weights)))]


def draw_chords(rng, family: str, scale: str, key: int) -> dict[str, list[tuple[int, ...]]]:
    """Progressions for verse, chorus and bridge; intro and outro share the verse's."""
    minor = is_minor(scale)
    if scale in ("blues", "minor-pentatonic") and family == "blues":
        minor = rng.random() < 0.3  # the blues is minor over major
    pool = PROGRESSIONS[family + "-minor" if minor else family]
    order = [pool[i] for i in rng.permutation(len(pool))]
    verse, chorus, bridge = (order * 3)[:3]
    if rng.random() < 0.25:
        chorus = verse
    named = {"verse": verse, "chorus": chorus, "bridge": bridge, "intro": verse, "outro": verse}
    named |= {"A": verse, "B": chorus, "C": bridge}
    return {k: [transpose(chord(s), key) for s in v.split()] for k, v in named.items()}


def from_row(
    rng, name: str, row: Style, sound: Style, groove: Style, harmony: Style
) -> PieceRecipe:
    """Draw a recipe; instruments, rhythm and harmony may come from other rows (hybrids)."""
    tempo = float(np.round(rng.uniform(*row.tempo), 1))
    beats = int(pick(rng, row.beats))
    key, scale = int(rng.integers(12)), pick(rng, harmony.scales)
    form, bars = choose_form(rng, tempo, beats, row.bars)
    names = {r: pick(rng, getattr(sound, r)) for r in ("lead", "chords", "bass", "pad", "arp")}
    patches = {r: vary_patch(PATCHES[n], rng) for r, n in names.items() if n}
    levels = {r: g * 10 ** (rng.normal(0, 2.5) / 20) for r, g in LEVELS.items()}
    main, other, third = (pick(rng, row.comps) for _ in range(3))
    low, high = (pick(rng, groove.lines) for _ in range(2))
    return PieceRecipe(
        style=name,
        tempo=tempo,
        beats=beats,
        key=key,
        scale=scale,
        swing=float(rng.uniform(*groove.swing)),
        chords=draw_chords(rng, harmony.harmony, scale, key),
        comps={"verse": main, "chorus": other, "bridge": third, "intro": main, "outro": main},
        lines={"verse": low, "chorus": high, "bridge": low, "intro": low, "outro": low},
        arp=pick(rng, row.arps),
        patches=patches,
        levels=levels,
        groove=GROOVES[pick(rng, groove.grooves)],
        kit=KITS[pick(rng, groove.kits)],
        density=float(rng.uniform(*row.density)),
        center=float(rng.uniform(69, 78)),
        middle=58 + row.register + float(rng.uniform(-2, 2)),
        form=form,
        bars=bars,
        reverb=float(rng.uniform(*row.reverb)),
        rt60_s=float(rng.uniform(0.5, 2.0)),
        delay=float(rng.uniform(*row.delay)),
        tilt_db=row.tilt_db + float(rng.normal(0, 2)),
        noise_db=float(rng.uniform(-80, -56)),
        peak_db=float(rng.uniform(-6, -1)),
        push=float(rng.uniform(1.0, 2.2)),
        loose_s=row.loose_s,
        fades=bool(rng.random() < 0.2),
    )


def style_recipe(style: str, rng: np.random.Generator, hybrid: float = 0.16) -> PieceRecipe:
    """A song in one of `STYLES`; a share `hybrid` of them borrows from another style."""
    row = STYLES[style]
    rows = {"sound": row, "groove": row, "harmony": row}
    borrowed = None
    if rng.random() < hybrid:
        other = pick(rng, [s for s in STYLES if s != style])
        what = pick(rng, ("sound", "sound", "groove", "harmony"))
        rows[what] = STYLES[other]
        borrowed = f"{what} of {other}"
    recipe = from_row(rng, style, row, **rows)
    recipe.borrowed = borrowed
    return recipe


# Tempo, beats and bars that make exactly ten seconds.
_TEN_SECONDS = ((96.0, 4, 4), (144.0, 4, 6), (120.0, 4, 5), (108.0, 3, 6), (144.0, 3, 8))
_FORM_STYLES = ("synthpop", "house", "folk", "dub", "chiptune", "ambient")


def form_recipe(rng: np.random.Generator) -> PieceRecipe:
    """A song of ten-second sections of the kinds A, B and C; see `SECTIONS`."""
    style = pick(rng, _FORM_STYLES)
    recipe = style_recipe(style, rng, hybrid=0.3)
    recipe.tempo, recipe.beats, recipe.bars = pick(rng, _TEN_SECONDS)
    for role, names in (
        ("arp", ("bell", "marimba", "nylon", "pulse")),
        ("pad", ("warm-pad", "glass-pad", "strings")),
    ):
        recipe.patches[role] = vary_patch(PATCHES[pick(rng, names)], rng)
    if len(recipe.groove) < 3:
        recipe.groove = GROOVES[pick(rng, ("rock", "disco", "electro", "stomp"))]
    recipe.comps = {"A": HOLD, "B": pick(rng, (EIGHTHS, QUARTERS, "x--x--x-x--x--x-")), "C": HALVES}
    line = recipe.lines["chorus"]
    recipe.lines = {"A": HOLD.replace("x", "R"), "B": line, "C": line}
    recipe.density = max(recipe.density, 0.45)
    return recipe
