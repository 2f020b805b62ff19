"""What a file is, by its first bytes and never by its name: who reads it, or why nobody does.

Tags in front of the audio (ID3v2, APE) are skipped. A file without a signature may still be MPEG
audio behind junk; that is looked for in its first `JUNK_BYTES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tune.audio.file_bytes import FileBytes

JUNK_BYTES = 1 << 20
LIBSNDFILE, FFMPEG, FRAMES, OGG = "libsndfile", "FFmpeg", "frames", "Ogg"
NOT_AUDIO = "not audio"


@dataclass(frozen=True)
class FileType:
    """A kind of file.

    Attributes
    ----------
    name : such as "MP3" or "HTML"
    reader : LIBSNDFILE, FFMPEG, FRAMES (MPEG audio and AAC without a container), OGG or NOT_AUDIO
    start : where it begins, in bytes, behind tags and junk
    advice : of what isn't audio: the likely cause, and what to do
    """

    name: str
    reader: str
    start: int = 0
    advice: str = ""


@dataclass(frozen=True)
class Format:
    """A row of the table of audio formats: all that is known of one, beside the code that reads it.

    Attributes
    ----------
    name : as messages show it
    reader : as in `FileType`
    signatures : (offset, bytes) that a file of it has
    endings : by which a folder's files are found, with blanks between them
    demuxer : FFmpeg's name for it, where FFmpeg needn't guess
    declares_length : whether its header states a length that must be there
    long_signature : one that can be searched for behind junk
    """

    name: str
    reader: str
    signatures: tuple[tuple[int, bytes], ...] = ()
    endings: str = ""
    demuxer: str | None = None
    declares_length: bool = False
    long_signature: bytes = b""


ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"
W64 = b"riff\x2e\x91\xcf\x11"
FORMATS = {
    row.name: row
    for row in (
        Format("WAV", LIBSNDFILE, ((0, b"RIFF"), (0, b"RIFX")), ".wav .wave .bwf", "wav"),
        Format("RF64", LIBSNDFILE, ((0, b"RF64"), (0, b"BW64")), ".rf64"),
        Format("AIFF", LIBSNDFILE, ((0, b"FORM"),), ".aif .aiff .aifc", "aiff"),
        Format("CAF", LIBSNDFILE, ((0, b"caff"),), ".caf", "caf"),
        Format("W64", LIBSNDFILE, ((0, W64),), ".w64"),
        Format("AU", LIBSNDFILE, ((0, b".snd"),), ".au .snd"),
        Format("FLAC", LIBSNDFILE, ((0, b"fLaC"),), ".flac .fla", "flac", True, b"fLaC\0\0\0\x22"),
        Format("OGG", OGG, ((0, b"OggS"),), ".ogg .oga .opus .spx", long_signature=b"OggS\0\x02"),
        Format("MP3", FRAMES, endings=".mp3 .mp2 .mp1 .mpga"),
        Format("AAC", FRAMES, endings=".aac .adts"),
        Format(
            "MP4",
            FFMPEG,
            ((4, b"ftyp"), (4, b"moov"), (4, b"mdat")),
            ".m4a .m4b .alac",
            "mov",
            True,
        ),
        Format("ASF", FFMPEG, ((0, ASF),), ".wma .asf", "asf", True),
        Format("Matroska", FFMPEG, ((0, b"\x1a\x45\xdf\xa3"),), ".webm .weba .mka", "matroska"),
        Format("AC-3", FFMPEG, ((0, b"\x0b\x77"),), ".ac3 .eac3 .ec3"),
        Format("DTS", FFMPEG, ((0, b"\x7f\xfe\x80\x01"),), ".dts"),
        Format("AVI", FFMPEG, demuxer="avi"),
        Format("FLV", FFMPEG, ((0, b"FLV\x01"),), demuxer="flv"),
        Format("MPEG-TS", FFMPEG, demuxer="mpegts"),
        Format("MPEG-PS", FFMPEG, ((0, b"\x00\x00\x01\xba"),), demuxer="mpeg"),
        Format("WavPack", FFMPEG, ((0, b"wvpk"),), ".wv", "wv", True),
        Format("TTA", FFMPEG, ((0, b"TTA1"),), ".tta", "tta", True),
        Format("Monkey's Audio", FFMPEG, ((0, b"MAC "),), ".ape", declares_length=True),
        Format("Musepack", FFMPEG, ((0, b"MPCK"), (0, b"MP+")), ".mpc", declares_length=True),
        Format("TAK", FFMPEG, ((0, b"tBaK"),), ".tak", declares_length=True),
        Format("DSF", FFMPEG, ((0, b"DSD "),), ".dsf", declares_length=True),
        Format("DSDIFF", FFMPEG, ((0, b"FRM8"),)),
        Format("AMR", FFMPEG, ((0, b"#!AMR"),), ".amr"),
        Format("RealMedia", FFMPEG, ((0, b".RMF"),)),
        Format("RealAudio", FFMPEG, ((0, b".ra\xfd"),)),
    )
}
ENDINGS = {ending for row in FORMATS.values() for ending in row.endings.split()}
FETCH = "a failed download? fetch it again"
OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (0, b"%PDF", "a PDF", ""),
    (0, b"PK\x03\x04", "a zip archive", "unpack it: python -m zipfile -e FILE FOLDER"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it: gunzip FILE, or tar xzf FILE"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"BZh", "a bzip2 archive", "unpack it: bunzip2 FILE"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it: unxz FILE"),
    (257, b"ustar", "a tar archive", "unpack it: tar xf FILE"),
    (0, b"\xff\xd8\xff", "a JPEG image", ""),
    (0, b"\x89PNG", "a PNG image", ""),
    (0, b"GIF8", "a GIF image", ""),
    (8, b"WEBP", "a WebP image", ""),
    (0, b"MThd", "MIDI: notes, no sound", "render it: fluidsynth -F OUT.wav SOUNDFONT FILE"),
    (0, b"\x93NUMPY", "a NumPy array", "write it as audio: soundfile.write"),
    (0, b"SQLite format", "an SQLite database", ""),
    (0, b"\x7fELF", "a program", ""),
    (0, b"PAR1", "a Parquet table", ""),
    (0, b"\x89HDF", "an HDF5 file", ""),
)


def identify(data: FileBytes, find_frames: Callable[[int, int], tuple[str, int] | None]):
    """Say what a file is.

    Parameters
    ----------
    find_frames : (start, end) in bytes -> codec and place of the first MPEG audio or AAC frame that
        others follow, or None

    Returns
    -------
    FileType or None
        None for what has no known signature: libsndfile may know it all the same.
    """
    start = skip_tags(data, 0)
    head = data.read(start, 512)
    if head[:4] in (b"RIFF", b"FORM") and start + 12 <= data.size:
        kind = head[8:12]
        if kind == b"AVI ":
            return FileType("AVI", FFMPEG, start)
        if kind == b"RMID":
            return FileType("MIDI: notes, no sound", NOT_AUDIO)
    if head[4:8] in (b"ftyp",) and head[8:12] in (b"avif", b"heic", b"mif1"):
        return FileType("an image", NOT_AUDIO)
    for at, signature, name, advice in OTHERS:
        if head[at : at + len(signature)] == signature:
            return FileType(name, NOT_AUDIO, 0, advice)
    for row in FORMATS.values():
        if any(head[at : at + len(mark)] == mark for at, mark in row.signatures):
            return FileType(row.name, row.reader, start)
    if is_transport_stream(data, start):
        return FileType("MPEG-TS", FFMPEG, start)
    if found := find_frames(start, start + JUNK_BYTES):
        return FileType(*found[:1], FRAMES, found[1])
    for row in FORMATS.values():
        mark = row.long_signature
        at = data.find(mark, start, start + JUNK_BYTES) if mark else -1
        if at >= 0:
            return FileType(row.name, row.reader, at)
    if start or tag_size(data.read(0, 32)):  # a tag, whole or not, and nothing that plays
        return FileType("a tag (ID3 or APE) with no audio behind it", NOT_AUDIO, 0, FETCH)
    return what_text(data.read(0, 4096))


def is_transport_stream(data: FileBytes, start: int) -> bool:
    """Say whether the sync byte of MPEG-TS comes every 188 bytes."""
    at = range(start, min(data.size, start + 5 * 188), 188)
    return len(at) == 5 and all(data.read(place, 1) == b"\x47" for place in at)


def what_text(head: bytes) -> FileType | None:
    """What text is; None for what isn't text."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return FileType("text", NOT_AUDIO)
    try:
        text = head[:-4].decode() if len(head) > 4 else head.decode()
    except UnicodeDecodeError:
        return None
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text):
        return None
    start = text.removeprefix("\ufeff").lstrip()[:300].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start:
        return FileType("HTML", NOT_AUDIO, 0, FETCH)
    if start.startswith("#extm3u"):
        return FileType("a playlist", NOT_AUDIO, 0, "name the files that it lists")
    if start.startswith("<"):
        return FileType("XML", NOT_AUDIO, 0, FETCH)
    if start.startswith(("{", "[")):
        return FileType("JSON", NOT_AUDIO, 0, FETCH)
    return FileType("text", NOT_AUDIO)


def skip_tags(data: FileBytes, start: int) -> int:
    """Where the tags (ID3v2, APE) that begin at a position end."""
    while True:
        n = tag_size(data.read(start, 32))
        if not n or start + n > data.size:
            return start
        start += n


def tag_size(head: bytes) -> int:
    """Size of the ID3v2 or APE tag that begins with these 32 bytes, or 0."""
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128 and head[3] < 255:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return size + (20 if head[5] & 0x10 else 10)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
        if flags & (1 << 29):  # this is the header, which the size doesn't count
            return size + 32
        return 32  # a footer whose tag lies before it
    return 0


def is_tag_or_padding(data: FileBytes, start: int, end: int) -> bool:
    """Say whether bytes are nothing but tags (ID3v1, ID3v2, APE, Lyrics3) and zeros."""
    while start < end:
        head = data.read(start, 32)
        if n := tag_size(head):
            start += n
        elif head[:3] == b"TAG":
            start += 227 if head[3:4] == b"+" else 128
        elif head[:11] == b"LYRICSBEGIN":
            at = data.find(b"LYRICS200", start, end)
            start = at + 9 if at >= 0 else end
        else:
            block = data.read(start, min(1 << 16, end - start))
            zeros = len(block) - len(block.lstrip(b"\0"))
            if not zeros:
                return False
            start += zeros
    return True
