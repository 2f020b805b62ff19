"""Decoding, downmix, resampling, parts of files, and the reasons why a file is not usable."""

import os
import struct
import sys
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from audio_variants import encoded

from tune.audio import readers
from tune.audio.decode import AudioError, check_file, is_silent, read_audio

HZ = 440
RATE = 24_000  # the encoders' rate


class Kind(NamedTuple):
    """A way to write a file, and how far its samples may be from what was written."""

    ext: str
    format: str
    subtype: str
    tolerance: float


WAV = Kind("wav", "WAV", "PCM_16", 1e-4)
FLOAT = Kind("wav", "WAV", "FLOAT", 1e-5)
FLAC = Kind("flac", "FLAC", "PCM_16", 1e-4)
AIFF = Kind("aiff", "AIFF", "PCM_16", 1e-4)
VORBIS = Kind("ogg", "OGG", "VORBIS", 0.02)
OPUS = Kind("opus", "OGG", "OPUS", 0.1)
MP3 = Kind("mp3", "MP3", "MPEG_LAYER_III", 0.02)
LOSSLESS = [
    WAV,
    FLOAT,
    FLAC,
    AIFF,
    Kind("wav", "WAV", "PCM_U8", 0.01),
    Kind("wav", "WAV", "PCM_24", 1e-5),
    Kind("wav", "WAV", "PCM_32", 1e-5),
    Kind("wav", "WAV", "DOUBLE", 1e-5),
    Kind("wav", "WAVEX", "PCM_24", 1e-5),
    Kind("wav", "RF64", "PCM_16", 1e-4),
    Kind("w64", "W64", "PCM_16", 1e-4),
    Kind("flac", "FLAC", "PCM_S8", 0.01),
    Kind("flac", "FLAC", "PCM_24", 1e-5),
    Kind("aiff", "AIFF", "PCM_S8", 0.01),
    Kind("aiff", "AIFF", "PCM_24", 1e-5),
    Kind("aiff", "AIFF", "FLOAT", 1e-5),
]
LOSSLESS_RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000]
DECODABLE = [
    *((WAV, rate) for rate in LOSSLESS_RATES),
    *((kind, rate) for kind in LOSSLESS if kind != WAV for rate in (22_050, 48_000)),
    *((kind, rate) for kind in (VORBIS, MP3) for rate in (16_000, 22_050, 44_100, 48_000)),
    *((OPUS, rate) for rate in (12_000, 24_000, 48_000)),
]


def named(value):
    """The id of a parameter."""
    return f"{value.format}-{value.subtype}".lower() if isinstance(value, Kind) else None


def sine(seconds: float, rate: int, amplitude: float = 0.5, hz: float = HZ) -> np.ndarray:
    """A sine: (n_samples,) float64."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(folder, samples, rate: int = RATE, kind: Kind = WAV, name: str = "audio"):
    """Write a file; return its path."""
    path = folder / f"{name}.{kind.ext}"
    soundfile.write(path, samples, rate, format=kind.format, subtype=kind.subtype)
    return path


def cut(path, n_bytes: int):
    """Keep the first (or, if negative, all but the last) bytes of a file."""
    path.write_bytes(path.read_bytes()[:n_bytes])
    return path


# Decoding


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize(("kind", "rate"), DECODABLE, ids=named)
def test_sine_keeps_length_frequency_and_level(tmp_path, kind, rate, channels):
    left, right = sine(1, rate, 0.5), sine(1, rate, 0.1)
    samples, amplitude = (left, 0.5) if channels == 1 else (np.stack([left, right], 1), 0.3)
    got = read_audio(write(tmp_path, samples, rate, kind), RATE)
    assert got.dtype == np.float32
    assert got.shape == (RATE,)
    spectrum = np.abs(np.fft.rfft(got)) * 2 / RATE  # amplitudes, in bins of 1 Hz
    assert spectrum.argmax() == HZ
    assert spectrum[HZ] == pytest.approx(amplitude, abs=0.01)
    # Away from the edges, where lossy codecs and resampling ring.
    middle = slice(RATE // 10, -RATE // 10)
    np.testing.assert_allclose(
        got[middle], sine(1, RATE, amplitude)[middle], rtol=0, atol=kind.tolerance
    )


@pytest.mark.parametrize("kind", [WAV, FLOAT, FLAC, AIFF], ids=named)
def test_lossless_file_at_its_own_rate_is_exact(tmp_path, rng, kind):
    samples = rng.integers(-(2**15), 2**15, 4801) / 2**15
    np.testing.assert_array_equal(read_audio(write(tmp_path, samples, kind=kind), RATE), samples)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in soundfile.available_formats()
        if "PCM_16" in soundfile.available_subtypes(kind) and kind not in ("RAW", "SD2")
    ],
)
def test_samples_of_16_bits_are_the_floats_of_libsndfile(tmp_path, rng, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, rng.uniform(-1, 1, 4_000), 8_000, "PCM_16", format=kind)
    assert np.array_equal(read_audio(path, 8_000), soundfile.read(path, dtype="float32")[0])


def test_damaged_frames_do_not_depend_on_what_lies_behind_them_in_memory(tmp_path, rng):
    """Frames of mp2 without a checksum; many ask for more bits than they have."""
    data = bytearray(encoded("mp2", "mp2", seconds=1.0))
    for at in rng.integers(100, len(data), len(data) // 50):
        if 255 not in data[at - 2 : at + 1]:  # headers stay as they are
            data[at] ^= 0x55
    path = tmp_path / "a.mp2"
    path.write_bytes(data)
    first = read_audio(path, 44_100)
    for value in (1, 85, 254):
        freed = [bytes([value]) * n for n in range(64, 2_048) for _ in range(6)]
        del freed
        assert np.array_equal(read_audio(path, 44_100), first)


@pytest.mark.parametrize("kind", [WAV, FLAC, AIFF, MP3, VORBIS, OPUS], ids=named)
def test_length_to_the_sample(tmp_path, rng, kind):
    for n_samples in (4801, 30_001):
        path = write(tmp_path, rng.uniform(-0.1, 0.1, n_samples), RATE, kind)
        assert len(read_audio(path, RATE)) == n_samples


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_downmix_is_the_mean_of_the_channels(tmp_path, rng, channels):
    samples = rng.uniform(-1, 1, (1000, channels)).astype(np.float32)
    got = read_audio(write(tmp_path, samples, kind=FLOAT), RATE)
    np.testing.assert_allclose(got, samples.astype(np.float64).mean(1), atol=1e-7)


def test_equal_channels_are_the_mono_file(tmp_path, rng):
    mono = rng.uniform(-1, 1, 5000).astype(np.float32)
    stereo = write(tmp_path, np.stack([mono, mono], 1), 44_100, FLOAT, "stereo")
    np.testing.assert_array_equal(
        read_audio(stereo, RATE), read_audio(write(tmp_path, mono, 44_100, FLOAT), RATE)
    )


def test_opposite_channels_cancel_to_silence(tmp_path):
    wave = sine(0.1, RATE)
    assert is_silent(read_audio(write(tmp_path, np.stack([wave, -wave], 1), kind=FLOAT), RATE))


def test_what_the_new_rate_cannot_hold_is_removed_not_folded_back(tmp_path):
    path = write(tmp_path, sine(1, 48_000, hz=15_000), 48_000, FLOAT)
    assert np.abs(read_audio(path, RATE)[2400:-2400]).max() < 0.5e-4  # 80 dB below


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_float_wav_beyond_one_is_not_clipped(tmp_path, rate):
    got = read_audio(write(tmp_path, sine(1, rate, 3.0), rate, FLOAT), RATE)
    np.testing.assert_allclose(got[2400:-2400], sine(1, RATE, 3.0)[2400:-2400], atol=1e-4)


def test_block_size_changes_nothing(tmp_path, rng, monkeypatch):
    path = write(tmp_path, rng.uniform(-1, 1, (10_000, 2)), 44_100, FLOAT)
    at_once = read_audio(path, RATE)
    monkeypatch.setattr(readers, "BLOCK_FRAMES", 777)
    np.testing.assert_array_equal(read_audio(path, RATE), at_once)


def test_one_sample_is_a_track(tmp_path):
    np.testing.assert_array_equal(read_audio(write(tmp_path, [0.25]), RATE), [0.25])


def test_path_may_be_a_string(tmp_path):
    path = write(tmp_path, sine(0.1, RATE))
    np.testing.assert_array_equal(read_audio(str(path), RATE), read_audio(path, RATE))


def test_name_need_not_be_ascii_or_utf8(tmp_path):
    # Linux has names that are not UTF-8; elsewhere every name is.
    name = os.fsdecode(b"caf\xe9") if sys.platform == "linux" else "caf\u00e9"
    path = write(tmp_path, sine(0.1, RATE)).rename(tmp_path / name)
    assert len(read_audio(path, RATE)) == RATE // 10


# Parts


@pytest.mark.parametrize("rate", [*LOSSLESS_RATES, 44_101])
def test_part_equals_the_same_part_of_the_whole(tmp_path, rng, rate):
    path = write(tmp_path, rng.uniform(-1, 1, (rate, 2)), rate, FLOAT)
    whole = read_audio(path, RATE)
    for start, end in [(0, 0.4), (0.35, 0.7), (0.123456, 0.654321), (0.9, 1.0), (0.6, None)]:
        last = None if end is None else round(end * RATE)
        part = read_audio(path, RATE, start, end)
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, whole[round(start * RATE) : last], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [FLAC, AIFF, VORBIS, OPUS, MP3], ids=named)
def test_part_of_a_compressed_file_equals_the_same_part_of_the_whole(tmp_path, kind):
    rate = 48_000
    # Loud bursts after rests: an mp3 saves bits for them, which a seek into the middle would miss.
    rests = sine(4, rate) * (np.arange(4 * rate) % rate > 0.8 * rate)
    path = write(tmp_path, rests, rate, kind)
    whole = read_audio(path, RATE)
    for start, end in [(0, 1), (0.7, 1.9), (2.123, 3.3), (3.81, None)]:
        last = None if end is None else round(end * RATE)
        part = read_audio(path, RATE, start, end)
        np.testing.assert_allclose(part, whole[round(start * RATE) : last], rtol=0, atol=1e-5)


def test_part_of_a_file_that_libsndfile_cannot_seek_in(tmp_path):
    path = tmp_path / "phone.wav"
    soundfile.write(path, sine(4, 8000), 8000, subtype="GSM610")
    whole = read_audio(path, RATE)
    part = read_audio(path, RATE, 1.5, 2.5)
    np.testing.assert_allclose(part, whole[round(1.5 * RATE) : round(2.5 * RATE)], atol=1e-6)


def test_parts_side_by_side_are_the_whole(tmp_path, rng):
    path = write(tmp_path, rng.uniform(-1, 1, 44_100), 44_100)
    bounds = [0, 0.21, 0.5, 0.77, None]
    parts = [read_audio(path, RATE, start, end) for start, end in pairwise(bounds)]
    np.testing.assert_allclose(np.concatenate(parts), read_audio(path, RATE), atol=1e-5)


def test_part_that_ends_after_the_file_is_what_there_is(tmp_path):
    path = write(tmp_path, sine(1, RATE))
    np.testing.assert_array_equal(read_audio(path, RATE, 0.25, 9), read_audio(path, RATE, 0.25))
    assert len(read_audio(path, RATE, 0.25, 9)) == 0.75 * RATE


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (1.0, None, "no samples from 1 s$"),
        (1.02, 1.5, "no samples from 1.02 s to 1.5 s"),
        (60.0, None, "no samples from 60 s"),
        (0.5, 0.50001, "no samples from 0.5 s to 0.50001 s"),
    ],
)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_part_without_samples_raises(tmp_path, start, end, reason, rate):
    path = write(tmp_path, sine(1, rate), rate)
    with pytest.raises(AudioError, match=reason):
        read_audio(path, RATE, start, end)


@pytest.mark.parametrize(("start", "end"), [(-0.1, None), (1.0, 1.0), (1.0, 0.5), (0.0, 0.0)])
def test_bounds_out_of_order_raise(tmp_path, start, end):
    with pytest.raises(ValueError, match="a part needs 0 <= start < end"):
        read_audio(write(tmp_path, sine(1, RATE)), RATE, start, end)


# Silence


def test_silence_is_recognised(tmp_path):
    assert is_silent(read_audio(write(tmp_path, np.zeros((4410, 2)), 44_100), RATE))
    assert not is_silent(read_audio(write(tmp_path, [0.0, 0.0, 2**-15, 0.0]), RATE))


# Files that can't be used


def test_missing_file_raises(tmp_path):
    with pytest.raises(AudioError, match=r"^no such file$"):
        read_audio(tmp_path / "missing.wav", RATE)


def test_folder_raises(tmp_path):
    with pytest.raises(AudioError, match=r"^not a regular file$"):
        read_audio(tmp_path, RATE)


def test_file_of_zero_bytes_raises(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"^empty file \(0 bytes\)$"):
        read_audio(tmp_path / "empty.wav", RATE)


def test_path_that_cannot_be_looked_at_raises(tmp_path):
    with pytest.raises(AudioError, match=r"^unreadable: .*null"):
        check_file(f"{tmp_path}/a\0b")
    with pytest.raises(AudioError, match=r"^unreadable: File name too long"):
        check_file(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("ext", ["wav", "flac", "ogg", "mp3", "txt", "au"])
def test_text_file_raises(tmp_path, ext):
    path = tmp_path / f"notes.{ext}"
    path.write_text("Once upon a time\n" * 100)
    with pytest.raises(AudioError, match=r"^can't be decoded: text, not audio$"):
        read_audio(path, RATE)


@pytest.mark.parametrize(
    "kind", [WAV, AIFF, FLOAT, Kind("wav", "RF64", "PCM_16", 0), VORBIS], ids=named
)
def test_header_without_samples_raises(tmp_path, kind):
    with pytest.raises(AudioError, match=r"^holds no samples$"):
        read_audio(write(tmp_path, np.zeros(0), kind=kind), RATE)


SHORT = r"truncated: 0\.\d\d s of the 2\.00 s announced"
TRUNCATED = {
    WAV: SHORT,
    FLOAT: SHORT,
    Kind("wav", "WAVEX", "PCM_24", 0): SHORT,
    Kind("wav", "RF64", "PCM_24", 0): SHORT,
    Kind("w64", "W64", "PCM_16", 0): SHORT,
    AIFF: SHORT,
    MP3: SHORT,
    FLAC: "damaged or truncated: can't be decoded up to the 2.00 s announced",
    VORBIS: r"truncated: the Ogg stream breaks off after 0\.\d\d s|can't be decoded: .* malformed",
    OPUS: r"truncated: the Ogg stream breaks off after 0\.\d\d s|can't be decoded: .* malformed",
}


@pytest.mark.parametrize(("kind", "reason"), TRUNCATED.items(), ids=map(named, TRUNCATED))
def test_file_without_its_second_half_is_truncated(tmp_path, rng, kind, reason):
    path = write(tmp_path, rng.uniform(-0.5, 0.5, 2 * RATE), RATE, kind)
    assert len(read_audio(path, RATE)) == 2 * RATE
    with pytest.raises(AudioError, match=f"^({reason})$"):
        read_audio(cut(path, path.stat().st_size * 2 // 5), RATE)


@pytest.mark.parametrize("kind", [kind for kind in TRUNCATED if kind != MP3], ids=named)
def test_file_without_its_last_bytes_is_truncated(tmp_path, rng, kind):
    path = write(tmp_path, rng.uniform(-0.5, 0.5, 2 * RATE), RATE, kind)
    with pytest.raises(AudioError, match="truncated"):
        read_audio(cut(path, -3), RATE)


def test_mp3_without_its_last_tenth_is_truncated(tmp_path, rng):
    path = write(tmp_path, rng.uniform(-0.5, 0.5, 2 * RATE), RATE, MP3)
    with pytest.raises(AudioError, match=r"truncated: 1\.\d\d s of the 2\.00 s announced"):
        read_audio(cut(path, path.stat().st_size * 9 // 10), RATE)


@pytest.mark.parametrize("kind", [VORBIS, OPUS], ids=named)
def test_ogg_that_ends_between_two_pages_is_truncated(tmp_path, rng, kind):
    path = write(tmp_path, rng.uniform(-0.5, 0.5, 4 * RATE), RATE, kind)
    last_page = path.read_bytes().rfind(b"OggS")
    with pytest.raises(AudioError, match=r"^truncated: the Ogg stream breaks off after"):
        read_audio(cut(path, last_page), RATE)


@pytest.mark.parametrize("kind", list(TRUNCATED), ids=named)
def test_piece_of_a_header_raises(tmp_path, rng, kind):
    path = write(tmp_path, rng.uniform(-0.5, 0.5, 2 * RATE), RATE, kind)
    with pytest.raises(AudioError, match=r"truncated|can't be decoded|holds no samples"):
        read_audio(cut(path, 100), RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_non_finite_samples_raise_with_number_and_place(tmp_path, value, rate):
    samples = sine(1, rate)
    samples[[rate // 2, rate // 2 + 7]] = value
    path = write(tmp_path, samples, rate, FLOAT)
    reason = r"^holds 2 NaN or infinite samples \(the first at 0\.500 s\)$"
    with pytest.raises(AudioError, match=reason):
        read_audio(path, RATE)
    with pytest.raises(AudioError, match=reason):
        read_audio(path, RATE, 0.3, 0.8)


def test_non_finite_sample_in_one_channel_raises(tmp_path):
    samples = np.zeros((100, 2))
    samples[0, 1] = np.nan
    with pytest.raises(AudioError, match=r"holds 1 NaN .* at 0\.000 s"):
        read_audio(write(tmp_path, samples, kind=FLOAT), RATE)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFF000, 0x7FFFEFFC, 0x80000000])
def test_wav_of_unknown_size_is_read_to_its_end(tmp_path, rng, size):
    samples = rng.integers(-(2**15), 2**15, 4800) / 2**15
    path = write(tmp_path, samples)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path, RATE), samples)


@pytest.mark.parametrize("part", [(), (0.1, 0.3)], ids=["whole", "part"])
def test_size_beyond_what_a_file_can_have_is_a_damaged_header(tmp_path, part):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1, RATE), RATE, format="RF64")
    data = bytearray(path.read_bytes())
    at = data.index(b"ds64") + 16
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(AudioError, match="its RF64 header is damaged"):
        read_audio(path, RATE, *part)


def test_part_behind_damage_that_libsndfile_cannot_pass_raises(tmp_path):
    path = tmp_path / "a.aiff"
    soundfile.write(path, sine(1, RATE), RATE, "DWVW_16", format="AIFF")
    data = path.read_bytes()
    path.write_bytes(data[:585] + bytes(len(data) - 585))
    for part in ((), (0.1, 0.3)):
        with pytest.raises(AudioError, match="damaged or truncated: can't be decoded up to the"):
            read_audio(path, 16_000, *part)


def test_channels_that_ffmpeg_cannot_convert_raise(tmp_path):
    path, body = tmp_path / "a.wav", bytes(256 * 8 * 100)  # 256 channels of 64 bits
    form = struct.pack("<HHIIHH", 1, 256, RATE, RATE * 2048, 2048, 64)
    chunks = (
        struct.pack("<4sI", b"fmt ", 16) + form + struct.pack("<4sI", b"data", len(body)) + body
    )
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", len(chunks) + 4, b"WAVE") + chunks)
    with pytest.raises(AudioError, match="FFmpeg can't convert its 256 channels of s64"):
        read_audio(path, RATE)


def test_header_that_lies_costs_no_memory(tmp_path):
    path = write(tmp_path, sine(1, RATE))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0x7000_0000)  # 21 hours
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"truncated: 1\.00 s of the 391\d\d\.\d\d s announced"):
        read_audio(path, RATE)
