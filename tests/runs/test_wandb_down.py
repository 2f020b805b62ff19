"""W&B's server dead, silent, slow, refusing the key, dying, its disk full: the run ends well.

One of these runs always; `python -m pytest -m slow tests/runs/test_wandb_down.py` does all.
"""

import contextlib
import getpass
import http.server
import json
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import make_task, run_probe
from wandb_file import read_run, records
from wandb_server import ENTITY, WandbServer

from tune.runs import tracking

slow = pytest.mark.slow
HOST = "a-host-of-our-own"
FILES = {"config.json", "history.csv", "predictions.parquet", "probe.safetensors", "result.json"}


@contextlib.contextmanager
def dead():
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def silent():
    """A server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as there:
        yield f"http://127.0.0.1:{there.getsockname()[1]}"


def answering(status: int):
    """A server that answers everything by one status."""

    @contextlib.contextmanager
    def server():
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_):
                """Say nothing."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as there:
            threading.Thread(target=there.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{there.server_address[1]}"
            there.shutdown()

    return server


def probe(root: Path, url: str, **env):
    """Run an experiment that tracks online, from a home of its own; (process, seconds)."""
    home = root / "home" / "someone"
    task = home / "tones"
    if not task.exists():
        make_task(task, n=(4, 2, 2))
        (task / "audio/zero.wav").touch()
        with open(task / "tones.train.jsonl", "a") as file:
            file.write(json.dumps({"audio_path": str(task / "audio/zero.wav"), "label": "low"}))
    places = {f"WANDB_{name}_DIR": str(root / name) for name in ("CACHE", "CONFIG", "DATA")}
    env = {
        **places,
        "WANDB_DIR": str(root),
        "NETRC": str(root / "netrc"),
        "HOME": str(home),
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "secret" * 7,
        "WANDB_MODE": "online",
        "TUNE_STORE": str(root / "store"),
        "ACCELERATE_USE_CPU": "true",
        **env,
    }
    started = time.monotonic()
    done = run_probe(
        "--task",
        task,
        "--encoder=mel",
        "--epochs=2",
        "--name=run",
        "--seg=1",
        "--overwrite",
        "--tags",
        str(home / "tag"),
        cwd=root,
        env=env,
    )
    return done, time.monotonic() - started


def check_complete(root: Path, done) -> dict:
    """The local result is whole; return the configuration."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    folder = root / "runs/run"
    assert {p.name for p in folder.iterdir()} == FILES
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["metrics"]["accuracy"]["mean"] <= 1
    return json.loads((folder / "config.json").read_text())


DOWN = {
    "refuses": (answering(401), "the key"),
    "dead": (dead, "connection refused"),
    "silent": (silent, "timed out|Timed out"),
    "fails": (answering(503), "Timed out|503"),
}


@pytest.mark.parametrize(
    "how", [how if how == "refuses" else pytest.param(how, marks=slow) for how in DOWN]
)
def test_a_run_without_its_server_is_whole_offline_and_tells_nothing(tmp_path, how):
    server, reason = DOWN[how]
    with server() as url:
        done, seconds = probe(tmp_path, url)
    config = check_complete(tmp_path, done)
    assert config["wandb_fallback"] == "offline"
    (warning,) = (line for line in done.stderr.splitlines() if "server can't be used" in line)
    assert re.search(reason, warning), warning
    assert seconds < 90
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert re.search(
        rf"^ +upload: +wandb login && wandb sync wandb/{folder.name}$", done.stdout, re.M
    )
    sent = read_run(folder)
    assert sent["config"]["wandb_fallback"] == "offline"
    assert [row["epoch"] for row in sent["history"] if "train/loss" in row] == [1, 2]
    assert sent["exit_code"] == 0
    told = check_private(tmp_path, folder)
    assert "~/tones" in told["config"]  # in the command
    assert '"~/tag' in told["run"]


def check_private(root: Path, folder: Path) -> dict[str, str]:
    """Nothing that would be uploaded names the key, the host or the home; all of it by kind."""
    told: dict[str, str] = {}
    for record in records(next(folder.glob("*.wandb"))):
        kind = record.WhichOneof("record_type")
        if kind not in ("output", "output_raw"):  # what the terminal shows: see docs/reliability.md
            told[kind] = told.get(kind, "") + str(record).replace('\\"', '"')
    for media in (folder / "files" / "media").rglob("*.json"):
        told[media.name] = media.read_text()
    for staged in (root / "DATA").rglob("*.json"):
        told[staged.name] = staged.read_text()
    home = str(root / "home" / "someone")
    hosts = {socket.gethostname()}
    for kind, text in told.items():
        for secret in ("secret" * 7, home):
            if kind != "artifact" or secret != home:  # a manifest's local paths stay local
                assert secret not in text, (kind, secret)
        assert not any(f'"{host}"' in text for host in hosts), kind
        assert f'username: "{getpass.getuser()}"' not in text
    assert "environment" not in told or "host" not in told["environment"]
    return told


def test_home_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    value = {
        "a": ["/home/me/x", Path("/home/me"), 3, None, True, 1.5],
        "b": "see '/home/me/y' and file:///home/me",
        "c": "/home/me2",
        "d": "/mnt/home/me/z",
        "e": ("/home/me",),
    }
    assert tracking.hide_home(value) == {
        "a": ["~/x", "~", 3, None, True, 1.5],
        "b": "see '~/y' and file://~",
        "c": "/home/me2",
        "d": "/mnt/home/me/z",
        "e": ["~"],
    }
    monkeypatch.setenv("HOME", "/")
    assert tracking.hide_home(["/x"]) == ["/x"]


def test_what_wandbs_own_variables_ask_for_is_left_to_them(monkeypatch):
    ours = tracking._settings("online")
    assert (ours.host, ours.x_disable_meta, ours.init_timeout) == ("-", True, tracking.INIT_S)
    monkeypatch.setenv("WANDB_X_DISABLE_META", "false")
    monkeypatch.setenv("WANDB_HOST", HOST)
    theirs = tracking._settings("online")
    assert not {"host", "x_disable_meta"} & theirs.model_fields_set


@slow
def test_a_slow_server_costs_time_and_nothing_else(tmp_path, monkeypatch):
    answer = WandbServer.answer

    def late(self, name, v):
        time.sleep(1.5)
        return answer(self, name, v)

    monkeypatch.setattr(WandbServer, "answer", late)
    with WandbServer() as server:
        done, seconds = probe(tmp_path, server.url, WANDB_ENTITY=ENTITY)
        config = check_complete(tmp_path, done)
        (run,) = server.runs.values()
    assert "wandb_fallback" not in config
    assert seconds < 120
    assert run.exit_code == 0
    assert run.summary["test/score"] >= 0
    assert run.config["task"] == "tones"
    assert str(tmp_path / "home/someone") not in json.dumps([run.config, run.summary, run.tags])


@slow
def test_a_server_that_dies_on_the_way_leaves_a_run_to_sync(tmp_path, monkeypatch):
    with WandbServer() as server:
        upsert = server.on_UpsertBucket

        def once(v):
            threading.Timer(0.2, server.http.shutdown).start()
            threading.Timer(0.3, server.http.server_close).start()
            return upsert(v)

        server.on_UpsertBucket = once
        done, seconds = probe(tmp_path, server.url, WANDB_ENTITY=ENTITY, WANDB_FINISH_TIMEOUT="8")
    check_complete(tmp_path, done)
    assert seconds < 90
    (folder,) = (tmp_path / "wandb").glob("run-*")
    # Either the end finds out, or a call on the way.
    assert re.search(r"not all of it has arrived \(|is not complete \(", done.stdout)
    assert re.search(
        rf"upload( what there is)?:  wandb sync wandb/{folder.name}$", done.stdout, re.M
    )
    assert [row["epoch"] for row in read_run(folder)["history"] if "train/loss" in row] == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few hundred KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@slow
def test_a_full_disk_under_its_log_is_said_and_harms_nothing(tmp_path, small_disk):
    done, _ = probe(tmp_path, "http://127.0.0.1:9", WANDB_DIR=str(small_disk), WANDB_MODE="offline")
    check_complete(tmp_path, done)
    assert re.search(
        r"wandb +its log in .* is not complete \(No space left on device\); the run's "
        "own folder is",
        done.stdout,
    ), done.stdout


@slow
def test_a_disk_that_was_full_before_is_said_too(tmp_path, small_disk):
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    done, _ = probe(tmp_path, "http://127.0.0.1:9", WANDB_DIR=str(small_disk), WANDB_MODE="offline")
    # W&B goes on, with complaints of its own logging; what it lost is said.
    done.stderr = done.stderr.replace("Traceback", "") if "Logging error" in done.stderr else ""
    check_complete(tmp_path, done)
    assert "is not complete (No space left on device)" in done.stdout
