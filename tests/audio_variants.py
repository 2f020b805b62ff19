"""Test code: audio files as people's encoders write them, and as discs and downloads break them.

A table of variants (`VARIANTS`): how each file is made, and what is right for it. Files come from
FFmpeg's encoders (PyAV), from libsndfile, and from editing their bytes; each is about a second of
`music()`, another signal for each seed.
"""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import av
import numpy as np
import soundfile

SECONDS = 1.3
RAW_BYTES = 1 << 14


@cache
def music(seconds: float, rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """A tune in two voices that fade, other in each channel: (n, C) float32."""
    rng = np.random.default_rng(seed)
    out = np.zeros((round(seconds * rate), channels))
    for start in range(0, len(out), rate // 10):
        age = np.arange(min(len(out) - start, rate * 3 // 10))[:, None] / rate
        hz = rng.uniform(150, min(1500, rate / 5), channels)
        note = np.sin(2 * np.pi * hz * age) * np.exp(-age / 0.1) * np.minimum(1, age / 0.004)
        out[start : start + len(age)] += 0.25 * note
    out[:, 1:] = 0.5 * out[:, 1:] + 0.5 * out[:, :1]
    return np.clip(out, -0.9, 0.9).astype(np.float32)


@cache
def encoded(
    codec: str,
    format: str,
    rate: int = 44_100,
    channels: int = 2,
    seconds: float = SECONDS,
    seed: int = 0,
    bit_rate: int | None = None,
    video: bool = False,
    sound: bool = True,
    options: tuple = (),
    muxing: tuple = (),
) -> bytes:
    """A file from FFmpeg's encoders."""
    samples = music(seconds, rate, channels, seed)
    layout = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}[channels]
    file = io.BytesIO()
    with tempfile.NamedTemporaryFile() as named:
        # An index in front is moved there by reading what was written: that needs a name.
        target = named.name if "faststart" in str(muxing) else file
        with av.open(target, "w", format=format, options=dict(muxing)) as container:
            if video:
                pictures = container.add_stream("mpeg4", rate=10)
                pictures.width = pictures.height = 32
                pictures.pix_fmt = "yuv420p"
            if sound:
                stream = container.add_stream(
                    codec, rate=rate, layout=layout, options={"strict": "-2", **dict(options)}
                )
                if bit_rate:
                    stream.bit_rate = bit_rate
            if video:
                for _ in range(8):
                    picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                    container.mux(pictures.encode(picture))
                container.mux(pictures.encode(None))
            for start in range(0, len(samples) if sound else 0, 4096):
                part = np.ascontiguousarray(samples[start : start + 4096])
                frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", layout)
                frame.sample_rate, frame.pts = rate, start
                container.mux(stream.encode(frame))
            if sound:
                container.mux(stream.encode(None))
        return file.getvalue() or named.read()


@cache
def written(
    format: str,
    subtype: str | None = None,
    rate: int = 44_100,
    channels: int = 2,
    seconds: float = SECONDS,
    seed: int = 0,
) -> bytes:
    """A file from libsndfile."""
    file = io.BytesIO()
    samples = music(seconds, rate, channels, seed)
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def noise(n: int, seed: int = 5) -> bytes:
    """Random bytes that hold no frame's beginning."""
    return bytes(np.random.default_rng(seed).integers(0, 255, n, np.uint8))


def id3v2(n: int = 300) -> bytes:
    """A tag in front, with bytes in it that look like a frame."""
    body = b"TIT2" + struct.pack(">I", n - 10)[:4] + b"\0\0" + b"\xff\xfb\x90\x64" * (n // 4)
    size = len(body)
    packed = bytes((size >> s) & 127 for s in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + packed + body


def id3v1() -> bytes:
    """A tag at the end."""
    return b"TAG" + b"a title".ljust(125, b"\0")


def ape(front: bool = False) -> bytes:
    """An APE tag with header and footer."""
    item = struct.pack("<II", 4, 0) + b"Title\0" + b"tune"
    size = len(item) + 32

    def part(flags):
        return b"APETAGEX" + struct.pack("<IIII", 2000, size, 1, flags) + bytes(8)

    return part(0xA0000000) + item + part(0x80000000)


def cut(data: bytes, share: float) -> bytes:
    """The first part of a file."""
    return data[: int(len(data) * share)]


def hole(data: bytes, n: int, at: float = 0.5) -> bytes:
    """A file without some bytes in the middle."""
    start = int(len(data) * at)
    return data[:start] + data[start + n :]


def zeroed(data: bytes, n: int, at: float = 0.5) -> bytes:
    """A file with zeros in the middle, as a failing disc leaves them."""
    start = int(len(data) * at)
    return data[:start] + bytes(n) + data[start + n :]


def flipped(data: bytes, at: float) -> bytes:
    """A file with one byte changed."""
    start = int(len(data) * at)
    return data[:start] + bytes([data[start] ^ 0x55]) + data[start + 1 :]


def wav(parts: list[tuple[bytes, bytes, int | None]], rate=44_100, channels=2) -> bytes:
    """A WAV of chunks (name, body, size or None for the body's)."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form
    for name, data, size in parts:
        body += name + struct.pack("<I", len(data) if size is None else size) + data
        body += b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@cache
def pcm(seconds: float = SECONDS, rate: int = 44_100, channels: int = 2, seed: int = 0) -> bytes:
    """16-bit samples."""
    return np.rint(music(seconds, rate, channels, seed) * 32767).astype("<i2").tobytes()


def flac_without_total(data: bytes) -> bytes:
    """A FLAC whose header doesn't know its length, as a pipe gives it."""
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36
    return data[:18] + packed.to_bytes(8, "big") + data[26:]


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    pages = []
    while data:
        n = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages.append(data[:n])
        data = data[n:]
    return pages


def ogg_serial(data: bytes, serial: int) -> bytes:
    """An Ogg file under another serial number."""
    return b"".join(_page(p, slice(14, 18), struct.pack("<I", serial)) for p in ogg_pages(data))


def ogg_later(data: bytes, samples: int) -> bytes:
    """An Ogg stream that was joined late: all its positions are later."""
    out = []
    for page in ogg_pages(data):
        at = int.from_bytes(page[6:14], "little")
        if at not in (0, 2**64 - 1):
            page = _page(page, slice(6, 14), struct.pack("<Q", at + samples))
        out.append(page)
    return b"".join(out)


def _page(page: bytes, where: slice, value: bytes) -> bytes:
    """A page with other bytes in its header, and the checksum for them."""
    page = page[: where.start] + value + page[where.stop :]
    bare = page[:22] + bytes(4) + page[26:]
    reverse = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
    crc = zlib.crc32(bare.translate(reverse), 0xFFFFFFFF) ^ 0xFFFFFFFF
    crc = int(f"{crc:032b}"[::-1], 2)
    return bare[:22] + struct.pack("<I", crc) + bare[26:]


def mp4_box(data: bytes, name: bytes) -> tuple[int, int]:
    """Place and size of an MP4's top-level box."""
    at = 0
    while data[at + 4 : at + 8] != name:
        at += int.from_bytes(data[at : at + 4], "big")
    return at, int.from_bytes(data[at : at + 4], "big")


@dataclass(frozen=True)
class Variant:
    """A file and what is right for it.

    Attributes
    ----------
    kind : of file, as the table in docs/reliability.md counts them
    name : of the file
    make : () -> its bytes
    parts : (rate, channels, seconds, seed) of what is heard, one after the other
    reason : a pattern of the reason, where it must be refused
    note : a pattern of the note that it must bring
    late_s : up to so much more in front or behind, which no header tells how to cut
    """

    kind: str
    name: str
    make: Callable[[], bytes]
    parts: tuple = ((44_100, 2, SECONDS, 0),)
    reason: str | None = None
    note: str | None = None
    late_s: float = 0.0


def heard(variant: Variant, rate: int) -> np.ndarray:
    """What is right to be heard: mono (n,) at a rate."""
    import soxr

    parts = []
    for own, channels, seconds, seed in variant.parts:
        mono = music(seconds, own, channels, seed).mean(1)
        parts.append(soxr.resample(mono, own, rate))
    return np.concatenate(parts)


def _variants() -> list[Variant]:
    """The table."""
    out: list[Variant] = []

    def add(kind, name, make, parts=((44_100, 2, SECONDS, 0),), **right):
        out.append(Variant(kind, name, make, tuple(parts), **right))

    _mp3(add)
    _other_frames(add)
    _ogg(add)
    _mp4(add)
    _containers(add)
    _flac(add)
    _wav(add)
    _not_audio(add)
    return out


def one(rate=44_100, channels=2, seconds=SECONDS, seed=0):
    """What is heard of a single stream."""
    return ((rate, channels, seconds, seed),)


def _mp3(add) -> None:
    """mp3: rates, channels, constant and variable, with and without header, tags, damage."""
    no_header = (("write_xing", "0"), ("id3v2_version", "0"))
    bare = (("id3v2_version", "0"),)

    def mp3(rate=44_100, channels=2, muxing=bare, **kw):
        return encoded("libmp3lame", "mp3", rate, channels, muxing=muxing, **kw)

    for rate in (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        for channels in (1, 2):
            add(
                "mp3, Xing or Info header",
                f"xing-{rate}-{channels}.mp3",
                lambda r=rate, c=channels: mp3(r, c),
                one(rate, channels),
            )
            add(
                "mp3 without header",
                f"bare-{rate}-{channels}.mp3",
                lambda r=rate, c=channels: mp3(r, c, no_header),
                one(rate, channels),
                late_s=2900 / rate,
            )
    for quality in (0, 4, 9):
        vbr = (("compression_level", "5"), ("q:a", str(quality)), ("flags", "+qscale"))
        vbr += (("global_quality", str(quality * 118)),)
        add("mp3, Xing or Info header", f"vbr-{quality}.mp3", lambda o=vbr: mp3(options=o))
        add(
            "mp3 without header",
            f"vbr-bare-{quality}.mp3",
            lambda o=vbr: mp3(muxing=no_header, options=o),
            late_s=0.066,
        )
    add(
        "mp3 without header",
        "cbr-bare-30s.mp3",
        lambda: mp3(muxing=no_header, seconds=30.0, bit_rate=128_000),
        one(seconds=30.0),
        late_s=0.066,
    )
    for kbit in (32, 64, 320):
        add("mp3, Xing or Info header", f"cbr-{kbit}.mp3", lambda b=kbit: mp3(bit_rate=b * 1000))
    for seconds in (0.05, 0.3, 12.0):
        add(
            "mp3, Xing or Info header",
            f"length-{seconds}.mp3",
            lambda s=seconds: mp3(seconds=s, channels=1),
            one(44_100, 1, seconds),
        )
    tags = "mp3 with tags and junk"
    add(tags, "id3v2.mp3", lambda: id3v2() + mp3())
    add(tags, "two-id3v2.mp3", lambda: id3v2() + id3v2(900) + mp3())
    add(tags, "id3v2-big.mp3", lambda: id3v2(200_000) + mp3())
    add(tags, "id3v1.mp3", lambda: mp3() + id3v1())
    add(tags, "id3v2-too-long.mp3", lambda: b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(200) + mp3())
    add(tags, "ape-front.mp3", lambda: ape() + mp3())
    add(tags, "ape-end.mp3", lambda: mp3() + ape())
    add(tags, "ape-and-id3v1.mp3", lambda: mp3() + ape() + id3v1())
    add(tags, "all-tags.mp3", lambda: id3v2() + ape() + mp3() + ape() + id3v1())
    add(tags, "zeros-end.mp3", lambda: mp3() + bytes(5_000))
    add(tags, "zeros-front.mp3", lambda: bytes(3_000) + mp3())
    add(tags, "http-header.mp3", lambda: b"ICY 200 OK\r\nicy-name: radio\r\n\r\n" + mp3())
    for n in (1, 200, 3_000, 90_000):
        add(tags, f"junk-{n}.mp3", lambda n=n: noise(n) + mp3())
        add(
            tags,
            f"trailing-{n}.mp3",
            lambda n=n: mp3() + noise(n),
            note="bytes behind its end" if n > 1024 else None,
        )
    add(tags, "junk-bare.mp3", lambda: noise(400) + mp3(muxing=no_header), late_s=0.066)
    for ending in ("wav", "flac", "ogg", "txt", "m4a", "jpg"):
        add("wrong endings", f"mp3-called.{ending}", mp3)
    torn = "mp3, cut or with a hole"
    for share in (0.15, 0.5, 0.9):
        add(
            torn,
            f"cut-{share}.mp3",
            lambda s=share: cut(mp3(), s),
            reason=r"^truncated: \d\.\d\d s of the 1\.3\d s announced",
        )
    add(
        torn,
        "cut-bare.mp3",
        lambda: cut(mp3(muxing=no_header), 0.5),
        one(seconds=SECONDS / 2),
        late_s=0.066,
        note="last frame is cut off",
    )
    for name, make in (
        ("hole", lambda: hole(mp3(), 3_000)),
        ("hole-bare", lambda: hole(mp3(muxing=no_header), 3_001)),
        ("zeros", lambda: zeroed(mp3(), 3_000)),
        ("zeros-bare", lambda: zeroed(mp3(muxing=no_header), 3_000)),
        ("noise-between", lambda: mp3()[:9_000] + noise(2_000) + mp3()[9_000:]),
    ):
        add(torn, f"{name}.mp3", make, reason="^(damaged|truncated): ")
    joined = "several streams in one file"
    add(joined, "two.mp3", lambda: mp3() + mp3(seed=1), one() + one(seed=1))
    add(
        joined,
        "two-tagged.mp3",
        lambda: id3v2() + mp3() + id3v1() + id3v2() + mp3(seed=1) + id3v1(),
        one() + one(seed=1),
    )
    add(joined, "two-rates.mp3", lambda: mp3() + mp3(48_000, seed=1), one() + one(48_000, seed=1))
    add(
        joined,
        "stereo-mono.mp3",
        lambda: mp3() + mp3(22_050, 1, seed=1),
        one() + one(22_050, 1, seed=1),
    )


def _other_frames(add) -> None:
    """mp2, AAC and (E-)AC-3 without a container."""
    kind = "mp2, AAC and AC-3 without a container"
    for rate in (16_000, 44_100, 48_000):
        for channels in (1, 2):
            add(
                kind,
                f"{rate}-{channels}.mp2",
                lambda r=rate, c=channels: encoded("mp2", "mp2", r, c),
                one(rate, channels),
                late_s=2400 / rate,
            )
    for rate in (22_050, 44_100, 48_000):
        for channels in (1, 2):
            add(
                kind,
                f"{rate}-{channels}.aac",
                lambda r=rate, c=channels: encoded("aac", "adts", r, c),
                one(rate, channels),
                late_s=2400 / rate,
            )
    for codec in ("ac3", "eac3"):
        for rate, channels in ((44_100, 1), (48_000, 2), (48_000, 6)):
            add(
                kind,
                f"{rate}-{channels}.{codec}",
                lambda k=codec, r=rate, c=channels: encoded(k, k, r, c),
                one(rate, channels),
                late_s=3200 / rate,
            )
    add(kind, "tagged.aac", lambda: id3v2() + encoded("aac", "adts") + id3v1(), late_s=0.06)
    add(kind, "aac-called.mp3", lambda: encoded("aac", "adts"), late_s=0.06)
    add(
        kind,
        "hole.aac",
        lambda: hole(encoded("aac", "adts"), 3_001),
        reason="^damaged: .* are no frame",
    )


def _ogg(add) -> None:
    """Ogg: Vorbis, Opus and FLAC, by both libraries; chains, holes, cuts."""
    for rate in (8_000, 16_000, 22_050, 44_100, 48_000):
        for channels in (1, 2):
            add(
                "Ogg Vorbis",
                f"vorbis-{rate}-{channels}.ogg",
                lambda r=rate, c=channels: written("OGG", "VORBIS", r, c),
                one(rate, channels),
            )
    add("Ogg Vorbis", "ffmpeg.ogg", lambda: encoded("vorbis", "ogg"))
    add("Ogg Vorbis", "5.1.ogg", lambda: written("OGG", "VORBIS", 44_100, 6), one(44_100, 6))
    add("Ogg Vorbis", "long.oga", lambda: written("OGG", seconds=9.0), one(seconds=9.0))
    for seconds in (0.02, 0.2, 1.3, 13.0):
        for channels in (1, 2):
            add(
                "Ogg Opus",
                f"ffmpeg-{seconds}-{channels}.opus",
                lambda s=seconds, c=channels: encoded("libopus", "ogg", 48_000, c, s),
                one(48_000, channels, seconds),
            )
    for rate in (8_000, 16_000, 24_000):
        add(
            "Ogg Opus",
            f"opus-{rate}.opus",
            lambda r=rate: written("OGG", "OPUS", r, 1),
            one(rate, 1),
        )
    for ms in ("2.5", "20", "60"):
        options = (("frame_duration", ms),)
        add(
            "Ogg Opus",
            f"frames-{ms}.opus",
            lambda o=options: encoded("libopus", "ogg", 48_000, options=o),
            one(48_000),
        )
    add(
        "Ogg Opus",
        "pages.opus",
        lambda: encoded(
            "libopus", "ogg", 48_000, seconds=4.0, muxing=(("page_duration", "100000"),)
        ),
        one(48_000, seconds=4.0),
    )
    add("Ogg Opus", "5.1.opus", lambda: encoded("libopus", "ogg", 48_000, 6), one(48_000, 6))
    for rate in (22_050, 44_100):
        add("Ogg FLAC", f"flac-{rate}.oga", lambda r=rate: encoded("flac", "ogg", r), one(rate))
    vorbis = lambda **kw: written("OGG", "VORBIS", **kw)  # noqa: E731
    opus = lambda **kw: encoded("libopus", "ogg", 48_000, **kw)  # noqa: E731
    for ending in ("mp3", "wav", "opus"):
        add("wrong endings", f"vorbis-called.{ending}", vorbis)
    chain = "several streams in one file"
    add(
        chain,
        "two.ogg",
        lambda: ogg_serial(vorbis(), 1) + ogg_serial(vorbis(seed=1), 2),
        one() + one(seed=1),
    )
    add(
        chain,
        "rates.ogg",
        lambda: ogg_serial(vorbis(), 1) + ogg_serial(vorbis(rate=22_050, seed=1), 2),
        one() + one(22_050, seed=1),
    )
    add(
        chain,
        "channels.ogg",
        lambda: ogg_serial(vorbis(), 1) + ogg_serial(vorbis(channels=1, seed=1), 2),
        one() + one(channels=1, seed=1),
    )
    add(
        chain,
        "same-serial.ogg",
        lambda: ogg_serial(vorbis(), 1) + ogg_serial(vorbis(seed=1), 1),
        one() + one(seed=1),
    )
    add(
        chain,
        "two.opus",
        lambda: ogg_serial(opus(), 1) + ogg_serial(opus(seed=1), 2),
        one(48_000) + one(48_000, seed=1),
    )
    add(
        chain,
        "codecs.ogg",
        lambda: ogg_serial(vorbis(), 1) + ogg_serial(opus(seed=1), 2),
        one() + one(48_000, seed=1),
    )
    add(
        chain,
        "three.ogg",
        lambda: b"".join(ogg_serial(vorbis(seed=k), k + 1) for k in range(3)),
        one() + one(seed=1) + one(seed=2),
    )
    odd = "Ogg, odd but whole"
    add(odd, "joined-late.ogg", lambda: ogg_later(vorbis(), 10**6))
    add(odd, "joined-late.opus", lambda: ogg_later(opus(), 10**6), one(48_000))
    add(odd, "junk-front.ogg", lambda: noise(300) + vorbis())
    add(odd, "id3v2.ogg", lambda: id3v2() + vorbis())
    add(odd, "id3v1.ogg", lambda: vorbis() + id3v1())
    add(odd, "trailing.ogg", lambda: vorbis() + noise(5_000), note="bytes behind its end")
    torn = "Ogg, cut or with a hole"
    long = lambda: vorbis(seconds=4.0)  # noqa: E731
    for share in (0.3, 0.6, 0.95):
        add(torn, f"cut-{share}.ogg", lambda s=share: cut(long(), s), reason="^truncated|^damaged")
    opus_long = lambda: opus(seconds=4.0)  # noqa: E731
    add(torn, "cut.opus", lambda: cut(opus_long(), 0.6), reason="^truncated|^damaged")
    add(torn, "no-last-page.ogg", lambda: b"".join(ogg_pages(long())[:-1]), reason="^truncated")
    add(
        torn,
        "no-middle-page.ogg",
        lambda: _without(ogg_pages(long()), 4),
        reason="pages are missing",
    )
    add(torn, "no-middle-page.opus", lambda: _without(ogg_pages(opus_long()), 3), reason="missing")
    add(torn, "hole.ogg", lambda: hole(long(), 3_000), reason="^damaged: .* no Ogg page")
    add(torn, "hole.opus", lambda: hole(opus_long(), 3_000), reason="^damaged: .* no Ogg page")
    add(torn, "zeros.ogg", lambda: zeroed(long(), 3_000), reason="^damaged: .* no Ogg page")
    add(torn, "one-byte.ogg", lambda: flipped(long(), 0.5), reason="^damaged: .* no Ogg page")
    add(
        torn,
        "second-cut.ogg",
        lambda: ogg_serial(vorbis(), 1) + cut(ogg_serial(long(), 2), 0.6),
        reason="^truncated|^damaged",
    )


def _without(pages: list[bytes], k: int) -> bytes:
    """All pages but one."""
    assert len(pages) > k + 1, len(pages)
    return b"".join(pages[:k] + pages[k + 1 :])


def _mp4(add) -> None:
    """MP4: AAC, ALAC, Opus; index in front or behind; cut."""
    kind = "MP4: AAC, ALAC, Opus"
    for rate in (22_050, 44_100, 48_000):
        for channels in (1, 2):
            add(
                kind,
                f"{rate}-{channels}.m4a",
                lambda r=rate, c=channels: encoded("aac", "ipod", r, c),
                one(rate, channels),
            )
    add(kind, "5.1.m4a", lambda: encoded("aac", "ipod", 48_000, 6), one(48_000, 6))
    add(
        kind, "index-first.m4a", lambda: encoded("aac", "ipod", muxing=(("movflags", "faststart"),))
    )
    fragments = (("movflags", "frag_keyframe+empty_moov"), ("frag_duration", "300000"))
    add(kind, "fragments.mp4", lambda: encoded("aac", "mp4", muxing=fragments), late_s=0.06)
    add(kind, "alac.m4a", lambda: encoded("alac", "ipod"))
    add(kind, "alac-mono.m4a", lambda: encoded("alac", "ipod", 48_000, 1), one(48_000, 1))
    add(kind, "opus.mp4", lambda: encoded("libopus", "mp4", 48_000), one(48_000))
    add(kind, "mp3.mp4", lambda: encoded("libmp3lame", "mp4"), late_s=0.06)
    add(kind, "sound.mov", lambda: encoded("aac", "mov"))
    add(kind, "long.m4b", lambda: encoded("aac", "ipod", seconds=6.0), one(seconds=6.0))
    m4a = lambda **kw: encoded("aac", "ipod", **kw)  # noqa: E731
    for ending in ("mp3", "wav", "aac", "ogg"):
        add("wrong endings", f"m4a-called.{ending}", m4a)
    add(kind, "trailing.m4a", lambda: m4a() + noise(5_000), note="bytes behind its end")
    torn = "MP4, cut"
    first = lambda: m4a(muxing=(("movflags", "faststart"),), seconds=3.0)  # noqa: E731
    for share in (0.5, 0.8):
        add(torn, f"cut-{share}.m4a", lambda s=share: cut(first(), s), reason="^truncated|^damaged")
        add(
            torn,
            f"cut-index-{share}.m4a",
            lambda s=share: cut(m4a(), s),
            reason=r"^truncated: MP4 without its index \(moov\)",
        )
    add(torn, "zeros.m4a", lambda: zeroed(m4a(seconds=3.0), 6_000), reason="^damaged|^truncated")


def _containers(add) -> None:
    """WMA, Matroska, films, and what else FFmpeg reads."""
    kind = "WMA"
    for codec in ("wmav1", "wmav2"):
        for rate, channels in ((44_100, 2), (44_100, 1), (32_000, 2), (22_050, 1)):
            add(
                kind,
                f"{codec}-{rate}-{channels}.wma",
                lambda k=codec, r=rate, c=channels: encoded(k, "asf", r, c, bit_rate=64_000 * c),
                one(rate, channels),
                late_s=4200 / rate,
            )
    add(kind, "wma-called.mp3", lambda: encoded("wmav2", "asf", bit_rate=128_000), late_s=0.1)
    kind = "Matroska and WebM"
    for codec, format, ending, rate in (
        ("libopus", "webm", "webm", 48_000),
        ("vorbis", "webm", "webm", 44_100),
        ("libopus", "matroska", "mka", 48_000),
        ("libmp3lame", "matroska", "mka", 44_100),
        ("aac", "matroska", "mka", 44_100),
        ("flac", "matroska", "mka", 44_100),
        ("ac3", "matroska", "mka", 48_000),
        ("pcm_s16le", "matroska", "mka", 44_100),
    ):
        add(
            kind,
            f"{codec}.{ending}",
            lambda k=codec, f=format, r=rate: encoded(k, f, r),
            one(rate),
            late_s=0.07 if codec in ("libmp3lame", "ac3", "aac") else 0.03,
        )
    for share in (0.4, 0.8):
        add(
            kind,
            f"cut-{share}.mka",
            lambda s=share: cut(encoded("libopus", "matroska", 48_000, seconds=4.0), s),
            reason="^truncated|^damaged",
        )
    long = lambda codec, format: encoded(  # noqa: E731
        codec, format, 48_000, seconds=4.0, bit_rate=128_000
    )
    torn = "other containers, cut or with a hole"
    for codec, format, ending in (
        ("libopus", "matroska", "mka"),
        ("wmav2", "asf", "wma"),
        ("wavpack", "wv", "wv"),
        ("tta", "tta", "tta"),
        ("ac3", "ac3", "ac3"),
        ("eac3", "eac3", "eac3"),
        ("alac", "ipod", "m4a"),
    ):
        add(
            torn,
            f"hole.{ending}",
            lambda k=codec, f=format: hole(long(k, f), 12_001),
            reason="^truncated|^damaged",
        )
    for codec, format, ending in (
        ("wmav2", "asf", "wma"),
        ("wavpack", "wv", "wv"),
        ("tta", "tta", "tta"),
    ):
        add(
            torn,
            f"cut.{ending}",
            lambda k=codec, f=format: cut(long(k, f), 0.6),
            reason="^truncated|^damaged",
        )
    kind = "films with a sound track"
    for format, codec, ending in (
        ("mp4", "aac", "mp4"),
        ("matroska", "libopus", "mkv"),
        ("mov", "aac", "mov"),
        ("avi", "libmp3lame", "avi"),
        ("mpegts", "aac", "ts"),
    ):
        rate = 48_000 if codec == "libopus" else 44_100
        add(
            kind,
            f"film.{ending}",
            lambda f=format, k=codec, r=rate: encoded(k, f, r, video=True),
            one(rate),
            late_s=0.08,
        )
    add(
        kind,
        "cut-film.avi",
        lambda: cut(encoded("libmp3lame", "avi", video=True), 0.7),
        reason=r"^truncated: [\d,]+ of its bytes are missing",
    )
    for format, ending in (("mp4", "mp4"), ("matroska", "mkv"), ("avi", "avi")):
        add(
            kind,
            f"silent-film.{ending}",
            lambda f=format: encoded("", f, video=True, sound=False),
            reason=r"^can't be decoded: this is MPEG-4 video in \S+, without a sound track",
        )
    kind = "other codecs and containers"
    for codec, format, ending in (
        ("wavpack", "wv", "wv"),
        ("tta", "tta", "tta"),
        ("adpcm_ms", "wav", "wav"),
        ("adpcm_ima_wav", "wav", "wav"),
        ("libmp3lame", "wav", "wav"),
        ("pcm_mulaw", "wav", "wav"),
        ("pcm_f32le", "wav", "wav"),
        ("alac", "caf", "caf"),
        ("pcm_s16be", "caf", "caf"),
        ("pcm_s16be", "aiff", "aiff"),
        ("pcm_s16be", "au", "au"),
        ("flac", "flac", "flac"),
    ):
        add(
            kind,
            f"{codec}-{format}.{ending}",
            lambda k=codec, f=format: encoded(k, f),
            late_s=0.07 if codec in ("adpcm_ms", "adpcm_ima_wav", "libmp3lame") else 0.0,
        )
    for format in ("AIFF", "W64", "RF64", "CAF", "AU"):
        add(kind, f"by-libsndfile.{format.lower()}", lambda f=format: written(f))
    add(kind, "trailing.aiff", lambda: written("AIFF") + noise(5_000), note="behind its end")
    for format in ("AIFF", "W64"):
        add(
            kind,
            f"cut.{format.lower()}",
            lambda f=format: cut(written(f), 0.6),
            reason=r"^truncated: 0\.\d\d s of the 1\.30 s announced",
        )


def _flac(add) -> None:
    """FLAC: tags, unknown length, cuts, holes."""
    kind = "FLAC"
    flac = lambda **kw: written("FLAC", **kw)  # noqa: E731
    for rate, channels in ((16_000, 1), (44_100, 2), (48_000, 6), (96_000, 2), (44_100, 8)):
        add(
            kind,
            f"{rate}-{channels}.flac",
            lambda r=rate, c=channels: flac(rate=r, channels=c),
            one(rate, channels),
        )
    add(kind, "24-bit.flac", lambda: flac(subtype="PCM_24"))
    add(kind, "no-total.flac", lambda: flac_without_total(flac()))
    add(kind, "no-total-24.flac", lambda: flac_without_total(flac(subtype="PCM_24")))
    add(kind, "no-total-8.flac", lambda: flac_without_total(flac(channels=8)), one(channels=8))
    add(kind, "id3v2.flac", lambda: id3v2() + flac())
    add(kind, "id3v2-no-total.flac", lambda: id3v2() + flac_without_total(flac()))
    add(kind, "id3v1.flac", lambda: flac() + id3v1())
    add(kind, "ape.flac", lambda: flac() + ape())
    add(kind, "trailing.flac", lambda: flac() + noise(5_000), note="bytes behind its end")
    add(
        kind,
        "trailing-24.flac",
        lambda: flac(subtype="PCM_24", rate=48_000, channels=1) + noise(70_000),
        one(48_000, 1),
        note="bytes behind its end",
    )
    add(
        kind,
        "by-ffmpeg-trailing.flac",
        lambda: id3v2() + encoded("flac", "flac") + noise(5_000),
        note="bytes behind its end",
    )
    add(kind, "no-total-id3v1.flac", lambda: flac_without_total(flac()) + id3v1())
    add("wrong endings", "flac-called.mp3", flac)
    add("wrong endings", "flac-called.wav", flac)
    torn = "FLAC, cut or with a hole"
    for share in (0.3, 0.9):
        add(
            torn,
            f"cut-{share}.flac",
            lambda s=share: cut(flac(), s),
            reason="^damaged or truncated",
        )
    add(torn, "hole.flac", lambda: hole(flac(), 9_000), reason="^damaged")
    add(torn, "zeros.flac", lambda: zeroed(flac(), 9_000), reason="^damaged")
    add(
        torn,
        "no-total-hole.flac",
        lambda: hole(flac_without_total(flac()), 9_000),
        reason="^damaged",
    )
    add(torn, "one-byte.flac", lambda: flipped(flac(), 0.5), reason="^damaged")


def _wav(add) -> None:
    """WAV: sizes that aren't so, chunks in every order."""
    kind = "WAV with an odd header"
    add(kind, "plain.wav", lambda: wav([(b"data", pcm(), None)]))
    for word, size in (
        ("0", 0),
        ("ffffffff", 0xFFFFFFFF),
        ("fffffff0", 0xFFFFFFF0),
        ("7ffff000", 0x7FFFF000),
        ("80000000", 0x80000000),
    ):
        add(kind, f"size-{word}.wav", lambda n=size: wav([(b"data", pcm(), n)]))
        add(
            kind,
            f"size-{word}-mono.wav",
            lambda n=size: wav([(b"data", pcm(channels=1), n)], channels=1),
            one(channels=1),
        )
    info = (b"LIST", b"INFOISFT\x04\0\0\0tune", None)
    add(kind, "list-before.wav", lambda: wav([info, (b"data", pcm(), None)]))
    add(kind, "list-behind.wav", lambda: wav([(b"data", pcm(), None), info]))
    add(kind, "list-before-size-0.wav", lambda: wav([info, (b"data", pcm(), 0)]))
    add(kind, "junk.wav", lambda: wav([(b"JUNK", bytes(4_001), None), (b"data", pcm(), None)]))
    add(
        kind,
        "two-data.wav",
        lambda: wav([(b"data", pcm(), None), (b"data", pcm(seed=1), None)]),
        one() + one(seed=1),
    )
    add(
        kind,
        "two-data-list.wav",
        lambda: wav([(b"data", pcm(), None), info, (b"data", pcm(seed=1), None)]),
        one() + one(seed=1),
    )
    add(kind, "empty-and-data.wav", lambda: wav([(b"data", b"", None), (b"data", pcm(), None)]))
    odd = (b"JUNK", b"abcde", None)
    whole = wav([odd, (b"data", pcm(), None)])
    add(kind, "no-padding.wav", lambda: whole.replace(b"abcde\0", b"abcde"))
    add(
        "WAV, cut",
        "second-data-cut.wav",
        lambda: cut(wav([(b"data", pcm(), None), (b"data", pcm(seed=1), None)]), 0.8),
        reason=r"^truncated: 2\.\d\d s of the 2\.60 s announced",
    )
    add(kind, "riff-size-0.wav", lambda: _riff_size(wav([(b"data", pcm(), None)]), 0))
    add(kind, "riff-size-all.wav", lambda: _riff_size(wav([(b"data", pcm(), None)]), 0xFFFFFFFF))
    add(kind, "all-sizes-0.wav", lambda: _riff_size(wav([(b"data", pcm(), 0)]), 0))
    add(kind, "rf64-size-0.wav", lambda: _rf64_interrupted(written("RF64")))
    add(kind, "id3v1.wav", lambda: wav([(b"data", pcm(), None)]) + id3v1())
    add(kind, "id3v2-front.wav", lambda: id3v2() + wav([(b"data", pcm(), None)]))
    add(
        kind,
        "trailing.wav",
        lambda: wav([(b"data", pcm(), None)]) + b"\xff" * 5_000,
        note="bytes behind its end",
    )
    for share in (0.3, 0.99):
        add(
            "WAV, cut",
            f"cut-{share}.wav",
            lambda s=share: cut(wav([(b"data", pcm(), None)]), s),
            reason=r"^truncated: \d\.\d\d s of the 1\.30 s announced",
        )
    add("WAV, cut", "no-samples.wav", lambda: wav([(b"data", b"", None)]), reason="no samples")
    add("WAV, cut", "only-list.wav", lambda: wav([(b"data", b"", 0), info]), reason="no samples")
    add(
        "opposite channels",
        "antiphase.wav",
        lambda: wav([(b"data", _opposite(), None)]),
        (),
        note="opposite phase",
    )


def _rf64_interrupted(data: bytes) -> bytes:
    """An RF64 whose recorder never wrote the sizes."""
    at = data.index(b"ds64") + 8
    return data[:at] + bytes(24) + data[at + 24 :]


def _riff_size(data: bytes, size: int) -> bytes:
    """A WAV whose outer size is another."""
    return data[:4] + struct.pack("<I", size) + data[8:]


def _opposite() -> bytes:
    """Samples of a left channel and its opposite, but for rounding."""
    mono = music(SECONDS, 44_100, 1)[:, 0]
    both = np.stack([mono, -mono * 0.9999], 1)
    return np.rint(both * 32767).astype("<i2").tobytes()


def _not_audio(add) -> None:
    """Everything that comes under an audio ending and is none."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(500)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"
    for word, data, reason in (
        ("html", b"<!DOCTYPE html><html><body>404</body></html>" * 9, "HTML, not audio: a failed"),
        ("html-later", b"\n\n  <html lang='en'><title>Sign in</title>" * 9, "HTML, not audio"),
        ("text", b"Once upon a time\n" * 99, "text, not audio$"),
        ("utf-16", "une fois\n".encode("utf-16") * 99, "text, not audio$"),
        ("json", b'{"error": "not found"}', "JSON, not audio: a failed download"),
        ("xml", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML, not audio"),
        ("png", png, "a PNG image, not audio$"),
        ("jpeg", b"\xff\xd8\xff\xe0" + bytes(900), "a JPEG image, not audio$"),
        ("pdf", b"%PDF-1.7\n" + bytes(900), "a PDF, not audio$"),
        ("zip", b"PK\x03\x04" + noise(900), "a zip archive, not audio: unpack it: python -m zip"),
        ("gzip", b"\x1f\x8b\x08" + noise(900), "a gzip archive, not audio: unpack it"),
        ("lfs", lfs, "a Git LFS pointer, not audio: .*git lfs pull$"),
        ("midi", b"MThd\0\0\0\x06" + bytes(90), "MIDI: notes, no sound, not audio: .*fluidsynth"),
        ("m3u", b"#EXTM3U\na.mp3\n", "a playlist, not audio"),
        ("numpy", b"\x93NUMPY\x01\0" + bytes(500), "a NumPy array, not audio"),
        ("tag-cut", id3v2(3_000)[:900], r"a tag \(ID3 or APE\) with no audio behind it"),
        ("tag-only", id3v2(), r"a tag \(ID3 or APE\) with no audio behind it"),
        ("noise", noise(9_000), "not a kind of audio that is known here$"),
        ("zeros", bytes(9_000), "not a kind of audio that is known here$"),
    ):
        for ending in ("mp3", "wav", "m4a"):
            add(
                "not audio",
                f"{word}.{ending}",
                lambda d=data: d,
                reason=f"^can't be decoded: {reason}",
            )
    add("not audio", "empty.mp3", lambda: b"", reason=r"^empty file \(0 bytes\)$")
    add("not audio", "bytes.raw", lambda: noise(900), reason="a .raw file has no header")


VARIANTS = _variants()
