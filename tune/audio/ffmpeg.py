"""Decoding by PyAV (FFmpeg): containers, single frames, and what a container says of its length."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import av
import numpy as np

from tune.audio import ends
from tune.audio.base import SLACK_S, AudioError, Block, Header
from tune.audio.file_bytes import FileBytes
from tune.audio.file_types import FETCH, FORMATS, FileType

BLOCK_FRAMES = 1 << 16
ROOM_FRAMES = 1 << 13  # beside a block, for the frame that fills it
HOLD_FRAMES = 8192  # of padding at the end at most, in an MP4
MAX_PLANES = 8
SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "flt": 1.0, "dbl": 1.0}
NAMES = {
    "aac": "AAC",
    "alac": "ALAC",
    "h264": "H.264",
    "hevc": "HEVC",
    "mp3": "MP3",
    "mp3float": "MP3",
    "opus": "Opus",
    "vorbis": "Vorbis",
    "flac": "FLAC",
    "ac3": "AC-3",
    "eac3": "E-AC-3",
    "mpeg4": "MPEG-4 video",
    "ape": "Monkey's Audio",
    "mpc7": "Musepack",
    "mpc8": "Musepack",
    "wmav1": "WMA",
    "wmav2": "WMA",
    "wmapro": "WMA Pro",
    "wmalossless": "WMA Lossless",
}
WMA_BLOCK = 2048  # samples at most; the decoder gives nothing for the first one
OPTIONS = {"ac3": {"drc_scale": "0"}, "eac3": {"drc_scale": "0"}}  # no compression of the dynamics

# FFmpeg's remarks name no file; its errors are counted here instead.
av.logging.set_level(None)
logging.getLogger("libav").setLevel(logging.CRITICAL + 1)


@dataclass
class Failures:
    """What went wrong in a stream.

    Attributes
    ----------
    clauses : damage, a clause each
    at_end : the same of the last frame alone, with all announced audio before it
    """

    clauses: list[str] = field(default_factory=list)
    at_end: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Description:
    """A sound track's header, the seconds it announces, and (samples, rate) to trim to."""

    header: Header
    declared_s: float | None
    trim: tuple[int, int] | None


@contextlib.contextmanager
def opened(source, kind: FileType, data: FileBytes):
    """Open a container; AudioError with the reason where that fails.

    Parameters
    ----------
    source : its bytes, a binary file
    data : the same, for the reason
    """
    try:
        container = av.open(source, format=FORMATS[kind.name].demuxer, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError(_why_not_opened(kind, data)) from error
    with container:
        yield container


def _why_not_opened(kind: FileType, data: FileBytes) -> str:
    """The reason that a file with a known signature can't be opened."""
    if kind.name == "MP4" and b"moov" not in [name for name, _ in ends.boxes(data, kind.start)]:
        return f"truncated: MP4 without its index (moov), which recorders write last; {FETCH}"
    return f"can't be decoded: its {kind.name} header is damaged; {FETCH}"


def sound_track(container, kind: FileType):
    """The container's first sound track.

    Raises
    ------
    AudioError
        When there is none, or none that can be decoded.
    """
    name = kind.name
    if not container.streams.audio:
        codecs = [_codec_name(stream) for stream in container.streams.video]
        what = f"{', '.join(codecs)} in {name}" if codecs else name
        raise AudioError(f"can't be decoded: this is {what}, without a sound track")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or stream.codec_context.codec is None:
        raise AudioError(f"can't be decoded: FFmpeg has no decoder for its sound track ({name})")
    try:
        tag = context.codec_tag.lower()
    except UnicodeDecodeError:  # of a damaged header
        tag = ""
    if tag in ("drms", "enca"):
        raise AudioError(f"can't be decoded: its sound track is protected against copying ({name})")
    context.thread_count = 1
    context.options = OPTIONS.get(context.name, {})
    return stream


def _codec_name(stream) -> str:
    """A codec as people write it."""
    name = stream.codec_context.name if stream.codec_context is not None else "an unknown codec"
    return NAMES.get(name, name)


def describe(container, stream, kind: FileType) -> Description:
    """What a container says of its sound track."""
    context, declared = stream.codec_context, None
    if FORMATS[kind.name].declares_length and stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif kind.name == "Matroska":
        declared = _matroska_seconds(container, stream)
    codec = NAMES.get(context.name, context.name)
    same = kind.name.lower() in codec.lower() or kind.name == "WAV"
    header = Header(
        context.sample_rate or 0,
        context.channels,
        kind.name if same else f"{codec} in {kind.name}",
        float("nan") if declared is None else declared,
    )
    trim = None
    if kind.name == "MP4":
        trim = _gapless(container, stream, declared)
    if codec == "WMA" and declared is not None:
        declared -= WMA_BLOCK / context.sample_rate
    return Description(header, declared, trim)


def _gapless(container, stream, declared):
    """(samples, rate) that an MP4 announces: iTunSMPB, else its edit list."""
    rate = stream.codec_context.sample_rate
    text = container.metadata.get("iTunSMPB") or stream.metadata.get("iTunSMPB") or ""
    numbers = re.findall(r"\b[0-9A-Fa-f]{8,16}\b", text)
    if len(numbers) >= 4 and int(numbers[3], 16):
        return int(numbers[3], 16), rate
    return None if declared is None else (round(declared * rate), rate)


def _matroska_seconds(container, stream) -> float | None:
    """Seconds by the sound track's own tag, or the file's where there is nothing but sound."""
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if found:
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    if len(container.streams) == 1 and container.duration:
        return container.duration / av.time_base
    return None


def decode_stream(container, stream, failed: Failures) -> Iterator[Block]:
    """Decode a sound track; what fails, and a jump in the frames' times, is noted."""

    def frames():
        bad, at, first = [], 0.0, None
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, IndexError):  # IndexError: of a stream that came later
                failed.clauses.append(f"its container can't be read on from {at:.2f} s")
                break
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                bad.append(at)
                continue
            for frame in decoded:
                if frame.pts is not None and frame.time_base:
                    now = float(frame.pts * frame.time_base)
                    if first is None:
                        first = now
                    if now - first > at + SLACK_S:
                        failed.clauses.append(f"{now - first - at:.2f} s are missing at {at:.2f} s")
                        first += now - first - at
                at += frame.samples / frame.sample_rate
                yield frame
        if bad and len(bad) == 1 and bad[0] == at and at:
            failed.at_end.append("its last frame can't be decoded")
        elif bad:
            failed.clauses.append(_undecodable(len(bad), bad[0]))

    return _blocks(frames())


def _undecodable(n: int, first_s: float) -> str:
    """The clause for frames that the decoder refuses."""
    if n == 1:
        return f"a frame can't be decoded, at {first_s:.2f} s"
    return f"{n} frames can't be decoded, the first at {first_s:.2f} s"


def decode_packets(
    codec: str, packets: Iterable[bytes], failed: Failures, extradata: bytes | None = None
) -> Iterator[Block]:
    """Decode single frames; each that fails is noted.

    Parameters
    ----------
    codec : FFmpeg's name of the decoder
    extradata : what the stream's headers tell the decoder
    """
    context = av.CodecContext.create(codec, "r")
    context.thread_count = 1
    if extradata is not None:
        context.extradata = extradata

    # A packet of PyAV's own ends in zeros, as FFmpeg asks for: behind one made of bytes a decoder
    # would read whatever is there. One of each size is enough: decoding it leaves nothing in it.
    rooms: dict[int, av.Packet] = {}

    def frames():
        n_bad, at, first_bad = 0, 0.0, 0.0
        for packet in packets:
            size = len(packet)
            if size not in rooms:
                rooms[size] = av.Packet(size)
            rooms[size].update(packet)
            try:
                decoded = context.decode(rooms[size])
            except av.error.FFmpegError:
                first_bad = first_bad if n_bad else at
                n_bad += 1
                continue
            for frame in decoded:
                at += frame.samples / frame.sample_rate
                yield frame
        with contextlib.suppress(av.error.EOFError):
            yield from context.decode(None)
        if n_bad:
            failed.clauses.append(_undecodable(n_bad, first_bad))

    return _blocks(frames())


def _blocks(frames: Iterable) -> Iterator[Block]:
    """Join frames of one rate, format and number of channels; a block's memory is used again.

    FFmpeg's queue joins them: copying frame by frame in NumPy costs a tenth of an mp3's time more.
    """
    fifo, kind, room = av.AudioFifo(), None, np.empty(0, np.float32)
    for frame in frames:
        its_kind = (frame.layout.nb_channels, frame.sample_rate, frame.format.name)
        if its_kind != kind or fifo.samples >= BLOCK_FRAMES:
            if fifo.samples:
                yield _samples(fifo.read(), room), kind[1]
            if its_kind != kind:
                fifo, kind = av.AudioFifo(), its_kind
                room = np.empty(kind[0] * (BLOCK_FRAMES + ROOM_FRAMES), np.float32)
        frame.pts = None  # the queue would compare it with its own count
        fifo.write(frame)
    if fifo.samples:
        yield _samples(fifo.read(), room), kind[1]


def _samples(frame, room: np.ndarray) -> np.ndarray:
    """A frame's samples: (C, n) float32 within [-1, 1], in room (size,) where they fit."""
    n_channels, n = frame.layout.nb_channels, frame.samples
    if frame.format.name == "fltp" and n_channels < MAX_PLANES:  # as lossy codecs give them
        out = room[: n_channels * n].reshape(n_channels, n) if n_channels * n <= room.size else None
        return np.stack([np.frombuffer(plane, np.float32, n) for plane in frame.planes], out=out)
    known = frame.format.name.removesuffix("p") in SCALES
    if not known or (frame.format.is_planar and n_channels >= MAX_PLANES):
        frame = _packed(frame)
    samples, format = frame.to_ndarray(), frame.format
    if not format.is_planar:
        samples = samples.reshape(-1, n_channels).T
    kind = format.name.removesuffix("p")
    if kind == "u8":
        samples = samples.astype(np.float32) - 128
    return samples if samples.dtype == np.float32 else (samples * SCALES[kind]).astype(np.float32)


def _packed(frame):
    """The same frame as float32 with its channels in one plane.

    PyAV 18 counts planes up to the first null pointer, which the eight that a frame has room for
    don't end with: reading them ends the process.
    """
    resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    frame.pts = None
    try:
        (packed,) = resampler.resample(frame)
    except av.error.FFmpegError as error:  # of channels or a rate that a damaged header says
        what = f"{frame.layout.nb_channels} channels of {frame.format.name}"
        raise AudioError(f"can't be decoded: FFmpeg can't convert its {what}") from error
    return packed


def trimmed(blocks: Iterable[Block], start: int, end: int | None) -> Iterator[Block]:
    """Only samples start to end (None: all) of blocks."""
    at = 0
    for block, rate in blocks:
        first, last = max(0, start - at), None if end is None else max(0, end - at)
        at += block.shape[1]
        part = block[:, first:last]
        if part.shape[1]:
            yield part, rate


def without_padding(blocks: Iterable[Block], n: int, rate: int) -> Iterator[Block]:
    """Leave out what an encoder added at the end: up to `HOLD_FRAMES` beyond n samples at a rate.

    More than that is no padding: the header is wrong, or counts otherwise, and nothing is cut.
    """
    held: list[Block] = []
    at = total = 0
    for block, block_rate in blocks:
        held.append((block.copy(), block_rate))
        total += block.shape[1]
        while total - at - held[0][0].shape[1] >= HOLD_FRAMES:
            at += held[0][0].shape[1]
            yield held.pop(0)
    end = round(n * held[-1][1] / rate) if held else 0
    if not 0 < total - end <= HOLD_FRAMES:
        end = total
    for block, block_rate in held:
        if end > at:
            yield block[:, : end - at], block_rate
        at += block.shape[1]
