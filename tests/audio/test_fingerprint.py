"""tune/landmarks.py: copies and excerpts are found by how they sound, and nothing else is."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from conftest import make_task
from task_reports import problems, report_of, rows_of
from task_trees import write_rows

from tune.audio.fingerprint import find_alike, find_landmarks

RATE = 22_050


def music(seed: int, seconds: float = 12.0) -> np.ndarray:
    """Six notes a second, at random times and pitches, with three harmonics each."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(int(seconds * RATE), np.float32)
    for at in np.sort(rng.uniform(0, seconds - 0.6, int(6 * seconds))):
        pitch = 110 * 2 ** (rng.integers(0, 36) / 12)
        time = np.arange(int(0.5 * RATE)) / RATE
        note = sum(np.sin(2 * np.pi * pitch * h * time) / h for h in (1, 2, 3))
        wave[int(at * RATE) :][: len(time)] += (0.1 * note * np.exp(-6 * time)).astype(np.float32)
    return wave


def lossy(wave, sample_rate, kind, subtype):
    """What is left of it after a codec at low quality, and its rate."""
    file = io.BytesIO()
    soundfile.write(file, wave, sample_rate, format=kind, subtype=subtype, compression_level=0.8)
    file.seek(0)
    return soundfile.read(file, dtype="float32")


@pytest.fixture(scope="module")
def library():
    """Landmarks of twelve pieces."""
    return {f"piece {i}": find_landmarks(music(i), RATE) for i in range(12)}


def look_up(library, wave, sample_rate):
    """What is found of a recording, as (name, seconds)."""
    known = library | {"asked": find_landmarks(wave, sample_rate)}
    (found,) = find_alike(known, ["asked"], list(library))
    return [(alike.other, alike.at_s) for alike in found]


@pytest.mark.parametrize(
    "changed",
    [
        lambda x: lossy(soxr.resample(x, RATE, 32_000), 32_000, "MP3", "MPEG_LAYER_III"),
        lambda x: lossy(soxr.resample(x, RATE, 16_000), 16_000, "OGG", "VORBIS"),
        lambda x: (0.05 * x, RATE),
        lambda x: (x + 0.01 * np.random.default_rng(0).standard_normal(len(x)).astype("f"), RATE),
        lambda x: (np.tanh(4 * x), RATE),
    ],
    ids=["mp3", "ogg", "quiet", "noise", "clipped"],
)
def test_a_copy_is_found_whatever_was_done_to_it(library, changed):
    for i in (0, 7):
        ((name, at),) = look_up(library, *changed(music(i)))
        assert name == f"piece {i}"
        assert abs(at) < 0.08


def test_an_excerpt_is_found_and_where_it_is_from(library):
    ((name, at),) = look_up(library, music(3)[int(4.507 * RATE) : int(9.5 * RATE)], RATE)
    assert name == "piece 3"
    assert at == pytest.approx(4.507, abs=0.03)
    longer = np.concatenate([music(99, 6.1), music(5), music(98, 3)])
    ((name, at),) = look_up(library, longer, RATE)
    assert name == "piece 5"
    assert at == pytest.approx(-6.1, abs=0.03)
    medley = np.concatenate([music(1)[: 6 * RATE], music(2)[6 * RATE :]])
    assert sorted(name for name, _ in look_up(library, medley, RATE)) == ["piece 1", "piece 2"]


def test_nothing_else_is_found(library):
    names = list(library)
    assert list(find_alike(library, names, names)) == [[]] * 12
    assert look_up(library, music(3, 12.0)[::-1], RATE) == []  # backwards
    assert look_up(library, music(77), RATE) == []


def test_what_has_no_landmarks_is_like_nothing(rng):
    """Tones that last, noise that doesn't repeat, silence, and files shorter than a window."""

    def lasting(seconds):
        phase = 2 * np.pi * 440 * np.arange(seconds * RATE) / RATE
        return sum(0.1 * np.sin(h * phase) for h in (1, 2, 3, 5)).astype(np.float32)

    known = {
        "tone": find_landmarks(lasting(12), RATE),
        "same tone": find_landmarks(0.5 * lasting(11), RATE),
        "noise": find_landmarks(rng.standard_normal(RATE * 12).astype("f"), RATE),
        "other noise": find_landmarks(rng.standard_normal(RATE * 12).astype("f"), RATE),
        "silence": find_landmarks(np.zeros(RATE * 5, np.float32), RATE),
        "short": find_landmarks(np.ones(10, np.float32), RATE),
    }
    assert [len(known[name].codes) for name in ("silence", "short")] == [0, 0]
    assert list(find_alike(known, list(known), list(known))) == [[]] * 6
    assert list(find_alike(known, ["noise"], [])) == [[]]


def test_blocks_change_nothing_and_a_shift_only_the_times(monkeypatch):
    wave = music(4)
    whole = find_landmarks(wave, 11_025)  # as if of that rate: no resampling
    monkeypatch.setattr("tune.audio.fingerprint.BLOCK", 100)
    parts = find_landmarks(wave, 11_025)
    assert np.array_equal(whole.codes, parts.codes)
    assert np.array_equal(whole.frames, parts.frames)
    later = find_landmarks(np.concatenate([np.zeros(256 * 50, np.float32), wave]), 11_025)
    here = set(zip(whole.codes.tolist(), (whole.frames + 50).tolist(), strict=True))
    there = set(zip(later.codes.tolist(), later.frames.tolist(), strict=True))
    assert len(here & there) > 0.98 * len(here)


def test_thinned_landmarks_are_the_same_of_all_recordings():
    whole = find_landmarks(music(4), RATE)
    some = find_landmarks(music(4), RATE, thin=4)
    assert set(some.codes) < set(whole.codes)
    assert 0.15 < len(some.codes) / len(whole.codes) < 0.35
    whole = find_landmarks(music(4, 120), RATE)
    few = find_landmarks(music(4, 120), RATE, thin=64)  # of as many files as NSynth has
    assert 0.5 < 64 * len(few.codes) / len(whole.codes) < 2
    assert len(np.unique(few.codes & 63)) > 10  # not those of one step in time alone
    known = {f"{i}": find_landmarks(music(i, 40), RATE, thin=4) for i in range(4)}
    known["copy"] = find_landmarks(*lossy(music(2, 40), RATE, "OGG", "VORBIS"), thin=4)
    (found,) = find_alike(known, ["copy"], ["0", "1", "2", "3"])
    assert [alike.other for alike in found] == ["2"]


def test_the_check_of_a_task_tells_of_copies_across_splits(tmp_path):
    folder = make_task(tmp_path / "tones", seconds=0.6)
    audio = folder / "audio"
    soundfile.write(audio / "001.wav", music(1), RATE)
    soundfile.write(audio / "002.wav", music(1)[RATE:], RATE)  # both in train: no problem
    soundfile.write(audio / "009.wav", music(2), RATE)
    soundfile.write(audio / "013.mp3", music(1), RATE)
    soundfile.write(audio / "014.ogg", music(2)[int(3.5 * RATE) :], RATE)
    rows = rows_of(folder, "test")
    rows[0]["audio_path"], rows[1]["audio_path"] = "audio/013.mp3", "audio/014.ogg"
    write_rows(folder / "tones.test.jsonl", rows)
    first, second, third = problems(report_of(folder, tmp_path), "alike")
    assert first.startswith(f"test: {audio / '013.mp3'} sounds like train: {audio / '001.wav'} (")
    assert first.endswith("% of the landmarks in common): a copy or an excerpt?")
    assert f"013.mp3 from 1.0 s on sounds like train: {audio / '002.wav'} (" in second
    assert f"014.ogg sounds like val: {audio / '009.wav'} from 3.5 s on (" in third
    assert problems(report_of(folder, tmp_path, decode=False), "alike") == []
