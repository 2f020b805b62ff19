"""The ten styles of the task ``demo``, as rows of a table.

A row says what a track of the style may be made of; :func:`tune.demo.recipes.style_recipe` draws
from it. Patterns are sixteenths of a bar, cut to the bar's length: in `comps` and `arps`
``x`` is the chord, a digit one tone of it, ``-`` holds and ``.`` rests; in `lines` (bass) ``R`` is
the root, ``5`` ``3`` ``8`` the fifth, third and octave, ``a`` a step towards the next root.
The styles share instruments, grooves and progressions on purpose: telling them apart should
take listening to more than one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

ARPS = ("0.1.2.1.0.1.2.3.", "0123012301230123", "0.2.1.2.0.2.1.2.", "0-1-2-3-4-3-2-1-")
HOLD = "x---------------"
HALVES = "x-------x-------"
QUARTERS = "x--.x--.x--.x--."
EIGHTHS = "x.x.x.x.x.x.x.x."


@dataclass(frozen=True)
class Style:
    """Parameters of a style. Ranges are (low, high); tempo in beats a minute."""

    tempo: tuple[int, int]
    beats: tuple[int, ...]
    scales: tuple[str, ...]
    harmony: str  # name of a family of progressions, see theory.PROGRESSIONS
    lead: tuple[str, ...]
    chords: tuple[str, ...]
    bass: tuple[str, ...]
    pad: tuple[str, ...]  # "" means that some tracks have none
    arp: tuple[str, ...]
    comps: tuple[str, ...]
    lines: tuple[str, ...]
    grooves: tuple[str, ...]
    kits: tuple[str, ...]
    arps: tuple[str, ...] = ARPS
    swing: tuple[float, float] = (0.5, 0.5)  # where the off-beat eighth falls, 0.5 is straight
    density: tuple[float, float] = (0.4, 0.7)  # share of the melody's eighths that sound
    reverb: tuple[float, float] = (0.1, 0.3)
    delay: tuple[float, float] = (0.0, 0.15)
    loose_s: float = 0.006  # how far a player strays from the grid
    bars: tuple[int, ...] = (2, 4, 8)  # bars in a verse
    tilt_db: float = 0.0  # how bright such records are made
    register: int = 0  # semitones by which the chords lie above the middle


STYLES: dict[str, Style] = {
    "ambient": Style(
        (58, 92),
        (4,),
        ("lydian", "major", "dorian", "minor"),
        "drift",
        ("bell", "flute", "e-piano", "choir"),
        ("warm-pad", "glass-pad", "strings", "choir"),
        ("sine-bass", "triangle-bass"),
        ("warm-pad", "glass-pad", "choir"),
        ("bell", "marimba", "", "e-piano"),
        (HOLD, HALVES),
        ("R---------------", "R-------5-------"),
        ("none", "shaker", "pulse"),
        ("soft", "electronic"),
        density=(0.15, 0.35),
        reverb=(0.3, 0.6),
        delay=(0.1, 0.35),
        tilt_db=-3,
    ),
    "baroque": Style(
        (66, 112),
        (3, 4),
        ("major", "harmonic", "minor"),
        "baroque",
        ("flute", "fiddle", "harpsichord", "organ", "reed"),
        ("harpsichord", "organ", "nylon"),
        ("string-bass", "pick-bass"),
        ("strings", "", "organ"),
        ("harpsichord", "", "nylon"),
        (QUARTERS, HALVES, "x---x-x-x---x-x-"),
        ("R-3-5-a-R-3-5-a-", "R---5---R---a---"),
        ("none",),
        ("soft",),
        density=(0.55, 0.9),
        reverb=(0.15, 0.4),
        delay=(0.0, 0.05),
        tilt_db=1,
        register=4,
    ),
    "blues": Style(
        (76, 136),
        (4,),
        ("blues", "minor-pentatonic", "mixolydian"),
        "blues",
        ("guitar", "reed", "organ", "fuzz-guitar"),
        ("e-piano", "organ", "guitar", "piano"),
        ("pick-bass", "string-bass"),
        ("", "organ"),
        ("",),
        ("x--.x.x.x--.x.x.", "..x.....x.x.....", QUARTERS),
        ("R-R-3-R-5-R-3-R-", "R---3---5---a---"),
        ("shuffle", "brushes", "rock"),
        ("acoustic", "soft"),
        swing=(0.58, 0.68),
        density=(0.35, 0.65),
        bars=(6, 12),
        loose_s=0.012,
        tilt_db=-1,
    ),
    "chiptune": Style(
        (112, 168),
        (4,),
        ("major", "minor", "dorian"),
        "pop",
        ("square-lead", "pulse"),
        ("pulse", "square-lead", "stab"),
        ("triangle-bass", "square-bass"),
        ("", "pulse"),
        ("pulse", "square-lead", "marimba"),
        (EIGHTHS, "x..x..x.x..x..x.", HALVES),
        ("R-8-R-8-R-8-R-8-", "R.R.R.R.5.5.R.a."),
        ("electro", "rock", "four", "none"),
        ("chip", "electronic"),
        arps=("0123012301230123", "0212021202120212"),
        density=(0.5, 0.85),
        reverb=(0.0, 0.12),
        delay=(0.0, 0.2),
        loose_s=0.0,
        tilt_db=3,
        register=3,
    ),
    "dub": Style(
        (66, 96),
        (4,),
        ("minor", "dorian", "minor-pentatonic", "major"),
        "roots",
        ("reed", "e-piano", "brass", "flute"),
        ("organ", "guitar", "stab", "e-piano"),
        ("sine-bass", "pick-bass", "triangle-bass"),
        ("", "organ"),
        ("", "stab"),
        ("..x...x...x...x.", "....x.......x...", "..x...x...x.x.x."),
        ("R...R.5.....8.5.", "R--R--5-....R.a.", "..R.R.8.5...R..."),
        ("one-drop", "steppers", "ballad"),
        ("acoustic", "soft", "electronic"),
        swing=(0.5, 0.58),
        density=(0.2, 0.45),
        reverb=(0.15, 0.4),
        delay=(0.2, 0.5),
        tilt_db=-4,
        register=2,
    ),
    "folk": Style(
        (76, 128),
        (3, 4),
        ("major", "mixolydian", "dorian", "minor"),
        "folk",
        ("fiddle", "flute", "reed", "nylon"),
        ("guitar", "nylon", "piano"),
        ("string-bass", "pick-bass"),
        ("", "strings", "organ"),
        ("guitar", "nylon", "", ""),
        ("x---x-x-x---x-x-", QUARTERS, "0-2-1-2-0-2-1-2-", "0-x-2-x-0-x-2-x-"),
        ("R-------5-------", "R---5---R---a---"),
        ("none", "stomp", "brushes", "shaker"),
        ("acoustic", "soft"),
        density=(0.4, 0.75),
        loose_s=0.012,
        tilt_db=0.5,
    ),
    "house": Style(
        (114, 132),
        (4,),
        ("minor", "dorian", "major"),
        "groove",
        ("saw-lead", "e-piano", "brass", "choir"),
        ("stab", "piano", "organ", "e-piano"),
        ("sine-bass", "saw-bass", "fm-bass"),
        ("warm-pad", "strings", ""),
        ("poly-synth", "stab", ""),
        ("..x...x...x...x.", "x..x..x...x..x..", "x..x....x..x...."),
        ("..R...R...R...R.", "R..R..R...5.R...", "R.8.R.8.R.8.R.8."),
        ("four", "disco", "steppers"),
        ("electronic", "acoustic"),
        swing=(0.5, 0.56),
        density=(0.25, 0.5),
        reverb=(0.1, 0.35),
        loose_s=0.0,
        tilt_db=1,
    ),
    "jazz-waltz": Style(
        (104, 172),
        (3,),
        ("major", "dorian", "minor"),
        "jazz",
        ("reed", "flute", "piano", "brass", "e-piano"),
        ("piano", "e-piano", "guitar"),
        ("string-bass",),
        ("", "strings"),
        ("",),
        ("x--.....x-..", "....x-..x-..", "x-----x-...."),
        ("R---3---a---", "R---5---a---", "R-----5-a---"),
        ("waltz", "waltz-soft"),
        ("acoustic", "soft"),
        swing=(0.6, 0.68),
        density=(0.4, 0.75),
        loose_s=0.012,
        tilt_db=-2,
    ),
    "metal": Style(
        (98, 164),
        (4,),
        ("minor", "phrygian", "harmonic"),
        "power",
        ("fuzz-guitar", "saw-lead"),
        ("fuzz-guitar",),
        ("pick-bass", "saw-bass"),
        ("", "choir", "strings"),
        ("", "fuzz-guitar"),
        ("x.xxx.xxx.xxx.xx", "x---x.x.x---x.x.", EIGHTHS, "x-----x-----x---"),
        ("RRRRRRRRRRRRRRRR", "R.RRR.RRR.RRR.RR", "R-R-R-R-R-R-R-R-"),
        ("double", "gallop", "rock"),
        ("heavy", "acoustic"),
        density=(0.4, 0.85),
        reverb=(0.05, 0.2),
        loose_s=0.004,
        tilt_db=2,
        register=-9,
    ),
    "synthpop": Style(
        (96, 136),
        (4,),
        ("major", "minor", "dorian"),
        "pop",
        ("saw-lead", "square-lead", "bell", "choir"),
        ("poly-synth", "warm-pad", "stab"),
        ("saw-bass", "square-bass", "fm-bass"),
        ("warm-pad", "strings", "choir", ""),
        ("poly-synth", "pulse", "bell"),
        (HOLD, "x--x--x-x--x--x-", QUARTERS, "..x...x...x...x."),
        ("R.R.R.R.R.R.R.R.", "R-8-R-8-R-8-R-8-", "R--R--R-R--R--a-"),
        ("electro", "disco", "rock", "four"),
        ("gated", "electronic"),
        density=(0.35, 0.65),
        reverb=(0.1, 0.4),
        loose_s=0.0,
        tilt_db=2,
    ),
}


@dataclass(frozen=True)
class Section:
    """How a part of a song differs from the others.

    `drums` is the share of the groove that plays, `lift` moves melody and chords (semitones),
    `busy` scales the melody's density and `level` the velocities.
    """

    roles: tuple[str, ...]
    drums: float
    lift: int
    busy: float
    level: float


SECTIONS: dict[str, Section] = {
    "intro": Section(("chords", "pad", "arp"), 0.3, 0, 0.5, 0.75),
    "verse": Section(("bass", "chords", "lead", "drums"), 0.6, -3, 0.8, 0.8),
    "chorus": Section(("bass", "chords", "lead", "pad", "arp", "drums"), 1.0, 4, 1.2, 1.0),
    "bridge": Section(("pad", "arp", "chords", "lead", "drums"), 0.3, -7, 0.5, 0.8),
    "outro": Section(("bass", "chords", "pad"), 0.3, 0, 0.5, 0.7),
    # The three kinds of demo-form.
    "A": Section(("bass", "chords"), 0.0, -8, 0.5, 0.6),
    "B": Section(("bass", "chords", "lead", "pad", "drums"), 1.0, 5, 1.2, 1.0),
    "C": Section(("arp", "pad", "shaker"), 0.0, 10, 0.6, 0.75),
}

FORMS: tuple[str, ...] = (
    "intro verse chorus verse chorus bridge chorus outro",
    "intro verse verse chorus verse chorus outro",
    "verse chorus verse chorus bridge chorus outro",
    "intro verse chorus bridge verse chorus outro",
    "intro chorus verse chorus bridge chorus outro",
    "intro verse chorus verse chorus outro",
    "intro verse chorus bridge chorus outro",
    "verse chorus verse chorus outro",
    "intro verse chorus outro",
    "verse chorus verse outro",
)
