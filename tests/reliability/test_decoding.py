"""Files as people's encoders write them, and broken ones (audio_variants.py): each its right value.

What can be decoded is compared with its source, by length and by correlation; what can't must be
refused with its reason. The table of docs/reliability.md counts these kinds.
"""

import json
import re
from collections import Counter

import audio_variants
import numpy as np
import pyarrow.parquet as pq
import pytest
from audio_variants import VARIANTS
from conftest import ROOT, SHARED, run

from tune.audio.decode import AudioError, decode, read_header
from tune.tasks.load import SPLITS

RATE = 16_000
LENGTH_S = 0.06  # how far a length may be off
CORRELATION = 0.95  # of a codec at its usual bit rate


def best_lag(heard: np.ndarray, right: np.ndarray) -> tuple[int, float]:
    """Samples by which `heard` is late, and the correlation there."""
    n = 1 << (len(heard) + len(right)).bit_length()
    cross = np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(right, n)), n)
    lag = int(cross.argmax())
    lag = lag - n if lag > n // 2 else lag
    return lag, float(cross.max() / np.sqrt((heard**2).sum() * (right**2).sum()))


def test_the_corpus_is_as_large_as_it_says():
    assert len(VARIANTS) >= 250
    assert sum(v.reason is None for v in VARIANTS) >= 150
    names = Counter(v.name for v in VARIANTS)
    assert max(Counter((v.kind, v.name) for v in VARIANTS).values()) == 1, names.most_common(3)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.kind}-{v.name}".replace(" ", "_"))
def test_a_variant_has_its_right_value(tmp_path, variant, capfd):
    path = tmp_path / variant.name
    path.write_bytes(variant.make())
    if variant.reason:
        with pytest.raises(AudioError, match=variant.reason):
            decode(path, RATE)
    else:
        sound = decode(path, RATE)
        notes = "; ".join(sound.notes)
        assert (variant.note or "") in notes
        assert bool(notes) == bool(variant.note), notes
        if variant.parts:
            right = audio_variants.heard(variant, RATE)
            seconds, right_s = len(sound.samples) / RATE, len(right) / RATE
            assert right_s - LENGTH_S < seconds < right_s + max(LENGTH_S, variant.late_s)
            lag, correlation = best_lag(sound.samples, right)
            assert correlation > CORRELATION
            # FFmpeg's WMA encoder loses its first frame, so that what follows comes early.
            assert abs(lag / RATE) < 0.002 + variant.late_s
            header = read_header(path)
            own_rate = 48_000 if header.format.startswith("Opus") else variant.parts[0][0]
            assert header.sample_rate == own_rate
            assert header.channels == variant.parts[0][1]
            assert np.isnan(header.seconds) or abs(header.seconds - seconds) < 0.1
    assert capfd.readouterr() == ("", "")  # no library writes remarks of its own


@pytest.mark.slow
def test_all_variants_through_embed_and_check(tmp_path):
    rows = ["path,label,split"]
    for i, variant in enumerate(VARIANTS):
        path = tmp_path / variant.kind / variant.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(variant.make())
        rows.append(f'"{variant.kind}/{variant.name}",{"ab"[i % 2]},{SPLITS[i // 2 % 3]}')
    (tmp_path / "all.csv").write_text("\n".join(rows))
    names = [f"{variant.kind}/{variant.name}" for variant in VARIANTS]
    (tmp_path / "all.txt").write_text("\n".join(names))
    flags = ("--encoder", "mel", "--seg", "full", "--out", "e.parquet", "--store", "store")
    done = run(ROOT / "embed.py", "all.txt", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "e.parquet", columns=["path", "reason"]).to_pylist()
    reasons = {row["path"]: row["reason"] for row in table}
    assert len(reasons) == len(VARIANTS)
    for variant, name in zip(VARIANTS, names, strict=True):
        short = variant.parts and sum(part[2] for part in variant.parts) < 0.1
        expected = variant.reason or ("too short" if short else "^$")
        assert re.search(expected, reasons[name] or ""), (name, reasons[name])
    run("-m", "tune.tasks", "check", "all.csv", "--json", "check.json", cwd=tmp_path)
    report = json.loads((tmp_path / "check.json").read_text())
    problems = "\n".join(problem["text"] for problem in report["problems"])
    for variant, name in zip(VARIANTS, names, strict=True):
        if variant.reason:
            assert f"{name}: {reasons[name]}" in problems


# What ../shared/cases/EXPECTED.tsv says: seconds, or None where a file must be refused.
CASES = {
    "mp3_vbr_noxing.mp3": 12.38,
    "cbr128.mp3": 61.7,
    "opus_by_ffmpeg.opus": 13.0,
    "ogg_chained.ogg": 20.56,
    "ogg_cut_mid.ogg": None,
    "flac_total0.flac": 12.345,
    "wav_data0.wav": 12.345,
    "wav_antiphase.wav": 12.345,
    "m4a_named.mp3": 12.35,
}


@pytest.mark.parametrize("name", CASES)
def test_the_shared_cases_have_their_right_values(name):
    path = SHARED / "cases" / "audio" / name
    if not path.is_file():
        pytest.skip("the cases (../shared/cases) are not here")
    if CASES[name] is None:
        with pytest.raises(AudioError, match=r"^damaged: .* at 5\.89 s are no Ogg page"):
            decode(path, RATE)
        return
    sound = decode(path, RATE)
    assert len(sound.samples) / RATE == pytest.approx(CASES[name], abs=LENGTH_S)
    assert bool(sound.notes) == ("antiphase" in name)


def test_a_part_of_what_ffmpeg_reads_is_that_part_of_the_whole(tmp_path):
    for name in ("xing-44100-2.mp3", "rates.ogg", "44100-2.m4a", "libopus.webm", "two-data.wav"):
        (variant,) = (v for v in VARIANTS if v.name == name)
        path = tmp_path / name
        path.write_bytes(variant.make())
        whole = decode(path, RATE).samples
        for start, end in ((0.2, 0.9), (0.0, 0.5), (0.7, None)):
            last = None if end is None else round(end * RATE)
            part = decode(path, RATE, start, end).samples
            np.testing.assert_allclose(part, whole[round(start * RATE) : last], atol=1e-5)


def test_what_becomes_of_the_channels(tmp_path):
    path = tmp_path / "5.1.m4a"
    (variant,) = (v for v in VARIANTS if v.name == path.name)
    path.write_bytes(variant.make())
    own = audio_variants.music(audio_variants.SECONDS, 48_000, 6)
    for channels, right in {
        "mix": own.mean(1),
        "first": own[:, 0],
        "left": own[:, 0],
        "right": own[:, 1],
        "mid": own[:, :2].mean(1),
    }.items():
        heard = decode(path, 48_000, channels=channels).samples
        assert best_lag(heard, right)[1] > CORRELATION, channels
    with pytest.raises(ValueError, match="channels must be one of mix, first"):
        decode(path, 48_000, channels="centre")
