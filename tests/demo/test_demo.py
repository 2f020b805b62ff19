"""The embedded demo data: reproducible, true to their labels, safe to build, musical enough."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tune.demo import DEMO_TASKS, build, datasets
from tune.demo.__main__ import main
from tune.demo.drums import GROOVES, KITS
from tune.demo.moods import mood_recipe, rate_moods
from tune.demo.parts import bass_line, chart, comp, events, melody
from tune.demo.patches import PATCHES
from tune.demo.styles import STYLES
from tune.demo.synth import SAMPLE_RATE, frequency, note
from tune.demo.tasks import (
    FORM_ORDERS,
    SPLITS,
    TASKS,
    VERSION,
    make_track,
    moods,
    n_tracks,
    style_indices,
)
from tune.demo.theory import PROGRESSIONS, chord, voice_lead

ROOT = Path(__file__).resolve().parents[2]
MARBLE_FIELDS = ["audio_path", "label", "duration", "sample_rate", "num_samples", "bit_depth"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Each task once, small; demo by two workers."""
    cache = tmp_path_factory.mktemp("demo")
    limits = dict.fromkeys(DEMO_TASKS, 1) | {"demo": 3, "demo-form": 4}
    return {
        t: build(t, cache, limit=n, workers=1 + (t == "demo"), progress=False)
        for t, n in limits.items()
    }


def read_rows(folder: Path, task: str) -> dict[str, list[dict]]:
    """Rows of a built task by split."""
    return {
        s: [json.loads(line) for line in (folder / f"{task}.{s}.jsonl").read_text().splitlines()]
        for s in SPLITS
    }


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def cli(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run the command line in a real process."""
    return subprocess.run(
        [sys.executable, "-m", "tune.demo", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- what is built


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_rows_are_true_to_the_files(folders, task):
    rows = read_rows(folders[task], task)
    listed = [r["audio_path"] for split in rows.values() for r in split]
    on_disk = {p.relative_to(folders[task]).as_posix() for p in folders[task].glob("audio/*")}
    assert len(listed) == len(set(listed)), "a track is in two splits, or twice in one"
    assert set(listed) == on_disk
    for row in (r for split in rows.values() for r in split):
        assert list(row)[: len(MARBLE_FIELDS)] == MARBLE_FIELDS
        info = soundfile.info(folders[task] / row["audio_path"])
        assert (info.frames, info.samplerate) == (row["num_samples"], row["sample_rate"])
        assert (info.channels, info.subtype) == (row["channels"], "PCM_16")
        assert row["sample_rate"] == SAMPLE_RATE
        assert row["duration"] == row["num_samples"] / SAMPLE_RATE


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_audio_is_clean(folders, task):
    for path in sorted((folders[task] / "audio").iterdir()):
        audio, _ = soundfile.read(path, dtype="float32")
        peak_db = 20 * np.log10(np.abs(audio).max())
        assert -6.2 < peak_db < -0.9, path.name
        assert audio.std() > 0.03, f"{path.name} is nearly silent"
        assert abs(audio.mean()) < 1e-3, f"{path.name} has an offset"
        assert np.abs(audio[[0, -1]]).max() < 1e-3, f"{path.name} starts or ends with a click"
        assert np.abs(audio[-2400:]).max() < 0.5 * np.abs(audio).max(), "the end is cut off"
        if task == "demo-form":
            assert len(audio) == 60 * SAMPLE_RATE
        else:
            assert 45 <= len(audio) / SAMPLE_RATE <= 75


def test_splits_and_classes_are_balanced():
    shares = {
        "demo": (70, 20, 50),
        "demo-mood": (200, 40, 140),
        "demo-form": (72, 24, 48),
        "demo-key": (168, 24, 96),
        "demo-tempo": (140, 30, 90),
        "demo-instruments": (140, 30, 90),
        "demo-artist": (160, 32, 96),
    }
    assert tuple(TASKS) == DEMO_TASKS
    for task, row in TASKS.items():
        assert tuple(u * row.tracks_per_unit for u in row.units) == shares[task]
        assert n_tracks(task) == sum(shares[task])
    edges = np.cumsum((0, *TASKS["demo"].units))
    for low, high, each in zip(edges, edges[1:], (7, 2, 5), strict=False):
        counts = [sum(low <= i < high for i in style_indices("demo", s)) for s in STYLES]
        assert counts == [each] * 10


def test_label_is_the_style_composed(folders):
    rows = read_rows(folders["demo"], "demo")
    for split in rows.values():
        assert [r["label"] for r in split] == sorted(STYLES)[:3]
        for row in split:
            low, high = STYLES[row["label"]].tempo
            assert low <= row["tempo"] <= high
            assert int(row["meter"][0]) in STYLES[row["label"]].beats


def test_limited_build_makes_the_same_tracks(folders):
    row = read_rows(folders["demo"], "demo")["val"][1]
    name, _, audio = make_track("demo", 71)
    assert row["audio_path"] == f"audio/{name}.flac"
    stored, _ = soundfile.read(folders["demo"] / row["audio_path"], dtype="int16")
    np.testing.assert_array_equal(stored, np.round(audio * 32767).astype(np.int16))


# --- demo-form: only order differs


def test_form_classes_share_their_sections_bit_for_bit(folders):
    for split in read_rows(folders["demo-form"], "demo-form").values():
        assert sorted(r["label"] for r in split) == sorted(FORM_ORDERS)
        bags, kinds = [], {}
        for row in split:
            audio, _ = soundfile.read(folders["demo-form"] / row["audio_path"], dtype="int16")
            pieces = [p.tobytes() for p in audio.reshape(6, 10 * SAMPLE_RATE)]
            bags.append(Counter(pieces))
            for kind, piece in zip(row["label"], pieces, strict=True):
                assert kinds.setdefault(piece, kind) == kind, "a piece changed its kind"
        assert all(bag == bags[0] for bag in bags)
        assert Counter(kinds.values()) == {"A": 2, "B": 2, "C": 2}


def test_form_sections_do_not_ring_over_their_edges(folders):
    for path in (folders["demo-form"] / "audio").iterdir():
        audio, _ = soundfile.read(path, dtype="float32")
        edges = audio.reshape(6, -1)[:, [0, -1]]
        assert np.abs(edges).max() < 1e-3, path.name


def test_form_position_tells_no_class_alone():
    for position in range(6):
        seen = Counter(order[position] for order in FORM_ORDERS)
        assert sorted(seen.values()) == [2, 2]
    assert len(set(FORM_ORDERS)) == 4
    assert all(Counter(o) == {"A": 2, "B": 2, "C": 2} for o in FORM_ORDERS)


# --- demo-mood


def test_mood_labels_are_z_scored():
    latent, labels = rate_moods(np.random.default_rng(0), n_tracks("demo-mood"))
    np.testing.assert_allclose(labels.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(labels.std(0), 1, atol=1e-12)
    for i in range(2):  # noisy, so that no model can be perfect, but not noise
        assert 0.6 < np.corrcoef(latent[:, i], labels[:, i])[0, 1] < 0.97


def test_mood_rows_hold_arousal_and_valence(folders):
    labels = [r["label"] for s in read_rows(folders["demo-mood"], "demo-mood").values() for r in s]
    assert all(len(x) == 2 and all(isinstance(v, float) for v in x) for x in labels)
    all_labels = moods()[1]
    np.testing.assert_allclose(labels, all_labels[[0, 200, 240]], atol=1e-6)
    np.testing.assert_allclose(all_labels.mean(0), 0, atol=1e-12)


def test_arousal_raises_the_tempo():
    def tempi(arousal: float) -> list[float]:
        return [mood_recipe(arousal, 0.0, np.random.default_rng(i)).tempo for i in range(12)]

    assert np.mean(tempi(1.5)) > np.mean(tempi(-1.5)) + 30


# --- building


def test_same_bytes_from_one_worker_and_from_two(folders, tmp_path):
    again = build("demo", tmp_path, limit=3, workers=1, progress=False)
    assert fingerprint(again) == fingerprint(folders["demo"])


def test_existing_folder_is_left_alone(tmp_path, monkeypatch):
    folder = tmp_path / f"demo-v{VERSION}"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    monkeypatch.setattr(datasets, "_make_all", lambda *a: pytest.fail("composed again"))
    assert build("demo", tmp_path, progress=False) == folder
    assert fingerprint(folder).keys() == {"mine.txt"}


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupt(task, index, keep, folder):
        if written:
            raise KeyboardInterrupt
        written.append(Path(folder, "audio", "one.flac"))
        written[0].write_bytes(b"x")
        return [{"audio_path": "audio/one.flac"}]

    monkeypatch.setattr(datasets, "_write_unit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build("demo", tmp_path, limit=1, workers=1, progress=False)
    assert written
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_the_first_to_finish_wins(tmp_path, monkeypatch):
    folder = tmp_path / f"demo-v{VERSION}-limit1"

    def other_process_finishes(jobs, workers, bar):
        assert not folder.exists()
        folder.mkdir()
        (folder / "theirs.txt").write_text("first")
        return [[{"audio_path": "ours"}] for _ in jobs]

    monkeypatch.setattr(datasets, "_make_all", other_process_finishes)
    assert build("demo", tmp_path, limit=1, progress=False) == folder
    assert fingerprint(folder).keys() == {"theirs.txt"}
    assert list(tmp_path.iterdir()) == [folder]


def test_workers_do_not_import_the_running_script(tmp_path):
    script = tmp_path / "script.py"  # without a guard, which must not matter
    script.write_text(
        "import sys\n"
        "print('imported', flush=True)\n"
        "from tune.demo import build\n"
        "build('demo', sys.argv[1], limit=1, workers=2, progress=False)\n"
        "print('torch' in sys.modules, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", "False"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: build("demon", d), "expected a demo task"),
        (lambda d: build("demo", d, limit=0), "limit of at least 1"),
        (lambda d: make_track("demo", 140), "index from 0 to 139"),
        (lambda d: style_indices("demo", "polka"), "expected a style"),
        (lambda d: style_indices("demo-mood", "dub"), "only the task demo"),
        (lambda d: chord("X7"), "expected a chord"),
    ],
)
def test_bad_input_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the music


def test_chords_by_hand():
    assert chord("V7") == (7, 11, 2, 5)
    assert chord("bVI") == (8, 0, 3)
    assert chord("iih7") == (2, 5, 8, 0)
    assert all(chord(s) for pool in PROGRESSIONS.values() for p in pool for s in p.split())


def test_voice_leading_moves_little():
    first = voice_lead(None, chord("I"), 60)
    second = voice_lead(first, chord("vi"), 60)
    assert sorted(p % 12 for p in second) == [0, 4, 9]
    assert len(set(first) & set(second)) == 2  # the common tones stay


def test_pattern_events():
    assert events("x--.x...R-......", 1, 4) == [(0, 0.75, "x"), (1, 0.25, "x"), (2, 0.5, "R")]
    assert [e[0] for e in events("x---------------", 2, 3)] == [0, 3]


def test_style_table_names_exist():
    for name, row in STYLES.items():
        instruments = {n for r in ("lead", "chords", "bass", "pad", "arp") for n in getattr(row, r)}
        assert instruments <= {*PATCHES, ""}, name
        assert "" not in {*row.chords, *row.bass, *row.lead}, f"{name} needs these parts"
        assert set(row.grooves) <= set(GROOVES), name
        assert set(row.kits) <= set(KITS), name


def test_parts_stay_in_their_bars_and_on_their_chords():
    major = (0, 2, 4, 5, 7, 9, 11)
    chords = chart([chord(s) for s in ["I", "V", "vi", "IV"]], 4, 4, 4)
    tune = melody(np.random.default_rng(1), chords, 4, 4, major, 0.7, 72)
    assert tune
    assert all(n[0] >= 0 and n[0] + n[1] <= 16 + 1e-6 for n in tune)
    assert all(n[2] % 12 in major for n in tune)
    for beat, _, pitch, _ in tune:
        if beat % 1 == 0:
            assert pitch % 12 in chords[int(beat // 4)][2]
    roots = [n[2] % 12 for n in bass_line("R---------------", chords, 4, 4, major, 31)]
    assert roots == [0, 7, 9, 5]
    held = comp("x---------------", chart([chord("I"), chord("V")], 1, 4, 1), 1, 4, 58)
    assert [n[:2] for n in held] == [(0, 2)] * 3 + [(2, 2)] * 3  # struck again at the change


@pytest.mark.parametrize("name", sorted(PATCHES))
def test_instruments_are_in_tune(name):
    held = SAMPLE_RATE
    sound = note(PATCHES[name], 57, held, 0.7, {})
    assert np.isfinite(sound).all()
    assert abs(sound[-1]) < 1e-3
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(sound[:held] * np.hanning(held), size))
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    near = np.abs(1200 * np.log2(np.maximum(hz, 1) / frequency(57))) < 60
    center = np.sum(hz[near] * spectrum[near] ** 2) / np.sum(spectrum[near] ** 2)
    assert abs(1200 * np.log2(center / frequency(57))) < 8  # cents


# --- the command line


def test_cli_list_names_tasks_and_styles(tmp_path):
    done = cli("list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in (*DEMO_TASKS, *STYLES, *FORM_ORDERS, "144"))


def test_cli_export_writes_wavs_and_says_where(tmp_path):
    done = cli("export", "--n", "2", "--style", "dub", "--out", "music", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        str(Path("music", f"dub.00{i}.wav")) for i in range(2)
    ]
    for line in lines:
        info = soundfile.info(tmp_path / line.split()[0])
        assert f"{info.duration:.1f} s" in line
        assert (info.samplerate, info.subtype) == (SAMPLE_RATE, "PCM_16")


def test_cli_play_without_a_player_writes_the_wav(tmp_path):
    done = cli("play", "--style", "folk", "--index", "1", cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert str(tmp_path / "folk.001.wav") in done.stdout
    assert soundfile.info(tmp_path / "folk.001.wav").duration > 45


@pytest.mark.skipif(sys.platform == "win32", reason="the player is a shell script")
def test_cli_play_hands_the_file_to_the_player(tmp_path):
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\nshift\necho "$1" > {tmp_path}/heard\ntest -s "$1"\n')
    player.chmod(0o755)
    done = cli("play", "--style", "folk", cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "with aplay" in done.stdout
    assert (tmp_path / "heard").read_text().strip().endswith("folk.000.wav")
    assert not (tmp_path / "folk.000.wav").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("export", "--n", "0", "--out", "x"), "--n from 1 to 140"),
        (("play", "--index", "140"), "--index from 0 to 139"),
        (("play", "--task", "demo-form", "--style", "dub"), "only the task demo"),
        (("export",), "--out"),
        (("dance",), "invalid choice"),
    ],
)
def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(list(args))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert (code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_cli_user_error_exits_with_2(tmp_path):
    done = cli("play", "--task", "nope", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"expected a demo task ({', '.join(DEMO_TASKS)}), got 'nope'" in done.stderr
