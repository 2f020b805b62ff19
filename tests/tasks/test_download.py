"""Downloads: whole, broken off and resumed, damaged, gated; from a server of the test's own."""

import functools
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import requests

from tune.aggregators.transformer.corpus import local_tasks
from tune.tasks import download
from tune.tasks.download import archive_folder, fetch, unpack
from tune.tasks.load import load_task
from tune.tasks.readers import TaskError
from tune.tasks.registry import TASKS, TaskRow


class Server(BaseHTTPRequestHandler):
    """Serves `files`, in part where asked; `break_at` is where the connection breaks off."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_HEAD(self):
        data = self.state.files.get(self.path)
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()

    def do_GET(self):
        data = self.state.files.get(self.path)
        if data is None:
            return self.send_error(404)
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.state.asked.append(start)
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            return self.end_headers()
        start = start if self.state.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.state.break_at])

    def log_message(self, *args):
        """Nothing to print."""


@pytest.fixture
def server():
    """A server on this machine; its state says what it serves and how."""
    state = SimpleNamespace(files={}, asked=[], ranges=True, break_at=None)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()


def tar_of(files: dict[str, bytes]) -> bytes:
    """A .tar.gz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke_off(server, tmp_path, rng, ranges):
    data = rng.bytes(300_000)
    server.files["/a.bin"], server.break_at, server.ranges = data, 100_000, ranges
    url = f"{server.url}/a.bin"
    with pytest.raises((requests.RequestException, TaskError)):
        fetch(url, tmp_path / "a.bin", progress=False)
    assert not (tmp_path / "a.bin").exists()
    have = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < have <= 100_000
    server.break_at = None
    assert fetch(url, tmp_path / "a.bin", progress=False).read_bytes() == data
    assert server.asked == [0, have]


def test_a_whole_part_is_taken_as_it_is(server, tmp_path):
    server.files["/a.bin"] = b"all of it"
    (tmp_path / "a.bin.part").write_bytes(b"all of it")
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", progress=False)
    assert (tmp_path / "a.bin").read_bytes() == b"all of it"
    (tmp_path / "b.bin.part").write_bytes(b"all of it and more")
    server.files["/b.bin"] = b"all of it"
    with pytest.raises(TaskError, match=r"did not arrive whole \(18 bytes of 9\)"):
        fetch(f"{server.url}/b.bin", tmp_path / "b.bin", progress=False)
    fetch(f"{server.url}/b.bin", tmp_path / "b.bin", progress=False)
    assert (tmp_path / "b.bin").read_bytes() == b"all of it"


def test_a_file_of_another_checksum_is_fetched_anew(server, tmp_path, monkeypatch):
    server.files["/a.bin"] = b"damaged"
    right = hashlib.md5(b"as it should be").hexdigest()
    monkeypatch.setattr(download, "_zenodo_md5", lambda url: right)
    with pytest.raises(TaskError, match=r"did not arrive whole \(MD5 .*not.*\): run again"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", progress=False)
    server.files["/a.bin"] = b"as it should be"
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", progress=False)
    assert (tmp_path / "a.bin").read_bytes() == b"as it should be"


def test_zenodos_checksum_is_asked_for(monkeypatch):
    def get(url, timeout):
        assert url == "https://zenodo.org/api/records/1203819"
        files = [{"key": "VocalSet11.zip", "checksum": "md5:0123"}]
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"files": files})

    monkeypatch.setattr(requests, "get", get)
    (url,) = TASKS["vocalset-singer"].archives
    assert download._zenodo_md5(url) == "0123"
    assert download._zenodo_md5("http://elsewhere.org/records/1/files/a.zip") is None


def test_archives_are_fetched_and_unpacked_once_and_resumed(server, tmp_path):
    for part in ("train", "valid"):
        files = {f"nsynth-{part}/examples.json": b"{}", f"nsynth-{part}/audio/a.wav": b"x"}
        server.files[f"/nsynth-{part}.tar.gz"] = tar_of(files)
    urls = tuple(f"{server.url}/nsynth-{part}.tar.gz" for part in ("train", "valid"))
    row = TaskRow("classes", "", "pitch", layout="nsynth", folder="NSynth", archives=urls)
    late = server.files.pop("/nsynth-valid.tar.gz")
    with pytest.raises(
        TaskError, match=r"nsynth-valid.* could not be downloaded \(the server answered 404"
    ):
        archive_folder(row, tmp_path, progress=False)
    server.files["/nsynth-valid.tar.gz"] = late
    folder = archive_folder(row, tmp_path, progress=False)
    assert (folder / "nsynth-valid" / "audio" / "a.wav").read_bytes() == b"x"
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        "nsynth-train",
        "nsynth-valid",
    ]
    assert len(server.asked) == 2  # the first archive wasn't asked for again
    assert archive_folder(row, tmp_path, progress=False) == folder
    assert len(server.asked) == 2


def test_a_folder_that_was_copied_there_is_taken_as_it_is(tmp_path):
    (tmp_path / "NSynth" / "nsynth-train").mkdir(parents=True)
    row = TASKS["nsynth-pitch"]
    assert archive_folder(row, tmp_path) == tmp_path / "NSynth"
    with pytest.raises(TaskError, match=r"examples\.json is missing: NSynth's three archives"):
        load_task("nsynth-pitch", tmp_path, cache_dir=tmp_path)


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    with pytest.raises(
        TaskError, match=r"could not be downloaded \(ConnectionError: no network\).*unpack it"
    ):
        load_task("vocalset-technique", tmp_path, cache_dir=tmp_path)
    # Half a data set is none of which test tracks could be known.
    assert local_tasks(tmp_path, tmp_path, []) == []


def test_archives_can_write_nothing_elsewhere_and_may_be_damaged(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "a.tar.gz").write_bytes(tar_of({"../out.txt": b"x"}))
    with pytest.raises(TaskError, match="can't be unpacked"):
        unpack(tmp_path / "a.tar.gz", inside)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../out.txt", "x")
        archive.writestr("__MACOSX/x", "x")
    unpack(tmp_path / "a.zip", inside)
    assert not (tmp_path / "out.txt").exists()
    assert [p.name for p in inside.iterdir()] == ["out.txt"]
    (tmp_path / "b.zip").write_bytes(b"PK nothing")
    with pytest.raises(TaskError, match=r"can't be unpacked.*remove it and run again"):
        unpack(tmp_path / "b.zip", inside)


def test_the_size_of_archives_is_said_and_asked_for(server, tmp_path, monkeypatch, caplog):
    server.files["/a.tar.gz"] = tar_of({"audio/a.wav": b"x" * 9000})
    size = len(server.files["/a.tar.gz"])
    urls = (f"{server.url}/a.tar.gz",)
    row = TaskRow("classes", "", "pitch", folder="NSynth", archives=urls, licence="CC BY 4.0")
    monkeypatch.setattr(download, "ASK_ABOVE_BYTES", size - 1)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TaskError, match=rf"1 file to fetch, {size} bytes, .*only with --yes"):
        archive_folder(row, tmp_path, progress=False)
    assert server.asked == []
    caplog.set_level("INFO")
    archive_folder(row, tmp_path, progress=False, yes=True)
    assert "(licence: CC BY 4.0; free on this disk: " in caplog.text


def test_an_archive_that_does_not_fit_is_not_begun(server, tmp_path, monkeypatch):
    server.files["/a.tar.gz"] = tar_of({"audio/a.wav": b"x"})
    row = TaskRow("classes", "", "pitch", folder="NSynth", archives=(f"{server.url}/a.tar.gz",))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(TaskError, match=r"there is no room for it: free some space, or name a --d"):
        archive_folder(row, tmp_path, progress=False)
    assert server.asked == []


def test_an_archive_that_can_not_be_written_is_explained(server, tmp_path, monkeypatch):
    def full(file, folder):
        raise OSError(28, "No space left on device")

    server.files["/a.tar.gz"] = tar_of({"audio/a.wav": b"x"})
    row = TaskRow("classes", "", "pitch", folder="NSynth", archives=(f"{server.url}/a.tar.gz",))
    monkeypatch.setattr(download, "unpack", full)
    with pytest.raises(
        TaskError, match=r"a\.tar\.gz could not be written .*No space left .*free s"
    ):
        archive_folder(row, tmp_path, progress=False)
