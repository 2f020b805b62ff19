"""Files looked at one by one: length, channels, what they sound like, and what is odd about them.

Every file is decoded once (or, without decoding, only its header is read).
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tune.audio.decode import AudioError, Header, is_silent, read_header
from tune.audio.decode import decode as decode_file
from tune.audio.file_bytes import FileBytes
from tune.audio.file_types import skip_tags
from tune.audio.fingerprint import Landmarks, find_landmarks
from tune.audio.hashing import content_hash, sound_hash
from tune.system.progress import progress_bar

FILES_UNTHINNED = 8000  # of more files not all landmarks are kept: 50 a second, 8 bytes each
# What its codec can need: part of a format's name -> kbit/s, least and most, and bytes of pictures.
BIT_RATES = {"mp3": (8, 320, 0), "ogg": (0, 512, 1 << 20), "opus": (0, 512, 1 << 20)}
BIT_RATE_SLACK = 1.1


@dataclass(frozen=True)
class FileInfo:
    """One file.

    Attributes
    ----------
    path : str
    header : what it says of itself
    seconds : its length as decoded
    hash : equal for files that are the same to 16 bits, in whichever lossless container
    marks : its landmarks
    silent : whether its mono mix is digital silence
    notes : of its decoding: what is odd about it and loses no audio
    bit_rate : kbit/s of its bytes without tags, where that is more or less than its codec needs
    reason : why it can't be used
    """

    path: str
    header: Header | None = None
    seconds: float = float("nan")
    hash: str | None = None
    marks: Landmarks | None = None
    silent: bool = False
    notes: tuple[str, ...] = ()
    bit_rate: float | None = None
    reason: str | None = None


def inspect_files(
    paths: Sequence[str],
    *,
    decode: bool = True,
    workers: int | None = None,
    progress: bool = True,
    title: str = "check",
    unthinned: int = FILES_UNTHINNED,
) -> dict[str, FileInfo]:
    """Look at files, each once, in threads (default: one a processor).

    Of more than `unthinned` files not all landmarks are kept (`thinning`).
    """
    paths = list(dict.fromkeys(paths))
    thin = thinning(len(paths), unthinned)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda path: inspect_file(path, decode, thin), paths)
        bar = progress_bar(found, total=len(paths), unit="file", desc=title, disable=not progress)
        return {info.path: info for info in bar}


def thinning(n_files: int, unthinned: int) -> int:
    """Of how many landmarks one is kept, so that no more are than so many files have."""
    return 2 ** max(0, math.ceil(math.log2(max(1, n_files) / unthinned)))


def inspect_file(path: str, decode: bool = True, thin: int = 1) -> FileInfo:
    """Look at one file; of its landmarks one in `thin` is kept."""
    try:
        header = read_header(path)
        if not decode:
            return FileInfo(path, header, header.seconds, content_hash(path))
        sound = decode_file(path, header.sample_rate)
    except AudioError as error:
        return FileInfo(path, reason=str(error))
    samples = sound.samples
    seconds = len(samples) / header.sample_rate
    return FileInfo(
        path,
        header,
        seconds,
        sound_hash(samples, header.sample_rate),
        find_landmarks(samples, header.sample_rate, thin),
        is_silent(samples),
        sound.notes,
        _odd_bit_rate(path, header.format, seconds),
    )


def _odd_bit_rate(path: str, format: str, seconds: float) -> float | None:
    """A file's kbit/s where its codec can't need so much, or so little, for what was decoded."""
    limits = next((v for name, v in BIT_RATES.items() if name in format.lower()), None)
    if limits is None or not seconds:
        return None
    least, most, pictures = limits
    with open(path, "rb") as file:
        data = FileBytes(file)
        size = data.size - skip_tags(data, 0)  # which may hold pictures
    rate = size * 8 / seconds / 1000
    if rate * BIT_RATE_SLACK < least:
        return rate
    too_much = size - most * BIT_RATE_SLACK * seconds * 1000 / 8 - pictures
    # A second's worth: encoders have a few frames more than they announce.
    return rate if too_much > most * 1000 / 8 else None
