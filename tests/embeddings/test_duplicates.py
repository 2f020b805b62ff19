"""python -m tune.embeddings duplicates: what is there twice is found, each pair once."""

import csv

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run

from tune.embeddings.duplicates import find_duplicates, main
from tune.tasks.inspect_files import inspect_files, thinning

RATE = 22_050


def melody(seed: int, seconds: float = 12.0) -> np.ndarray:
    """Notes of three voices at random: (n_samples,) float64."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    wave = 0.003 * rng.standard_normal(len(t))
    for length in (0.19, 0.31, 0.47):
        pitch = 110 * 2 ** (rng.integers(0, 48, int(seconds / length) + 1) / 12)
        note = (t / length).astype(int)
        wave += 0.15 * np.sin(2 * np.pi * pitch[note] * t) * np.exp(-3 * (t % length) / length)
    return wave


@pytest.fixture
def music(tmp_path):
    """A folder: a song in two lossless files, as mp3, an excerpt; two others; silence; no audio."""
    folder = tmp_path / "music"
    (folder / "copies [1]").mkdir(parents=True)
    for name, seed in (("song.wav", 1), ("other.wav", 2), ("third.ogg", 3)):
        soundfile.write(folder / name, melody(seed), RATE)
    stored, _ = soundfile.read(folder / "song.wav", dtype="int16")
    soundfile.write(folder / "copies [1]" / "song.flac", stored, RATE)
    soundfile.write(folder / "copies [1]" / "song.mp3", 0.5 * melody(1), RATE)
    soundfile.write(folder / "part.wav", 0.8 * melody(1)[4 * RATE : 9 * RATE], RATE)
    for name in ("silence.wav", "silence too.wav"):
        soundfile.write(folder / name, np.zeros(RATE), RATE)
    (folder / "broken.mp3").write_text("no audio")
    return folder


def test_each_pair_is_found_once_and_nothing_else(music):
    files = inspect_files([str(p) for p in music.rglob("*.*")], workers=2, progress=False)
    found = find_duplicates(files, progress=False)
    names = [(d.kind, d.file.rsplit("/", 1)[1], d.of.rsplit("/", 1)[1]) for d in found]
    same, copy, *excerpts = names
    assert same[0] == "same"
    assert {same[1], same[2]} == {"song.wav", "song.flac"}
    first = same[2]  # the other one is compared no further
    assert copy[0] == "copy"
    assert {copy[1], copy[2]} == {first, "song.mp3"}
    assert {(kind, file) for kind, file, _ in excerpts} == {("excerpt", "part.wav")}
    assert {of for _, _, of in excerpts} == {first, "song.mp3"}
    for d in found[2:]:
        assert d.at_s == pytest.approx(4.0, abs=0.1)
        assert (d.seconds, d.of_seconds) == pytest.approx((5.0, 12.0), abs=0.1)
        assert 0.12 <= d.share <= 1


def test_an_excerpt_that_goes_on_otherwise_is_an_overlap(tmp_path):
    one, other = melody(1), melody(2)
    soundfile.write(tmp_path / "a.wav", one, RATE)
    soundfile.write(tmp_path / "b.wav", np.concatenate([one[6 * RATE :], other[: 7 * RATE]]), RATE)
    files = inspect_files([str(tmp_path / f"{n}.wav") for n in "ab"], progress=False)
    (found,) = find_duplicates(files, progress=False)
    assert (found.kind, found.file[-5:]) == ("overlap", "a.wav")
    assert found.at_s == pytest.approx(-6.0, abs=0.1)


def test_the_command_prints_a_table_and_writes_one(music, tmp_path):
    out = tmp_path / "duplicates.csv"
    done = run("-m", "tune.embeddings", "duplicates", music, "--out", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "1 same, 1 copy, 2 excerpt; 9 files, 1 unusable, 2 silent" in done.stdout
    assert "copies [1]/song.mp3" in done.stdout
    assert f"unusable   {music / 'broken.mp3'}: " in done.stdout
    assert "20 landmarks in common" in done.stdout
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["kind"] for row in rows] == ["same", "copy", "excerpt", "excerpt"]
    assert all(str(music) in row["file"] and str(music) in row["of"] for row in rows)


def test_where_there_are_none_the_table_has_no_rows(tmp_path, capsys):
    for seed in (1, 2):
        soundfile.write(tmp_path / f"{seed}.wav", melody(seed, 3.0), RATE)
    main([str(tmp_path), "--out", str(tmp_path / "none.csv"), "--workers=1"])
    assert "no duplicate found; 2 files, 0 unusable, 0 silent" in capsys.readouterr().out
    text = (tmp_path / "none.csv").read_text()
    assert text.split() == ["kind,file,of,at_s,share,seconds,of_seconds"]


def test_of_many_files_not_all_landmarks_are_kept():
    assert [thinning(n, 2000) for n in (0, 1, 2000, 2001, 4000, 4001, 64_000)] == [
        1,
        1,
        1,
        2,
        2,
        4,
        32,
    ]  # so never more than those of 2000 files


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: MUSIC"),
        (["--out=a.txt", "."], "must end in .csv"),
        (["--out=no/a.csv", "."], "folder doesn't exist"),
    ],
)
def test_wrong_flags(argv, message, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err
