"""Test code: a corpus of audio files as they come from everywhere, whole and damaged, and worse.

Every file is one of GOOD (must be embedded), BAD (must be refused with a reason) or EITHER (what
flipped bytes make of a file; it may turn out as anything but a crash, and the same each time).
"""

import os
import struct
from pathlib import Path

import numpy as np
import soundfile

GOOD, BAD, EITHER = "good", "bad", "either"
RATES = (4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000)
ENDINGS = {
    "AIFF": "aiff",
    "OGG": "ogg",
    "MPC2K": "snd",
    "MAT4": "mat",
    "MAT5": "mat",
    "WAVEX": "wav",
    "RF64": "wav",
    "IRCAM": "sf",
    "NIST": "sph",
    "SVX": "iff",
}
# Cut into pieces and flipped.
DAMAGED = ("WAV", "AIFF", "FLAC", "OGG", "MP3", "CAF", "W64", "AU")


def wave(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise below a tone, another in each channel: (n, channels) float32 within [-0.5, 0.5]."""
    rng = np.random.default_rng(seed)
    t = np.arange(max(1, round(seconds * rate)))[:, None] / rate
    hz = 200 + 70 * (seed % 11) + 40 * np.arange(channels)
    tone = 0.3 * np.sin(2 * np.pi * hz * t)
    return (tone + rng.uniform(-0.1, 0.1, tone.shape)).astype(np.float32)


class Corpus:
    """Files below a folder, each with what is expected of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.expected: dict[str, str] = {}  # path -> GOOD, BAD or EITHER
        folder.mkdir(parents=True)

    def path(self, name: str | bytes, expect: str) -> str:
        """Register a name; return its path."""
        path = os.path.join(str(self.folder), os.fsdecode(name))
        assert path not in self.expected, path
        self.expected[path] = expect
        return path

    def write(self, name, samples, rate, expect=GOOD, **kwargs) -> str | None:
        """Write a file; None where libsndfile doesn't."""
        path = self.path(name, expect)
        try:
            soundfile.write(os.fsencode(path), samples, rate, **kwargs)
        except (soundfile.LibsndfileError, ValueError):
            del self.expected[path]
            Path(path).unlink(missing_ok=True)
            return None
        return path

    def data(self, name, content: bytes, expect=BAD) -> str:
        """Write bytes."""
        path = self.path(name, expect)
        Path(path).write_bytes(content)
        return path

    def of(self, *kinds: str) -> list[str]:
        """Paths of some kinds, in order."""
        return [path for path, kind in self.expected.items() if kind in kinds]


def make(folder: Path) -> Corpus:
    """Make the corpus: more than 200 files, a few MB (one sparse file of 140 MB beside)."""
    corpus = Corpus(folder)
    _containers(corpus)
    _shapes(corpus)
    _signals(corpus)
    _lengths(corpus)
    _damaged(corpus)
    _names(corpus)
    _not_files(corpus)
    return corpus


def _containers(corpus: Corpus) -> None:
    """Every container and encoding that libsndfile writes, at the first rate that it takes."""
    for format in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(format):
            if format == "RAW" or not soundfile.check_format(format, subtype):
                continue
            ending = ENDINGS.get(format, format.lower())
            for rate in (16_000, 8_000, 48_000):
                name = f"container-{format}-{subtype}.{ending}".lower()
                if corpus.write(
                    name,
                    wave(0.7, rate, seed=len(corpus.expected))[:, 0],
                    rate,
                    # libsndfile writes AIFF's DWVW and can't read it.
                    EITHER if "DWVW" in subtype else GOOD,
                    format=format,
                    subtype=subtype,
                ):
                    break


def _shapes(corpus: Corpus) -> None:
    """1 to 8 channels, 4 to 192 kHz."""
    for rate in RATES:
        for format in ("WAV", "FLAC"):
            channels = 1 + len(corpus.expected) % 8
            corpus.write(
                f"rate-{rate}-{channels}.{format.lower()}",
                wave(0.4, rate, channels, len(corpus.expected)),
                rate,
            )
    for channels in range(1, 9):
        for format in ("wav", "flac", "ogg"):
            corpus.write(
                f"channels-{channels}.{format}",
                wave(0.4, 24_000, channels, len(corpus.expected)),
                24_000,
            )
    for rate, expect in ((1, BAD), (999, BAD), (2_000_000_000, BAD), (1_000, GOOD)):
        corpus.write(f"odd-rate-{rate}.wav", wave(0.4, 24_000, seed=rate % 97), rate, expect)
    corpus.write("channels-1024.wav", wave(0.2, 24_000, 1024, 5), 24_000)


def _signals(corpus: Corpus) -> None:
    """What samples can be: constant, clipped, denormal, far too loud, NaN, infinite, silent."""
    rate, n = 24_000, 9_600
    base = wave(0.4, rate, seed=77)[:, 0].astype(np.float64)
    signals = {
        "dc": (np.full(n, 0.5), GOOD),
        "clipped": (np.clip(base * 50, -1, 1), GOOD),
        "denormal": (base * 1e-40, GOOD),
        "least": (np.full(n, 5e-324), GOOD),
        "int16-scale": (base * 32_768, GOOD),
        "int32-scale": (base * 2.0**31, GOOD),
        "too-loud": (base * 1e30, BAD),
        "loudest": (np.where(base > 0, 3.4e38, -3.4e38), BAD),
        "beyond-float32": (base * 1e300, BAD),
        "silence": (np.zeros(n), GOOD),
        "nan-all": (np.full(n, np.nan), BAD),
        "impulse": (np.eye(1, n, 99)[0], GOOD),
    }
    for where in (0, n // 2, n - 1):
        for word, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
            bad = base.copy()
            bad[where] = value
            signals[f"{word}-at-{where}"] = (bad, BAD)
    for word, (samples, expect) in signals.items():
        corpus.write(f"signal-{word}.wav", samples, rate, expect, subtype="DOUBLE")
    for word in ("nan-all", "inf-at-0", "denormal"):
        samples, expect = signals[word]
        # In float32 alone, and in one channel of two.
        two = np.stack([base, samples], 1)
        corpus.write(f"signal-{word}-stereo.aiff", two, rate, expect, subtype="FLOAT")
    both = np.stack([np.full(n, np.inf), np.full(n, -np.inf)], 1)
    corpus.write("signal-inf-minus-inf.wav", both, rate, BAD, subtype="FLOAT")


def _lengths(corpus: Corpus) -> None:
    """From no sample to hours."""
    for n, expect in ((0, BAD), (1, BAD), (2, BAD), (2_399, BAD), (2_400, GOOD), (2_401, GOOD)):
        for ending in ("wav", "flac", "ogg", "mp3"):
            lossy = ending in ("ogg", "mp3") and n >= 2_000  # a codec's frames blur the border
            samples = wave(1, 24_000, seed=n)[:n]
            corpus.write(f"length-{n}.{ending}", samples, 24_000, EITHER if lossy else expect)
    # A sparse file of 5 hours, which really are there, and headers that claim what isn't.
    header = _wav_header(8_000, 5 * 3600 * 8_000, bits=8)
    path = corpus.data("huge-5-hours.wav", header)
    os.truncate(path, len(header) + 5 * 3600 * 8_000)
    samples = b"\x10\x20" * 9_600
    for frames in (10**6, 10**9, 2**31 - 200):
        corpus.data(f"claims-{frames}.wav", _wav_header(24_000, frames * 2) + samples)
    corpus.data("claims-a-billion.flac", _flac_claiming(corpus.folder, 10**9))
    corpus.data("claims-2-to-36.flac", _flac_claiming(corpus.folder, 2**36 - 1))
    # Five hours of silence in a few KB: a file's size says little about its length.
    path = corpus.path("bomb.flac", BAD)
    with soundfile.SoundFile(path, "w", 4_000, 1, "PCM_16") as file:
        for _ in range(5):
            file.write(np.zeros(3600 * 4_000, np.int16))


def _wav_header(rate: int, size: int, *, bits: int = 16) -> bytes:
    """The header of a mono WAV that claims so many bytes of samples."""
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * bits // 8, bits // 8, bits)
    riff = b"RIFF" + struct.pack("<I", min(0xFFFFFFFF, size + 36)) + b"WAVE"
    return riff + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)


def _flac_claiming(folder: Path, frames: int) -> bytes:
    """A FLAC of half a second whose header claims so many frames."""
    path = folder / "claim.tmp"
    soundfile.write(path, wave(0.5, 24_000, seed=3), 24_000, format="FLAC")
    data = bytearray(path.read_bytes())
    path.unlink()
    packed = int.from_bytes(data[18:26], "big")  # rate 20, channels 3, bits 5, frames 36 bits
    data[18:26] = ((packed >> 36 << 36) | frames).to_bytes(8, "big")
    return bytes(data)


def _damaged(corpus: Corpus) -> None:
    """Cut at every tenth, and with bytes flipped."""
    whole = corpus.folder / "whole.tmp"
    rng = np.random.default_rng(11)
    for format in DAMAGED:
        soundfile.write(whole, wave(0.8, 44_100, 2, seed=len(format)), 44_100, format=format)
        data, ending = whole.read_bytes(), ENDINGS.get(format, format.lower())
        for tenth in range(1, 10):
            cut = data[: len(data) * tenth // 10]
            # The size of a CAF's and an AU's data may be unknown, and they say it so.
            expect = BAD if format not in ("CAF", "AU") else EITHER
            corpus.data(f"cut-{tenth}-tenths.{ending}", cut, expect)
        for n, where in ((1, "header"), (8, "header"), (1, "all"), (40, "all"), (400, "all")):
            flipped = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(0, 64 if where == "header" else len(flipped), n)
            flipped[at] ^= rng.integers(1, 256, n).astype(np.uint8)
            corpus.data(f"flipped-{n}-{where}.{ending}", flipped.tobytes(), EITHER)
    whole.unlink()


def _names(corpus: Corpus) -> None:
    """Endings that lie, and names that no program expects."""
    sound = {}
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        path = corpus.folder / "sound.tmp"
        soundfile.write(path, wave(0.6, 24_000, seed=ord(format[0])), 24_000, format=format)
        sound[format] = path.read_bytes()
        path.unlink()
    for ending, format in (("flac", "WAV"), ("wav", "MP3"), ("ogg", "FLAC"), ("aiff", "OGG")):
        corpus.data(f"{format}-called.{ending}".lower(), sound[format], GOOD)
    corpus.data("wav-called.mp3", sound["WAV"], EITHER)
    for name in (
        "a b  c.wav",
        "new\nline.wav",
        "ret\rurn.wav",
        "tab\t.wav",
        "\U0001f3b5.wav",
        "Björk \u2013 Jóga.wav",
        "quote'\".wav",
        "-rf.wav",
        "$(touch owned).wav",
        "a;b|c&d.wav",
        "\u202egnp.wav",
        "esc\x1b[31mred.wav",
        "%s%n{0}.wav",
        "<script>.wav",
        ".wav.wav",
        "[bold]x[red].wav",
        "[1-3]*.wav",
        "x" * 240 + ".wav",
        "~.wav",
        "#.wav",
        b"caf\xe9.wav",
        b"\xff\xfe.wav",
    ):
        own = struct.pack("<H", len(corpus.expected))  # each is a track of its own
        corpus.data(name, sound["WAV"][:50] + own + sound["WAV"][52:], GOOD)
    for name in ("bad \n name.wav", b"bad\xe9.wav", "bad [red]name.wav"):
        corpus.data(name, sound["WAV"][:5000])
    for ending in ("wav", "flac", "mp3", "ogg", "opus", "aiff", "au", "caf"):
        corpus.data(f"zero-bytes.{ending}", b"")
        corpus.data(f"text.{ending}", b"<html>404 Not Found</html>\n" * 40)
        # A stream of MPEG audio may begin anywhere: noise may hold what looks like one.
        noise = np.random.default_rng(len(ending)).bytes(5_000)
        corpus.data(f"noise.{ending}", noise, EITHER)
    corpus.data("zip.wav", b"PK\x03\x04" + bytes(3_000))
    corpus.data("headless.raw", sound["WAV"][44:])


def _not_files(corpus: Corpus) -> None:
    """Folders, links that lead nowhere or in a circle, pipes, devices, what may not be read."""
    os.mkdir(corpus.path("folder.wav", BAD))
    os.symlink("loop-b.wav", corpus.path("loop-a.wav", BAD))
    os.symlink("loop-a.wav", corpus.path("loop-b.wav", BAD))
    os.symlink("self.wav", corpus.path("self.wav", BAD))
    os.symlink("nowhere.wav", corpus.path("dangling.wav", BAD))
    os.symlink(".", corpus.folder / "circle")  # a folder that holds itself
    os.mkfifo(corpus.path("pipe.wav", BAD))
    os.symlink("/dev/zero", corpus.path("device.wav", BAD))
    corpus.path("missing.wav", BAD)
    path = corpus.write("forbidden.wav", wave(0.4, 24_000, seed=50), 24_000)
    os.chmod(path, 0)
    corpus.expected[path] = GOOD if os.access(path, os.R_OK) else BAD  # root reads everything
