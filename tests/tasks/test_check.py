"""python -m tune.tasks list, show and check: what is planted in a data set is found in it."""

import json

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_task, run, tone
from task_reports import problems, report_of, rows_of
from task_trees import gs, mtt, write_rows

from tune.audio.decode import AudioError, read_header
from tune.audio.hashing import sound_hash
from tune.tasks.check import check
from tune.tasks.label_readers import difference, folded
from tune.tasks.load import TASKS, load_task
from tune.tasks.report import main


@pytest.fixture
def folder(tmp_path):
    """A task of 8, 4 and 6 tracks, with nothing wrong."""
    return make_task(tmp_path / "tones", seconds=0.6)


def test_a_task_without_faults_has_no_problem(folder, tmp_path):
    report = report_of(folder, tmp_path)
    assert report["problems"] == []
    assert report["splits"]["train"] == {
        "files": 8,
        "tracks": 8,
        "hours": pytest.approx(sum(0.6 + 0.37 * (i % 3) for i in range(1, 9)) / 3600),
    }
    spread = report["seconds"]
    assert (spread["min"], spread["median"], spread["max"]) == pytest.approx((0.6, 0.97, 1.34))
    assert spread["total"] == pytest.approx(sum(0.6 + 0.37 * (i % 3) for i in range(1, 19)))
    assert report["sample_rates"] == {"24000": 18}
    assert report["channels"] == {"1": 18}
    assert report["formats"] == {"WAV": 18}
    assert report["classes"] == {
        "high": {"train": 4, "val": 2, "test": 3},
        "low": {"train": 4, "val": 2, "test": 3},
    }


def test_planted_faults_are_found(folder, tmp_path):
    audio = folder / "audio"
    wave, rate = soundfile.read(audio / "003.wav", dtype="int16")
    soundfile.write(audio / "013.flac", wave, rate)  # a train track in another container
    (audio / "014.wav").write_bytes((audio / "009.wav").read_bytes())  # a val track's copy
    whole = (audio / "015.wav").read_bytes()
    (audio / "015.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(audio / "016.wav", np.zeros(12_000), 24_000)
    soundfile.write(audio / "017.wav", np.zeros(12_000), 24_000)  # as silent, but no duplicate
    (audio / "018.wav").unlink()
    rows = rows_of(folder, "test")
    rows[0]["audio_path"] = "audio/013.flac"
    write_rows(folder / "tones.test.jsonl", [*rows, {"audio_path": "audio/001.wav"}])
    report = report_of(folder, tmp_path)
    first, second = problems(report, "duplicate")
    assert f"train and test: train: {audio / '003.wav'}, test: {audio / '013.flac'}" in first
    assert f"val and test: val: {audio / '009.wav'}, test: {audio / '014.wav'}" in second
    (conflict,) = problems(report, "label")  # 009 is low, 014 stayed high
    assert conflict.endswith(f"val: {audio / '009.wav'}, test: {audio / '014.wav'}")
    truncated, missing = problems(report, "file")
    assert truncated.startswith(f"{audio / '015.wav'}: truncated:")
    assert missing == f"{audio / '018.wav'}: no such file"
    assert problems(report, "silent") == [
        f"{audio / f'{i:03d}.wav'}: digital silence" for i in (16, 17)
    ]
    (row,) = problems(report, "row")
    assert row.endswith("tones.test.jsonl:7: needs audio_path and label")
    quick = report_of(folder, tmp_path, decode=False)
    assert len(problems(quick, "duplicate")) == 1  # by bytes: the copy, not the flac
    assert len(problems(quick, "file")) == 1  # only the missing one
    assert not quick["decoded"]


def test_a_class_missing_from_the_test_split_and_a_rare_one(folder, tmp_path):
    rows = rows_of(folder, "test")
    write_rows(folder / "tones.test.jsonl", [row for row in rows if row["label"] == "low"])
    report = report_of(folder, tmp_path, min_tracks=4)
    assert problems(report, "class") == [
        "the class 'high' is missing from the test split",
        "the class 'low' has 3 of 3 test tracks",
    ]


def test_one_class_or_a_constant_target_is_reported_not_refused(tmp_path):
    one = make_task(tmp_path / "one", seconds=0.5)
    for split in ("train", "val", "test"):
        write_rows(
            one / f"tones.{split}.jsonl", [row | {"label": "low"} for row in rows_of(one, split)]
        )
    assert problems(report_of(one, tmp_path), "class") == ["all training tracks are of one class"]
    numbers = make_task(tmp_path / "numbers", seconds=0.5, numbers=True)
    rows = [row | {"label": [row["label"][0], 0.5]} for row in rows_of(numbers, "test")]
    write_rows(numbers / "tones.test.jsonl", rows)
    report = report_of(numbers, tmp_path)
    assert problems(report, "target") == ["the target 'target_1' is 0.5 on all test tracks"]
    values = [row["label"][0] for row in rows]
    found = report["targets"]["target_0"]["test"]
    assert (found["mean"], found["min"]) == pytest.approx((np.mean(values), min(values)))


def test_tags_and_clips(tmp_path):
    mtt(tmp_path)
    gs(tmp_path)
    rows = [json.loads(x) for x in (tmp_path / "MTT/MTT.test.jsonl").read_text().splitlines()]
    rows[0]["label"].append("opera")
    write_rows(tmp_path / "MTT/MTT.test.jsonl", rows)
    task = load_task("mtt", tmp_path, cache_dir=tmp_path, usable=False)
    report = check(task, min_tracks=2, progress=False)
    assert problems(report, "class") == [
        "the tag 'female vocal' is missing from the test split",
        "the tag 'opera' of 1 tracks is on no training track",
    ]
    assert problems(report, "count") == ["3 classes or tags, where there should be 50"]
    assert report["classes"]["guitar"] == {"train": 3, "val": 2, "test": 2}
    rows = [json.loads(x) for x in (tmp_path / "GS/GS.train.jsonl").read_text().splitlines()]
    rows[0]["ori_uid"] = json.loads((tmp_path / "GS/GS.test.jsonl").read_text().splitlines()[0])[
        "ori_uid"
    ]
    write_rows(tmp_path / "GS/GS.train.jsonl", rows)
    task = load_task("gs", tmp_path, cache_dir=tmp_path, usable=False)
    report = check(task, min_tracks=1, progress=False)
    (text,) = problems(report, "clips")
    assert text == f"clips of the track {rows[0]['ori_uid']} are in several splits"
    assert report["splits"]["test"]["files"] == 8
    assert report["splits"]["test"]["tracks"] == 4


def test_the_same_samples_have_the_same_hash_whatever_the_container(tmp_path):
    wave = 0.3 * tone(0.5, 300)
    stored = np.rint(wave * 32768).astype("int16")
    for name, subtype in (("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.aiff", "PCM_16")):
        soundfile.write(tmp_path / name, stored, 24_000, subtype=subtype)
    found = {
        sound_hash(soundfile.read(p, dtype="float32")[0], 24_000) for p in tmp_path.glob("a.*")
    }
    assert found == {sound_hash(wave, 24_000)}
    assert sound_hash(wave, 24_000) != sound_hash(wave, 22_050)
    assert sound_hash(wave, 24_000) != sound_hash(np.append(wave[:-1], wave[-1] + 0.001), 24_000)


def test_headers(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros((4410, 2)), 44_100)
    header = read_header(tmp_path / "a.flac")
    assert (header.sample_rate, header.channels, header.format) == (44_100, 2, "FLAC")
    assert header.seconds == pytest.approx(0.1)
    for name, text, reason in (("b.raw", "\0x", "no header"), ("c.wav", "x", "can't be decoded")):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match=reason):
            read_header(tmp_path / name)


def test_the_command_line(folder, tmp_path, capsys):
    done = run(
        "-m",
        "tune.tasks",
        "check",
        folder,
        "--min_tracks=4",
        "--json",
        tmp_path / "a.json",
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert "problem    the class 'high' has 3 of 6 test tracks" in done.stdout
    assert "2 problems" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["sample_rates"] == {"24000": 18}
    with pytest.raises(SystemExit) as left:
        main(["check", str(folder), "--min_tracks=1", "--decode=false"])
    assert left.value.code == 0
    assert "no problem found" in capsys.readouterr().out
    main(["list"])
    out = capsys.readouterr().out
    assert all(name in out for name in TASKS)
    main(["show", "mtg-top50", "--data_dir", str(tmp_path)])
    out = capsys.readouterr().out
    for part in (
        "MTGTop50.{train,val,test}.jsonl",
        "m-a-p/MTG",
        "it isn't there yet",
        "0.001",
        "mix",
        "CC BY-NC-SA",
    ):
        assert part in out
    with pytest.raises(ValueError, match="unknown task 'mtg'"):
        main(["show", "mtg"])
    with pytest.raises(SystemExit):
        main(["check"])
    assert "check needs a task" in capsys.readouterr().err


def test_a_track_twice_in_a_split_with_equal_and_with_different_labels(folder, tmp_path):
    audio = folder / "audio"
    (audio / "002.wav").write_bytes((audio / "004.wav").read_bytes())  # both are high
    train, test = rows_of(folder, "train"), rows_of(folder, "test")
    conflict = train[2] | {"label": "high"}
    write_rows(folder / "tones.train.jsonl", [*train, conflict])
    write_rows(folder / "tones.test.jsonl", [*test, test[0]])
    report = report_of(folder, tmp_path)
    first, second = problems(report, "twice")
    where = ", ".join(f"train: {audio / name}" for name in ("002.wav", "004.wav"))
    assert first == f"the same audio is 2 times in train: {where}"
    assert second == f"the same audio is 2 times in test: test: {audio / '013.wav'} (2 times)"
    (text,) = problems(report, "label")
    assert text == (
        f"the same audio has different labels (low | high): train: {audio / '003.wav'} (2 times)"
    )
    assert len(report["problems"]) == 3


def test_a_file_that_is_missing_in_two_splits_is_a_duplicate_all_the_same(folder, tmp_path):
    (folder / "audio" / "001.wav").unlink()
    rows = [*rows_of(folder, "test"), rows_of(folder, "train")[0]]
    write_rows(folder / "tones.test.jsonl", rows)
    (text,) = problems(report_of(folder, tmp_path), "duplicate")
    assert text.startswith("the same audio is in train and test")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("Low", "case"),
        ("lo\u200bw", "characters without width"),
        ("\uff4cow", "kinds of characters"),
    ],
)
def test_names_that_look_alike_are_reported(folder, tmp_path, name, by):
    for split in ("train", "val", "test"):
        rows = rows_of(folder, split)
        rows[0]["label"] = name
        write_rows(folder / f"tones.{split}.jsonl", rows)
    (text,) = problems(report_of(folder, tmp_path), "class")
    shown = repr if by == "case" else ascii
    one, other = sorted([name, "low"])
    assert text == f"the names {shown(one)} and {shown(other)} differ by {by}: one class?"


@pytest.mark.parametrize(
    ("one", "other", "by"),
    [
        ("Mu\u0301sica", "Música", "composed or decomposed characters"),
        ("hip hop", "hip\xa0hop", "kinds of blanks"),
        ("hip hop", "hip-hop", "blanks, hyphens or underscores"),
        ("1", "01", "how a number is written"),
        ("1", "1.0", "how a number is written"),
        ("Hip-Hop", "hip hop", "their spelling"),
        ("rock", "rocks", None),
        ("C", "C#", None),
        ("4 4", "44", None),
        ("-1", "1", None),
    ],
)
def test_what_two_names_differ_by(one, other, by):
    assert (folded(one) == folded(other)) == (by is not None)
    assert by is None or difference(one, other) == by


@pytest.mark.parametrize(
    ("values", "found"),
    [([1.0, 2.0, 3.0], 1), ([1.0, 2.0, 3.5], 0), (range(0, 100, 5), 1), (range(0, 105, 5), 0)],
)
def test_a_regression_on_few_whole_numbers_is_pointed_out(tmp_path, values, found):
    folder = make_task(tmp_path / "ratings", seconds=0.3, n=(21, 3, 3))
    for split in ("train", "val", "test"):
        rows = rows_of(folder, split)
        for i, row in enumerate(rows):
            row["label"] = [float(list(values)[i % len(values)])]
        write_rows(folder / f"tones.{split}.jsonl", rows)
    texts = problems(report_of(folder, tmp_path), "target")
    assert len(texts) == found
    if found:
        assert f"has {len(values)} different values, all whole" in texts[0]
        assert texts[0].endswith("--kind classes reads them so")


def test_channels_of_opposite_phase(folder, tmp_path):
    audio = folder / "audio"
    for i, right in ((1, -1.0), (3, -0.95), (5, -0.7), (7, 1.0)):
        left, rate = soundfile.read(audio / f"{i:03d}.wav")
        stereo = np.stack([left, right * left], 1)
        soundfile.write(audio / f"{i:03d}.wav", stereo, rate, subtype="FLOAT")
    report = report_of(folder, tmp_path)
    whole, nearly = problems(report, "antiphase")
    assert "001.wav: its channels are of opposite phase and cancel in the mix to nothing" in whole
    assert "003.wav: its channels are of opposite phase" in nearly
    assert "to 32 dB below them" in nearly  # 20 log10(0.975 / 0.025)
    assert problems(report, "silent") == []


def test_a_length_that_does_not_go_with_the_size(folder, tmp_path):
    rate = 44_100
    picture = b"ID3\x04\0\0" + bytes([0, 10, 0, 0]) + bytes(10 << 14)
    longer_than_file = b"ID3\x04\0\0\x7f\x7f\x7f\x7f"
    tags = {"001": picture * 2, "002": b"", "003": longer_than_file}
    for name, seconds, extra in (("001", 3.0, 0), ("002", 3.0, 400_000), ("003", 3.0, 0)):
        soundfile.write(folder / "audio" / f"{name}.mp3", tone(seconds, 300, rate), rate)
        data = (folder / "audio" / f"{name}.mp3").read_bytes()
        (folder / "audio" / f"{name}.mp3").write_bytes(tags[name] + data + bytes(extra))
    rows = rows_of(folder, "train")
    for i in (0, 1, 2):
        rows[i]["audio_path"] = f"audio/00{i + 1}.mp3"
    write_rows(folder / "tones.train.jsonl", rows)
    (text,) = problems(report_of(folder, tmp_path), "length")
    assert "002.mp3: 3.0" in text
    assert text.endswith("kbit/s, which MP3 doesn't have: is its length right?")


def test_the_thresholds_are_printed(folder, capsys):
    with pytest.raises(SystemExit):
        main(["check", str(folder), "--min_tracks=3"])
    out = capsys.readouterr().out
    for part in ("at least 3 test tracks", "20 landmarks", "20 dB", "8 to 320", "up to 20 diff"):
        assert part in out
