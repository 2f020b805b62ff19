"""Where a pretrained model's files are: a folder, or the Hugging Face hub and its cache.

Weights are read from safetensors only. A pickle (`pytorch_model.bin`, `.pt`, `.ckpt`) can execute
code while it is read, so it is neither downloaded nor opened; nor is a model's own Python code,
unless the user says --trust_remote_code. (`tune.encoders.convert` makes safetensors of a pickle
when the user asks for it.)

A file in the hub's cache bears its hash as its name. Its content is compared with that whenever it
is loaded; a damaged file is removed and fetched again.
"""

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tune.encoders.base import EncoderError
from tune.system.hub_errors import explain

log = logging.getLogger(__name__)

CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json"]
# Not *.safetensors: some models lie on the hub in several precisions.
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"]
CARD = "README.md"  # names the licence
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"}
LICENCES = {  # as the hub writes them -> as they are shown; others are shown as written
    "cc-by-nc-4.0": "CC-BY-NC 4.0",
    "cc-by-4.0": "CC-BY 4.0",
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
    "isc": "ISC",
}
WITHOUT_HUB = (
    "Without a network, put its config.json, model.safetensors and, if it has one, "
    "preprocessor_config.json into a folder and pass --encoder FOLDER, or use --encoder muq-nano "
    "or mel, which need no download."
)


def fetch(
    repo: str, revision: str | None = None, patterns: list[str] | None = None, about: str = ""
) -> Path:
    """Folder with a hub model's files, whole and undamaged, from the hub's cache or the hub.

    Parameters
    ----------
    repo : "owner/name"
    revision : branch, tag or commit; by default the main branch
    patterns : names of the files wanted; by default configurations and safetensors
    about : size and licence, for the line that announces the download

    Raises
    ------
    EncoderError
        When it is in neither, or arrives damaged twice.
    """
    from huggingface_hub import snapshot_download

    patterns = patterns or CONFIGS + WEIGHTS
    folder = cached(repo, revision, patterns)
    if folder is None:
        if about or set(WEIGHTS) & set(patterns):
            log.info(
                "downloading %s%s from the Hugging Face hub", repo, f" ({about})" * bool(about)
            )
        try:
            folder = Path(
                snapshot_download(repo, revision=revision, allow_patterns=[*patterns, CARD])
            )
        except Exception as error:  # the hub's client raises its own and its HTTP library's errors
            said = explain(error, repo, revision=revision)
            raise EncoderError(f"{said}. {WITHOUT_HUB}") from error
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in patterns):
            replace_if_damaged(path, repo)
    return folder


def cached(
    repo: str, revision: str | None = None, patterns: list[str] | None = None
) -> Path | None:
    """Folder of a hub model in the local cache; None when a wanted file is not there."""
    from huggingface_hub import snapshot_download

    given = {"revision": revision, "allow_patterns": patterns or CONFIGS + WEIGHTS}
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, **given))
    except OSError:
        return None
    return folder if _is_complete(folder, given["allow_patterns"]) else None


def replace_if_damaged(path: Path, repo: str, kind: str = "model") -> None:
    """Compare a file of the hub's cache with its hash; fetch it again where it is another.

    Parameters
    ----------
    path : in the cache's folder of a commit
    repo : "owner/name"
    kind : "model" or "dataset"

    Raises
    ------
    EncoderError
        When it can't be fetched again or is damaged then, too. The damaged file is removed in any
        case, so that the next run does not meet it.
    """
    from huggingface_hub import hf_hub_download

    if is_whole(path):
        return
    commit = commit_of(path.parent)
    _remove(path)
    log.warning("%s of %s is damaged in the local cache: fetching it again", path.name, repo)
    try:
        hf_hub_download(repo, path.name, revision=commit, repo_type=kind, force_download=True)
    except Exception as error:  # as above
        raise EncoderError(
            f"{path.name} of {repo} was damaged in the local cache (its content did not match its "
            f"SHA-256) and was removed, but could not be fetched again: "
            f"{explain(error, repo, kind, commit)}"
        ) from error
    if not is_whole(path):
        _remove(path)
        raise EncoderError(
            f"{path.name} of {repo} arrived damaged twice (of the right size, but its SHA-256 is "
            f"not the hub's) and was removed: run again, by another network or without a proxy if "
            f"it comes back"
        )


def is_whole(path: Path) -> bool:
    """Say whether a file of the hub's cache has the hash that it is named by there.

    That is the SHA-256 of a large file, git's SHA-1 of a small one. Any other file, and one in a
    cache without links (Windows without developer mode), bears no hash and can't be compared.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not blob.is_file():
        return True
    stat = blob.stat()
    return _has_hash(blob, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(256)
def _has_hash(blob: Path, size: int, stamp: int) -> bool:
    """Compare a blob's content with its name; once a process while it doesn't change."""
    with blob.open("rb") as file:
        if re.fullmatch("[0-9a-f]{64}", blob.name):
            return hashlib.file_digest(file, "sha256").hexdigest() == blob.name
        if re.fullmatch("[0-9a-f]{40}", blob.name):
            return hashlib.sha1(b"blob %d\0" % size + file.read()).hexdigest() == blob.name
    return True


def _remove(path: Path) -> None:
    """Remove a file of the cache, and what it is a link to."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    if blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)


def _is_complete(folder: Path, patterns) -> bool:
    """Say whether configuration, and weights and code if asked for, are there."""
    return (
        (folder / "config.json").is_file()
        and (not set(WEIGHTS) & set(patterns) or _has_weights(folder))
        and ("*.py" not in patterns or any(folder.glob("*.py")) or not _names_code(folder))
    )


def _names_code(folder: Path) -> bool:
    """Say whether a model's configuration names Python code of its own."""
    with contextlib.suppress(EncoderError):
        return "auto_map" in read_json(folder / "config.json")
    return False


def _has_weights(folder: Path) -> bool:
    """Say whether all of a folder's safetensors files are there."""
    with contextlib.suppress(EncoderError):  # a damaged index is found and fetched again later
        found = weights(folder)
        return bool(found) and all(path.is_file() for path in found)
    return True


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a folder of its cache holds, or None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else None


def licence_of(folder: Path) -> str | None:
    """The licence that a model's card names (README.md, between two lines of ---), or None."""
    path = Path(folder) / CARD
    if not path.is_file():
        return None
    head = path.read_text(encoding="utf-8", errors="replace").split("---")
    found = dict(re.findall(r"^(license\w*):[ \t]*([^\s#]+)", head[1], re.M)) if head[2:] else {}
    name = found.get("license_name" if found.get("license") == "other" else "license")
    return LICENCES.get(name, name)


def read_json(path: Path) -> dict:
    """Read one of a model's configuration files.

    Raises
    ------
    EncoderError
        When it is missing or no JSON object.
    """
    if not path.is_file():
        raise EncoderError(f"{path.parent} holds no {path.name}, so it is not a model")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path.parent} is damaged: {path.name}: {error}") from error
    if not isinstance(found, dict):
        raise EncoderError(f"{path.parent} is damaged: {path.name} is no JSON object")
    return found


def weights(folder: Path) -> list[Path]:
    """A folder's safetensors files, in order; [] when it has none."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / "model.safetensors.index.json").is_file():
        named = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
        return [folder / name for name in sorted(set(named.values()))]
    return []


def check_weights(folder: Path, name: str, convert: str) -> list[Path]:
    """A folder's safetensors files; raise when there are none.

    Parameters
    ----------
    convert : Python that makes them from pickled weights, for the message
    """
    found = weights(folder)
    if not found:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        there = (
            f"{pickles[0]} is a pickle, which is never loaded"
            if pickles
            else ("pickles such as pytorch_model.bin are never loaded")
        )
        if commit_of(folder) and "/" in name:
            convert = f"python -m tune.encoders convert {name}"
        else:
            convert = f"{convert}, then --encoder FOLDER"
        raise EncoderError(
            f"{name} holds no model.safetensors ({there}). Another --revision may hold one (the "
            f"hub's converter proposes it as refs/pr/N); or convert it once where you trust it: "
            f"{convert}"
        )
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise EncoderError(f"{name} holds no {missing[0]}, which its index names: it is incomplete")
    return found


def read_weights(files: Sequence[Path], prefix: str = "") -> dict:
    """Read the tensors of safetensors files whose names begin with `prefix`, by name.

    They are read, not mapped: a file that is replaced later changes no loaded model, and its pages
    don't stay in memory beside the tensors.
    """
    found = {}
    try:
        for path in files:
            with safe_open(path, "pt", backend="pread") as file:
                wanted = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                found |= {key: file.get_tensor(key) for key in wanted}
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{files[0].parent} is damaged: {error}") from error
    return found
