"""Tiny data sets in the true layouts of the benchmark's tasks: short tones, labels as they come.

Layouts and labels are those of MARBLE's data modules (v2: EMO, GTZANGenre, GS, MTT, MTG*; v1:
NSynth, VocalSet) and, for VocalSet, of the archive itself. What a tone sounds like follows from its
label, so that there is something to learn.
"""

import json
from pathlib import Path

import numpy as np
import soundfile
from conftest import tone

from tune.tasks.musical_keys import KEYS

SPLITS = {"train": 6, "val": 4, "test": 4}
MTG = {
    "MTGGenre": ["genre---rock", "genre---ambient", "genre---jazz"],
    "MTGInstrument": ["instrument---voice", "instrument---piano", "instrument---drums"],
    "MTGMood": ["mood/theme---film", "mood/theme---happy", "mood/theme---dark"],
    "MTGTop50": ["genre---rock", "instrument---piano", "mood/theme---happy"],
}


def write_tone(path: Path, hz: float, seconds: float, rate: int, seed: int, **kwargs) -> dict:
    """Write a tone; return what MARBLE's rows say of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = tone(seconds, hz, rate, seed=seed)
    soundfile.write(path, wave, rate, **kwargs)
    return {
        "duration": len(wave) / rate,
        "sample_rate": rate,
        "num_samples": len(wave),
        "bit_depth": 16,
        "channels": 1,
    }


def write_rows(file: Path, rows: list[dict]) -> None:
    """Write a jsonl."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def emo(data: Path) -> None:
    """EMO: [arousal, valence], standardised, of wav at 44.1 kHz."""
    number = 0
    for split, n in SPLITS.items():
        rows = []
        for i in range(n):
            number += 1
            name = f"EMO/emomusic/wav/{number:04d}.wav"
            facts = write_tone(data / name, 100 + 90 * number, 0.6, 44_100, number)
            label = [number / 7 - 1, (-1) ** i * 0.5]
            rows.append({"audio_path": f"data/{name}", "label": label, **facts})
        write_rows(data / "EMO" / f"EMO.{split}.jsonl", rows)


def gtzan(data: Path) -> None:
    """GTZAN: a genre's name, of wav at 22.05 kHz in a folder a genre."""
    count = 0
    for split, n in SPLITS.items():
        rows = []
        for i in range(n):
            genre, count = ("blues", "metal")[i % 2], count + 1
            name = f"GTZAN/genres/{genre}/{genre}.{count:05d}.wav"
            facts = write_tone(data / name, (110, 880)[i % 2], 0.6, 22_050, count)
            rows.append({"audio_path": f"data/{name}", "label": genre, **facts})
        write_rows(data / "GTZAN" / f"GTZANGenre.{split}.jsonl", rows)


def gs(data: Path) -> None:
    """GiantSteps: a key's name, clips of a track by ori_uid (two a track)."""
    number = 61
    for split, n in SPLITS.items():
        rows = []
        for i in range(n):
            key, number = ("Eb minor", "C major", "A minor")[i % 3], number + 1
            for clip in range(2):
                uid = f"{number:07d}"
                name = f"GS/giantsteps_clips/wav/{uid}-{clip}.wav"
                hz = 110 * 2 ** (KEYS.index(key) % 12 / 6)
                facts = write_tone(data / name, hz, 0.6, 44_100, 2 * number + clip)
                rows.append({"audio_path": f"data/{name}", "ori_uid": uid, "label": key, **facts})
        write_rows(data / "GS" / f"GS.{split}.jsonl", rows)


def mtt(data: Path) -> None:
    """MagnaTagATune: a list of tags, also an empty one, of mp3 at 16 kHz in folders 0 to f."""
    names = ["guitar", "no vocals", "female vocal"]
    _tagged(data, "MTT", "MTT", names, "mp3/{i:x}/artist-album-{i:02d}-title-0-29.mp3", 16_000, 0)


def mtg(data: Path, stem: str) -> None:
    """MTG-Jamendo: a list of tags with their category, of flac at 44.1 kHz."""
    _tagged(data, "MTG", stem, MTG[stem], "audio/{i:02d}/{i}48.low.flac", 44_100, 20)


def _tagged(data, folder, stem, names, form, rate, first) -> None:
    number = first
    for split, n in SPLITS.items():
        rows = []
        for i in range(n):
            number += 1
            # All subsets of the tags in turn; in test the third tag never occurs.
            own = [name for t, name in enumerate(names) if i % 4 + 1 >> t & 1]
            own = [] if folder == "MTT" and i == 5 else own  # a clip without tags
            own = own if split != "test" else [name for name in own if name != names[2]]
            name = f"{folder}/{form.format(i=number)}"
            path = data / name
            hz = 110 * 2 ** sum(2**t for t in range(3) if names[t] in own) / 2
            facts = write_tone(path, hz, 0.7 + 0.2 * (i % 2), rate, number)
            rows.append({"audio_path": f"data/{name}", "label": own, **facts})
        write_rows(data / folder / f"{stem}.{split}.jsonl", rows)


def nsynth(data: Path) -> None:
    """NSynth: examples.json with everything about a note, wav at 16 kHz in audio/."""
    families = ["bass", "flute"]
    for part, n in (("train", 6), ("valid", 4), ("test", 4)):
        notes = {}
        for i in range(n):
            pitch, family = (45, 69)[i // 2 % 2], i % 2
            instrument = {"train": 0, "valid": 100, "test": 200}[part] + i
            name = f"{families[family]}_acoustic_{instrument:03d}-{pitch:03d}-100"
            hz = 440 * 2 ** ((pitch - 69) / 12)
            write_tone(data / f"NSynth/nsynth-{part}/audio/{name}.wav", hz, 0.5, 16_000, instrument)
            notes[name] = {
                "note": instrument,
                "sample_rate": 16000,
                "instrument_family": 3 * family,
                "qualities": [0] * 10,
                "instrument_source_str": "acoustic",
                "note_str": name,
                "instrument_family_str": families[family],
                "instrument": instrument,
                "instrument_str": f"{families[family]}_acoustic_{instrument:03d}",
                "pitch": pitch,
                "qualities_str": [],
                "velocity": 100,
                "instrument_source": 0,
            }
        (data / f"NSynth/nsynth-{part}/examples.json").write_text(json.dumps(notes))


def vocalset(data: Path) -> None:
    """VocalSet as MARBLE v1 prepares it: lists of 3 s chunks, a folder a technique."""
    folder = data / "VocalSet"
    techniques, seed = ("belt", "vibrato"), 0
    singers = {"train": ("f1", "m1"), "valid": ("f1", "m1"), "test": ("f2", "m3")}
    for letter in "ts":
        for part, n in (("train", 6), ("valid", 4), ("test", 4)):
            names = []
            for i in range(n):
                technique = techniques[i % 2]
                singer = (singers[part] if letter == "t" else singers["train"])[i // 2 % 2]
                name = f"{technique}/{singer}_scales_{technique}_{part}{letter}_{i:02d}.wav"
                hz = 220 * (1 + i % 2) * (1 if singer[0] == "f" else 2.5)
                write_tone(folder / "audio" / name, hz, 0.5, 44_100, seed := seed + 1)
                names.append(name)
            (folder / f"{part}_{letter}.txt").write_text("".join(f"{name}\n" for name in names))


def vocalset_archive(data: Path) -> None:
    """VocalSet as its archive unpacks: FULL/<singer>/<exercise>/<technique>/."""
    full, seed = data / "VocalSet" / "FULL", 0
    for singer, short in (("female1", "f1"), ("male1", "m1"), ("female2", "f2"), ("male3", "m3")):
        for technique in ("belt", "vibrato", "pp"):  # pp is none of the ten techniques
            for vowel in "aeiou":
                name = f"{singer}/scales/{technique}/{short}_scales_{technique}_{vowel}.wav"
                write_tone(full / name, 200 + 9 * seed, 0.5, 44_100, seed := seed + 1)


TREES = {
    "emo": emo,
    "gtzan": gtzan,
    "gs": gs,
    "mtt": mtt,
    "mtg-genre": lambda data: mtg(data, "MTGGenre"),
    "mtg-instrument": lambda data: mtg(data, "MTGInstrument"),
    "mtg-moodtheme": lambda data: mtg(data, "MTGMood"),
    "mtg-top50": lambda data: mtg(data, "MTGTop50"),
    "nsynth-pitch": nsynth,
    "nsynth-instrument": nsynth,
    "vocalset-singer": vocalset,
    "vocalset-technique": vocalset,
}


def write_trees(data: Path) -> Path:
    """All of them below one data folder."""
    for make in dict.fromkeys(TREES.values()):
        make(data)
    return data


def sizes() -> np.ndarray:
    """Files of train, val and test."""
    return np.array(list(SPLITS.values()))
