"""Where a pretrained model's files are: a folder, or the Hugging Face hub and its cache.

Weights are read from safetensors only. A pickle (`pytorch_model.bin`, `.pt`, `.ckpt`) can execute
code while it is read, so it is neither downloaded nor opened; nor is a model's own Python code,
unless the user says --trust_remote_code.
"""

import json
import logging
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tune.encoders.base import EncoderError

log = logging.getLogger(__name__)

CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json"]
# Not *.safetensors: some models lie on the hub in several precisions.
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"]
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"}


def fetch(repo: str, revision: str | None = None, patterns: list[str] | None = None) -> Path:
    """Folder with a hub model's files, from the hub's cache or the hub.

    Parameters
    ----------
    repo : "owner/name"
    revision : branch, tag or commit; by default the main branch
    patterns : names of the files wanted; by default configurations and safetensors

    Raises
    ------
    EncoderError
        When it is in neither.
    """
    from huggingface_hub import snapshot_download

    patterns = patterns or CONFIGS + WEIGHTS
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
        if _is_complete(folder, patterns):
            return folder  # else only other files of it were fetched before
    except OSError:
        pass
    log.info("downloading %s from the Hugging Face hub", repo)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own and its HTTP library's errors
        which = f"{repo} (revision {revision})" if revision else repo
        raise EncoderError(
            f"{which} is not in the local cache and could not be downloaded "
            f"({type(error).__name__}). With a network, run again; without one, put its "
            f"config.json, model.safetensors and, if it has one, preprocessor_config.json into a "
            f"folder and pass --encoder FOLDER, or use --encoder muq-nano or mel, which need no "
            f"download."
        ) from error


def _is_complete(folder: Path, patterns) -> bool:
    """Say whether configuration, and weights and code if asked for, are there."""
    return (
        (folder / "config.json").is_file()
        and (not set(WEIGHTS) & set(patterns) or bool(weights(folder)))
        and ("*.py" not in patterns or any(folder.glob("*.py")))
    )


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a folder of its cache holds, or None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else None


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
        raise EncoderError(
            f"{name} holds no model.safetensors ({there}). Another --revision may hold one (the "
            f"hub's converter proposes it as refs/pr/N); or convert it once where you trust it: "
            f"{convert}, then --encoder FOLDER"
        )
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise EncoderError(f"{name} holds no {missing[0]}, which its index names: it is incomplete")
    return found


def read_weights(files: list[Path]) -> dict:
    """Read the tensors of safetensors files."""
    try:
        return {key: value for path in files for key, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{files[0].parent} is damaged: {error}") from error
