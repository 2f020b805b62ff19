"""Audio files to mono float32 at the encoder's rate, and the reasons why a file is not usable.

A file is read by what it is, not by its name (`file_types`): what is stored without loss by
libsndfile, all else by PyAV (`readers`); soxr resamples. Decoding, downmix and resampling go block
by block: the result is the only array of the file's length, a lying header costs no memory, and no
more than `MAX_HOURS` is read of a few KB that unpack to years. A file that is shorter than it
announces, or has a hole, is refused (`base`).
"""

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from tune.audio import readers
from tune.audio.base import AudioError, Header, Reader
from tune.audio.downmix import CHANNELS, Cancellation

__all__ = ["AudioError", "Header", "Sound", "decode", "read_audio", "read_header"]

RESAMPLER = "HQ"  # soxr's recipe; part of what the store's key is made of
# Raised when decoding changes the samples of some file; 1 was libsndfile for everything. Part of
# the store's key; `is_decoded_as_before` says whose rows stay right.
DECODER = 2
# What a folder's audio files are known by: what music comes in, and libsndfile's commoner formats.
SUFFIXES = {
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"),
    *(".flac", ".fla", ".ogg", ".oga", ".opus", ".spx"),
    *(".mp3", ".mp2", ".mp1", ".mpga", ".m4a", ".m4b", ".aac", ".adts", ".alac"),
    *(".wma", ".asf", ".webm", ".weba", ".mka", ".ac3", ".eac3", ".ec3", ".dts"),
    *(".ape", ".wv", ".tta", ".mpc", ".tak", ".dsf", ".amr"),
}
MAX_HOURS = 4.0  # longer files are refused; $TUNE_MAX_HOURS says otherwise
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; what a damaged header says beyond them is no rate
LOUDEST = 2.0**32  # beyond 32-bit samples that were written as floats it isn't audio any more
ROOM = 1 << 26  # samples that a header is believed; more are made room for as they come
HALO_S = 0.05  # audio read to each side of a part, so that resampling it changes nothing


@dataclass(frozen=True)
class Sound:
    """A decoded file.

    Attributes
    ----------
    samples : (n,) float32, mono
    notes : what is odd about the file, a clause each: worth a warning, no reason to refuse it
    """

    samples: np.ndarray
    notes: tuple[str, ...] = ()


def read_audio(
    path: str | Path,
    sample_rate: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    channels: str = "mix",
) -> np.ndarray:
    """Decode a file, or the part of it between two times, to mono at one rate.

    Parameters
    ----------
    path : path of an audio file
    sample_rate : int
        Rate to resample to, in Hz.
    start_s, end_s : float
        Part to read, in seconds of the file; by default the whole file. Only that part (and a few
        milliseconds to each side; where libsndfile doesn't read it, all before it) is decoded, and
        it equals the same part of the whole file.
    channels : str
        What becomes the mono signal: "mix" (mean of all channels), "first", "left", "right" or
        "mid" (mean of the front pair).

    Returns
    -------
    ndarray of float32, shape (n_samples,)
        Resampled by soxr ("HQ": 100 dB, flat to 0.91 of Nyquist). Not normalised: nominally within
        [-1, 1], beyond it where the file itself is.

    Raises
    ------
    AudioError
        With the reason, when the file is missing, empty, not audio, truncated, damaged, longer than
        `MAX_HOURS`, holds no samples in the part asked for, or holds samples that are NaN, infinite
        or beyond `LOUDEST`.
    """
    return decode(path, sample_rate, start_s, end_s, channels).samples


def decode(
    path: str | Path,
    sample_rate: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    channels: str = "mix",
) -> Sound:
    """Decode as `read_audio` does; what is odd about the file comes with it."""
    check_file(path)
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(f"a part needs 0 <= start < end, got {start_s} to {end_s} s")
    if channels not in CHANNELS:
        raise ValueError(f"channels must be one of {', '.join(CHANNELS)}, got {channels!r}")
    whole = start_s == 0 and end_s is None
    with readers.opened(path) as reader:
        check_limits(reader.header)
        reader.check()
        mono = _Mono(reader, channels)
        if whole or not reader.can_seek:
            samples = _all(mono, sample_rate, None if whole else end_s)
            if whole:
                reader.check(mono.seconds)
                mono.check()
            else:
                mono.check()
                last = None if end_s is None else round(end_s * sample_rate)
                samples = samples[round(start_s * sample_rate) : last]
        else:
            samples = _part(mono, sample_rate, start_s, end_s)
        notes = (*reader.notes, *filter(None, [mono.cancellation.note()]))
    if not len(samples):
        part = "" if whole else f" from {start_s:g} s" + (f" to {end_s:g} s" if end_s else "")
        raise AudioError(f"holds no samples{part}")
    return Sound(np.ascontiguousarray(samples, dtype=np.float32), notes)


def read_header(path: str | Path) -> Header:
    """Read a file's header, without decoding.

    Raises
    ------
    AudioError
        With the reason, when there is none to be read, or it is seen without decoding that the file
        is damaged.
    """
    check_file(path)
    with readers.opened(path) as reader:
        check_limits(reader.header)
        reader.check()
        return reader.header


def is_decoded_as_before(path: str | Path) -> bool:
    """Say whether decoder 1 gave the same samples of this file; only its header is read."""
    try:
        check_file(path)
        return readers.is_plain(path)
    except AudioError:
        return False


def is_silent(samples: np.ndarray) -> bool:
    """Say whether every sample is exactly zero (digital silence)."""
    return not samples.any()


def check_file(path) -> None:
    """Raise AudioError unless the path is a non-empty regular file."""
    try:
        info = Path(path).stat()
    except FileNotFoundError:
        raise AudioError("no such file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"unreadable: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(info.st_mode):
        raise AudioError("not a regular file")
    if info.st_size == 0:
        raise AudioError("empty file (0 bytes)")


def max_hours() -> float:
    """The longest file that is read, in hours: $TUNE_MAX_HOURS, or `MAX_HOURS`."""
    text = os.environ.get("TUNE_MAX_HOURS") or str(MAX_HOURS)
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise ValueError(f"the variable TUNE_MAX_HOURS must be a number above 0, got {text!r}")
    return hours


def check_limits(header: Header) -> None:
    """Raise AudioError when a header says that its file can't be used."""
    if not MIN_RATE <= header.sample_rate <= MAX_RATE:
        raise AudioError(f"can't be decoded: its header says {header.sample_rate} Hz")
    if header.seconds > max_hours() * 3600:
        raise AudioError(_too_long(f"{header.seconds / 3600:.2f} hours"))


def _too_long(what: str) -> str:
    """The reason that a file is refused for its length."""
    return f"too long: {what}; up to {max_hours():g} hours are read (the variable TUNE_MAX_HOURS)"


class _Mono:
    """A reader's blocks as mono, with what is found out on the way.

    Attributes
    ----------
    seconds : float, read so far
    cancellation : Cancellation
    """

    def __init__(self, reader: Reader, channels: str):
        self.reader, self.downmix = reader, CHANNELS[channels]
        self.cancellation = Cancellation() if channels in ("mix", "mid") else _Never()
        self.seconds = 0.0
        self._n_bad, self._first_bad_s, self._peak = 0, 0.0, 0.0

    def blocks(self, *part, start_s: float = 0.0) -> Iterator[tuple[np.ndarray, int]]:
        """Mono blocks (n,) with their rates; `part` is what the reader takes."""
        room_s = max_hours() * 3600
        for block, rate in self.reader.blocks(*part):
            with np.errstate(invalid="ignore"):  # infinity and its opposite: found as NaN
                mono = self.downmix(block)
            self._inspect(block, mono, rate, start_s + self.seconds)
            self.seconds += len(mono) / rate
            if self.seconds > room_s:
                raise AudioError(_too_long("there is more than its header says"))
            yield mono, rate

    def _inspect(self, block: np.ndarray, mono: np.ndarray, rate: int, at_s: float) -> None:
        """Look for what isn't finite, for what is too loud, and for channels that cancel."""
        low, high = float(mono.min()), float(mono.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = np.flatnonzero(~np.isfinite(mono))
            self._first_bad_s = self._first_bad_s if self._n_bad else at_s + bad[0] / rate
            self._n_bad += len(bad)
            return
        self._peak = max(self._peak, high, -low)
        self.cancellation.add(block, mono)

    def check(self) -> None:
        """Raise AudioError for samples that no audio has."""
        if self._n_bad:
            raise AudioError(
                f"holds {self._n_bad} NaN or infinite samples (the first at "
                f"{self._first_bad_s:.3f} s)"
            )
        if self._peak > LOUDEST:
            raise AudioError(f"holds samples of {self._peak:.2g}, where full scale is 1: not audio")


class _Never(Cancellation):
    """One channel alone cancels nothing."""

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Count nothing."""


class _Growing:
    """An array that grows in place, of about so many samples."""

    def __init__(self, expected: float):
        n = min(expected, ROOM) if expected > 0 else 1 << 20  # NaN: not known
        self._kept, self.size = np.empty(int(n) + 1024, np.float32), 0

    def append(self, samples: np.ndarray) -> None:
        """Add samples (n,)."""
        end = self.size + len(samples)
        if end > len(self._kept):
            self._kept.resize(max(end, len(self._kept) * 3 // 2), refcheck=False)
        self._kept[self.size : end] = samples
        self.size = end

    def all(self) -> np.ndarray:
        """All samples."""
        self._kept.resize(self.size, refcheck=False)
        return self._kept


def _all(mono: _Mono, sample_rate: int, end_s: float | None) -> np.ndarray:
    """Everything from the beginning, resampled as it comes; no further than `end_s`."""
    out, resampler, rate = _Growing(mono.reader.header.seconds * sample_rate), None, None
    enough = math.inf if end_s is None else round(end_s * sample_rate)
    with np.errstate(invalid="ignore", over="ignore"):
        for block, block_rate in mono.blocks():
            if block_rate != rate:
                if resampler is not None:
                    out.append(resampler.resample_chunk(block[:0], last=True))
                rate, resampler = block_rate, None
                if rate != sample_rate:
                    resampler = soxr.ResampleStream(
                        rate, sample_rate, 1, dtype="float32", quality=RESAMPLER
                    )
            out.append(resampler.resample_chunk(block) if resampler is not None else block)
            if out.size >= enough:
                break
        if resampler is not None:
            out.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    return out.all()


def _part(mono: _Mono, sample_rate: int, start_s: float, end_s: float | None) -> np.ndarray:
    """A part, read with a halo to each side.

    The read starts at a multiple of the smallest number of frames that is a whole number of
    samples at the new rate, so that both grids coincide and the cut is exact.
    """
    rate = mono.reader.header.sample_rate
    step = rate // math.gcd(rate, sample_rate)
    start = round(start_s * sample_rate)
    halo = math.ceil(HALO_S * rate)
    first = max(0, int(start * rate / sample_rate) - halo) // step * step
    length = frames = None
    if end_s is not None:
        length = round(end_s * sample_rate) - start
        frames = math.ceil((start + length) * rate / sample_rate) + halo - first
    if first >= mono.reader.header.seconds * rate:
        return np.zeros(0, np.float32)
    found = [block.copy() for block, _ in mono.blocks(first, frames, start_s=first / rate)]
    mono.check()
    samples = np.concatenate(found) if found else np.zeros(0, np.float32)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality=RESAMPLER)
    offset = start - first * sample_rate // rate
    return samples[offset : None if length is None else offset + length]
