"""Where a file's audio ends by its own structure: chunks, boxes, and the last frame of a FLAC."""

import struct
from collections.abc import Iterator
from functools import cache

from tune.audio.file_bytes import FileBytes
from tune.audio.file_types import is_tag_or_padding

COMMON_CHUNKS = (b"data", b"fmt ", b"LIST", b"fact")
TAIL_BYTES = 1 << 19  # in which a FLAC's last frame is looked for


def is_name(name: bytes) -> bool:
    """Say whether four bytes can be the name of a chunk or box."""
    return len(name) == 4 and all(32 <= c < 127 or c == 0xA9 for c in name)


def boxes(data: FileBytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Names and ends of an MP4's top-level boxes."""
    while at + 8 <= data.size and is_name(data.read(at + 4, 4)):
        head = data.read(at, 16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:
            size = data.size - at
        if size < 8:
            return
        at += size
        yield head[4:8], at


def _boxes_end(data: FileBytes, start: int) -> int:
    """Where an MP4's last box ends."""
    return max((end for _, end in boxes(data, start)), default=data.size)


def after_chunk(data: FileBytes, at: int, size: int) -> int:
    """Where the chunk behind this one begins: on an even byte, unless the writer left that out."""
    end = at + 8 + size
    here, next_even = data.read(end, 4), data.read(end + 1, 4)
    left_out = here in COMMON_CHUNKS or (is_name(here) and not is_name(next_even))
    return end + (size & 1 and not left_out)


def _chunks_end(data: FileBytes, start: int, order: str = "little") -> int:
    """Where the last chunk of a RIFF or FORM ends."""
    at = start + 12
    while at + 8 <= data.size:
        name, size = data.read(at, 4), int.from_bytes(data.read(at + 4, 4), order)
        if not is_name(name):
            return at
        at = after_chunk(data, at, size)
    return at


def _flac_end(data: FileBytes, start: int) -> int:
    """Where a FLAC's last frame ends; the file's end where that isn't found.

    The last frame is the last place whose header has the right checksum and the place in the music
    that the file's length asks for; it ends where the checksum over all of it comes out as 0,
    with nothing but tags behind it if there is such an end.
    """
    info = data.read(start + 8, 34)
    block, total = (
        struct.unpack(">H", info[2:4])[0],
        int.from_bytes(info[13:18], "big") & ~(-1 << 36),
    )
    fixed = info[:2] == info[2:4]
    if not total or not block:
        return data.size
    first = max(start, data.size - TAIL_BYTES)
    tail = data.read(first, TAIL_BYTES)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        head = tail[at : at + 16]
        number = _frame_number(head)
        if number is not None and (
            number == (total - 1) // block if fixed else 0 <= total - number <= block
        ):
            crc, table, found = 0, _crc16_table(), []
            for i in range(at, len(tail)):
                crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ tail[i]]
                if crc == 0 and i > at + 8:  # by chance, too: once in 65,536 bytes
                    found.append(first + i + 1)
            clean = [end for end in found if is_tag_or_padding(data, end, data.size)]
            return min(clean or found, default=data.size)
    return data.size


def _frame_number(head: bytes) -> int | None:
    """Number of the frame or sample that a FLAC frame's header says; None for no such header."""
    if len(head) < 16 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    first = head[4]
    n_more = 0 if first < 0x80 else 7 - (first ^ 0xFF).bit_length()
    number = first if first < 0x80 else first & (0x3F >> n_more)
    for byte in head[5 : 5 + n_more]:
        number = number << 6 | byte & 0x3F
    size, rate = head[2] >> 4, head[2] & 15
    n = 5 + n_more + (1 if size == 6 else 2 if size == 7 else 0)
    n += 1 if rate == 12 else 2 if rate in (13, 14) else 0
    crc = 0
    for byte in head[:n]:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return number if n < len(head) and crc == head[n] else None


@cache
def _crc16_table() -> list[int]:
    """Table of the checksum that ends a FLAC frame (polynomial 0x8005)."""
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x8005) & 0xFFFF if crc & 0x8000 else crc << 1
        table.append(crc)
    return table


# Kind of file -> (data, start) to where its audio ends.
END_OF = {
    "WAV": _chunks_end,
    "AVI": _chunks_end,
    "AIFF": lambda data, start: _chunks_end(data, start, "big"),
    "MP4": _boxes_end,
    "FLAC": _flac_end,
}
