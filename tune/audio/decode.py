"""Audio files to mono float32 at the encoder's rate, and the reasons why a file is not usable.

soundfile decodes (wav, flac, ogg, opus, mp3, aiff, ... at any rate, channel count and bit depth),
soxr resamples. A file is read block by block, so that a lying header costs no memory, and no
further than `MAX_HOURS`, so that a few KB that unpack to years cost neither memory nor time. A
file that ends before its container says it does is truncated, which libsndfile itself mostly passes
over.
"""

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RESAMPLER = "HQ"  # soxr's recipe; part of what the store's key is made of
# What a folder's audio files are known by.
SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
BLOCK_FRAMES = 1 << 18  # of one channel or two; fewer of more
MAX_HOURS = 4.0  # longer files are refused; $TUNE_MAX_HOURS says otherwise
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz; what a damaged header says beyond them is no rate
LOUDEST = 2.0**32  # beyond 32-bit samples that were written as floats it isn't audio any more
HALO_S = 0.05  # audio read to each side of a part, so that resampling it changes nothing
UNKNOWN_SIZES = (  # what writers that can't seek put into the header: nothing to check
    range(0xFFFFFF00, 0x100000000),  # FFmpeg and others
    range(0x7FFFE000, 0x80000001),  # SoX and others
)
SIZED_CHUNKS = {  # format -> chunk whose size libsndfile's log compares with the file's
    "WAV": "data",
    "WAVEX": "data",
    "AIFF": "SSND",
    "RF64": "Riff size",
    "W64": "riff",
}
UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count of an Ogg file that it could not measure
MP3_OPEN_ERROR = 7  # libsndfile then says that the file doesn't exist, which it does
MP3_SLACK_FRAMES = 2 * 1152  # encoder delay and padding blur an mp3's length by a frame or two


class AudioError(ValueError):
    """A file that can't be used; the message is the reason, without the path."""


def read_audio(
    path: str | Path, sample_rate: int, start_s: float = 0.0, end_s: float | None = None
) -> np.ndarray:
    """Decode a file, or the part of it between two times, to mono at one rate.

    Parameters
    ----------
    path : path of an audio file
    sample_rate : int
        Rate to resample to, in Hz.
    start_s, end_s : float
        Part to read, in seconds of the file; by default the whole file. Only that part (and a few
        milliseconds to each side; an mp3 from its beginning) is decoded, and it equals the same
        part of the whole file.

    Returns
    -------
    ndarray of float32, shape (n_samples,)
        Mean over the channels, resampled by soxr ("HQ": 100 dB, flat to 0.91 of Nyquist). Not
        normalised: nominally within [-1, 1], beyond it where the file itself is.

    Raises
    ------
    AudioError
        With the reason, when the file is missing, empty, not audio, truncated, longer than
        `MAX_HOURS`, holds no samples in the part asked for, or holds samples that are NaN, infinite
        or beyond `LOUDEST`.
    """
    check_file(path)
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(f"a part needs 0 <= start < end, got {start_s} to {end_s} s")
    try:
        with _open(path) as file:
            whole = start_s == 0 and end_s is None
            if whole:
                mono, offset, length = _read_mono(file, None), 0, None
                _check_complete(path, file, len(mono))
            else:
                mono, offset, length = _read_part(file, sample_rate, start_s, end_s)
            native_rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(_libsndfile_reason(error)) from error
    if not np.isfinite(mono).all():
        bad = np.flatnonzero(~np.isfinite(mono))
        first_s = start_s - offset / sample_rate + bad[0] / native_rate
        raise AudioError(f"holds {len(bad)} NaN or infinite samples (the first at {first_s:.3f} s)")
    if len(mono) and (peak := max(mono.max(), -mono.min())) > LOUDEST:
        raise AudioError(f"holds samples of {peak:.2g}, where full scale is 1: not audio")
    if native_rate != sample_rate:
        mono = soxr.resample(mono, native_rate, sample_rate, quality=RESAMPLER)
    mono = mono[offset : None if length is None else offset + length]
    if not len(mono):
        part = "" if whole else f" from {start_s:g} s" + (f" to {end_s:g} s" if end_s else "")
        raise AudioError(f"holds no samples{part}")
    return np.ascontiguousarray(mono, dtype=np.float32)


@dataclass(frozen=True)
class Header:
    """What a file says of itself: rate in Hz, channels, format and seconds (NaN where unknown)."""

    sample_rate: int
    channels: int
    format: str
    seconds: float


def read_header(path: str | Path) -> Header:
    """Read a file's header, without decoding.

    Raises
    ------
    AudioError
        With the reason, when there is none to be read.
    """
    check_file(path)
    try:
        with _open(path) as file:
            seconds = file.frames / file.samplerate if file.frames < UNKNOWN_FRAMES else math.nan
            return Header(file.samplerate, file.channels, file.format, seconds)
    except soundfile.LibsndfileError as error:
        raise AudioError(_libsndfile_reason(error)) from error


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


@contextlib.contextmanager
def _open(path) -> Iterator[soundfile.SoundFile]:
    """Open a file; AudioError when its header says that it can't be used."""
    if Path(path).suffix.lower() == ".raw":  # soundfile answers with a TypeError
        raise AudioError("can't be decoded: a .raw file has no header that tells its rate")
    # soundfile encodes a str strictly, but outside Windows a name need not be valid UTF-8.
    with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path) as file:
        if file.format == "RAW":  # libsndfile takes anything that is called .au, .snd or .vox
            raise AudioError("can't be decoded: it has no header, so it isn't what its name says")
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise AudioError(f"can't be decoded: its header says {file.samplerate} Hz")
        if max_hours() * 3600 * file.samplerate < file.frames < UNKNOWN_FRAMES:
            raise AudioError(_too_long(f"{file.frames / file.samplerate / 3600:.2f} hours"))
        yield file


def _too_long(what: str) -> str:
    """The reason that a file is refused for its length."""
    return f"too long: {what}; up to {max_hours():g} hours are read (the variable TUNE_MAX_HOURS)"


def _read_mono(file: soundfile.SoundFile, frames: int | None) -> np.ndarray:
    """Read up to `frames` frames from where the file stands and average the channels."""
    blocks, left = [], math.inf if frames is None else frames
    size = max(1, 2 * BLOCK_FRAMES // max(2, file.channels))  # a file has up to 1024
    room = int(max_hours() * 3600 * file.samplerate)
    while left > 0:
        block = file.read(int(min(size, left)), dtype="float32", always_2d=True)
        if not len(block):
            break
        with np.errstate(invalid="ignore"):  # infinity and its opposite: found as NaN
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        left -= len(block)
        room -= len(block)
        if room < 0:
            raise AudioError(_too_long("there is more than its header says"))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _read_part(file, sample_rate, start_s, end_s):
    """Read a part with a halo; return it, the offset and the length to cut after resampling.

    The read starts at a multiple of the smallest number of frames that is a whole number of
    samples at the new rate, so that both grids coincide and the cut is exact.
    """
    step = file.samplerate // math.gcd(file.samplerate, sample_rate)
    start = round(start_s * sample_rate)
    halo = math.ceil(HALO_S * file.samplerate)
    first = max(0, int(start * file.samplerate / sample_rate) - halo) // step * step
    if file.format == "MP3":
        first = 0  # libmpg123 seeks by estimate
    length = frames = None
    if end_s is not None:
        length = round(end_s * sample_rate) - start
        frames = math.ceil((start + length) * file.samplerate / sample_rate) + halo - first
    if first >= file.frames:
        return np.zeros(0, np.float32), 0, length
    file.seek(first)
    return _read_mono(file, frames), start - first * sample_rate // file.samplerate, length


def _check_complete(path, file: soundfile.SoundFile, n_read: int) -> None:
    """Raise AudioError when the container announced more audio than there was."""
    declared = None
    if chunk := SIZED_CHUNKS.get(file.format):
        size = re.search(rf"^\s*{chunk} : (\d+) \(should be (\d+)\)", file.extra_info, re.M)
        announced, there = (int(size[1]), int(size[2])) if size else (0, 0)
        if there < announced and not any(announced in sizes for sizes in UNKNOWN_SIZES):
            declared = n_read * announced / max(1, there)
    elif file.format == "OGG":
        if not _ogg_ends(path):
            raise AudioError(f"truncated: the Ogg stream breaks off after {_seconds(file, n_read)}")
    elif n_read + MP3_SLACK_FRAMES < file.frames < UNKNOWN_FRAMES:
        declared = file.frames
    if declared is not None:
        raise AudioError(
            f"truncated: {_seconds(file, n_read)} of the {_seconds(file, declared)} announced"
        )


def _seconds(file, frames) -> str:
    """Frames of an open file as a duration."""
    return f"{frames / file.samplerate:.2f} s"


def _ogg_ends(path) -> bool:
    """Say whether the file's last Ogg page is whole and marked as the end of its stream."""
    with open(path, "rb") as file:
        file.seek(max(0, Path(path).stat().st_size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return False
    lacing = tail[at + 27 : at + 27 + tail[at + 26]]
    complete = len(lacing) == tail[at + 26] and len(tail) >= at + 27 + len(lacing) + sum(lacing)
    return complete and bool(tail[at + 5] & 4)


def _libsndfile_reason(error) -> str:
    """Put libsndfile's error into one clause, without its path."""
    if error.code == MP3_OPEN_ERROR:
        return "can't be decoded: not an MP3 stream"
    text = error.error_string.strip().rstrip(".")
    text = text.removeprefix("Error : ") or "the stream is damaged or truncated"
    return f"can't be decoded: {text}"
