"""Tasks: every layout that can be given, by value, and every mistake that can be made in one."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tune.tasks.load import SPLITS, TASKS, TaskError, load_task


def write_jsonl(path: Path, rows) -> Path:
    """Write rows, each a dict or a line of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_table(path: Path, text: str) -> Path:
    """Write a CSV or TSV."""
    path.write_text(text, encoding="utf-8")
    return path


def marble(audio_path: str, label) -> dict:
    """A row with all the keys that MARBLE's files have."""
    return {
        "audio_path": audio_path,
        "label": label,
        "duration": 45.01,
        "sample_rate": 44100,
        "num_samples": 1984943,
        "bit_depth": 16,
        "channels": 1,
    }


def touch(path: Path) -> Path:
    """Make a file; loading a task never opens the audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"audio")
    return path


def load(name, root: Path, **kwargs):
    """Load a task with everything below one folder."""
    kwargs.setdefault("data_dir", root / "data")
    return load_task(str(name), cache_dir=root / "cache", **kwargs)


def labels(task, split: str) -> dict:
    """Track id -> label, class names spelled out."""
    data = task.splits[split]
    values = data["label"][:]
    if task.kind == "classes":
        values = [task.classes[i] for i in values]
    return dict(zip(data["id"][:], values, strict=True))


def reasons(task) -> dict[str, str]:
    """Line of the file -> why it was skipped."""
    return {item["where"].rsplit(":", 1)[1]: item["reason"] for item in task.skipped}


EMO = {
    "train": {"0005": [-0.2569, 0.2599], "0007": [0.5, -1.25], "0010": [1.0, 0.75]},
    "val": {"0012": [-1.5, 0.125]},
    "test": {"0020": [0.0, 2.0], "0021": [-0.375, -0.5]},
}
GENRES = {
    "train": {"blues": (0, 1), "jazz": (0, 1), "metal": (0,)},
    "val": {"jazz": (2,), "blues": (2,)},
    "test": {"metal": (3,), "jazz": (3,)},
}


def emo_id(number: str) -> str:
    return f"data/EMO/emomusic/wav/{number}.wav"


def genre_id(genre: str, i: int) -> str:
    return f"data/GTZAN/genres/{genre}/{genre}.{i:05d}.wav"


@pytest.fixture(params=["data", "my music"])
def hub(tmp_path, request) -> Path:
    """A data folder with EMO and GTZAN as the hub lays them out."""
    data = tmp_path / request.param
    for split, rows in EMO.items():
        write_jsonl(
            data / "EMO" / f"EMO.{split}.jsonl",
            [marble(emo_id(number), label) for number, label in rows.items()],
        )
        for number in rows:
            touch(data / "EMO/emomusic/wav" / f"{number}.wav")
    for split, genres in GENRES.items():
        ids = [(genre, genre_id(genre, i)) for genre, members in genres.items() for i in members]
        write_jsonl(
            data / "GTZAN" / f"GTZANGenre.{split}.jsonl", [marble(path, g) for g, path in ids]
        )
        write_jsonl(
            data / "GTZAN" / f"GTZANBeatTracking.{split}.jsonl",
            [marble(path, [0.5, 1.0, 1.5]) for _, path in ids],
        )
        for _, path in ids:
            touch(data / path.removeprefix("data/"))
    return data


def test_emo_gives_arousal_and_valence_in_the_splits_of_the_hub(hub, tmp_path):
    task = load("emo", tmp_path, data_dir=hub)
    assert (task.name, task.kind, task.targets) == ("emo", "numbers", ["arousal", "valence"])
    assert task.classes == []
    for split in SPLITS:
        assert labels(task, split) == {emo_id(n): label for n, label in EMO[split].items()}
        # Found whatever the folder that holds the data sets is called.
        assert task.splits[split]["path"][:] == [
            str(hub / "EMO/emomusic/wav" / f"{n}.wav") for n in EMO[split]
        ]
        assert all(Path(p).is_file() for p in task.splits[split]["path"])
    assert (task.skipped, task.split_made) == ([], None)


def test_gtzan_takes_the_genres_although_other_tasks_lie_beside_them(hub, tmp_path):
    task = load("gtzan", tmp_path, data_dir=hub)
    assert (task.kind, task.classes, task.targets) == ("classes", ["blues", "jazz", "metal"], [])
    for split, genres in GENRES.items():
        expected = {genre_id(g, i): g for g, members in genres.items() for i in members}
        assert labels(task, split) == expected
        assert task.splits[split]["path"][:] == [
            str(hub / path.removeprefix("data/")) for path in expected
        ]
        assert all(Path(p).is_file() for p in task.splits[split]["path"])
    assert task.splits["test"]["label"][:] == [2, 1]
    assert task.split_made is None


def test_a_hub_folder_is_the_same_task_by_path_whichever_split_is_named(hub, tmp_path):
    for split in SPLITS:
        task = load(hub / "GTZAN" / f"GTZANGenre.{split}.jsonl", tmp_path)
        assert task.classes == ["blues", "jazz", "metal"]
        assert labels(task, "test") == {genre_id("metal", 3): "metal", genre_id("jazz", 3): "jazz"}
    emo = load(hub / "EMO", tmp_path)
    assert (emo.kind, emo.targets) == ("numbers", ["target_0", "target_1"])
    assert labels(emo, "val") == {emo_id("0012"): [-1.5, 0.125]}


def test_a_hub_folder_may_be_a_link_to_a_folder_of_another_name(hub, tmp_path):
    disk = tmp_path / "disk" / "a" / "b" / "c"
    disk.mkdir(parents=True)
    elsewhere = (hub / "EMO").rename(disk / "emo-v2")
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "EMO").symlink_to(elsewhere, target_is_directory=True)
    task = load("emo", tmp_path)
    assert all(Path(p).is_file() for split in SPLITS for p in task.splits[split]["path"])


def test_the_recipe_is_marbles_for_the_kind_of_label(hub, tmp_path):
    emo, gtzan = (load(name, tmp_path, data_dir=hub).recipe for name in ("emo", "gtzan"))
    assert (emo.lr, emo.main_metric) == (1e-3, "r2")
    assert (gtzan.lr, gtzan.main_metric) == (5e-3, "accuracy")


def rows_of(values, prefix="a") -> list[dict]:
    return [{"audio_path": f"{prefix}{i}.wav", "label": v} for i, v in enumerate(values)]


def write_folder(folder: Path, stem="songs", **splits) -> Path:
    """A folder in MARBLE's layout; splits default to two classes."""
    for split in SPLITS:
        rows = splits.get(split, rows_of(["x", "y"], split))
        write_jsonl(folder / f"{stem}.{split}.jsonl", rows)
    return folder


def test_a_folder_is_read_by_its_only_stem(tmp_path):
    folder = write_folder(tmp_path / "mine", stem="my.songs")
    task = load(folder, tmp_path)
    assert task.name == "mine"
    assert labels(task, "val") == {"val0.wav": "x", "val1.wav": "y"}
    assert task.splits["val"]["path"][:] == [str(folder / "val0.wav"), str(folder / "val1.wav")]


def test_a_relative_path_is_taken_from_the_working_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    task = load("mine", tmp_path)
    assert task.splits["test"]["path"][0] == str(tmp_path / "mine" / "test0.wav")


SPELLINGS = {
    "train": ["train", "Training", "train", "TRAIN"],
    "val": ["dev", " validation "],
    "test": ["test", "testing"],
}


def test_a_single_jsonl_with_a_split_key_keeps_that_split(tmp_path):
    names = [(split, name) for split, spelled in SPELLINGS.items() for name in spelled]
    rows = [
        {"audio_path": f"{i}.wav", "label": "xy"[i % 2], "split": name}
        for i, (_, name) in enumerate(names)
    ]
    task = load(write_jsonl(tmp_path / "all.jsonl", rows), tmp_path)
    for split in SPLITS:
        expected = {f"{i}.wav": "xy"[i % 2] for i, (s, _) in enumerate(names) if s == split}
        assert labels(task, split) == expected
    assert task.split_made is None


@pytest.mark.parametrize(("ending", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_table_with_a_split_column_keeps_that_split(tmp_path, ending, comma):
    lines = [
        "split|label|path|note",
        "train|rock|a.wav|",
        "train|folk|b.wav|loud",
        "valid|rock|c.wav|",
        "test|folk|d.wav|",
    ]
    text = "\n".join(lines).replace("|", comma) + "\n"
    task = load(write_table(tmp_path / f"mine.{ending}", text), tmp_path)
    assert task.classes == ["folk", "rock"]
    assert labels(task, "train") == {"a.wav": "rock", "b.wav": "folk"}
    assert labels(task, "val") == {"c.wav": "rock"}
    assert labels(task, "test") == {"d.wav": "folk"}
    assert task.split_made is None


def test_a_table_may_have_a_bom_quotes_and_names_in_any_script(tmp_path):
    odd = [
        "Crosby, Stills.wav",
        '12" mix.wav',
        "Ноктюрн.wav",
        "夜曲.flac",
        "two\nlines.wav",
        "a\u2028b.wav",
    ]
    quoted = ['"' + name.replace('"', '""') + '"' for name in odd]
    body = "".join(
        f"{name},{label},{split}\r\n"
        for split in SPLITS
        for name, label in zip(quoted, ["schön", "ça va"] * 3, strict=True)
    )
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\xef\xbb\xbf" + ("path,label,split\r\n" + body).encode())
    task = load(file, tmp_path)
    assert task.classes == ["schön", "ça va"]
    assert labels(task, "test") == dict(zip(odd, ["schön", "ça va"] * 3, strict=True))
    assert task.skipped == []


def test_a_jsonl_may_have_a_bom_blank_lines_and_windows_line_ends(tmp_path):
    folder = write_folder(tmp_path / "mine")
    file = folder / "songs.train.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    task = load(folder, tmp_path)
    assert labels(task, "train") == {"train0.wav": "x", "train1.wav": "y"}
    assert task.skipped == []


def test_paths_may_be_absolute_or_relative_to_a_folder_up_to_three_above(tmp_path):
    folder = tmp_path / "one" / "two" / "three" / "lists"
    far = touch(tmp_path / "elsewhere" / "far.wav")
    near = touch(folder.parent / "near.wav")
    touch(folder.parents[1] / "near.wav")  # the nearest of two is taken
    three = touch(folder.parents[2] / "audio" / "three.wav")
    touch(folder.parents[3] / "four.wav")
    names = [str(far), "near.wav", "audio/three.wav", "four.wav", "missing.wav"]
    train = [marble(name, "xy"[i % 2]) for i, name in enumerate(names)]
    task = load(write_folder(folder, train=train), tmp_path, allow_outside=True)
    # A missing file stays in the task: encoding reports it.
    expected = [far, near, three, folder / "four.wav", folder / "missing.wav"]
    assert task.splits["train"]["path"][:] == [str(p) for p in expected]
    task = load(folder, tmp_path)
    assert task.splits["train"]["path"][:] == [str(p) for p in expected[1:]]
    (skipped,) = task.skipped
    assert skipped["reason"].startswith(f"{far} is outside its data folder ")


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "zero\0byte.wav", "", "."])
def test_a_path_that_no_file_can_have_is_left_to_encoding(tmp_path, name):
    train = [*rows_of(["x", "y"]), {"audio_path": name, "label": "x"}]
    task = load(write_folder(tmp_path / "mine", train=train), tmp_path)
    assert labels(task, "train")[name] == "x"


def test_class_names_lose_the_blanks_around_them(tmp_path):
    task = load(write_folder(tmp_path / "mine", train=rows_of(["x", " x", "y "])), tmp_path)
    assert labels(task, "train") == {"a0.wav": "x", "a1.wav": "x", "a2.wav": "y"}


KINDS = [
    ("jsonl", ["rock", "folk"], "classes", ["folk", "rock"]),
    ("jsonl", [0, 10], "classes", ["0", "10"]),
    ("jsonl", [True, False], "classes", ["False", "True"]),
    ("jsonl", [0.5, 1.5], "numbers", [[0.5], [1.5]]),
    ("jsonl", [1, 2.5], "numbers", [[1.0], [2.5]]),
    ("jsonl", [[1, 2], [3, 4]], "numbers", [[1.0, 2.0], [3.0, 4.0]]),
    ("csv", ["rock", "folk"], "classes", ["folk", "rock"]),
    ("csv", ["1", "02"], "classes", ["02", "1"]),
    ("csv", ["1970_1979", "none"], "classes", ["1970_1979", "none"]),
    ("csv", ["4 4", "3 4"], "classes", ["3 4", "4 4"]),
    ("csv", ["-0.5", "1e-1"], "numbers", [[-0.5], [0.1]]),
    ("csv", ["3", "3.5"], "numbers", [[3.0], [3.5]]),
    ("csv", ["0.5 -1", "2;3.25"], "numbers", [[0.5, -1.0], [2.0, 3.25]]),
]


def two_rows(tmp_path: Path, ending: str, two) -> Path:
    """A single file whose splits all hold the same two labels."""
    if ending == "csv":
        lines = [f"{s}{i}.wav,{v},{s}" for s in SPLITS for i, v in enumerate(two)]
        return write_table(tmp_path / "two.csv", "\n".join(["path,label,split", *lines]))
    rows = [{**row, "split": s} for s in SPLITS for row in rows_of(two, s)]
    return write_jsonl(tmp_path / "two.jsonl", rows)


@pytest.mark.parametrize(("ending", "two", "kind", "expected"), KINDS)
def test_the_kind_is_read_off_the_labels(tmp_path, ending, two, kind, expected):
    task = load(two_rows(tmp_path, ending, two), tmp_path)
    assert (task.kind, task.skipped) == (kind, [])
    if kind == "classes":
        assert task.classes == expected
        assert list(labels(task, "train").values()) == [str(v) for v in two]
    else:
        assert list(labels(task, "train").values()) == expected
        names = ["value"] if len(expected[0]) == 1 else ["target_0", "target_1"]
        assert task.targets == names


@pytest.mark.parametrize(
    ("two", "kind", "expected"),
    [
        (["1", "2"], "numbers", [[1.0], [2.0]]),
        (["1 2", "3 4"], "numbers", [[1.0, 2.0], [3.0, 4.0]]),
        (["1.0", "2.0"], "classes", ["1.0", "2.0"]),
    ],
)
def test_a_kind_that_is_set_wins_over_the_guess(tmp_path, two, kind, expected):
    task = load(two_rows(tmp_path, "csv", two), tmp_path, kind=kind)
    assert task.kind == kind
    assert list(labels(task, "train").values()) == expected


def test_a_few_bad_labels_do_not_change_the_kind(tmp_path):
    train = rows_of([0.5, "n/a", 1.5, None, 2.5])
    numbers = rows_of([0.5, 1.5], "v")
    folder = write_folder(tmp_path / "mine", train=train, val=numbers, test=numbers)
    task = load(folder, tmp_path)
    assert task.kind == "numbers"
    assert reasons(task) == {"2": "no label (n/a)", "4": "no label (empty)"}


def spread(task) -> dict[str, str]:
    """Track id -> split."""
    return {i: split for split in SPLITS for i in task.splits[split]["id"]}


@pytest.mark.parametrize("form", ["class {}", "{}.5"])
def test_a_made_split_does_not_depend_on_the_order_of_the_rows(tmp_path, form):
    rows = [(f"{i:03d}.wav", form.format(i % 7)) for i in range(100)]
    rows += [("twice.wav", form.format(i)) for i in range(30)]  # one file, several labels
    made = []
    for seed in (None, 1, 2):
        if seed is not None:
            random.Random(seed).shuffle(rows)
        text = "path,label\n" + "".join(f"{p},{c}\n" for p, c in rows)
        task = load(write_table(tmp_path / f"{seed}.csv", text), tmp_path)
        made.append(
            {
                split: sorted(
                    zip(task.splits[split]["id"], task.splits[split]["label"], strict=True)
                )
                for split in SPLITS
            }
        )
    assert made[0] == made[1] == made[2]
    assert sum(map(len, made[0].values())) == 130


def test_a_made_split_is_drawn_from_a_fixed_seed(tmp_path):
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(["x", "y"] * 6)), tmp_path)
    # Not to be changed: results on made splits could no longer be compared.
    assert task.splits["val"]["id"][:] == ["a6.wav", "a1.wav"]
    assert task.splits["test"]["id"][:] == ["a8.wav", "a0.wav", "a11.wav"]


def test_a_made_split_is_the_same_from_jsonl_and_csv(tmp_path):
    values = ["x", "y", "z"] * 10
    a = load(write_jsonl(tmp_path / "a.jsonl", rows_of(values)), tmp_path)
    lines = [f"a{i}.wav,{v}" for i, v in enumerate(values)]
    b = load(write_table(tmp_path / "b.csv", "\n".join(["path,label", *lines])), tmp_path)
    assert spread(a) == spread(b)


def test_a_made_split_has_the_shares_and_every_class_in_each_split(tmp_path):
    values = [f"class {c}" for c in range(10) for _ in range(10)]
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(values)), tmp_path)
    assert {s: len(task.splits[s]) for s in SPLITS} == {"train": 60, "val": 15, "test": 25}
    for split, least, most in (("train", 5, 7), ("val", 1, 2), ("test", 2, 3)):
        counts = Counter(labels(task, split).values())
        assert len(counts) == 10
        assert min(counts.values()) >= least
        assert max(counts.values()) <= most


def test_a_class_of_three_has_a_track_in_each_split(tmp_path):
    values = [f"class {c}" for c in range(6) for _ in range(3)]
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(values)), tmp_path)
    for split in SPLITS:
        assert sorted(labels(task, split).values()) == [f"class {c}" for c in range(6)]


def test_rare_classes_go_to_train_first(tmp_path):
    values = ["once", "twice", "twice", *["often"] * 20]
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(values)), tmp_path)
    assert set(labels(task, "train").values()) == {"once", "twice", "often"}
    assert "once" not in [*labels(task, "val").values(), *labels(task, "test").values()]
    assert task.skipped == []


def test_a_made_split_spreads_numbers_over_their_range(tmp_path):
    values = [[float(v), 0.5 + v % 2] for v in range(100)]
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(values)), tmp_path)
    for split, share in (("train", 12), ("val", 3), ("test", 5)):
        fifths = Counter(int(v[0] // 20) for v in labels(task, split).values())
        assert fifths == dict.fromkeys(range(5), share)


def test_a_few_numbers_are_enough_for_a_made_split(tmp_path):
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of([v / 2 for v in range(7)])), tmp_path)
    sizes = [len(task.splits[s]) for s in SPLITS]
    assert sum(sizes) == 7
    assert min(sizes) >= 1
    assert sizes[0] == max(sizes)


def test_a_made_split_is_written_down(tmp_path):
    task = load(write_jsonl(tmp_path / "a.jsonl", rows_of(["x", "y"] * 10)), tmp_path)
    assert {row["id"]: row["split"] for row in task.split_made} == spread(task)
    assert len(task.split_made) == 20
    assert {row["path"] for row in task.split_made} == {
        str(tmp_path / f"a{i}.wav") for i in range(20)
    }


def test_val_is_made_out_of_train_when_only_val_is_missing(tmp_path):
    rows = [{**row, "split": "train"} for row in rows_of(["x", "y"] * 10)]
    rows += [{**row, "split": "test"} for row in rows_of(["x", "y"], "t")]
    task = load(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path)
    assert labels(task, "test") == {"t0.wav": "x", "t1.wav": "y"}
    assert Counter(labels(task, "val").values()) == {"x": 2, "y": 2}
    assert Counter(labels(task, "train").values()) == {"x": 8, "y": 8}
    assert not {*labels(task, "val")} & {*labels(task, "train")}
    assert {row["id"]: row["split"] for row in task.split_made} == spread(task)


CLASS_LINES = [
    ("{not json", "malformed JSON: "),
    ('{"audio_path": "b.wav", "label"', "malformed JSON: "),
    ("[" * 100_000, "malformed JSON: "),
    ('["b.wav", "x"]', "needs audio_path and label"),
    ('{"audio_path": "b.wav"}', "needs audio_path and label"),
    ('{"label": "x"}', "needs audio_path and label"),
    ('{"audio_path": "b.wav", "label": null}', "no label (empty)"),
    ('{"audio_path": "b.wav", "label": " "}', "no label ( )"),
    ('{"audio_path": "b.wav", "label": ["x", "y"]}', "label ['x', 'y'] is not one class"),
    ('{"audio_path": "b.wav", "label": 0.5}', "label 0.5 is not one class"),
    ('{"audio_path": "\\udce9.wav", "label": "x"}', "a name that is not valid Unicode"),
    ('{"audio_path": "b.wav", "label": "\\ud800"}', "a name that is not valid Unicode"),
]


def test_lines_that_are_no_rows_are_listed_with_their_number_and_reason(tmp_path):
    train = [*rows_of(["x", "y"]), *(line for line, _ in CLASS_LINES)]
    folder = write_folder(tmp_path / "mine", train=train)
    task = load(folder, tmp_path)
    assert labels(task, "train") == {"a0.wav": "x", "a1.wav": "y"}
    assert len(task.skipped) == len(CLASS_LINES)
    for number, (item, (_, reason)) in enumerate(
        zip(
            sorted(task.skipped, key=lambda s: int(s["where"].rsplit(":")[-1])),
            CLASS_LINES,
            strict=True,
        ),
        start=3,
    ):
        assert item["where"] == f"{folder / 'songs.train.jsonl'}:{number}"
        assert item["reason"].startswith(reason)


NUMBER_LABELS = [
    ("NaN", "no label (nan)"),
    ("[0.5, Infinity]", "is not a finite number"),
    ("[1e999, 0.5]", "is not a finite number"),
    ("[" + "9" * 400 + ", 0.5]", "is not a finite number"),
    ('"loud"', "is not a finite number"),
    ("[true, 0.5]", "is not a finite number"),
    ("[]", "is not a finite number"),
    ("[0.5]", "has not 2 values"),
    ("[0.5, 1, 2]", "has not 2 values"),
]


@pytest.mark.parametrize("name", ["emo", "path"])
def test_labels_that_are_no_targets_are_listed_even_in_the_first_rows(tmp_path, name):
    bad = [f'{{"audio_path": "b.wav", "label": {label}}}' for label, _ in reversed(NUMBER_LABELS)]
    good = [[-0.25, 0.5], [1.5, 0.0], *([float(i), 2.0 * i] for i in range(9))]
    folder = write_folder(
        tmp_path / "data" / "EMO",
        stem="EMO",
        train=[*bad, *rows_of(good)],
        val=rows_of(good, "v"),
        test=rows_of(good, "t"),
    )
    task = load("emo" if name == "emo" else folder, tmp_path)
    assert list(labels(task, "train").values()) == good
    assert len(task.skipped) == len(bad)
    for number, (_, reason) in enumerate(reversed(NUMBER_LABELS), start=1):
        if name == "emo" and "no label" in reason:
            reason = "label nan is not a finite number"
        assert reasons(task)[str(number)].endswith(reason)


def test_a_label_without_training_tracks_is_listed(tmp_path):
    folder = write_folder(tmp_path / "mine", test=rows_of(["x", "polka", "y"]))
    task = load(folder, tmp_path)
    assert task.classes == ["x", "y"]
    assert labels(task, "test") == {"a0.wav": "x", "a2.wav": "y"}
    assert task.skipped == [
        {
            "where": f"{folder / 'songs.test.jsonl'}:2",
            "reason": "unknown label 'polka': no training track has it",
        }
    ]


def test_rows_with_an_unknown_split_are_listed(tmp_path):
    text = "path,label,split\n" + "".join(f"{s}{c}.wav,{c},{s}\n" for s in SPLITS for c in "xy")
    task = load(write_table(tmp_path / "a.csv", text + "odd.wav,x,holdout\n"), tmp_path)
    assert reasons(task) == {"8": "unknown split 'holdout' (train, val or test)"}
    assert [len(task.splits[s]) for s in SPLITS] == [2, 2, 2]


def test_rows_of_a_table_without_path_or_label_or_with_too_many_fields_are_listed(tmp_path):
    text = "path,label\n" + "".join(f"{i}.wav,{'xy'[i % 2]}\n" for i in range(10))
    text += ",x\nb.wav,\nb.wav\nCrosby, Stills.wav,x\n\n"
    task = load(write_table(tmp_path / "a.csv", text), tmp_path)
    assert task.classes == ["x", "y"]
    assert {line: reason.split(":")[0] for line, reason in reasons(task).items()} == {
        "12": "no path",
        "13": "no label (empty)",
        "14": "no label (empty)",
        "15": "more fields than the first line",
    }
    assert sum(len(task.splits[s]) for s in SPLITS) == 10


TABLES = [
    (b"", r"needs the columns path and label.*label and path missing"),
    (b"path:label\na.wav:x\n", r"label and path missing \(found: \['path:label'\]\)"),
    (b"path,genre\na.wav,x\n", r"label missing \(found: \['path', 'genre'\]\); is it --label_col"),
    (b"path,label\n", "no usable row"),
    (b"path,label\n\xc3\xa9t\xe9.wav,x\n", r"csv:2: damaged UTF-8"),
    (b'path,label\na.wav,x\nb.wav,"y\n' + b"c.wav,x\n" * 20, r"csv:\d+: .*quote left open"),
    (b'path,label\na.wav,"y\n' + b"c.wav,x\n" * 20_000, r"csv:\d+: .*quote left open"),
    (b"path,label,split\na.wav,x,train\nb.wav,y,\n", r"csv:3: no split, while other rows"),
    (b"path,label,split\na.wav,x,holdout\n", r"no usable row \(skipped: 1, .*csv:2: unknown spl"),
    (b"path,label,split\na.wav,x,val\nb.wav,y,test\n", "the train split has no usable track"),
    (b"path,label,split\n" + b"a.wav,x,train\nb.wav,y,train\n" * 3, "the test split has no"),
    (b"path,label,split\na.wav,.5,test\nb.wav,.1,test\n", "the train split has no usable track"),
    (b"path,label\na.wav,x\nb.wav,y\n", "the val split has no usable track"),
]


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_a_table_that_is_no_task_is_refused(tmp_path, content, message):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        load(tmp_path / "mine.csv", tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_split_file_is_refused(tmp_path, split):
    folder = write_folder(tmp_path / "mine")
    (folder / f"songs.{split}.jsonl").unlink()
    other = "songs.test.jsonl" if split != "test" else "songs.train.jsonl"
    with pytest.raises(TaskError, match=rf"songs\.{split}\.jsonl is missing"):
        load(folder / other, tmp_path)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("lines", [[], ["{"]])
def test_an_empty_split_is_refused_and_never_made_up(tmp_path, split, lines):
    folder = write_folder(tmp_path / "mine", **{split: lines})
    message = rf"songs\.{split}\.jsonl holds no usable row" + (r" \(skipped: 1" if lines else "$")
    with pytest.raises(TaskError, match=message):
        load(folder, tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_that_runs_empty_through_its_labels_is_refused(tmp_path, split):
    numbers = {s: rows_of([[0.5], [1.5]], s) for s in SPLITS}
    numbers[split] = rows_of([float("nan"), "?"])
    message = rf"the {split} split has no usable track \(skipped: 2.*label '\?' is not a finite"
    with pytest.raises(TaskError, match=message):
        load(write_folder(tmp_path / "mine", **numbers), tmp_path)


def test_a_test_split_with_unknown_labels_only_is_refused(tmp_path):
    folder = write_folder(tmp_path / "mine", test=rows_of(["polka"]))
    with pytest.raises(TaskError, match=r"the test split has no usable track.*label 'polka'"):
        load(folder, tmp_path)


def test_labels_that_are_all_bad_are_refused(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", rows_of(["?"] * 5))
    with pytest.raises(TaskError, match=r"no usable row \(skipped: 5, the first is .*jsonl:1: lab"):
        load(file, tmp_path, kind="numbers")


def test_one_class_only_is_refused(tmp_path):
    same = {s: rows_of(["x", "x"], s) for s in SPLITS}
    with pytest.raises(TaskError, match=r"all training tracks have the label 'x'.*two classes"):
        load(write_folder(tmp_path / "mine", **same), tmp_path)


def test_a_target_that_never_varies_is_refused(tmp_path):
    same = {s: rows_of([[0.5, 1.0], [0.75, 1.0]], s) for s in SPLITS}
    with pytest.raises(TaskError, match="a target has the same value on all training tracks"):
        load(write_folder(tmp_path / "mine", **same), tmp_path)


def test_an_unknown_task_names_those_there_are(tmp_path):
    with pytest.raises(
        TaskError, match=r"unknown task 'gztan'.*emo, gtzan, gs.*demo.*no such file"
    ):
        load("gztan", tmp_path)


def test_a_folder_with_several_tasks_asks_for_one(tmp_path):
    write_folder(tmp_path / "mine", stem="keys")
    folder = write_folder(tmp_path / "mine", stem="beats")
    with pytest.raises(TaskError, match=r"several tasks \(beats, keys\).*beats\.train\.jsonl"):
        load(folder, tmp_path)


def test_a_folder_without_tasks_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"holds no \*\.train\.jsonl"):
        load(tmp_path, tmp_path)
    with pytest.raises(TaskError, match=r"a task is a folder, \.jsonl, \.csv or \.tsv, not \.wav"):
        load(touch(tmp_path / "song.wav"), tmp_path)


@pytest.mark.parametrize("name", ["emo", "gtzan"])
@pytest.mark.parametrize("there", [False, True])
def test_hub_data_missing_offline_says_what_to_put_where(tmp_path, name, there):
    folder = tmp_path / "data" / TASKS[name].hub.split("/")[1]
    if there:  # audio was copied, the lists weren't
        touch(folder / "song.wav")
    with pytest.raises(TaskError, match="could not be downloaded") as caught:
        load(name, tmp_path)
    message = str(caught.value)
    stem = TASKS[name].stem
    for part in (
        f"{folder / stem}.train.jsonl is missing",
        TASKS[name].hub,
        "--data_dir",
        f"copy the data set's files into {folder}",
        f"{stem}.train.jsonl, .val.jsonl and .test.jsonl",
    ):
        assert part in message


def test_hub_data_are_downloaded_to_the_data_folder(tmp_path, monkeypatch):
    calls = []

    def download(repo, *, repo_type, local_dir):
        calls.append((repo, repo_type, local_dir))
        write_folder(local_dir, stem="GTZANGenre")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for _ in range(2):
        assert load("gtzan", tmp_path).classes == ["x", "y"]
    assert calls == [("m-a-p/GTZAN", "dataset", tmp_path / "data" / "GTZAN")]


def test_a_download_that_breaks_off_is_not_taken_for_a_data_set(tmp_path, monkeypatch):
    def download(repo, *, repo_type, local_dir):
        write_folder(local_dir, stem="GTZANGenre")
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(TaskError, match=r"could not be downloaded \(ConnectionError\)"):
        load("gtzan", tmp_path)


def test_a_download_that_broke_off_earlier_is_taken_up_again(tmp_path, monkeypatch, caplog):
    folder = write_folder(tmp_path / "data" / "GTZAN", stem="GTZANGenre")
    (folder / ".cache" / "huggingface").mkdir(parents=True)  # the hub's client was here
    calls, network = [], False

    def download(repo, **kwargs):
        calls.append(repo)
        if not network:
            raise ConnectionError("unreachable")
        for split in SPLITS:
            for i in range(2):
                touch(folder / f"{split}{i}.wav")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("gtzan", tmp_path).classes == ["x", "y"]
    assert "may be incomplete and could not be fetched again" in caplog.text
    network = True
    for _ in range(2):
        load("gtzan", tmp_path)
    assert len(calls) == 2  # once complete, it isn't asked for again


def test_without_drops_tracks_and_leaves_the_rest_alone(hub, tmp_path):
    task = load("gtzan", tmp_path, data_dir=hub)
    gone = {
        str(hub / genre_id("blues", 0).removeprefix("data/")),
        str(hub / genre_id("jazz", 3).removeprefix("data/")),
        "no such path",
    }
    rest = task.without(gone)
    assert [len(rest.splits[s]) for s in SPLITS] == [4, 2, 1]
    assert [len(task.splits[s]) for s in SPLITS] == [5, 2, 2]
    assert labels(rest, "test") == {genre_id("metal", 3): "metal"}
    assert labels(rest, "train") == {
        i: g for i, g in labels(task, "train").items() if i != genre_id("blues", 0)
    }
    assert (rest.name, rest.kind, rest.classes) == (task.name, task.kind, task.classes)


def test_without_raises_when_what_is_left_is_no_task(hub, tmp_path):
    task = load("emo", tmp_path, data_dir=hub)
    with pytest.raises(TaskError, match="the val split has no usable track"):
        task.without(set(task.splits["val"]["path"]))
    with pytest.raises(TaskError, match="a target has the same value on all training tracks"):
        task.without(set(task.splits["train"]["path"][1:]))
    genres = load("gtzan", tmp_path, data_dir=hub)
    others = [p for p in genres.splits["train"]["path"] if "/jazz/" not in p]
    with pytest.raises(TaskError, match="all training tracks have the label 'jazz'"):
        genres.without(set(others))
