"""WAV files whose header doesn't say where the samples are: interrupted recorders, joined files."""

from tune.audio.ends import after_chunk, is_name
from tune.audio.file_bytes import FileBytes

UNKNOWN_SIZES = (  # what writers that can't seek put into the header: nothing to check
    range(0xFFFFFF00, 0x100000000),  # FFmpeg and others
    range(0x7FFFE000, 0x80000001),  # SoX and others
)
MPEG = (0x50, 0x55)  # codecs: MPEG audio in a WAV
Pieces = list[bytes | tuple[int, int]]


def repaired(data: FileBytes, start: int) -> Pieces | None:
    """Pieces that make a plain WAV of a file whose data chunk has size 0 or is one of several.

    So, too, where a chunk of odd size lies before it without the byte that fills it up.

    None where the header is right, or isn't known to be wrong.
    """
    kind, ds64_bytes = data.read(start, 4), None
    if kind not in (b"RIFF", b"RF64", b"BW64") or data.read(start + 8, 4) != b"WAVE":
        return None
    at, form, parts, wrong = start + 12, b"", [], False
    while at + 8 <= data.size:
        name, size = data.read(at, 4), int.from_bytes(data.read(at + 4, 4), "little")
        body = at + 8
        if name == b"ds64":
            ds64_bytes = int.from_bytes(data.read(body + 8, 8), "little")
        elif name == b"fmt ":
            form = data.read(at, 8 + size)
        elif name == b"data":
            if kind != b"RIFF" and size == 0xFFFFFFFF and ds64_bytes is not None:
                size = ds64_bytes
            if size == 0 and body < data.size and not _chunks_follow(data, body):
                size, wrong = data.size - body, True
            elif any(size in sizes for sizes in UNKNOWN_SIZES):
                size = data.size - body
            parts.append((body, body + size))
        elif not name.isascii():
            break
        at = after_chunk(data, at, size)
        wrong |= not parts and at < body + size + (size & 1)
    filled = [(begin, min(end, data.size)) for begin, end in parts if begin < min(end, data.size)]
    if not form or not (wrong or len(filled) > 1):
        return None
    n = sum(end - begin for begin, end in parts)  # as announced: more than there is of a cut file
    size = n.to_bytes(4, "little") if n < 0xFFFFFF00 else b"\xff\xff\xff\xff"
    riff = min(0xFFFFFFFF, n + len(form) + 12).to_bytes(4, "little")
    return [b"RIFF" + riff + b"WAVE" + form + b"data" + size, *filled]


def codec(data: FileBytes, start: int) -> int:
    """Number of a WAV's codec (1 is PCM), or 0."""
    at = start + 12
    while at + 8 <= data.size and is_name(data.read(at, 4)):
        name, size = data.read(at, 4), int.from_bytes(data.read(at + 4, 4), "little")
        if name == b"fmt ":
            return int.from_bytes(data.read(at + 8, 2), "little")
        at = after_chunk(data, at, size)
    return 0


def _chunks_follow(data: FileBytes, at: int) -> bool:
    """Say whether chunks with names fill the file from here to its end."""
    while at + 8 <= data.size:
        if not is_name(data.read(at, 4)):
            return False
        size = int.from_bytes(data.read(at + 4, 4), "little")
        at = after_chunk(data, at, size)
    return at in (data.size, data.size + 1)
