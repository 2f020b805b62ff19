"""Pickled weights of the hub made into safetensors, once, when the user asks for it.

    python -m tune.encoders convert muq-mulan

A pickle can execute code while it is read. `torch.load(weights_only=True)` builds tensors and plain
containers only; it runs in a process of its own (`unpickle.py`), without a network and the user's
tokens, and may write nothing but the result. What comes out lies in TUNE's cache folder, with the
commit and the pickle's SHA-256, and is what the encoder is loaded from then on.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tune.encoders import hub
from tune.encoders.base import EncoderError
from tune.system.files import atomic_write_text, cache_folder, slug

PICKLE = "pytorch_model.bin"
NOTE = "converted.json"
CHILD = Path(__file__).with_name("unpickle.py")
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")


def converted(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a converted model, or None when there is none of this revision."""
    folder = _folder(repo)
    if not (folder / NOTE).is_file():
        return None
    return folder if revision in (None, commit_of(folder)) else None


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a converted model was made from; None for any other folder."""
    path = Path(folder) / NOTE
    return hub.read_json(path)["commit"] if path.is_file() else None


def convert(repo: str, revision: str | None = None, about: str = "") -> Path:
    """Fetch a model's pickle and make safetensors of it.

    Parameters
    ----------
    repo : "owner/name" on the hub
    revision : branch, tag or commit; by default the main branch
    about : size and licence, for the line that announces the download

    Returns
    -------
    The folder that it can be loaded from.

    Raises
    ------
    EncoderError
        When it can't be fetched, holds no pickle, or that holds more than tensors.
    """
    patterns = [*hub.CONFIGS, PICKLE, "*.py"]
    source = hub.fetch(repo, revision, patterns, about)
    if not (source / PICKLE).is_file():
        raise EncoderError(f"{repo} holds no {PICKLE}: there is nothing to convert")
    folder = _folder(repo)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _run_child((source / PICKLE).resolve(), aside / "model.safetensors", repo)
        for path in source.iterdir():
            if path.name != PICKLE and path.is_file():
                shutil.copy(path, aside / path.name)
        note = {
            "repo": repo,
            "commit": hub.commit_of(source),
            "sha256": (source / PICKLE).resolve().name,
        }
        atomic_write_text(aside / NOTE, json.dumps(note, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _folder(repo: str) -> Path:
    """Where a converted model lies."""
    return cache_folder() / "converted" / slug(repo.replace("/", "--"))


def _run_child(pickle: Path, to: Path, repo: str) -> None:
    """Convert a file in a process of its own; raise with the line of its error."""
    done = subprocess.run(
        [sys.executable, "-P", CHILD, pickle, to],
        env={key: os.environ[key] for key in KEPT if key in os.environ},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        errors = [line for line in lines if re.match(r"[\w.]*Error\b", line)]
        reason = " ".join((errors or lines)[-1].split())[:300]
        raise EncoderError(f"{repo}: its {PICKLE} can't be converted: {reason}")
