"""--seg structure: pieces that follow the music, kept in the store, drawn by tune.segments plot."""

import copy
import importlib.util
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run, tone

from tune.encoders.registry import load_encoder
from tune.segments.plot import main, table
from tune.segments.rules import SegmentRule, is_degenerate, parse_rule
from tune.segments.structure import StructureRule
from tune.store.encode import encode_tracks
from tune.store.store import Store

LOW = 8000  # the lowest rate: quick
RATE = 24_000
SHORT = StructureRule(1.0, 4.0)


def melody(seconds, rate=LOW, *, seed=0):
    """Sections of a few seconds, each a chord of its own with its own noise."""
    rng = np.random.default_rng(seed)
    parts, left = [], round(seconds * rate)
    while left > 0:
        n = min(left, round(rng.uniform(0.3, 20) * rate))
        t = np.arange(n) / rate
        hz = rng.uniform(80, 900, 3)[:, None]
        part = np.sin(2 * np.pi * hz * t).sum(0) + rng.uniform(0, 1) * rng.standard_normal(n)
        parts.append(part * rng.uniform(0, 0.2))
        left -= n
    return np.concatenate(parts).astype(np.float32)


def speech(seconds, rate=LOW):
    """Noise in syllables of a quarter of a second with pauses."""
    rng = np.random.default_rng(3)
    t = np.arange(round(seconds * rate)) / rate
    envelope = np.maximum(0, np.sin(2 * np.pi * 4 * t)) * (np.sin(2 * np.pi * 0.23 * t) > -0.4)
    return (0.2 * envelope * rng.standard_normal(len(t))).astype(np.float32)


def noise(seconds, rate=LOW):
    """White noise."""
    return np.random.default_rng(5).standard_normal(round(seconds * rate)).astype(np.float32) * 0.1


def constant(level):
    """Make signals of one value."""
    return lambda seconds, rate=LOW: np.full(round(seconds * rate), level, np.float32)


def sine(seconds, rate=LOW):
    """A steady tone."""
    return np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def click(seconds, rate=LOW):
    """Silence but for one sample."""
    samples = np.zeros(round(seconds * rate), np.float32)
    samples[len(samples) // 3] = 1.0
    return samples


SIGNALS = {
    "music": melody,
    "speech": speech,
    "noise": noise,
    "silence": constant(0.0),
    "DC": constant(0.5),
    "loud DC": constant(40.0),
    "tone": sine,
    "click": click,
}


def lengths(spans, rate=LOW):
    """Seconds of each piece."""
    return [(end - start) / rate for start, end in spans]


def check(rule, samples, rate=LOW):
    """Cut without a warning; hold what is promised of every cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spans = rule.cut(samples, rate)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(type(at) is int for span in spans for at in span)
    if len(samples) < round(rule.min_s * rate):
        assert len(spans) == 1
    else:
        assert min(lengths(spans, rate)) >= rule.min_s - 1 / rate
        assert max(lengths(spans, rate)) <= rule.max_s + 1 / rate
    return spans


# Pieces


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("seconds", [0.1, 5, 9.99, 10, 10.1, 31, 64.3])
def test_pieces_cover_the_track_and_keep_to_their_lengths(signal, seconds, capfd):
    check(StructureRule(), SIGNALS[signal](seconds))
    assert capfd.readouterr() == ("", "")


def test_any_shortest_and_longest_piece_is_kept_to(rng):
    for seed in range(25):
        min_s = float(np.exp(rng.uniform(np.log(0.05), np.log(20))))
        rule = StructureRule(min_s, min_s * float(rng.choice([2, 2.01, 3, 10])))
        check(rule, melody(rng.uniform(0.05, 90), seed=seed))
        check(rule, noise(rng.uniform(0.05, 40)))


def test_a_track_of_one_sample_is_one_piece():
    assert StructureRule().cut(np.zeros(1, np.float32), RATE) == [(0, 1)]


def test_twenty_minutes_are_cut_like_any_track():
    spans = check(StructureRule(), melody(1200))
    assert 40 <= len(spans) <= 160


@pytest.mark.parametrize("signal", ["silence", "DC", "tone"])
def test_where_nothing_changes_the_pieces_are_even(signal):
    assert lengths(check(StructureRule(), SIGNALS[signal](60))) == [15, 15, 15, 15]
    assert lengths(check(StructureRule(4, 8), SIGNALS[signal](16))) == [4, 4, 4, 4]


def test_the_longest_piece_sets_how_many_are_looked_for():
    samples = melody(120, seed=2)
    few, many = (len(check(StructureRule(2, longest), samples)) for longest in (60, 10))
    assert few < 10 < many


def test_the_samples_are_left_as_they_were():
    samples = melody(30)
    before = samples.copy()
    StructureRule().cut(samples, LOW)
    assert samples.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0, np.float32), RATE, "at least 1 sample, got 0"),
        (np.zeros(99_999, np.float32), 4000, "8000 Hz or more, got 4000"),
    ],
)
def test_what_can_not_be_cut_is_refused(samples, rate, message):
    with pytest.raises(ValueError, match=message):
        StructureRule().cut(samples, rate)


# Sections


def verse_chorus(a=20, b=17, c=19, rate=RATE):
    """A-B-A: a low tone, a bright one with noise, the low one again."""
    bright = tone(b, 523.3, rate, noise=0.1, seed=2)
    return np.concatenate([tone(a, 110, rate, seed=1), bright, tone(c, 110, rate, seed=3)])


def nearest(spans, at_s, rate=RATE):
    """Distance of the nearest bound in seconds."""
    return min(abs(start / rate - at_s) for start, _ in spans)


@pytest.mark.parametrize(("a", "b", "c"), [(20, 17, 19), (10.3, 24.6, 12), (28, 6, 20)])
def test_sections_that_differ_are_found_within_a_frame_or_two(a, b, c):
    spans = check(StructureRule(), verse_chorus(a, b, c), RATE)
    assert nearest(spans, a) < 1
    assert nearest(spans, a + b) < 1


def test_sections_are_found_at_any_loudness_and_rate():
    at_full = StructureRule().cut(verse_chorus(), RATE)
    assert StructureRule().cut(verse_chorus() * np.float32(0.01), RATE) == at_full
    for rate in (16_000, 44_100):
        spans = check(StructureRule(), verse_chorus(rate=rate), rate)
        assert nearest(spans, 20, rate) < 1.5
        assert nearest(spans, 37, rate) < 1.5


def test_silence_between_two_sections_is_no_section_of_its_own():
    gap = np.zeros(2 * RATE, np.float32)
    samples = np.concatenate([tone(20, 110), gap, tone(20, 523.3, noise=0.1)])
    spans = check(StructureRule(), samples, RATE)
    assert min(nearest(spans, 20), nearest(spans, 22)) < 1


def test_the_same_audio_is_cut_at_the_same_samples_again():
    samples = np.concatenate([melody(40, RATE, seed=7), verse_chorus()])
    assert StructureRule().cut(samples.copy(), RATE) == StructureRule().cut(samples, RATE)


# Rules


def test_the_rule_is_read_from_the_command_line():
    assert parse_rule("structure") == StructureRule(5.0, 30.0)
    assert parse_rule("structure", None, 1.0, 4.0, 12.0) == StructureRule(4.0, 12.0)
    assert parse_rule("structure", max_seg_s=20.0) == StructureRule(5.0, 20.0)
    assert parse_rule("structure").name == "structure"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("structure", 5.0), "a hop needs a segment length"),
        (("structure", None, 1.0, 0.0, 10.0), "shortest piece must be .* above 0, got 0$"),
        (("structure", None, 1.0, float("nan")), "shortest piece must be .* above 0, got nan$"),
        (("structure", None, 1.0, 5.0, float("inf")), "longest piece must be .* above 0, got inf$"),
        (("structure", None, 1.0, 20.0), "at least twice the shortest.* 20 s and 30 s$"),
        (("10", None, 1.0, 5.0), "belongs to 'structure', but the segments are '10'"),
        (("full", None, 1.0, None, 5.0), "belongs to 'structure', but the segments are 'full'"),
        (("Structure",), "a number of seconds, 'full' or 'structure', got 'Structure'"),
    ],
)
def test_rules_that_can_not_be_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(*args)


def test_both_kinds_of_rule_cut_audio():
    samples = np.zeros(25 * LOW, np.float32)
    assert lengths(SegmentRule(10.0).cut(samples, LOW)) == [10, 10, 5]
    assert not SegmentRule(10.0).needs_audio
    assert StructureRule().needs_audio


def test_a_structure_of_one_piece_everywhere_is_the_full_track():
    assert is_degenerate(StructureRule(), [1, 1])
    assert not is_degenerate(StructureRule(), [1, 3])


# In the store


@pytest.fixture(scope="module")
def mel():
    """The quick encoder."""
    return load_encoder("mel")


@pytest.fixture
def files(tmp_path):
    """Three tracks; the last is too short to be cut."""
    paths = []
    for i, seconds in enumerate([13.3, 9.0, 1.4]):
        paths.append(str(tmp_path / f"{i}.wav"))
        soundfile.write(paths[-1], melody(seconds, RATE, seed=i), RATE)
    return paths


@pytest.fixture
def calls(monkeypatch):
    """Count decoded files and cut tracks."""
    from tune.store import encode as encoding

    seen, read, cut = {"read": 0, "cut": 0}, encoding.audio.decode, StructureRule.cut

    def counted_read(*args, **kwargs):
        seen["read"] += 1
        return read(*args, **kwargs)

    def counted_cut(*args):
        seen["cut"] += 1
        return cut(*args)

    monkeypatch.setattr(encoding.audio, "decode", counted_read)
    monkeypatch.setattr(StructureRule, "cut", counted_cut)
    return seen


def encode(paths, encoder, folder, rule=SHORT):
    """Encode the last layer into a store, freshly opened."""
    store = Store(folder)
    collection = store.collection(encoder, [encoder.n_layers], None)
    report = encode_tracks(paths, encoder, rule, store, collection)
    return report, {p: collection.read(*row) for p, row in report.rows.items()}


def kept(folder):
    """Files that hold boundaries."""
    return sorted((folder / "boundaries").rglob("*.json"))


def test_a_second_run_decodes_nothing_and_reports_the_same(files, mel, tmp_path, calls):
    first, rows = encode(files, mel, tmp_path / "s")
    assert calls == {"read": 3, "cut": 3}
    assert first.encoder_passes == sum(len(spans) for _, spans in first.rows.values()) > 5
    for path in files:
        samples = soundfile.read(path, dtype="float32")[0]
        spans = check(SHORT, samples, RATE)
        assert first.rows[path][1] == spans
        assert rows[path].spans == [list(span) for span in spans]
    calls.update(read=0, cut=0)
    again, _ = encode(files, mel, tmp_path / "s")
    assert calls == {"read": 0, "cut": 0}
    assert (again.encoder_passes, again.encode_seconds, again.audio_seconds) == (0, 0, 0)
    assert again.rows == first.rows
    assert again.stored_seconds > 0


def test_boundaries_are_shared_by_encoders_and_kept_for_each_rule(files, mel, tmp_path, calls):
    another = copy.copy(mel)
    another.name, another.fingerprint = "another", "f" * 64
    first, _ = encode(files, mel, tmp_path / "s")
    second, _ = encode(files, another, tmp_path / "s")
    assert calls == {"read": 6, "cut": 3}
    assert second.encoded_tracks == 3
    assert second.rows == first.rows
    assert len(kept(tmp_path / "s")) == 3
    other, _ = encode(files, mel, tmp_path / "s", StructureRule(1.0, 3.0))
    assert calls["cut"] == 6
    assert len(kept(tmp_path / "s")) == 6
    assert other.rows != first.rows


def test_a_track_cut_alike_by_another_rule_shares_its_row(files, mel, tmp_path):
    encode(files, mel, tmp_path / "s", SegmentRule(None))
    report, _ = encode(files[2:], mel, tmp_path / "s")
    assert report.encoder_passes == 0
    assert len(list((tmp_path / "s").rglob("*.safetensors"))) == 3


def test_a_row_lost_after_its_boundaries_were_found_is_encoded_at_them(files, mel, tmp_path, calls):
    first, _ = encode(files, mel, tmp_path / "s")
    next((tmp_path / "s").rglob("*.safetensors")).unlink()
    again, _ = encode(files, mel, tmp_path / "s")
    assert calls == {"read": 4, "cut": 3}
    assert (again.encoded_tracks, again.rows) == (1, first.rows)


def shift(file):
    """Move a bound."""
    text = json.loads(file.read_text())
    text["spans"][0][1] += 1
    file.write_text(json.dumps(text))


DAMAGES = {
    "moved": shift,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "empty": lambda file: file.write_bytes(b""),
    "another": lambda file: file.write_text('["hello"]'),
    "bytes": lambda file: file.write_bytes(b"\xff\x00" * 50),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_boundaries_are_named_and_found_again(damage, files, mel, tmp_path, calls, caplog):
    first, _ = encode(files, mel, tmp_path / "s")
    file = kept(tmp_path / "s")[0]
    sound = file.read_bytes()
    DAMAGES[damage](file)
    again, _ = encode(files, mel, tmp_path / "s")
    assert f"damaged boundaries {file}" in caplog.text
    assert calls["cut"] == 4
    assert again.rows == first.rows
    assert again.encoder_passes == 0  # the row was never in doubt
    assert file.read_bytes() == sound


def test_boundaries_of_another_track_are_not_served(files, mel, tmp_path, caplog):
    first, _ = encode(files, mel, tmp_path / "s")
    a, b = kept(tmp_path / "s")[:2]
    a.write_bytes(b.read_bytes())
    again, _ = encode(files, mel, tmp_path / "s")
    assert "checksum differs" in caplog.text
    assert again.rows == first.rows


def test_boundaries_are_written_whole_or_not_at_all(files, mel, tmp_path, monkeypatch):
    def no_space(source, target):
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tune.system.files.os.replace", no_space)
        with pytest.raises(OSError, match="no space left"):
            encode(files[:1], mel, tmp_path / "s")
    assert [p for p in (tmp_path / "s" / "boundaries").rglob("*") if p.is_file()] == []
    report, _ = encode(files[:1], mel, tmp_path / "s")
    assert report.encoded_tracks == 1


# The picture


def plot(*args, cwd, **env):
    """Run python -m tune.segments."""
    return run("-m", "tune.segments", *args, cwd=cwd, env={"PYTHONPATH": str(ROOT), **env})


def test_the_plot_command_draws_the_same_pieces_in_another_process(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a $1 song.wav"
    samples = np.concatenate([melody(40, RATE, seed=7), verse_chorus(9, 7, 8)])
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    done = plot("plot", path, "--min_seg=3", "--max_seg=12", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert (done.returncode, done.stderr) == (0, "")
    spans = StructureRule(3, 12).cut(samples, RATE)
    # Bounds lie at whole frames of half a second: what is printed tells any two apart.
    assert done.stdout.splitlines() == [*table(spans, RATE), "drawn to a $1 song.structure.png"]
    drawn = (tmp_path / "a $1 song.structure.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 20_000


def test_the_table_shows_start_end_and_length():
    assert table([(0, 83_880), (83_880, 2_400_000)], RATE) == [
        "  #      start        end    length",
        "  1    0:00.00    0:03.50    3.50 s",
        "  2    0:03.50    1:40.00   96.50 s",
    ]


def test_the_plot_command_answers_a_bad_file_in_one_line_with_code_2(tmp_path):
    pytest.importorskip("matplotlib")
    done = plot("plot", "none.wav", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.wav: no such file\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--out=a.doc", "--out must end in .png, .svg or .pdf, got 'a.doc'"),
        ("--out=none/a.png", "a file in a folder that exists is needed"),
    ],
)
def test_a_picture_that_can_not_be_written_is_refused_before_anything_is_read(
    flag, message, capsys
):
    with pytest.raises(SystemExit) as stop:
        main(["plot", "none.wav", flag])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_lengths_that_can_not_be_are_refused_by_the_plot_command():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="at least twice the shortest"):
        main(["plot", "none.wav", "--min_seg=9", "--max_seg=10"])


def test_the_plot_command_says_when_matplotlib_is_missing(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(SystemExit) as stop:
        main(["plot", "song.wav"])
    assert stop.value.code == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_clips_and_silence_are_drawn_too(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name, samples in (("clip", tone(0.1, 440)), ("silence", np.zeros(RATE * 20))):
        soundfile.write(f"{name}.wav", samples, RATE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            main(["plot", f"{name}.wav", "--out", f"{name}.svg"])
        text = (tmp_path / f"{name}.svg").read_text()
        assert "<svg" in text
