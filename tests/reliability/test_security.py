"""Nobody let in: what a download names, packs or pickles reaches no file and runs no code."""

import ast
import io
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, make_task, tone
from in_process import call

from tune.tasks.download import unpack
from tune.tasks.load import SPLITS, TaskError, load_task
from tune.tasks.path_safety import data_folders

sys.path.insert(0, str(ROOT / "tools"))
import licences

# Files outside the data folder


@pytest.fixture
def place(tmp_path):
    """secret.wav, and beside it music/data/E, a task whose rows may name what they like."""
    soundfile.write(tmp_path / "secret.wav", tone(1, 300), 24_000)
    make_task(tmp_path / "music" / "data" / "E", seconds=1.0, n=(4, 2, 2))
    return tmp_path


def name_files(place: Path, *paths) -> Path:
    """Add rows to the task's train split; return its folder."""
    folder = place / "music/data/E"
    with open(folder / "tones.train.jsonl", "a") as file:
        file.writelines(json.dumps({"audio_path": str(p), "label": "low"}) + "\n" for p in paths)
    return folder


def load(folder: Path, **kwargs):
    """Load a task."""
    return load_task(str(folder), cache_dir=folder, **kwargs)


def outside(place: Path) -> list[str]:
    """Ways to name secret.wav."""
    link = place / "music/data/E/audio/link.wav"
    link.symlink_to(place / "secret.wav")
    (place / "music/data/E/up").symlink_to(place)
    return [
        str(place / "secret.wav"),
        "../../../secret.wav",
        "audio/../../../../secret.wav",
        "data/../../../secret.wav",
        "audio/link.wav",
        "up/secret.wav",
        "../../../nothing-there.wav",
        "/etc/hostname",
        "data/E/../../../../secret.wav",
    ]


def test_a_jsonl_reads_nothing_outside_its_data_folder(place):
    ways = outside(place)
    task = load(name_files(place, *ways))
    assert len(task.splits["train"]) == 4
    assert len(task.skipped) == len(ways)
    data = place / "music/data"
    assert [item["reason"] for item in task.skipped] == [
        f"{way} is outside its data folder {data}: --allow_outside reads it" for way in ways
    ]
    allowed = load(place / "music/data/E", allow_outside=True)
    assert set(ways) <= set(allowed.splits["train"]["id"])


def test_a_run_and_a_check_refuse_them_unless_allowed(place):
    folder = name_files(place, "../../../secret.wav")
    done = call("tune.tasks", "check", folder, cwd=place)
    assert done.returncode == 1
    text = "../../../secret.wav is outside its data folder"
    assert text in done.stdout
    assert text not in call("tune.tasks", "check", folder, "--allow_outside", cwd=place).stdout
    given = (
        "--task",
        folder,
        "--encoder=mel",
        "--report_to=none",
        "--epochs=1",
        "--seg=1",
        "--overwrite",
        "--name=r",
        "--min_tail=0.5",
    )
    done = call("train_probe.py", *given, cwd=place)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "runs/r/result.json").read_text())
    assert result["n_tracks"]["train"] == 4
    assert [text in item["reason"] for item in result["skipped"]] == [True]
    assert text in done.stderr


def test_links_to_whole_data_folders_and_other_sets_of_the_folder_still_work(place):
    folder = name_files(place, "data/F/x.wav", place / "music/data/E/audio/001.wav")
    (place / "music/data/F").mkdir()
    soundfile.write(place / "music/data/F/x.wav", tone(1, 200), 24_000)
    assert len(load(folder).splits["train"]) == 6
    (place / "elsewhere").mkdir()
    folder.rename(place / "elsewhere/E2")
    folder.symlink_to(place / "elsewhere/E2")
    (place / "linked").symlink_to(place / "music/data")
    rows = [
        {"audio_path": f"data/E/audio/{i:03d}.wav", "label": ("low", "high")[i % 2]}
        for i in range(1, 5)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "elsewhere/E2/tones.train.jsonl").write_text(text)
    for path in (folder, place / "linked/E"):
        task = load(path, usable=False)
        assert (len(task.splits["train"]), task.splits["train"]["path"][0]) == (
            4,
            str(path / "audio/001.wav"),
        )


def test_a_downloaded_task_is_confined_to_data_dir(place):
    data = place / "sets"
    folder = make_task(data / "GTZAN", seconds=1.0, n=(4, 2, 2))
    for split in SPLITS:
        (folder / f"tones.{split}.jsonl").rename(folder / f"GTZANGenre.{split}.jsonl")
    with open(folder / "GTZANGenre.train.jsonl", "a") as file:
        file.write('{"audio_path": "../../secret.wav", "label": "low"}\n')
    found = {}
    for allow in (False, True):
        task = load_task("gtzan", data, cache_dir=place, usable=False, allow_outside=allow)
        found[allow] = [i["reason"] for i in task.skipped if "outside" in i["reason"]]
    assert len(found[False]) == 1
    assert found[True] == []


def test_a_table_of_ones_own_may_name_any_file(place):
    table = place / "music/data/mine.csv"
    lines = [f"{place / 'secret.wav'},low,{s}\n../../secret.wav,high,{s}\n" for s in SPLITS]
    table.write_text("path,label,split\n" + "".join(lines))
    assert load(table).skipped == []


def test_the_home_folder_and_the_root_are_no_data_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    told = {
        "/home/me/music/E": ["/home/me/music/E", "/home/me/music"],
        "/music/E": ["/music/E", "/music"],
        "/a/b/c/d/e": ["/a/b/c/d/e", "/a/b/c/d", "/a/b/c", "/a/b"],
        "/srv/data/E": ["/srv/data/E", "/srv/data"],
        "/srv/data": ["/srv/data"],
        "/home/me": ["/home/me"],
    }
    assert {k: list(map(str, data_folders(Path(k)))) for k in told} == told


def test_a_data_set_that_names_files_elsewhere_is_confined_too(place):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = place / "set"
    folder.mkdir()
    inside = folder / "in.wav"
    soundfile.write(inside, tone(1, 250), 24_000)
    for split in ("train", "validation", "test"):
        audio = [{"bytes": None, "path": str(p)} for p in (inside, place / "secret.wav")]
        pq.write_table(pa.table({"audio": audio, "label": ["a", "b"]}), folder / f"{split}.parquet")
    given = {"cache_dir": place, "audio_column": "audio", "usable": False, "progress": False}
    task = load_task(f"hub:{folder}", place / "data", **given)
    assert [Path(p).name for p in task.splits["train"]["path"]] == ["in.wav"]
    assert sum("outside its data folder" in item["reason"] for item in task.skipped) == 3
    free = load_task(f"hub:{folder}", place / "data", allow_outside=True, **given)
    assert len(free.splits["train"]) == 2


# Archives


def test_archives_write_nothing_outside_their_folder(tmp_path):
    inside = tmp_path / "deep" / "in"
    for name in ("../out.wav", "/tmp/tune-out-of-archive.wav", "a/../../../out.wav"):
        inside.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        _unpack_quietly(tmp_path / "x.tar", inside)
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, "abc")
        _unpack_quietly(tmp_path / "x.zip", inside)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = kind, "../../escaped"
            archive.addfile(link)
            member = tarfile.TarInfo("link/out.wav")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        _unpack_quietly(tmp_path / "x.tar", inside)
    device = tarfile.TarInfo("null")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(device)
    _unpack_quietly(tmp_path / "x.tar", inside)
    assert not Path("/tmp/tune-out-of-archive.wav").exists()
    files = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert files == {"deep", "x.tar", "x.zip"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"in"}
    assert all(p.is_file() or p.is_dir() for p in inside.rglob("*"))


def _unpack_quietly(file: Path, folder: Path) -> None:
    """Unpack; an archive that is refused is refused in one line."""
    try:
        unpack(file, folder)
    except TaskError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


# Code in data


class Trap:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_are_executed_nowhere(tmp_path, place):
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Trap(trace))
    pickle.loads(bomb)
    assert trace.exists()  # it is one
    trace.unlink()
    for name in ("pytorch_model.bin", "model.pt", "probe.pt", "model.ckpt", "result.pkl"):
        for folder in ("encoder", "aggregator", "run"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(bomb)
            (tmp_path / folder / "config.json").write_text('{"model_type": "wav2vec2"}')
            (tmp_path / folder / "result.json").write_text("{}")
    for name in ("model.safetensors", "probe.safetensors"):  # a pickle by a trusted name
        (tmp_path / "encoder" / name).write_bytes(bomb)
    np.save(tmp_path / "e.npy", np.array([Trap(trace)], dtype=object), allow_pickle=True)
    (tmp_path / "e.csv").write_text("path\nx\n")
    (tmp_path / "e.json").write_text("{}")
    task = ("--task", place / "music/data/E", "--report_to=none", "--epochs=1")
    for name, *argv in (
        ("train_probe.py", *task, "--encoder", tmp_path / "encoder"),
        ("train_probe.py", *task, "--encoder", tmp_path / "run"),
        ("train_probe.py", *task, "--encoder=mel", f"--agg=transformer:{tmp_path / 'aggregator'}"),
        ("embed.py", place / "secret.wav", "--from_run", tmp_path / "run", "--out=o.parquet"),
        ("tune.embeddings", "similar", tmp_path / "e.npy", "x"),
        ("tune.encoders", "check", tmp_path / "encoder"),
    ):
        done = call(name, *argv, cwd=tmp_path)
        assert done.returncode in (1, 2), (name, done.stderr)
        assert not trace.exists(), name
        if done.returncode == 2:
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr


FORBIDDEN = {
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "joblib.load",
    "subprocess.getoutput",
    "marshal.loads",
    "subprocess.getstatusoutput",
    "shelve.open",
    "pandas.read_pickle",
    "pd.read_pickle",
}


def test_no_shell_no_eval_and_no_pickle_is_anywhere_in_the_code():
    files = [
        *ROOT.glob("*.py"),
        *(ROOT / "tune").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
    ]
    assert len(files) > 80
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if (file.name, called) == ("unpickle.py", "torch.load"):  # confined, on request
                    assert "weights_only=True" in ast.unparse(node)
                    continue
                assert called not in FORBIDDEN, (file.name, node.lineno, called)
                for keyword in node.keywords:
                    value = getattr(keyword.value, "value", None)
                    assert not (keyword.arg == "shell" and value is not False), file.name
                    assert not (keyword.arg == "allow_pickle" and value is not False), file.name
                    assert not (keyword.arg == "weights_only" and value is False), file.name


# Dependencies


def test_every_dependency_is_in_the_list_of_licences():
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = {
        line.split("|")[1].strip(): line for line in text.splitlines() if "| direct |" in line
    }
    assert listed.keys() == set(licences.direct())
    assert not any("see the package" in line for line in listed.values())
