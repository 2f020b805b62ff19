"""A text file's bytes as text, whichever program saved them."""

from pathlib import Path

from tune.tasks.rows import TaskError

BOMS = (  # the longer ones first: UTF-16's mark begins UTF-32's
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
NOT_TEXT = (
    (b"PK\x03\x04", "an Excel workbook or another zip: save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save it as CSV"),
    (b"\x1f\x8b", "packed with gzip: unpack it"),
    (b"PAR1", "a parquet file: name its folder as hub:FOLDER, or save it as CSV"),
    (b"<!doctype html", "a web page: a failed download?"),
    (b"<html", "a web page: a failed download?"),
)
SAMPLE = 4096  # bytes that are looked at for zeros


class DamagedTextError(TaskError):
    """A text with bytes that are no characters of its encoding."""


def read_text(file: Path) -> tuple[str, list[str]]:
    """Decode a file as UTF-8, UTF-16 or UTF-32, else Windows-1252; line ends are left as they are.

    Returns
    -------
    The text, and a line on the encoding where it had to be guessed

    Raises
    ------
    TaskError
        When it isn't a text file; `DamagedTextError` for damaged UTF-8, UTF-16 or UTF-32.
    """
    data = file.read_bytes()
    for magic, what in NOT_TEXT:
        if data[: len(magic)].lower() == magic.lower():
            raise TaskError(f"{file} is not a text file but {what}")
    encoding = _encoding(data)
    try:
        return data.decode(encoding), []
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        # Bytes of another encoding are hardly ever whole characters of UTF-8.
        if encoding != "utf-8" or not data.decode("utf-8", "ignore").isascii():
            raise DamagedTextError(
                f"{file}:{at}: damaged {encoding.upper().removesuffix('-SIG')}, which the rest of "
                f"the file is: save it as UTF-8"
            ) from error
    encoding = "cp1252"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:  # five bytes are no characters of Windows-1252
        encoding = "latin-1"
        text = data.decode(encoding)
    line = data.split(b"\n")[at - 1].decode(encoding)
    name = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}[encoding]
    return text, [
        f"not UTF-8: read as {name}, line {at} as {line.strip()[:60]!r}; if that is wrong, save it "
        f"as UTF-8"
    ]


def _encoding(data: bytes) -> str:
    """The encoding by the mark at the beginning, or by where zeros are; else UTF-8."""
    for bom, encoding in BOMS:
        if data.startswith(bom):
            return encoding
    even, odd = (data[start:SAMPLE:2] for start in (0, 1))
    if odd and odd.count(0) > len(odd) / 2 and not even.count(0):
        return "utf-16-le"
    if even and even.count(0) > len(even) / 2 and not odd.count(0):
        return "utf-16-be"
    return "utf-8"
