"""Ogg: pages walked and checked, so that what is missing is known before anything is decoded.

A file may hold several streams one after the other (chained), each a `Link`. Every page carries a
number, a checksum and the position of its last sample: a page that is missing or damaged shows.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from tune.audio.file_bytes import FileBytes
from tune.audio.file_types import is_tag_or_padding

REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
LATE_S = 10.0  # longer than a page lasts
NO_GRANULE = (1 << 64) - 1


@dataclass
class Link:
    """One of the streams that follow each other.

    Attributes
    ----------
    start, end : its bytes
    codec : "Vorbis", "Opus", "FLAC", "Speex", or "" without audio; "other" names what there is
    rate, channels : as its header says; positions count samples of this rate
    pre_skip : samples that the encoder added in front
    first_granule, last_granule : positions after the first page and after the last
    complete : whether its last page says that it is the last
    damage : what is wrong, a clause each
    """

    start: int
    end: int = 0
    serial: int = -1
    codec: str = ""
    rate: int = 0
    channels: int = 0
    pre_skip: int = 0
    first_granule: int = 0
    last_granule: int = 0
    n_pages: int = 0
    complete: bool = False
    other: str = ""
    damage: list[str] = field(default_factory=list)
    _number: int = -1

    @property
    def joined_late(self) -> bool:
        """Whether it begins in the middle of something longer, as a recorded radio stream does."""
        return self.first_granule > LATE_S * self.rate and self.n_pages > 3

    @property
    def seconds(self) -> float:
        """How far it goes from its beginning, or from its first page if that was joined late."""
        first = self.first_granule if self.joined_late else self.pre_skip
        return max(0, self.last_granule - first) / self.rate if self.rate else 0.0


def read_links(data: FileBytes, start: int) -> tuple[list[Link], int]:
    """Walk through all pages from a position on; the links, and bytes behind that are no tag."""
    links: list[Link] = []
    at, in_headers = start, False
    while at < data.size:
        page = _page(data, at)
        if page is None:
            after = _next_page(data, at + 1)
            if after < 0:
                torn = data.read(at, 4) == b"OggS"
                if links and torn:
                    links[-1].complete = False
                surplus = 0 if is_tag_or_padding(data, at, data.size) or torn else data.size - at
                return links, surplus
            if links:
                where = f"{after - at:,} bytes at {links[-1].seconds:.2f} s are no Ogg page"
                links[-1].damage.append(where)
            at = after
            continue
        flags, granule, serial, number, body, size = page
        if flags & 2:  # the first page of a stream
            if not in_headers:
                links.append(Link(at))
            in_headers = True
            _read_first_page(links[-1], serial, data.read(body, 128))
        else:
            in_headers = False
            if not links:
                links.append(Link(at))
                links[-1].damage.append("its beginning is missing")
        link = links[-1]
        link.end = at + size
        if serial == link.serial:
            if link._number >= 0 and number > link._number + 1:
                n = number - link._number - 1
                link.damage.append(f"{n} Ogg pages are missing at {link.seconds:.2f} s")
            link._number = number
            link.n_pages += 1
            if granule != NO_GRANULE:
                link.first_granule = link.first_granule or granule
                link.last_granule = granule
            link.complete |= bool(flags & 4)
        at += size
    return links, 0


def _page(data: FileBytes, at: int):
    """Flags, position, serial, number, place of the body and size of a whole page, or None."""
    head = data.read(at, 27)
    if len(head) < 27 or head[:5] != b"OggS\0":
        return None
    lacing = data.read(at + 27, head[26])
    size = 27 + len(lacing) + sum(lacing)
    page = data.read(at, size)
    if len(lacing) < head[26] or len(page) < size:
        return None
    bare = page[:22] + b"\0\0\0\0" + page[26:]
    if _checksum(bare) != int.from_bytes(head[22:26], "little"):
        return None
    granule, serial, number = (
        int.from_bytes(head[a:b], "little") for a, b in ((6, 14), (14, 18), (18, 22))
    )
    return head[5], granule, serial, number, at + 27 + len(lacing), size


def _checksum(page: bytes) -> int:
    """Ogg's CRC: that of zlib with the bits of each byte, and of the sum, the other way round."""
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(REVERSED), "big")


def _next_page(data: FileBytes, start: int) -> int:
    """Where the next undamaged page begins, or -1."""
    at = data.find(b"OggS", start)
    while at >= 0 and _page(data, at) is None:
        at = data.find(b"OggS", at + 1)
    return at


def _read_first_page(link: Link, serial: int, packet: bytes) -> None:
    """Take codec, rate and channels from the first page of a stream."""
    number = int.from_bytes
    if packet[:7] == b"\x01vorbis":
        found = "Vorbis", number(packet[12:16], "little"), packet[11], 0
    elif packet[:8] == b"OpusHead":
        found = "Opus", 48_000, packet[9], number(packet[10:12], "little")
    elif packet[:5] == b"\x7fFLAC":
        found = "FLAC", number(packet[27:30], "big") >> 4, (packet[29] >> 1 & 7) + 1, 0
    elif packet[:8] == b"Speex   ":
        found = "Speex", number(packet[36:40], "little"), packet[48], 0
    else:
        link.other = link.other or ("Theora video" if packet[1:7] == b"theora" else "other data")
        return
    if not link.codec:
        link.serial = serial
        link.codec, link.rate, link.channels, link.pre_skip = found


def read_packets(data: FileBytes, link: Link) -> Iterator[tuple[bytes, int | None, bool]]:
    """Packets of a link's sound track.

    Yields
    ------
    packet : bytes
    granule : position after it, where its page says so: of the last that ends on a page
    last : whether its page is the stream's last
    """
    at, begun, waiting = link.start, b"", None
    while at < link.end:
        head = data.read(at, 27)
        if head[:4] != b"OggS":
            return  # damage, which has been noted
        lacing = data.read(at + 27, head[26])
        body = at + 27 + len(lacing)
        at = body + sum(lacing)
        if int.from_bytes(head[14:18], "little") != link.serial:
            continue
        granule, last = int.from_bytes(head[6:14], "little"), bool(head[5] & 4)
        for size in lacing:
            begun += data.read(body, size)
            body += size
            if size < 255:
                if waiting is not None:
                    yield waiting, None, last
                waiting, begun = begun, b""
        if waiting is not None:
            yield waiting, (None if granule == NO_GRANULE else granule), last
            waiting = None


def split_headers(codec: str, packets: Iterator[tuple[bytes, int | None, bool]]) -> bytes:
    """Take the header packets off; what a decoder needs of them (FFmpeg's extradata)."""
    first = next(packets)[0]
    if codec == "Vorbis":
        comment, setup = next(packets)[0], next(packets)[0]
        sizes = b"".join(
            b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in (first, comment)
        )
        return b"\x02" + sizes + first + comment + setup
    n_more = 1
    if codec == "FLAC":
        n_more = int.from_bytes(first[7:9], "big")
    elif codec == "Speex":
        n_more += int.from_bytes(first[68:72], "little")
    for _ in range(n_more):
        next(packets)
    return first[17:51] if codec == "FLAC" else first
