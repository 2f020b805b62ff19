"""examples/own_task.py, used from a folder outside the checkout by every command."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_task, run, tone
from in_process import call

from tune.tasks.load import load_task, short_name
from tune.tasks.readers import TaskError

SPEC = "own_task.py:genres"
COMMON = ("--encoder=mel", "--seg=1", "--epochs=2", "--report_to=none", "--store=store")


@pytest.fixture
def home(tmp_path):
    """A folder with the example and music of two genres."""
    shutil.copy(ROOT / "examples" / "own_task.py", tmp_path)
    for genre, hz in (("bass", 80), ("flute", 900)):
        (tmp_path / "music" / genre).mkdir(parents=True)
        for i in range(8):
            path = tmp_path / "music" / genre / f"{i}.wav"
            soundfile.write(path, tone(2.2, hz + 9 * i, seed=i), 24_000)
    return tmp_path


def write(home, body, name="mine.py"):
    """A file with a task; how --task names it."""
    (home / name).write_text(f"import numpy as np\n\n\ndef rows():\n{body}\n")
    return f"{home / name}:rows"


def load(home, spec, **settings):
    """The task."""
    return load_task(spec, home / "data", cache_dir=home, progress=False, **settings)


def test_the_example_trains_a_probe_and_is_named_with_its_digest(home):
    done = call("train_probe.py", "--task", SPEC, *COMMON, cwd=home)
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs").iterdir()
    assert folder.name == "own_task-genres-mel-layer-last-seg-1-mean"
    result, config = (
        json.loads((folder / f"{stem}.json").read_text()) for stem in ("result", "config")
    )
    digest = hashlib.sha256((home / "own_task.py").read_bytes()).hexdigest()
    assert (result["task"], result["classes"]) == ("own_task-genres", ["bass", "flute"])
    assert result["task_plugin"] == {"name": SPEC, "sha256": digest}
    assert (config["task"], config["task_sha256"]) == (f"{home}/{SPEC}", digest)
    text = (ROOT / "examples" / "own_task.py").read_text().split('"""', 2)[2]
    assert len(text.splitlines()) < 20


def test_the_example_is_checked_and_pretrained_on(home):
    done = call("tune.tasks", "check", SPEC, "--min_tracks=1", cwd=home)
    assert "own_task-genres (classes)" in done.stdout
    flags = ("--tasks", SPEC, *COMMON, "--out=a", "--num_layers=1")
    done = call("pretrain_aggregator.py", *flags, cwd=home)
    assert done.returncode == 0, done.stderr
    config = json.loads((home / "a" / "pretrain.json").read_text())["config"]
    assert list(config["task_sha256"]) == [f"{home}/{SPEC}"]


def test_a_changed_task_is_another_cell_of_a_sweep(home):
    (home / "s.yaml").write_text(
        "program: train_probe.py\nname: own\nmethod: grid\nparameters:\n"
        f'  task: {{value: "{SPEC}"}}\n  agg: {{values: [mean, max]}}\n'
    )
    for more in ("", "\n# changed\n"):
        with open(home / "own_task.py", "a") as file:
            file.write(more)
        done = run("-m", "tune.sweep", "s.yaml", *COMMON, cwd=home)
        assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in (home / "runs").glob("own-*/result.json")]
    assert sorted(r["agg"] for r in results) == ["max", "max", "mean", "mean"]
    assert len({r["task_plugin"]["sha256"] for r in results}) == 2


def test_rows_may_bring_audio_splits_ids_and_tracks(home):
    spec = write(
        home,
        "    for i in range(12):\n"
        "        audio = np.sin(np.arange(8000) * (0.1 + i / 40)) * 0.5\n"
        "        split = ('train', 'train', 'val', 'test')[i % 4]\n"
        "        yield dict(audio=(audio, 8000), label=[i / 10, -i], split=split, id=f't{i}',\n"
        "                   track=i // 4)",
    )
    task = load(home, spec)
    assert (task.name, task.kind, len(task.targets)) == ("mine-rows", "numbers", 2)
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [6, 3, 3]
    assert task.splits["test"]["id"][:] == ["t3", "t7", "t11"]
    assert task.splits["test"]["track"][:] == ["0", "1", "2"]
    samples, rate = soundfile.read(task.splits["val"]["path"][0], dtype="float32")
    assert rate == 8000
    np.testing.assert_array_equal(samples, np.float32(np.sin(np.arange(8000) * 0.15) * 0.5))
    paths = [task.splits["train"]["path"][:], load(home, spec).splits["train"]["path"][:]]
    assert paths[0] == paths[1]


def test_a_task_like_a_table_gives_the_same_task(home):
    folder = make_task(home / "tones")
    spec = write(
        home,
        "    import json, pathlib\n"
        "    for split in ('train', 'val', 'test'):\n"
        "        for line in pathlib.Path(__file__).parent.joinpath('tones', f'tones.{split}.jsonl'"
        ").open():\n"
        "            row = json.loads(line)\n"
        "            path = 'tones/' + row['audio_path']\n"
        "            yield dict(path=path, label=row['label'], split=split)",
    )
    own, plain = load(home, spec), load(home, str(folder))
    for split in ("train", "val", "test"):
        for column in ("path", "label"):
            assert own.splits[split][column][:] == plain.splits[split][column][:]
    assert short_name(spec) == own.name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return 1 / 0", "mine.py:rows failed: ZeroDivisionError: division by zero"),
        ("    return []", "no usable row"),
        ("    return ['a']", "row 1: a row is a dict with path or audio, and label, got 'a'"),
        ("    return [dict(path='a', label=1, mood=2)]", "row 1: unknown key 'mood'"),
        ("    return [dict(path='a')]", "row 1: needs label, and path or audio"),
        ("    return [dict(audio=3, label=1)]", r"row 1: audio must be \(samples, sample rate\)"),
        ("    pass\n\n\nrows = 3", "must be a function, got a int"),
        ("    pass\n\n\ndef rows(n):\n    pass", "must be a function without arguments"),
    ],
)
def test_what_is_wrong_is_one_line(home, body, message):
    with pytest.raises(TaskError, match=message):
        load(home, write(home, body))


def test_a_name_or_file_that_is_missing_is_one_line(home):
    for spec, said in ((f"{home}/own_task.py:x", "has no 'x'"), ("x/y.py:f", "can't be read")):
        with pytest.raises(TaskError, match=said):
            load(home, spec)


def test_an_installed_package_registers_one_by_name(home, monkeypatch):
    (home / "their_task.py").write_text((home / "own_task.py").read_text())
    info = home / "their-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tune.tasks]\ntheirs = their_task:genres\n")
    monkeypatch.syspath_prepend(home)
    task = load(home, "theirs")
    assert (task.name, task.classes) == ("their_task-genres", ["bass", "flute"])
