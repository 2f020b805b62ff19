"""Data sets of the hub in their true layouts, through the stand-in: fetched, kept, interrupted."""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from task_trees import TREES, gtzan, mtg, vocalset_archive

from tune.aggregators.transformer.corpus import local_tasks
from tune.encoders.muq import HUB_ID, NANO_FOLDER
from tune.tasks import download
from tune.tasks.hub_download import RECORD, Record, named_files
from tune.tasks.load import SPLITS, TaskError, check_whole, load_task
from tune.tasks.registry import TASKS

SIZES = {"train": 6, "val": 4, "test": 4}


def serve(hub, tmp_path, name: str, *extra: str) -> str:
    """Put a task's tiny data set on the hub, and others of the same repository; its commit."""
    for each in (name, *extra):
        TREES[each](tmp_path / "source")
    row = TASKS[name]
    return hub.add(row.hub, "dataset", tmp_path / "source" / row.place, license="cc-by-4.0")


def load(name: str, tmp_path, **kwargs):
    """Load a task into an own data folder."""
    given = {"cache_dir": tmp_path, "progress": False} | kwargs
    return load_task(name, tmp_path / "data", **given)


@pytest.fixture
def gtzan_hub(hub, tmp_path):
    """A tiny GTZAN on the hub."""
    serve(hub, tmp_path, "gtzan")
    return hub


@pytest.fixture(scope="module")
def train_probe():
    """The script as a module."""
    sys.path.insert(0, str(ROOT))
    import train_probe

    return train_probe


def probe(train_probe, tmp_path, task: str, name: str, encoder: str = "mel") -> dict:
    """Run a task in this process, with a store of its own: its result."""
    given = f"--task {task} --encoder={encoder} --layer=last --seg=full --epochs=2 --report_to=none"
    folders = {"data_dir": "data", "output_dir": "runs", "store": f"store-{name}", "name": name}
    given = given.split() + [f"--{k}={tmp_path / v}" for k, v in folders.items() if k != "name"]
    train_probe.main(train_probe.parse_args([*given, f"--name={name}"]))
    return json.loads((tmp_path / "runs" / name / "result.json").read_text())


EQUAL = ("metrics", "n_tracks", "classes", "data_revision", "partial", "skipped")


@pytest.mark.parametrize("task", ["gtzan", "emo", "gs", "mtt", "mtg-top50"])
def test_first_second_and_offline_run_are_equal(hub, tmp_path, train_probe, task, monkeypatch):
    commit = serve(hub, tmp_path, task)
    first = probe(train_probe, tmp_path, task, "first")
    assert first["data_revision"] == commit
    asked = len(hub.asked)
    second = probe(train_probe, tmp_path, task, "second")
    assert len(hub.asked) == asked
    hub.stop()
    offline = probe(train_probe, tmp_path, task, "offline")
    for key in EQUAL:
        assert first[key] == second[key] == offline[key]


def test_gtzan_with_muq_first_second_and_offline_run_are_equal(hub, tmp_path, train_probe):
    """Data set and weights both come from the hub, into an empty cache."""
    commits = {
        "data_revision": serve(hub, tmp_path, "gtzan"),
        "encoder_revision": hub.add(HUB_ID, "model", NANO_FOLDER, license="cc-by-nc-4.0"),
    }
    results = [probe(train_probe, tmp_path, "gtzan", "first", "muq")]
    asked = len(hub.asked)
    results.append(probe(train_probe, tmp_path, "gtzan", "second", "muq"))
    assert len(hub.asked) == asked
    hub.stop()
    results.append(probe(train_probe, tmp_path, "gtzan", "offline", "muq"))
    for result in results:
        assert {key: result[key] for key in commits} == commits
        for key in EQUAL:
            assert result[key] == results[0][key]


@pytest.mark.parametrize(
    "task", ["nsynth-pitch", "nsynth-instrument", "vocalset-singer", "vocalset-technique"]
)
def test_archives_first_second_and_offline_run_are_equal(tmp_path, train_probe, task, monkeypatch):
    source, asked = tmp_path / "source", []
    (vocalset_archive if "vocalset" in task else TREES[task])(source)
    folder, served = source / TASKS[task].place, tmp_path / "served"
    served.mkdir()
    for url in TASKS[task].archives:
        name = url.rsplit("/", 1)[1]
        part = name.split(".")[0] if "nsynth" in task else "FULL"
        pack = ["zip", "-qr"] if name.endswith(".zip") else ["tar", "-czf"]
        subprocess.run([*pack, served / name, part], cwd=folder, check=True)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=served))
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    names = [url.rsplit("/", 1)[1] for url in TASKS[task].archives]
    urls = tuple(f"http://127.0.0.1:{httpd.server_port}/{name}" for name in names)
    row = type(TASKS[task])(**{**vars(TASKS[task]), "archives": urls})
    monkeypatch.setitem(TASKS, task, row)
    first = probe(train_probe, tmp_path, task, "first")
    n_asked = len(asked)
    second = probe(train_probe, tmp_path, task, "second")
    assert len(asked) == n_asked > 0
    httpd.shutdown()
    httpd.server_close()
    offline = probe(train_probe, tmp_path, task, "offline")
    for key in EQUAL:
        assert first[key] == second[key] == offline[key]
    assert first["data_revision"] is None


def test_a_task_fetches_exactly_the_files_that_its_lists_name(hub, tmp_path, caplog):
    serve(hub, tmp_path, "mtg-top50")
    source = tmp_path / "source" / "MTG"
    for other in ("audio/99/99.low.flac", "mtg-jamendo-dataset/scripts/a.py"):
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        (source / other).write_bytes(b"another task's")
    mtg(tmp_path / "more", "MTGGenre")
    for path in sorted((tmp_path / "more" / "MTG").glob("*.jsonl")):
        (source / path.name).write_bytes(path.read_bytes())
    commit = hub.add("m-a-p/MTG", "dataset", source, license="cc-by-nc-sa-4.0")
    caplog.set_level(logging.INFO)
    load("mtg-top50", tmp_path)
    got = {p.relative_to(tmp_path / "data" / "MTG") for p in (tmp_path / "data").rglob("*.*")}
    lists = [f"MTGTop50.{split}.jsonl" for split in SPLITS]
    audio = {Path(n.removeprefix("data/MTG/")) for n in named_files(source, lists)}
    assert {p for p in got if p.parts[0] == "audio" and p.suffix} == audio
    assert {p.name for p in got if p.suffix == ".jsonl"} == set(lists)
    (said,) = [r.message for r in caplog.records if "to fetch" in r.message]
    assert said.startswith(f"m-a-p/MTG at {commit[:12]}: 14 files to fetch, ")
    assert "(licence: cc-by-nc-sa-4.0; free on this disk: " in said
    asked = len(hub.downloads())
    load("mtg-genre", tmp_path)  # the same audio: its lists only
    assert len(hub.downloads()) == asked + 3


class Terminal:
    """A terminal in which an answer is typed."""

    def __init__(self, answer: str):
        self.answer = answer

    def isatty(self):
        return True

    def readline(self):
        return self.answer + "\n"


def test_more_than_20_gb_is_asked_for_before_the_first_byte(gtzan_hub, tmp_path, monkeypatch):
    assert download.ASK_ABOVE_BYTES == 20_000_000_000
    monkeypatch.setattr(download, "ASK_ABOVE_BYTES", 10_000)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TaskError, match=r"14 files to fetch, .*above 10\.0 kB only with --yes"):
        load("gtzan", tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal("n"))
    with pytest.raises(TaskError, match="was not fetched, as you said"):
        load("gtzan", tmp_path)
    assert not [path for path in gtzan_hub.downloads() if path.endswith(".wav")]
    monkeypatch.setattr("sys.stdin", Terminal("y"))
    load("gtzan", tmp_path)
    for path in (tmp_path / "data" / "GTZAN" / "genres").rglob("*.wav"):
        path.unlink()
    monkeypatch.setattr("sys.stdin", None)
    assert len(load("gtzan", tmp_path, yes=True).splits["train"]) == 6


def wavs(tmp_path) -> list[Path]:
    """The audio that is there."""
    return sorted((tmp_path / "data" / "GTZAN").rglob("*.wav"))


def test_deleted_and_damaged_files_are_fetched_again_and_no_others(gtzan_hub, tmp_path):
    load("gtzan", tmp_path)
    deleted, flipped, cut, touched = wavs(tmp_path)[:4]
    whole = {path: path.read_bytes() for path in (deleted, flipped, cut, touched)}
    deleted.unlink()
    data = bytearray(whole[flipped])
    data[100] ^= 0xFF
    flipped.write_bytes(data)
    cut.write_bytes(whole[cut][:-1])
    os.utime(touched, (1, 1))
    before = len(gtzan_hub.downloads())
    load("gtzan", tmp_path)
    fetched = gtzan_hub.downloads()[before:]
    assert {Path(p).name for p in fetched} == {p.name for p in (deleted, flipped, cut)}
    assert {path: path.read_bytes() for path in whole} == whole


def test_a_killed_download_goes_on_by_file(gtzan_hub, tmp_path):
    gtzan_hub.fail("stall", "*metal.0000[2-9].wav", after=100)
    code = "import sys; from tune.tasks import load_task; load_task('gtzan', sys.argv[1], "
    code += "cache_dir=sys.argv[1], progress=False)"
    env = os.environ | gtzan_hub.env | {"HF_HUB_DOWNLOAD_TIMEOUT": "60", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "data"], env=env)
    orphans = tmp_path / "data" / "GTZAN" / ".cache"
    end = time.monotonic() + 60
    while len(wavs(tmp_path)) < 10 or not [*orphans.rglob("*.incomplete")]:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [*orphans.rglob("*.incomplete")]
    # What is left is used as it is where nothing may be fetched.
    assert [t.name for t in local_tasks(tmp_path / "data", tmp_path, TASKS.keys() - {"gtzan"})]
    there = {path.name for path in wavs(tmp_path)}
    gtzan_hub.heal()
    before = len(gtzan_hub.downloads())
    load("gtzan", tmp_path)
    fetched = {Path(path).name for path in gtzan_hub.downloads()[before:]}
    assert fetched == {path.name for path in wavs(tmp_path)} - there
    assert not [*orphans.rglob("*.incomplete")]


def test_files_in_a_zip_are_unpacked_where_the_lists_need_them(hub, tmp_path):
    TREES["emo"](tmp_path / "source")
    folder = tmp_path / "source" / "EMO"
    with zipfile.ZipFile(folder / "emomusic.zip", "w") as archive:
        for path in sorted((folder / "emomusic").rglob("*.wav")):
            archive.write(path, path.relative_to(folder / "emomusic"))
            path.unlink()
        archive.writestr("wav/another.wav", b"named by no list")
    with zipfile.ZipFile(folder / "code.zip", "w") as archive:
        archive.writestr("a.py", b"")
    hub.add("m-a-p/EMO", "dataset", folder)
    task = load("emo", tmp_path)
    audio = sorted((tmp_path / "data" / "EMO" / "emomusic").rglob("*"))
    assert [p.name for p in audio if p.is_file()] == [f"{i:04d}.wav" for i in range(1, 15)]
    assert not [*(tmp_path / "data").rglob("*.zip")]
    assert not [path for path in hub.downloads() if "code.zip" in path]
    asked = len(hub.asked)
    assert load("emo", tmp_path).splits["test"]["path"][:] == task.splits["test"]["path"][:]
    assert len(hub.asked) == asked
    lost = Path(task.splits["test"]["path"][0])
    content = lost.read_bytes()
    lost.unlink()
    load("emo", tmp_path)
    assert lost.read_bytes() == content


def test_the_commit_is_kept_and_can_be_chosen(gtzan_hub, tmp_path):
    first = load("gtzan", tmp_path).data_revision
    source = tmp_path / "source" / "GTZAN"
    changed = sorted(source.rglob("*.wav"))[0]
    changed.write_bytes(changed.read_bytes()[:-2] + b"\1\1")
    second = gtzan_hub.add("m-a-p/GTZAN", "dataset", source)
    assert load("gtzan", tmp_path).data_revision == first  # the main branch has moved
    before = len(gtzan_hub.downloads())
    assert load("gtzan", tmp_path, data_revision="main").data_revision == second
    assert [Path(p).name for p in gtzan_hub.downloads()[before:]] == [changed.name]
    got = tmp_path / "data" / changed.relative_to(tmp_path / "source")
    assert got.read_bytes() == changed.read_bytes()
    asked = len(gtzan_hub.asked)
    load("gtzan", tmp_path, data_revision=second[:10])
    assert len(gtzan_hub.asked) == asked
    with pytest.raises(TaskError, match=r"has no revision v9 .*see https://huggingface"):
        load("gtzan", tmp_path, data_revision="v9")
    with pytest.raises(TaskError, match="--data_revision belongs to a data set of the hub, not"):
        load("demo", tmp_path, data_revision="v9")
    (tmp_path / "data" / "GTZAN" / RECORD).unlink()
    (tmp_path / "data" / "GTZAN" / ".tune-complete").touch()
    assert load("gtzan", tmp_path).data_revision is None
    with pytest.raises(TaskError, match="was copied there, not fetched by a run"):
        load("gtzan", tmp_path, data_revision=second)


FAULTS = {
    "gated": (("gated",), r"m-a-p/GTZAN is gated \(.*accept its terms at .*/datasets/m-a-p/GTZAN"),
    "token": ((401,), r"the hub refused your token \(.*get a valid one at"),
    "not_found": (("no_repo",), r"there is no data set m-a-p/GTZAN on the hub"),
    "too_many": ((429,), r"the hub answered 429 .*wait some minutes"),
    "down": ((503,), r"the hub answered 503 .*run again later"),
    "listed": (("no_file", "*00003.wav"), r"lacks a file that it lists .*another --data_revision"),
    "drop": (
        ("drop", "*00003.wav", None, 50),
        r"GTZAN could not be downloaded|did not arrive whole",
    ),
    "stall": (("stall", "*00003.wav", None, 50), r"the connection broke off"),
    "short": (("wrong_size", "*00003.wav"), r"did not arrive whole|could not be downloaded"),
    "damaged": (
        ("wrong_content", "*00003.wav"),
        r"1 file of m-a-p/GTZAN arrived damaged twice, .*00003\.wav .* can't be used: run again",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_next_run_goes_on(gtzan_hub, tmp_path, fault):
    how, said = FAULTS[fault]
    gtzan_hub.fail(*how)
    with pytest.raises(TaskError, match=said):
        load("gtzan", tmp_path)
    assert not [*(tmp_path / "data").rglob("*00003.wav")]
    assert not [*(tmp_path / "data").rglob("*.incomplete")]
    gtzan_hub.heal()
    assert len(load("gtzan", tmp_path).splits["train"]) == 6


def test_a_file_damaged_once_is_fetched_again(gtzan_hub, tmp_path):
    gtzan_hub.fail("wrong_content", "*00003.wav", times=1)
    load("gtzan", tmp_path)
    (got,) = (tmp_path / "data").rglob("*00003.wav")
    (right,) = (tmp_path / "source").rglob("*00003.wav")
    assert got.read_bytes() == right.read_bytes()


def test_without_a_network_or_room_nothing_is_left_half(gtzan_hub, tmp_path, request):
    request.getfixturevalue("full_disk")
    with pytest.raises(
        TaskError, match=r"no room for them|the disk is full .*name a --data_dir on"
    ):
        load("gtzan", tmp_path)
    assert wavs(tmp_path) == []
    gtzan_hub.stop()
    with pytest.raises(TaskError, match=r"can't be reached .*copy the data set's files into .*GTZ"):
        load("gtzan", tmp_path)


def test_where_nothing_came_nothing_is_left(gtzan_hub, tmp_path):
    gtzan_hub.fail(503)
    with pytest.raises(TaskError, match="is not whole"):
        load("gtzan", tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_disk_that_fills_up_on_the_way(gtzan_hub, tmp_path, monkeypatch, request):
    monkeypatch.setattr(download, "announce", lambda *args, **kwargs: None)
    monkeypatch.setattr("tune.tasks.hub_download.announce", lambda *args, **kwargs: None)
    request.getfixturevalue("full_disk")
    with (
        pytest.warns(UserWarning, match="Not enough free disk space"),
        pytest.raises(TaskError, match=r"the disk is full .*or name a --data_dir on a larger disk"),
    ):
        load("gtzan", tmp_path)


def test_a_file_that_the_data_set_lacks_is_missing_and_asked_for_once(gtzan_hub, tmp_path, caplog):
    source = tmp_path / "source" / "GTZAN"
    lost = sorted(source.rglob("*.wav"))[0]
    content = lost.read_bytes()
    lost.unlink()
    gtzan_hub.add("m-a-p/GTZAN", "dataset", source)
    # Another checkout's data folder, above this one, has a file of that name.
    other = tmp_path / "data" / "GTZAN" / lost.relative_to(source)
    other.parent.mkdir(parents=True)
    other.write_bytes(content)
    task = load_task("gtzan", tmp_path / "mine", cache_dir=tmp_path, progress=False)
    assert "lacks 1 of the 14 files that its lists name, such as data/GTZAN/" in caplog.text
    paths = [path for split in SPLITS for path in task.splits[split]["path"]]
    assert [p for p in paths if not Path(p).exists()] == [
        str(tmp_path / "mine" / "GTZAN" / lost.relative_to(source))
    ]
    assert not task.skipped
    asked = len(gtzan_hub.asked)
    load_task("gtzan", tmp_path / "mine", cache_dir=tmp_path, progress=False)
    assert len(gtzan_hub.asked) == asked


def test_files_that_no_run_fetched_are_not_overwritten(gtzan_hub, tmp_path):
    own = tmp_path / "data" / "GTZAN" / "genres" / "blues" / "blues.00001.wav"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own")
    with pytest.raises(
        TaskError, match=r"1 file in .* such as genres/blues/blues\.00001\.wav, whi"
    ):
        load("gtzan", tmp_path)
    assert own.read_bytes() == b"my own"


def test_what_an_older_version_left_when_it_broke_off_is_taken_up(gtzan_hub, tmp_path):
    load("gtzan", tmp_path)
    folder = tmp_path / "data" / "GTZAN"
    (folder / RECORD).unlink()
    lost = wavs(tmp_path)[0]
    lost.unlink()
    before = len(gtzan_hub.downloads())
    task = load("gtzan", tmp_path)
    assert task.data_revision
    fetched = {Path(path).name for path in gtzan_hub.downloads()[before:]}
    assert lost.name in fetched
    assert not ({path.name for path in wavs(tmp_path)} - {lost.name}) & fetched


def test_a_damaged_record_is_named(gtzan_hub, tmp_path):
    load("gtzan", tmp_path)
    (tmp_path / "data" / "GTZAN" / RECORD).write_text("{")
    with pytest.raises(TaskError, match=r"\.tune-hub\.json is damaged .*remove it"):
        load("gtzan", tmp_path)


def test_part_of_a_benchmark_is_marked_and_strict_refuses_it(tmp_path, monkeypatch, caplog):
    gtzan(tmp_path / "data")
    task = load("gtzan", tmp_path)
    assert task.partial["train"] == {"found": 6, "expected": 443}
    check_whole(task)
    assert "gtzan is not whole (train 6 of 443, val 4 of 197, test 4 of 290)" in caplog.text
    with pytest.raises(TaskError, match=r"is not whole .*Without --strict"):
        check_whole(task, strict=True)
    row = type(TASKS["gtzan"])(**{**vars(TASKS["gtzan"]), "n_rows": SIZES})
    monkeypatch.setitem(TASKS, "gtzan", row)
    whole = load("gtzan", tmp_path)
    assert whole.partial == {}
    lost = whole.splits["test"]["path"][0]
    assert whole.without({lost}).partial == {"test": {"found": 3, "expected": 4}}


def test_a_file_known_to_be_undecodable_is_no_gap(tmp_path, monkeypatch, caplog):
    gtzan(tmp_path / "data")
    caplog.set_level(logging.INFO)
    folder = tmp_path / "data" / "GTZAN"
    bad = folder / "genres" / "jazz" / "jazz.00054.wav"
    bad.parent.mkdir()
    bad.write_bytes(b"no audio")
    with (folder / "GTZANGenre.train.jsonl").open("a") as file:
        for name in ("jazz.00054", "jazz.00055"):
            path = f"data/GTZAN/genres/jazz/{name}.wav"
            file.write(json.dumps({"audio_path": path, "label": "blues"}) + "\n")
    row = type(TASKS["gtzan"])(**{**vars(TASKS["gtzan"]), "n_rows": SIZES | {"train": 8}})
    monkeypatch.setitem(TASKS, "gtzan", row)
    task = load("gtzan", tmp_path)
    assert (task.partial, len(task.splits["train"])) == ({}, 7)
    assert "left out data/GTZAN/genres/jazz/jazz.00054.wav, as is usual" in caplog.text
    # One that isn't known to be undecodable is a gap.
    assert task.without({str(bad.with_name("jazz.00055.wav"))}).partial["train"]["found"] == 6


def test_a_record_says_which_revision_it_is_of():
    record = Record("a/b", "0123456789abcdef", "v1")
    assert [record.is_of(r) for r in (None, "v1", "0123456", "v2", "0", "0123457")] == [
        *(True, True, True, False, False, False)
    ]
