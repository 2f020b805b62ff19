"""tune.aggregators.transformer.corpus: what is learnt from, and that no test track is."""

import json
import shutil

import pytest
from conftest import make_task

from tune.aggregators.transformer.corpus import audio_files, gather, local_tasks
from tune.store.store import Store
from tune.tasks.load import load_task


@pytest.fixture
def make(tmp_path):
    """A function that writes a small task by name and loads it; audio differs by `seconds`."""

    def build(name, seconds=0.2, change=lambda folder: None):
        folder = make_task(tmp_path / name, seconds=seconds, n=(4, 2, 3))
        change(folder)
        return load_task(str(folder), cache_dir=tmp_path / "cache", progress=False)

    return build


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    return Store(tmp_path / "store")


def paths(task, split):
    """A split's paths."""
    return task.splits[split]["path"][:]


def lines(folder, split):
    """A split's rows."""
    text = (folder / f"tones.{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def write(folder, split, rows):
    """Replace a split's rows."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"tones.{split}.jsonl").write_text(text)


def test_training_splits_are_learnt_from_and_val_splits_validated_on(make, store):
    a, b = make("a"), make("b", 0.3)
    corpus = gather([a, b], None, [], store)
    assert corpus.train == paths(a, "train") + paths(b, "train")
    assert corpus.val == paths(a, "val") + paths(b, "val")
    assert corpus.refused == corpus.skipped == []
    assert corpus.checked == ["a", "b"]


def test_a_test_track_under_another_name_is_refused(make, store):
    def leak(folder):
        """Copy a test track and learn from the copy; validate on another test track itself."""
        test = lines(folder, "test")
        shutil.copy(folder / test[0]["audio_path"], folder / "audio" / "copy.wav")
        leaked = {**lines(folder, "train")[0], "audio_path": "audio/copy.wav"}
        write(folder, "train", [*lines(folder, "train"), leaked])
        write(folder, "val", [*lines(folder, "val"), test[1]])

    task = make("a", change=leak)
    corpus = gather([task], None, [], store)
    assert not set(corpus.train + corpus.val) & set(paths(task, "test"))
    assert len(corpus.train) == 4
    assert len(corpus.val) == 2
    assert sorted((p["path"].rpartition("/")[2], p["reason"]) for p in corpus.refused) == [
        ("008.wav", "it is in the test split of a"),
        ("copy.wav", "it is in the test split of a"),
    ]


def test_test_tracks_of_other_tasks_are_refused_too(make, store, tmp_path):
    task, other = make("a"), make("other", 0.3)
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for i, path in enumerate(paths(other, "test")):
        shutil.copy(path, tmp_path / "mine" / "deep" / f"innocent {i}.WAV")
    for path in paths(other, "train"):
        shutil.copy(path, tmp_path / "mine")
    corpus = gather([task], tmp_path / "mine", [other], store)
    assert [item["reason"] for item in corpus.refused] == ["it is in the test split of other"] * 3
    assert all("innocent" in item["path"] for item in corpus.refused)
    assert len(corpus.train) + len(corpus.val) == 6 + 4
    assert not any("innocent" in path for path in corpus.train + corpus.val)
    assert corpus.checked == ["a", "other"]


def test_only_test_tracks_is_an_error_that_says_so(make, store, tmp_path):
    other = make("other")
    (tmp_path / "mine").mkdir()
    for path in paths(other, "test"):
        shutil.copy(path, tmp_path / "mine")
    (tmp_path / "mine" / "empty.wav").write_bytes(b"")
    message = "no track to learn from: 3 are test tracks, 1 can't be read"
    with pytest.raises(ValueError, match=message):
        gather([], tmp_path / "mine", [other], store)


def test_a_track_that_one_task_validates_on_is_not_learnt_from(make, store):
    a = make("a")

    def swap(folder):
        """Learn from what the first task validates on (the tones are the same in both)."""
        train, val = lines(folder, "train"), lines(folder, "val")
        write(folder, "train", val + train[:2])
        write(folder, "val", train[2:])

    b = make("b", change=swap)
    for tasks in ([a, b], [b, a]):
        corpus = gather(tasks, None, [], store)
        contents = [{store.content(p) for p in part} for part in (corpus.train, corpus.val)]
        assert not contents[0] & contents[1]
        assert {store.content(p) for p in paths(a, "val")} <= contents[1]
        assert {store.content(p) for p in paths(b, "val")} <= contents[1]
        assert len(corpus.train) == len(contents[0]) == 2
        assert len(corpus.val) == len(contents[1]) == 4


def test_the_same_audio_is_learnt_from_once(make, store, tmp_path):
    a, b = make("a"), make("b")  # the same tones
    shutil.copytree(tmp_path / "a" / "audio", tmp_path / "mine")
    corpus = gather([a, b], tmp_path / "mine", [], store)
    assert corpus.train == paths(a, "train")
    assert corpus.val == paths(a, "val")


def test_unreadable_files_are_reported(make, store, tmp_path):
    def spoil(folder):
        """A training file is empty, another is missing, a test file is empty."""
        (folder / lines(folder, "train")[0]["audio_path"]).write_bytes(b"")
        (folder / lines(folder, "train")[1]["audio_path"]).unlink()
        (folder / lines(folder, "test")[0]["audio_path"]).write_bytes(b"")

    task = make("a", change=spoil)
    corpus = gather([task], None, [], store)
    assert len(corpus.train) == 2
    reasons = [item["reason"] for item in corpus.skipped]
    assert any(reason.startswith("empty file") for reason in reasons)
    assert any("no such file" in reason for reason in reasons)
    assert len(reasons) == 2
    assert corpus.refused == []


def test_rows_that_a_task_cannot_use_are_reported(make, store):
    def spoil(folder):
        write(folder, "train", [*lines(folder, "train"), {"label": "low"}])

    corpus = gather([make("a", change=spoil)], None, [], store)
    assert len(corpus.train) == 4
    assert len(corpus.skipped) == 1
    assert "train" in corpus.skipped[0]["path"]


@pytest.fixture
def folder(tmp_path):
    """A folder of eight sounds, with subfolders and other files."""
    source = make_task(tmp_path / "source", seconds=0.2, n=(4, 2, 2))
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    for i, path in enumerate(sorted((source / "audio").iterdir())):
        shutil.copy(path, folder / ("sub" if i % 2 else ".") / f"{i}.wav")
    (folder / "cover.jpg").write_bytes(b"x")
    return folder


def test_a_folder_is_split_by_content_and_seed(folder, store, tmp_path):
    corpus = gather([], folder, [], store, val_share=0.25)
    assert len(corpus.val) == 2
    assert len(corpus.train) == 6
    assert gather([], folder, [], store, val_share=0.25) == corpus
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(audio_files(folder)):
        shutil.copy(path, renamed / f"{99 - i}.WAV")
    again = gather([], renamed, [], store, val_share=0.25)
    for mine, theirs in ((corpus.train, again.train), (corpus.val, again.val)):
        assert [store.content(p) for p in mine] == [store.content(p) for p in theirs]
    splits = {tuple(gather([], folder, [], store, seed=seed).val) for seed in range(6)}
    assert len(splits) > 1
    assert {len(split) for split in splits} == {1}  # never none


def test_a_folder_of_one_sound_is_no_corpus(folder, store, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "0.wav", tmp_path / "one" / "a.wav")
    shutil.copy(folder / "0.wav", tmp_path / "one" / "b.wav")
    with pytest.raises(ValueError, match="no track to validate on"):
        gather([], tmp_path / "one", [], store)


def test_a_folder_without_sounds_is_named(folder, tmp_path):
    assert [p.name for p in audio_files(folder)] == [
        "0.wav",
        "2.wav",
        "4.wav",
        "6.wav",
        "1.wav",
        "3.wav",
        "5.wav",
        "7.wav",
    ]
    with pytest.raises(ValueError, match="is not a folder"):
        audio_files(folder / "0.wav")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no audio file by its ending"):
        audio_files(tmp_path / "none")


def test_only_tasks_that_are_here_are_looked_at(tmp_path):
    assert local_tasks(tmp_path / "data", tmp_path / "cache", []) == []
    emo = make_task(tmp_path / "data" / "EMO", seconds=0.2, n=(4, 2, 2), numbers=True)
    for split in ("train", "val", "test"):
        (emo / f"tones.{split}.jsonl").rename(emo / f"EMO.{split}.jsonl")
    (found,) = local_tasks(tmp_path / "data", tmp_path / "cache", [])
    assert found.name == "emo"
    assert local_tasks(tmp_path / "data", tmp_path / "cache", ["emo"]) == []
