"""A stand-in for the Hugging Face hub: models and data sets served as the hub serves them.

    def test_something(hub):
        hub.add("m-a-p/GTZAN", "dataset", {"genres/rock/a.wav": b"...", "GTZAN.train.jsonl": b""})
        hub.fail(429, "*.wav", times=2)

The `hub` fixture points huggingface_hub, transformers and datasets of this process at the server,
with an empty cache (`hub.cache`); `hub.env` does the same for a program that a test starts. Files
are bytes or paths. As on the hub, a large or binary file (LFS) is redirected to another host (here:
another port), its ETag is its SHA-256, and a small text's is git's SHA-1 of the blob.
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import json
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

TEXT = {".json", ".jsonl", ".txt", ".md", ".py", ".yaml", ".csv"}
LFS_BYTES = 10_000_000  # from here texts are LFS files, too
PAGE = 1000  # files in one answer to a question for the tree
CODES = {  # fault -> status, X-Error-Code, X-Error-Message: as the hub answers
    "gated": (403, "GatedRepo", "Access to this repository is restricted."),
    "no_repo": (404, "RepoNotFound", "Repository not found"),
    "no_revision": (404, "RevisionNotFound", "Invalid rev id"),
    "no_file": (404, "EntryNotFound", "Entry not found"),
    401: (401, None, "Invalid credentials in Authorization header"),
}


def is_lfs(name: str, size: int) -> bool:
    """Say whether the hub keeps a file as LFS."""
    return PurePosixPath(name).suffix not in TEXT or size >= LFS_BYTES


def content(file: bytes | Path) -> bytes:
    """A file's bytes."""
    return file if isinstance(file, bytes) else Path(file).read_bytes()


@functools.lru_cache(4096)
def _digests(file: bytes | Path, stamp) -> tuple[int, str, str]:
    """Size, SHA-256 and git's SHA-1; `stamp` changes with a file on disk."""
    data = content(file)
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return len(data), hashlib.sha256(data).hexdigest(), blob


def digests(file: bytes | Path) -> tuple[int, str, str]:
    """Size, SHA-256 and git's SHA-1 of a file."""
    stamp = None if isinstance(file, bytes) else Path(file).stat().st_mtime_ns
    return _digests(file, stamp)


@dataclass
class Repo:
    """A repository: its commits (each all its files by name), and what branches point to."""

    commits: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with requests whose path matches.

    Attributes
    ----------
    kind : a status (401, 403, 404, 429, 500, 503), "gated", "no_repo", "no_revision", "no_file",
        "drop" (the connection breaks off after `after` bytes), "stall" (nothing comes after them),
        "wrong_size" (fewer bytes than the hub's listing says) or "wrong_content" (as many, damaged)
    times : how often, None for always
    """

    kind: int | str
    path: str
    times: int | None = None
    after: int = 0


class Server(ThreadingHTTPServer):
    """A server whose threads end with it and that prints no traceback when a client hangs up."""

    daemon_threads = True

    def __init__(self, *args):
        self.connections = set()
        super().__init__(*args)

    def process_request(self, request, client_address):
        """Answer in a thread, and know the connection, which clients keep open."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def server_close(self):
        """Close the door and all connections."""
        super().server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Clients that are killed or time out are what the tests do."""


class Hub:
    """The stand-in's state.

    Attributes
    ----------
    url, cache : its address, and the folder of the client's cache
    asked : (method, path) of every request so far, in order
    env : environment variables that point another program here
    token : the only token that is accepted, where one is sent
    """

    def __init__(self, cache: Path):
        self.cache, self.token = cache, "hf_valid"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str]] = []
        self.released = threading.Event()
        self.cdn_files: dict[str, bytes | Path] = {}
        self._lock = threading.Lock()
        self._servers = [Server(("127.0.0.1", 0), functools.partial(Handler, self)) for _ in "12"]
        self.url, self.cdn = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Be unreachable from now on: connections are refused."""
        self.heal()
        while self._servers:
            server = self._servers.pop()
            server.shutdown()
            server.server_close()

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of a program that is to use this hub and its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(self.cache.parent),
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def add(
        self,
        name: str,
        kind: str,
        files: dict[str, bytes | Path] | Path,
        *,
        ref: str = "main",
        commit: str | None = None,
        **card,
    ) -> str:
        """Put a "model" or "dataset" there, or another commit of it.

        Parameters
        ----------
        files : content by name, or a folder
        ref : branch, tag or refs/pr/N that points to the commit
        card : of the repository's README.md, such as license

        Returns
        -------
        The commit's hash.
        """
        if isinstance(files, Path):
            paths = (p for p in sorted(files.rglob("*")) if p.is_file())
            files = {p.relative_to(files).as_posix(): p for p in paths}
        listing = json.dumps([[key, digests(file)[1]] for key, file in sorted(files.items())])
        commit = commit or hashlib.sha1(f"{name} {ref} {listing}".encode()).hexdigest()
        repo = self.repos.setdefault((kind, name), Repo())
        repo.commits[commit], repo.refs[ref] = dict(files), commit
        repo.card |= card
        return commit

    def fail(self, kind: int | str, path: str = "*", times: int | None = None, after: int = 0):
        """Let requests fail whose path matches the pattern: see `Fault`."""
        self.faults.append(Fault(kind, path, times, after))

    def heal(self) -> None:
        """Let nothing fail any more, and end what stalls."""
        self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def downloads(self) -> list[str]:
        """Paths of the files whose content was asked for so far."""
        paths = (unquote(path) for method, path in self.asked if method == "GET")
        return [path for path in paths if "/resolve/" in path or path.startswith("/cdn/")]

    def fault(self, path: str, kinds=None) -> Fault | None:
        """The fault that a request meets, counted down."""
        with self._lock:
            for fault in self.faults:
                wanted = kinds is None or fault.kind in kinds
                if wanted and fault.times != 0 and fnmatch.fnmatch(unquote(path), fault.path):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


BODY_FAULTS = ("drop", "stall", "wrong_size", "wrong_content")


class Handler(BaseHTTPRequestHandler):
    """Answers the hub's requests."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args):
        """Nothing to print."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.answer(self.rfile.read(length))

    def answer(self, body: bytes = b""):
        """Find what is asked for and send it, or what goes wrong."""
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append((self.command, self.path))
        statuses = [f.kind for f in hub.faults if f.kind not in BODY_FAULTS]
        if (fault := hub.fault(path, statuses)) is not None:
            return self.refuse(fault.kind)
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if sent and sent != hub.token and not path.startswith("/cdn/"):
            return self.refuse(401)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "cdn":
            return self.file(unquote(path), hub.cdn_files[parts[1]])
        if parts[0] == "api":
            return self.api(parts[1:], body)
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if "resolve" in parts:
            at = parts.index("resolve")
            return self.resolve(kind, "/".join(parts[:at]), parts[at + 1 :])
        self.refuse(404)

    def api(self, parts: list[str], body: bytes):
        """Questions about repositories."""
        kind = parts[0].removesuffix("s")
        if kind not in ("model", "dataset"):
            return self.refuse(404)
        if len(parts) == 1:
            return self.search(kind)
        verbs = ("revision", "tree", "paths-info", "refs")
        at = next((i for i, part in enumerate(parts) if part in verbs), len(parts))
        name, verb, rest = "/".join(parts[1:at]), "".join(parts[at : at + 1]), parts[at + 1 :]
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self.refuse("no_repo" if self.headers.get("Authorization") else 401, plain=True)
        if verb == "refs":
            branches = [{"name": k, "ref": k, "targetCommit": v} for k, v in repo.refs.items()]
            return self.json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})
        commit, rest = self.commit(repo, rest or ["main"])
        if commit is None:
            return self.refuse("no_revision")
        files = repo.commits[commit]
        if verb == "tree":
            return self.tree(files, "/".join(rest))
        if verb == "paths-info":
            asked = (
                json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            )
            return self.json([self.entry(p, files[p]) for p in asked if p in files])
        siblings = [{"rfilename": key} for key in sorted(files)]
        tags = [f"license:{repo.card['license']}"] if "license" in repo.card else []
        about = {"_id": name, "id": name, "sha": commit, "private": False, "gated": False}
        stamp = {"lastModified": "2026-09-01T12:00:00.000Z", "disabled": False, "downloads": 1}
        self.json({**about, **stamp, "tags": tags, "cardData": repo.card, "siblings": siblings})

    def search(self, kind: str):
        """Repositories whose name holds what is searched for, of an author."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        names = (name for k, name in self.hub.repos if k == kind)
        found = [
            {"_id": name, "id": name, "modelId": name, "private": False, "tags": []}
            for name in names
            if query.get("search", "").lower() in name.lower()
            and name.startswith(query.get("author", ""))
        ]
        self.json(found[: int(query.get("limit", 1000))])

    def tree(self, files: dict, below: str):
        """A repository's files in pages; without `recursive`, a folder's own."""
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        below = f"{below}/" if below else ""
        entries = {}
        for key, file in sorted(files.items()):
            if not key.startswith(below):
                continue
            inner = key.removeprefix(below).split("/")
            for depth in range(1, len(inner) if recursive else min(len(inner), 2)):
                folder = below + "/".join(inner[:depth])
                entries[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            if recursive or len(inner) == 1:
                entries[key] = self.entry(key, file)
        if below and not entries:
            return self.refuse("no_file")
        start = int(query.get("cursor", ["0"])[0])
        page = list(entries.values())[start : start + PAGE]
        headers = {}
        if start + PAGE < len(entries):
            path = f"{self.hub.url}{urlsplit(self.path).path}"
            following = f"{path}?recursive={recursive}&cursor={start + PAGE}"
            headers["Link"] = f'<{following}>; rel="next"'
        self.json(page, headers)

    @staticmethod
    def entry(name: str, file) -> dict:
        """A file as the tree and paths-info list it."""
        size, sha256, sha1 = digests(file)
        entry = {"type": "file", "oid": sha1, "size": size, "path": name}
        if is_lfs(name, size):
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return entry

    @staticmethod
    def commit(repo: Repo, parts: list[str]):
        """The commit that a revision names, which may hold slashes, and the parts behind it."""
        for k in range(len(parts), 0, -1):
            revision = "/".join(parts[:k])
            found = repo.refs.get(revision, revision)
            if found in repo.commits:
                return found, parts[k:]
        return None, parts

    def resolve(self, kind: str, name: str, rest: list[str]):
        """A file: sent, or redirected to the content delivery network."""
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self.refuse("no_repo" if self.headers.get("Authorization") else 401, plain=True)
        commit, rest = self.commit(repo, rest)
        if commit is None:
            return self.refuse("no_revision")
        key = "/".join(rest)
        if key not in repo.commits[commit]:
            return self.refuse("no_file", {"X-Repo-Commit": commit})
        file = repo.commits[commit][key]
        size, sha256, sha1 = digests(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha1}"'}
        if not is_lfs(key, size):
            return self.file(f"/{name}/{key}", file, headers)
        self.hub.cdn_files[sha256] = file
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
        headers["Location"] = f"{self.hub.cdn}/cdn/{sha256}/{quote(f'{name}/{key}')}"
        self.send(302, b"", headers)

    def file(self, path: str, file, headers: dict | None = None):
        """A file's bytes, from where they are asked for."""
        data, status = content(file), 200
        headers = {**(headers or {}), "Content-Type": "application/octet-stream"}
        fault = self.hub.fault(path, BODY_FAULTS) if self.command == "GET" else None
        if fault is not None and fault.kind == "wrong_size":
            data = data[: len(data) // 2]
        if fault is not None and fault.kind == "wrong_content":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        if (wanted := self.headers.get("Range")) is not None:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            start, end = int(start), int(end) if end else len(data) - 1
            if start >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        if fault is None or fault.kind not in ("drop", "stall"):
            return self.send(status, data, headers)
        self.start(status, len(data), headers)
        self.wfile.write(data[: fault.after])
        self.wfile.flush()
        if fault.kind == "stall":
            self.hub.released.wait(60)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, kind: int | str, headers: dict | None = None, plain: bool = False):
        """An error as the hub reports it; `plain`: to one without a token."""
        status, code, message = CODES.get(kind, (kind, None, None))
        if plain and status == 401:
            code, message = "RepoNotFound", "Invalid username or password."
        found = {"X-Error-Code": code, "X-Error-Message": message, "Retry-After": None}
        if status == 429:
            found["X-Error-Message"], found["Retry-After"] = "Rate limit exceeded", "0"
        headers = {**(headers or {}), **{k: v for k, v in found.items() if v is not None}}
        self.send(status, json.dumps({"error": message or "error"}).encode(), headers)

    def json(self, value, headers: dict | None = None):
        """A value as JSON."""
        self.send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def start(self, status: int, size: int, headers: dict):
        """Status and headers."""
        self.send_response(status)
        for key, value in {"Content-Length": str(size), "Date": formatdate(usegmt=True)}.items():
            self.send_header(key, value)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send(self, status: int, data: bytes, headers: dict):
        """A whole answer; a client that hung up is no error here."""
        try:
            self.start(status, len(data), headers)
            if self.command != "HEAD":
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, with an empty cache; this process's clients are pointed at it."""
    import datasets
    import huggingface_hub.constants as constants
    from huggingface_hub import utils

    hub = Hub(tmp_path / "hf" / "hub")
    for key, value in hub.env.items():
        monkeypatch.setenv(key, value)
    for key, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HOME": str(hub.cache.parent),
        "HF_HUB_CACHE": str(hub.cache),
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
        "HF_TOKEN_PATH": str(hub.cache.parent / "token"),
    }.items():
        monkeypatch.setattr(constants, key, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(key, raising=False)
    # The client waits between its tries; the tests needn't.
    waits = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.file_download.time", waits)
    monkeypatch.setattr("huggingface_hub.utils._http.time", waits)
    utils.close_session()
    yield hub
    utils.close_session()
    hub.stop()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that has no room for what the hub's client downloads."""
    usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(path)._replace(free=0))
    opened = Path.open

    class Full:
        """A file that nothing can be written to."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

    def open_(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return Full(file) if path.name.endswith(".incomplete") else file

    monkeypatch.setattr(Path, "open", open_)
