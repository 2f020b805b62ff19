"""MPEG audio (mp3, mp2, mp1) and AAC (ADTS) without a container: their frames, found and counted.

Each frame says its own length, so that the whole file is accounted for: what is between two frames
is damage, what is behind the last is a tag or something else. The first frame of an mp3 may say how
many there should be (Xing, Info, VBRI), and how many samples the encoder has added (LAME).
A file can hold several such streams one after the other: each is a `Part`.
"""

from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from tune.audio.file_bytes import FileBytes
from tune.audio.file_types import is_tag_or_padding, tag_size

HEAD_BYTES = 40  # of a frame: the tag of a header ends here at the latest
CHAIN = 3  # frames that must follow each other to be believed
DECODER_DELAY = 529  # samples by which a layer III decoder lags behind
BITRATES = {  # kbit/s by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


class Frame(NamedTuple):
    """A frame by its header: codec, rate in Hz, size in bytes, samples, channels."""

    codec: str
    rate: int
    size: int
    samples: int
    channels: int


@dataclass
class Part:
    """Frames that follow each other, of one codec and rate.

    Attributes
    ----------
    codec, rate, channels : as its first frame says
    frame_samples : samples a frame
    offsets, sizes : of its frames, in bytes
    declared : frames that its header announces, or None
    delay, padding : samples that the encoder added in front and behind, as its header says
    """

    codec: str
    rate: int
    channels: int
    frame_samples: int
    offsets: array = field(default_factory=lambda: array("Q"))
    sizes: array = field(default_factory=lambda: array("H"))
    declared: int | None = None
    delay: int = 0
    padding: int = 0

    @property
    def n_samples(self) -> int:
        """Samples there are, without what the encoder added."""
        return max(0, len(self.offsets) * self.frame_samples - self.delay - self.padding)


@dataclass
class FrameStream:
    """What `read_frames` found: parts, damaged places (byte, bytes, second), and the rest."""

    parts: list[Part]
    damage: list[tuple[int, int, float]]
    cut_bytes: int = 0  # of a last frame that isn't whole
    surplus_bytes: int = 0  # behind the last frame, neither tag nor zeros


@lru_cache(4096)
def mpeg_frame(head: bytes) -> Frame | None:
    """Read the first four bytes of an MPEG audio frame; None for others."""
    if len(head) < 4:
        return None
    word = int.from_bytes(head, "big")
    version, layer = word >> 19 & 3, 4 - (word >> 17 & 3)
    index, rate_index, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or rate_index == 3 or index in (0, 15):
        return None
    one = version == 3
    rate = (44100, 48000, 32000)[rate_index] >> (0 if one else 1 if version == 2 else 2)
    bits = BITRATES[one, layer][index] * 1000
    if layer == 1:
        size, samples = (12 * bits // rate + padding) * 4, 384
    else:
        samples = 576 if layer == 3 and not one else 1152
        size = samples // 8 * bits // rate + padding
    channels = 1 if word >> 6 & 3 == 3 else 2
    return Frame(f"mp{layer}float", rate, size, samples, channels)


def aac_frame(head: bytes) -> Frame | None:
    """Read the first seven bytes of an ADTS frame; None for others."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    index, size = head[2] >> 2 & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if index >= len(AAC_RATES) or size < 9:
        return None
    channels = (head[2] & 1) << 2 | head[3] >> 6
    return Frame(
        "aac", AAC_RATES[index], size, 1024 * ((head[6] & 3) + 1), (*range(7), 8)[channels]
    )


def frame_at(data: FileBytes, at: int) -> Frame | None:
    """The frame that begins at a position, or None."""
    head = data.read(at, 7)
    return mpeg_frame(head[:4]) or aac_frame(head)


def find_frames(data: FileBytes, start: int, end: int) -> tuple[str, int] | None:
    """First place in [start, end) where a chain of frames begins: the stream's name, and where."""
    at = _next_frame(data, start, end)
    if at < 0:
        return None
    codec = frame_at(data, at).codec
    return ("AAC" if codec == "aac" else codec[:3].upper()), at


def read_frames(data: FileBytes, start: int) -> FrameStream:
    """Find all frames from a position on."""
    found, at, seconds = FrameStream([], []), start, 0.0
    part = None
    read = data.read
    while at < data.size:
        head = read(at, 7)
        frame = mpeg_frame(head[:4]) or aac_frame(head)
        if frame and (part is None or (frame.codec, frame.rate) == (part.codec, part.rate)):
            if at + frame.size > data.size:
                found.cut_bytes = data.size - at
                break
        elif frame and not (at + frame.size <= data.size and _is_chain(data, at)):
            frame = None
        if frame is None:
            after = _next_frame(data, at, data.size)
            stop = data.size if after < 0 else after
            if not _only_tags(data, at, stop):
                if after < 0:
                    found.surplus_bytes = stop - at
                elif part is not None:
                    found.damage.append((at, stop - at, seconds))
            at = stop
            continue
        header = _header(data, at, frame) if frame.codec == "mp3float" else None
        if (
            header is not None
            or part is None
            or (frame.codec, frame.rate) != (part.codec, part.rate)
        ):
            part = Part(frame.codec, frame.rate, frame.channels, frame.samples)
            found.parts.append(part)
            if header is not None:  # this frame itself holds no sound
                part.declared, part.delay, part.padding = header
                at += frame.size
                continue
        part.offsets.append(at)
        part.sizes.append(frame.size)
        at += frame.size
        seconds += frame.samples / frame.rate
        if part.codec != "aac":
            at, seconds = _read_run(data, part, at, seconds)
    return found


def _read_run(data: FileBytes, part: Part, at: int, seconds: float) -> tuple[int, float]:
    """Add the plain frames that follow in the file's block: nearly all are, and this is faster.

    A frame that may be a header or isn't whole is left to the caller, like all that is no frame.
    """
    block, start = data.block_at(at)
    first, end = at - start, len(block) - HEAD_BYTES
    offsets, sizes, known = part.offsets, part.sizes, {}
    frame_s = part.frame_samples / part.rate
    while first < end:
        head = block[first : first + 4]
        if head not in known:
            frame = mpeg_frame(head)
            if frame is None or (frame.codec, frame.rate) != (part.codec, part.rate):
                break
            known[head] = frame.size, _tag_place(frame)
        size, place = known[head]
        if (
            start + first + size > data.size
            or block[first + place : first + place + 4] in (b"Xing", b"Info")
            or block[first + 36 : first + 40] == b"VBRI"
        ):
            break
        offsets.append(start + first)
        sizes.append(size)
        first += size
        seconds += frame_s
    return start + first, seconds


def _tag_place(frame: Frame) -> int:
    """Where "Xing" or "Info" stands in a frame: behind its side information."""
    one = frame.samples == 1152
    return 4 + ((17 if frame.channels == 1 else 32) if one else (9 if frame.channels == 1 else 17))


def _header(data: FileBytes, at: int, frame: Frame) -> tuple[int | None, int, int] | None:
    """Frames, delay and padding that a Xing, Info or VBRI frame announces; None for others."""
    head = data.read(at, min(frame.size, 256))
    place = _tag_place(frame)
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big") or None, 0, 0
    if head[place : place + 4] not in (b"Xing", b"Info"):
        return None
    flags, place = int.from_bytes(head[place + 4 : place + 8], "big"), place + 8
    n_frames = int.from_bytes(head[place : place + 4], "big") if flags & 1 else None
    place += 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    if head[place : place + 4] not in (b"LAME", b"Lavf", b"Lavc"):
        return n_frames, 0, 0
    both = int.from_bytes(head[place + 21 : place + 24], "big")
    delay, padding = both >> 12, both & 0xFFF
    if not both:
        return n_frames, 0, 0
    return n_frames, delay + DECODER_DELAY, max(0, padding - DECODER_DELAY)


def _only_tags(data: FileBytes, start: int, end: int) -> bool:
    """Tags at the end; in the middle zeros are damage, but tags of joined files are none."""
    head = data.read(start, 32)
    known = tag_size(head) or head[:3] == b"TAG" or head[:11] == b"LYRICSBEGIN"
    return bool(known or end == data.size) and is_tag_or_padding(data, start, end)


def _next_frame(data: FileBytes, start: int, end: int) -> int:
    """First place in [start, end) where a chain of frames begins, or -1."""
    at = start
    while at < end:
        n = tag_size(data.read(at, 32))
        if n and at + n <= data.size:
            at += n
            continue
        following = data.find(b"\xff", at, end)
        tag = data.find(b"ID3", at, following if following >= 0 else end)
        if tag > at:  # a tag's contents hold no frame
            n = tag_size(data.read(tag, 32))
            at = tag + n if n and tag + n <= data.size else tag + 1
            continue
        if following < 0:
            return -1
        if frame_at(data, following) and _is_chain(data, following):
            return following
        at = following + 1
    return -1


def _is_chain(data: FileBytes, at: int) -> bool:
    """Say whether frames of one stream follow each other from here, or fill the rest."""
    first = frame_at(data, at)
    if first is not None and first.codec == "mp3float" and _header(data, at, first) is not None:
        return True
    for _ in range(CHAIN):
        frame = frame_at(data, at)
        if frame is None or (frame.codec, frame.rate) != (first.codec, first.rate):
            return False
        at += frame.size
        if at >= data.size:
            return at == data.size
        if data.size - at >= 3 and data.read(at, 3) in (b"TAG", b"ID3", b"APE", b"LYR"):
            return True
    return True
