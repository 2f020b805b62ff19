"""A file's bytes: read anywhere in large blocks, and parts of it joined into one stream."""

import io
from collections.abc import Sequence

BLOCK_BYTES = 1 << 20
FIRST_BYTES = 1 << 14  # of a read that doesn't go on from the one before


class FileBytes:
    """Bytes of an open file by position; small neighbouring reads cost one read of the file.

    A memory map would be shorter, but a file that is cut while it is mapped ends the process.
    """

    def __init__(self, file):
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        self._start, self._block = -1, b""

    def read(self, start: int, n: int) -> bytes:
        """Up to n bytes from a position; none beyond the end, wherever a damaged size points."""
        if start >= self.size:
            return b""
        at = start - self._start
        if at < 0 or at + n > len(self._block):
            goes_on = 0 <= start - self._start <= len(self._block)
            self.file.seek(start)
            block = self.file.read(max(n, BLOCK_BYTES if goes_on else FIRST_BYTES))
            self._start, self._block, at = start, block, 0
        return self._block[at : at + n]

    def block_at(self, start: int) -> tuple[bytes, int]:
        """The block that holds a position, and where it begins: for many reads in a row."""
        return (self._block, self._start) if self.read(start, 1) else (b"", start)

    def find(self, pattern: bytes, start: int, end: int | None = None) -> int:
        """Position of a pattern's first occurrence that begins in [start, end), or -1."""
        end = self.size if end is None else min(end, self.size)
        while start < end:
            block = self.read(start, min(BLOCK_BYTES, end - start) + len(pattern) - 1)
            at = block.find(pattern)
            if at >= 0:
                return start + at
            start += BLOCK_BYTES
        return -1


class Pieces(io.RawIOBase):
    """A read-only stream of pieces one after the other: bytes, or (start, end) of an open file."""

    def __init__(self, file, pieces: Sequence[bytes | tuple[int, int]]):
        self.file = file
        self._pieces, self._at, self.size = [], 0, 0
        for piece in pieces:
            n = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._pieces.append((self.size, n, piece))
            self.size += n

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be sought in."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        """Fill a buffer as far as one piece goes."""
        for first, n, piece in self._pieces:
            if first <= self._at < first + n:
                skip, n = self._at - first, min(len(buffer), first + n - self._at)
                if isinstance(piece, bytes):
                    data = piece[skip : skip + n]
                else:
                    self.file.seek(piece[0] + skip)
                    data = self.file.read(n)
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
        return 0

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, across pieces."""
        size = max(0, self.size - self._at) if size is None or size < 0 else size
        parts = []
        while size > 0:
            part = bytearray(min(size, BLOCK_BYTES))
            n = self.readinto(part)
            if not n:
                break
            parts.append(bytes(part[:n]))
            size -= n
        return b"".join(parts)
