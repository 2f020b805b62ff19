"""Data sets of `datasets` as tasks, from local folders: hub:NAME without a hub."""

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import ROOT, tone
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListOf

from tune.tasks.load import SPLITS, TaskError, load_task


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` makes of files out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def encoded(hz: float, seed: int, ending: str = "flac") -> bytes:
    """A tone as the bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, tone(0.5, hz, seed=seed), 24_000, format=ending)
    return file.getvalue()


def make(n: int, labels, feature, first: int = 0, name: str | None = "{}.flac") -> Dataset:
    """A data set of n tones with a column `genre`."""
    audio = [
        {
            "bytes": encoded(100 * (1 + i % 2 * 8), first + i),
            "path": name and name.format(first + i),
        }
        for i in range(n)
    ]
    stored = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"song": stored, "genre": feature, "year": Value("int64")})
    rows = {
        "song": audio,
        "genre": [labels[i % len(labels)] for i in range(n)],
        "year": list(range(n)),
    }
    return as_audio(Dataset.from_dict(rows, features=features))


def as_audio(data: Dataset) -> Dataset:
    """Call the column what it is; made as one, `datasets` would want torchcodec."""
    return data.cast_column("song", Audio())


def load(name, tmp_path, **kwargs):
    kwargs = {"label_column": "genre"} | kwargs
    return load_task(f"hub:{name}", tmp_path / "data", cache_dir=tmp_path, progress=False, **kwargs)


@pytest.fixture
def parquet(tmp_path):
    """A local folder of parquet files, as a data set of the hub holds them."""
    folder = tmp_path / "songs"
    for split, n, first in (("train", 6, 0), ("validation", 4, 6), ("test", 4, 10)):
        data = make(n, [1, 0], ClassLabel(names=["folk", "metal"]), first)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_data_set_runs_as_a_task(parquet, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import train_probe

    name = f"hub:{parquet}"
    given = [
        "--task",
        name,
        "--label_column=genre",
        "--encoder=mel",
        "--seg=full",
        "--epochs=2",
        "--report_to=none",
        "--data_dir",
        tmp_path / "data",
        "--output_dir",
        tmp_path,
        "--store",
        tmp_path / "store",
        "--name=a",
        "--seeds=1234",
    ]
    train_probe.main(train_probe.parse_args([str(word) for word in given]))
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["task"], result["kind"], result["classes"]) == (
        "songs",
        "classes",
        ["folk", "metal"],
    )
    assert result["n_tracks"] == {"train": 6, "val": 4, "test": 4}
    table = pd.read_parquet(tmp_path / "a" / "predictions.parquet")
    assert table.id.tolist() == [f"test/{i}" for i in range(4)]
    assert table.label.tolist() == ["metal", "folk"] * 2


def test_audio_is_written_once_and_byte_for_byte(parquet, tmp_path):
    task = load(parquet, tmp_path)
    paths = task.splits["test"]["path"][:]
    assert all(path.endswith(".flac") for path in paths)
    with open(paths[1], "rb") as file:
        assert file.read() == encoded(900, 11)
    assert [task.classes[i] for i in task.splits["val"]["label"]] == ["metal", "folk"] * 2
    times = [(tmp_path / p).stat().st_mtime_ns for p in paths]
    again = load(parquet, tmp_path).splits["test"]["path"][:]
    assert (again, times) == (paths, [(tmp_path / p).stat().st_mtime_ns for p in again])


FORMS = [
    (Value("string"), ["rock", "folk"], "classes", ["folk", "rock"]),
    (Value("int64"), [3, 5], "classes", ["3", "5"]),
    (Value("float64"), [0.5, 1.5], "numbers", [[0.5], [1.5]]),
    (ListOf(Value("float64")), [[0.5, 1.0], [1.5, 3.0]], "numbers", [[0.5, 1.0], [1.5, 3.0]]),
    (ListOf(Value("string")), [["a", "b"], ["b"]], "tags", [[True, True], [False, True]]),
    (ListOf(ClassLabel(names=["x", "y"])), [[0], [0, 1]], "tags", [[True, False], [True, True]]),
]


@pytest.mark.parametrize(("feature", "labels", "kind", "expected"), FORMS)
def test_every_form_of_label(tmp_path, feature, labels, kind, expected):
    data = DatasetDict({s: make(4, labels, feature, 4 * i) for i, s in enumerate(SPLITS)})
    data.save_to_disk(tmp_path / "saved")
    task = load(tmp_path / "saved", tmp_path)
    assert task.kind == kind
    if kind == "classes":
        assert task.classes == expected
    else:
        assert task.splits["train"]["label"][:2] == expected
    assert [len(task.splits[s]) for s in SPLITS] == [4, 4, 4]


def test_a_folder_of_audio_files_needs_no_torchcodec(tmp_path):
    for split, n in (("train", 4), ("test", 2)):
        for name, hz in (("high", 900), ("low", 100)):
            for i in range(n):
                path = tmp_path / "music" / split / name / f"{i}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(hz, i))
    task = load(tmp_path / "music", tmp_path, label_column=None)
    assert task.classes == ["high", "low"]
    assert set(task.splits["test"]["path"]) == {
        str(tmp_path / "music" / "test" / name / f"{i}.flac")
        for name in task.classes
        for i in range(2)
    }
    assert not (tmp_path / "data").exists()  # the files are used where they are
    assert {len(task.splits[s]) for s in ("train", "val")} == {6, 2}
    assert Audio.encode_example.__module__ == "datasets.features.audio"  # as it was


def test_tars_of_audio_with_labels_inside_a_column(tmp_path):
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "train-0.tar", "w") as archive:
        for i in range(20):
            label = {"song": {"tags": ["a", "b"][: 1 + i % 2]}}
            for ending, data in (("flac", encoded(300, i)), ("json", json.dumps(label).encode())):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    task = load(tmp_path / "web", tmp_path, label_column="json.song.tags")
    assert (task.kind, task.classes) == ("tags", ["a", "b"])
    with open(task.splits["test"]["path"][0], "rb") as file:
        number = int(task.splits["test"]["id"][0].split("/")[1])
        assert file.read() == encoded(300, number)
    with pytest.raises(TaskError, match=r"no column 'json\.song\.mood'"):
        load(tmp_path / "web", tmp_path, label_column="json.song.mood")


def test_a_data_set_of_one_split_is_split_here(tmp_path):
    make(20, ["a", "b"], Value("string"), name=None).save_to_disk(tmp_path / "one")
    task = load(tmp_path / "one", tmp_path)
    assert len(task.split_made) == 20
    assert len(task.splits["test"]) == 5
    assert all(p.endswith(".flac") for p in task.splits["train"]["path"])  # told by its bytes


def test_keys_of_a_data_set(tmp_path):
    data = make(20, ["a minor", "C# major"], Value("string"))
    data.save_to_disk(tmp_path / "keys")
    task = load(tmp_path / "keys", tmp_path, kind="keys")
    found = {task.classes[i] for i in task.splits["train"]["label"]}
    assert found == {"A minor", "Db major"}


def test_unknown_labels_and_missing_audio_are_listed(tmp_path):
    data = make(12, [0, 1], ClassLabel(names=["x", "y"]))
    columns = data.cast_column("song", Audio(decode=False)).to_dict()
    columns["genre"][0] = -1  # datasets' unknown
    columns["song"][1] = None
    stored = {"bytes": Value("binary"), "path": Value("string")}
    data = Dataset.from_dict(columns, features=Features(data.features | {"song": stored}))
    as_audio(data).save_to_disk(tmp_path / "holes")
    task = load(tmp_path / "holes", tmp_path)
    reasons = {i["where"].rsplit(":", 1)[1]: i["reason"] for i in task.skipped}
    assert reasons == {"0": "label None is not one class", "1": "no audio"}
    assert sum(len(task.splits[s]) for s in SPLITS) == 10


def test_mistakes_say_what_there_is(parquet, tmp_path):
    with pytest.raises(TaskError, match=r"no column 'label': name one by --label_column \(there"):
        load(parquet, tmp_path, label_column=None)
    with pytest.raises(TaskError, match=r"no column 'sound': name one by --audio_column .*song, g"):
        load(parquet, tmp_path, audio_column="sound")
    with pytest.raises(TaskError, match=r"nobody/nothing can't be loaded: .*stay offline: unset"):
        load("nobody/nothing", tmp_path)
    Dataset.from_dict({"genre": ["a"], "year": [1]}).save_to_disk(tmp_path / "mute")
    with pytest.raises(TaskError, match="has no columns of audio: name one by --audio_column"):
        load(tmp_path / "mute", tmp_path)
    odd = DatasetDict({s: make(2, ["a"], Value("string")) for s in ("one", "two")})
    odd.save_to_disk(tmp_path / "odd")
    with pytest.raises(TaskError, match="has the splits one, two: none is a train split"):
        load(tmp_path / "odd", tmp_path)
    with pytest.raises(TaskError, match=r"--label_column belongs to a \.csv, a \.tsv or hub:NAME"):
        load_task("gtzan", tmp_path, cache_dir=tmp_path, label_column="genre")


@pytest.fixture
def songs(hub, parquet):
    """The data set on the hub; its commit."""
    return hub.add("me/songs", "dataset", parquet)


def test_a_data_set_of_the_hub_has_its_commit(hub, songs, parquet, tmp_path):
    task = load("me/songs", tmp_path)
    assert (task.data_revision, len(task.splits["train"])) == (songs, 6)
    (parquet / "more.txt").write_text("x")
    second = hub.add("me/songs", "dataset", parquet)
    assert load("me/songs", tmp_path).data_revision == second
    assert load("me/songs", tmp_path, data_revision=songs).data_revision == songs
    hub.stop()
    assert load("me/songs", tmp_path).splits["test"]["label"][:] == [1, 0, 1, 0]
    with pytest.raises(
        TaskError, match=r"can't be loaded: .* could not be downloaded: .*be reached"
    ):
        load("me/songs", tmp_path, data_revision="main")
    with pytest.raises(TaskError, match="--data_revision belongs to a data set of the hub, not to"):
        load(parquet, tmp_path, data_revision="main")


def test_a_damaged_file_of_the_hub_is_fetched_again(hub, songs, tmp_path, caplog):
    hub.fail("wrong_content", "*/train-*.parquet", times=1)
    task = load("me/songs", tmp_path)
    assert "a file of me/songs arrived damaged and is fetched again" in caplog.text
    with open(task.splits["train"]["path"][3], "rb") as file:
        assert file.read() == encoded(900, 3)


def test_a_file_damaged_each_time_is_left_nowhere(hub, songs, tmp_path):
    hub.fail("wrong_content", "*/train-*.parquet")
    with pytest.raises(TaskError, match=r"1 file of me/songs arrived damaged twice"):
        load("me/songs", tmp_path)
    hub.heal()
    with open(load("me/songs", tmp_path).splits["train"]["path"][3], "rb") as file:
        assert file.read() == encoded(900, 3)


def test_several_configurations_are_listed(hub, parquet, tmp_path):
    card = "---\nconfigs:\n"
    for name, split in (("small", "test"), ("large", "train")):
        card += f"- config_name: {name}\n  data_files: data/{split}-*.parquet\n"
    (parquet / "README.md").write_text(card + "---\n")
    hub.add("me/songs", "dataset", parquet)
    said = (
        r"choose a configuration of me/songs, such as hub:me/songs:small \(there are small, large\)"
    )
    for name in ("me/songs", "me/songs:medium"):
        with pytest.raises(TaskError, match=said):
            load(name, tmp_path)
    assert len(load("me/songs:large", tmp_path, usable=False).split_made) == 6


FAULTS = {
    "gated": r"me/songs is gated \(.*accept its terms at https://hugging.*HF_TOKEN",
    "no_repo": r"there is no data set me/songs on the hub, or it is private",
    429: r"the hub answered 429 .*wait some minutes",
    503: r"the hub answered 503 .*run again later",
    401: r"the hub refused your token",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_hub_is_named(hub, songs, tmp_path, fault):
    hub.fail(fault)
    with pytest.raises(TaskError, match=FAULTS[fault]):
        load("me/songs:config", tmp_path)


def test_near_names_revisions_and_known_tasks_are_named(hub, songs, tmp_path):
    with pytest.raises(TaskError, match=r"there is no data set me/song on .*nearest are me/songs"):
        load("me/song", tmp_path)
    with pytest.raises(TaskError, match=r"me/songs has no revision v9"):
        load("me/songs", tmp_path, data_revision="v9")
    with pytest.raises(TaskError, match=r"hub:m-a-p/GTZAN is .* say --task gtzan$"):
        load("m-a-p/GTZAN", tmp_path)
    with pytest.raises(TaskError, match="say --task mtg-genre or --task mtg-instrument or"):
        load("m-a-p/MTG", tmp_path)


def test_a_table_may_name_its_columns(tmp_path):
    lines = [f"{i}.wav,{'rock; pop' if i % 2 else 'folk'}" for i in range(20)]
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(["file,genres", *lines]))
    task = load_task(
        str(file), cache_dir=tmp_path, kind="tags", label_column="genres", audio_column="file"
    )
    assert (task.kind, task.classes) == ("tags", ["folk", "pop", "rock"])
    labels = np.concatenate([task.splits[s]["label"] for s in SPLITS])
    assert sorted(map(tuple, labels)) == [(False, True, True)] * 10 + [(True, False, False)] * 10
    with pytest.raises(TaskError, match=r"needs the columns path and genres.*path missing"):
        load_task(str(file), cache_dir=tmp_path, label_column="genres")
