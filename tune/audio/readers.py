"""Readers of audio files: each gives blocks of samples, and says what its file announces.

libsndfile reads what is stored without loss and says its own length; PyAV (FFmpeg) all else. Ogg
pages and the frames of mp3, mp2 and AAC are counted here first (`ogg_pages`, `frame_streams`), so
that nothing depends on what a decoder passes over in silence. Nothing is read beyond what is asked.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from tune.audio import ends, file_types, frame_streams, ogg_pages, riff
from tune.audio.base import SLACK_S, AudioError, Block, Header, Reader
from tune.audio.file_bytes import FileBytes, Pieces
from tune.audio.file_types import FRAMES, LIBSNDFILE, NOT_AUDIO, OGG, FileType

BLOCK_FRAMES = 1 << 18  # of one channel or two; fewer of more
HEADERLESS = {".raw", ".pcm", ".vox", ".snd", ".gsm", ".sw"}
FULL_SCALE_16 = np.float32(2.0**-15)
MALFORMED = 3  # libsndfile's code
UNKNOWN_FRAMES = 1 << 62  # libsndfile's frame count of a file that it could not measure
OGG_DECODERS = {"Vorbis": "vorbis", "Opus": "libopus", "FLAC": "flac", "Speex": "speex"}
SIZED_CHUNKS = {  # format -> chunk whose size libsndfile's log compares with the file's
    "WAV": "data",
    "WAVEX": "data",
    "AIFF": "SSND",
    "RF64": "Riff size",
    "W64": "riff",
}


class SndfileReader(Reader):
    """A file that libsndfile reads."""

    def __init__(self, file: soundfile.SoundFile):
        known = file.frames < UNKNOWN_FRAMES
        seconds = file.frames / file.samplerate if known else float("nan")
        super().__init__(Header(file.samplerate, file.channels, file.format, seconds))
        self.file = file
        self.can_seek = file.seekable()  # not in GSM and G.72x

    def blocks(self, first: int = 0, frames: int | None = None) -> Iterator[Block]:
        """Samples from a frame on; a block's memory is used again for the next one."""
        if first:
            self._whole(self.file.seek, first)
        # Reading into memory of our own isn't stopped at the end: what is behind it is no audio.
        left = self.file.frames - first
        left = left if frames is None else min(left, frames)
        size = max(1, 2 * BLOCK_FRAMES // max(2, self.file.channels))  # a file has up to 1024
        room = np.empty((size, self.file.channels), np.float32)
        # NumPy turns 16 bit samples into the same floats as libsndfile, three times as fast; not
        # those of a FLAC, which come as integers of 32 bits, nor of an SDS, which hold 21 bits.
        shorts = self.file.subtype == "PCM_16" and self.file.format not in ("FLAC", "SDS")
        raw = np.empty(room.shape, np.int16) if shorts else room
        while left > 0:
            block = self._whole(self.file.read, out=raw[: int(min(size, left))])
            if not len(block):
                return
            left -= len(block)
            if shorts:
                block = np.multiply(block, FULL_SCALE_16, out=room[: len(block)])
            yield block.T, self.file.samplerate

    def _whole(self, read, *args, **kwargs):
        """What `read` gives; AudioError where the file isn't what its header says."""
        try:
            return read(*args, **kwargs)
        except soundfile.LibsndfileError as error:
            announced = self.header.seconds
            raise AudioError(
                f"damaged or truncated: can't be decoded up to the {announced:.2f} s announced"
            ) from error

    def check(self, seconds: float | None = None) -> None:
        """Compare with the sizes in the header."""
        if seconds is None:
            return
        file, declared = self.file, None
        n_read = round(seconds * file.samplerate)
        if chunk := SIZED_CHUNKS.get(file.format):
            size = re.search(rf"^\s*{chunk} : (\d+) \(should be (\d+)\)", file.extra_info, re.M)
            announced, there = (int(size[1]), int(size[2])) if size else (0, 0)
            if there < announced and not any(announced in sizes for sizes in riff.UNKNOWN_SIZES):
                declared = n_read * announced / max(1, there)
        elif n_read < file.frames < UNKNOWN_FRAMES:
            declared = file.frames
        if declared is not None:
            self.damage.append(
                f"truncated: {seconds:.2f} s of the {declared / file.samplerate:.2f} s announced"
            )
        super().check(seconds)


class FrameReader(Reader):
    """MPEG audio or AAC without a container; the frames go to FFmpeg's decoder one by one."""

    def __init__(self, data: FileBytes, kind: FileType):
        stream = frame_streams.read_frames(data, kind.start)
        parts = [part for part in stream.parts if len(part.offsets) or part.declared]
        if not parts:
            raise AudioError("holds no samples")
        self.data, self.parts = data, parts
        first = parts[0]
        seconds = sum(part.n_samples / part.rate for part in parts)
        super().__init__(Header(first.rate, first.channels, kind.name, seconds))
        for part in parts:
            if part.declared is not None and len(part.offsets) + 2 < part.declared:
                missing = (part.declared - len(part.offsets)) * part.frame_samples / part.rate
                self.damage.append(
                    f"truncated: {seconds:.2f} s of the {seconds + missing:.2f} s announced"
                )
        self.damage += [f"{n:,} bytes at {s:.2f} s are no frame" for _, n, s in stream.damage]
        self.note_surplus(stream.surplus_bytes)
        if stream.cut_bytes and parts[-1].declared is None:
            self.notes.append(
                "its last frame is cut off, and nothing in it says how long it was: it may have "
                "been longer"
            )

    def blocks(self) -> Iterator[Block]:
        """Decode all parts; what the encoder added is left out."""
        from tune.audio import ffmpeg

        for part in self.parts:
            failed = ffmpeg.Failures()
            packets = (
                self.data.read(at, n) for at, n in zip(part.offsets, part.sizes, strict=True)
            )
            end = part.delay + part.n_samples if part.delay or part.padding else None
            yield from ffmpeg.trimmed(
                ffmpeg.decode_packets(part.codec, packets, failed), part.delay, end
            )
            self.damage += failed.clauses


class ContainerReader(Reader):
    """A container that FFmpeg reads."""

    def __init__(self, container, kind: FileType):
        from tune.audio import ffmpeg

        self.container, self.stream = container, ffmpeg.sound_track(container, kind)
        found = ffmpeg.describe(container, self.stream, kind)
        super().__init__(found.header, found.declared_s)
        self.trim = found.trim

    def blocks(self) -> Iterator[Block]:
        """Decode the sound track."""
        from tune.audio import ffmpeg

        failed = ffmpeg.Failures()
        blocks = ffmpeg.decode_stream(self.container, self.stream, failed)
        if self.trim is not None:
            blocks = ffmpeg.without_padding(blocks, *self.trim)
        yield from blocks
        self.damage += failed.clauses
        self.notes += failed.at_end


class OggReader(Reader):
    """Ogg: one stream, or several one after the other."""

    def __init__(self, data: FileBytes, kind: FileType):
        links, surplus = ogg_pages.read_links(data, kind.start)
        if not links:
            raise AudioError("damaged: no whole Ogg page in it")
        heard = [link for link in links if link.codec]
        if not heard:
            raise AudioError(
                f"can't be decoded: this is {links[0].other or 'something'} in Ogg, without a "
                f"sound track"
            )
        self.data, self.links = data, heard
        first = heard[0]
        if first.n_pages < 3 and first.last_granule == 0 and first.complete:
            raise AudioError("holds no samples")
        late = any(link.joined_late for link in heard)
        seconds = float("nan") if late else sum(link.seconds for link in heard)
        super().__init__(Header(first.rate, first.channels, f"{first.codec} in Ogg", seconds))
        for link in heard:
            self.damage += link.damage
            if not link.complete:
                self.damage.append(
                    f"truncated: the Ogg stream breaks off after {link.seconds:.2f} s"
                )
        self.note_surplus(surplus)

    def blocks(self) -> Iterator[Block]:
        """Decode each stream by itself: a change of rate or channels needs nothing more."""
        for link in self.links:
            yield from self._link_blocks(link)

    def _link_blocks(self, link: ogg_pages.Link) -> Iterator[Block]:
        """Decode one stream, from its first sample to its last position."""
        from tune.audio import ffmpeg

        codec, failed = OGG_DECODERS[link.codec], ffmpeg.Failures()
        packets = ogg_pages.read_packets(self.data, link)
        try:
            extradata = ogg_pages.split_headers(link.codec, packets)
        except StopIteration:
            self.damage.append(f"the headers of its {link.codec} stream are incomplete")
            return
        first_page, start = [], 0
        for packet, granule, last in packets:
            first_page.append(packet)
            if granule is not None:
                count = ffmpeg.decode_packets(codec, first_page, ffmpeg.Failures(), extradata)
                n_first = sum(block.shape[1] for block, _ in count)
                start = 0 if last else granule - link.pre_skip - n_first
                break
        # Before 0 lie samples that are left out; a stream that was joined late begins after it.
        # Opus's decoder leaves out the pre-skip by itself.
        skip = max(0, -start) if link.codec == "Vorbis" else 0
        n_samples = max(0, link.last_granule - link.pre_skip - max(0, start))
        every = itertools.chain(first_page, (packet for packet, _, _ in packets))
        blocks = ffmpeg.decode_packets(codec, every, failed, extradata)
        decoded = 0
        for block, rate in ffmpeg.trimmed(blocks, skip, skip + n_samples):
            decoded += block.shape[1]
            yield block, rate
        self.damage += failed.clauses
        if decoded + SLACK_S * link.rate < n_samples:
            self.damage.append(
                f"{decoded / link.rate:.2f} s of {n_samples / link.rate:.2f} s could be decoded"
            )


@contextlib.contextmanager
def opened(path) -> Iterator[Reader]:
    """Open a file with the reader of its kind.

    Raises
    ------
    AudioError
        When it isn't audio, or nothing can read it.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise AudioError(f"unreadable: {error.strerror or error}") from error
        data = FileBytes(file)
        kind = file_types.identify(data, lambda a, b: frame_streams.find_frames(data, a, b))
        yield _reader(path, file, data, kind, stack)


def is_plain(path) -> bool:
    """Say whether libsndfile reads the file from its beginning, as it is."""
    try:
        with open(path, "rb") as file:
            data = FileBytes(file)
            kind = file_types.identify(data, lambda a, b: frame_streams.find_frames(data, a, b))
            if kind is None:
                return True
            plain = kind.reader == LIBSNDFILE and not kind.start
            plain &= riff.codec(data, 0) not in riff.MPEG
            return plain and riff.repaired(data, 0) is None
    except OSError:
        return False


def _reader(path, file, data: FileBytes, kind: FileType | None, stack) -> Reader:
    """The reader of a kind of file."""
    from tune.audio import ffmpeg

    if kind is None:
        return _unknown(path, file, data, stack)
    if kind.reader == NOT_AUDIO:
        advice = f": {kind.advice}" if kind.advice else ""
        raise AudioError(f"can't be decoded: {kind.name}, not audio{advice}")
    if kind.reader == FRAMES:
        return FrameReader(data, kind)
    if kind.reader == OGG:
        return OggReader(data, kind)
    by_ffmpeg = kind.name == "FLAC" and not _flac_samples(data, kind)
    by_ffmpeg |= kind.name == "WAV" and riff.codec(data, kind.start) in riff.MPEG
    if kind.reader == LIBSNDFILE and not by_ffmpeg:
        reader = _by_libsndfile(path, file, data, kind, stack)
        if reader is not None:
            return reader
    # Never by its name: FFmpeg takes some for addresses, and none that isn't UTF-8.
    source = Pieces(file, [(kind.start, data.size)])
    container = stack.enter_context(ffmpeg.opened(source, kind, data))
    reader = ContainerReader(container, kind)
    _note_surplus(reader, data, kind)
    return reader


def _by_libsndfile(path, file, data: FileBytes, kind: FileType, stack) -> SndfileReader | None:
    """A file as libsndfile opens it; None where it can't."""
    pieces = riff.repaired(data, kind.start)
    if pieces is None and kind.start:
        pieces = [(kind.start, data.size)]
    source = _name(path) if pieces is None else Pieces(file, pieces)
    try:
        sound = stack.enter_context(soundfile.SoundFile(source))
    except soundfile.LibsndfileError as error:
        if error.code == MALFORMED:
            raise AudioError(f"damaged: its {kind.name} chunks break off or contradict") from error
        return None
    except TypeError:  # a name that ends in .raw
        return None
    if sound.format == "RAW":
        return None
    reader = SndfileReader(sound)
    if pieces is None or pieces == [(kind.start, data.size)]:
        _note_surplus(reader, data, kind)
    return reader


def _note_surplus(reader: Reader, data: FileBytes, kind: FileType) -> None:
    """Note what is behind the end of a file whose chunks, boxes or last frame say where that is.

    An AVI that ends before it is truncated.
    """
    end = ends.END_OF.get(kind.name, lambda data, start: data.size)(data, kind.start)
    if kind.name == "AVI" and end > data.size:  # nothing else in it says how long its sound is
        reader.damage.append(f"truncated: {end - data.size:,} of its bytes are missing")
    if end < data.size and not file_types.is_tag_or_padding(data, end, data.size):
        reader.note_surplus(data.size - end)


def _unknown(path, file, data: FileBytes, stack) -> Reader:
    """A file without a signature that is known here: libsndfile may know it."""
    ending = Path(path).suffix.lower()
    head = data.read(0, 2)
    if head[:1] == b"\xff" and head[1:] >= b"\xe0":  # libsndfile would look for mp3, aloud
        raise AudioError("can't be decoded: not a kind of audio that is known here")
    # Of other files it sees no name: for .mp3 it would look for frames, and write remarks.
    source = _name(path) if ending == ".sd2" else Pieces(file, [(0, data.size)])
    try:
        sound = stack.enter_context(soundfile.SoundFile(source))
        if sound.format not in ("RAW", "MP3"):
            return SndfileReader(sound)
    except soundfile.LibsndfileError:
        pass
    if ending in HEADERLESS:
        raise AudioError(
            f"can't be decoded: a {ending} file has no header that tells its rate: write it as "
            f"wav, ffmpeg -f s16le -ar RATE -ac CHANNELS -i FILE OUT.wav"
        )
    raise AudioError("can't be decoded: not a kind of audio that is known here")


def _name(path):
    """A path as soundfile takes it: it encodes a str strictly, but a name need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else path


def _flac_samples(data: FileBytes, kind: FileType) -> int:
    """Samples that a FLAC's header announces; 0 where it doesn't know."""
    return int.from_bytes(data.read(kind.start + 18, 8), "big") & (1 << 36) - 1
