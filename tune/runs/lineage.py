"""A run's data, encoder and checkpoint as W&B's artifacts, and its configuration as shown there."""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tune.system.files import hide_home, slug

log = logging.getLogger(__name__)

LINK_S = 30
# Folders of one machine: they change no result and aren't sent to a tracker.
LOCAL = {"output_dir", "store", "cache_dir", "data_dir", "audio_dir", "out", "config"}
# Units, in the names that a tracker shows.
UNITS = {
    "hop": "hop_s",
    "min_tail": "min_tail_s",
    "min_seg": "min_seg_s",
    "max_seg": "max_seg_s",
    "frame_rate": "frame_rate_hz",
}


def tracked_config(config: Mapping, resolved: Mapping) -> dict:
    """A run's configuration as trackers get it, to filter and plot by.

    Parameters
    ----------
    config : as `tune.runs.result.describe_run` returns it
    resolved : values that were used where the flag named none or a path (task, lr)

    Returns
    -------
    dict
        Without folders and null; units in the names; `layer` is a number where one layer was
        asked for, beside `layer_asked`; `seg_s` is the segment's length in seconds.
    """
    out = {UNITS.get(k, k): v for k, v in {**config, **resolved}.items() if k not in LOCAL}
    if "layer" in out:
        out["layer_asked"] = out["layer"]
        layers = config.get("layers") or []
        if out["layer"] not in ("all", "mix", "reduce") and len(layers) == 1:
            out["layer"] = layers[0]
    if isinstance(out.get("seg"), str) and out["seg"].replace(".", "", 1).isdigit():
        out["seg_s"] = float(out["seg"])
    if out.get("aggregator_checkpoint"):
        out["aggregator_checkpoint"] = Path(out["aggregator_checkpoint"]).name
    return hide_home({k: v for k, v in out.items() if v is not None})


def data_manifest(task, rows: Mapping[str, tuple]) -> list[dict]:
    """The tracks of a task as split, SHA-256 of the file and label; no paths, no audio.

    Parameters
    ----------
    task : tune.tasks.load.Task
    rows : path -> (content hash, spans), as an EncodeReport has it
    """
    out = {}
    for number, fold in enumerate(task.folds or [task], 1):
        for split, data in fold.splits.items():
            for path, label in zip(data["path"], data["label"], strict=True):
                row = {"sha256": rows[path][0], "label": label, "split": split}
                row |= {"fold": number} if task.folds else {}
                out[json.dumps(row, sort_keys=True)] = row
    return [out[key] for key in sorted(out)]


def digest(manifest: Sequence[Mapping]) -> str:
    """Hash of a manifest in twelve hexadecimal digits: the same data, the same hash."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def used_artifacts(task: str, manifest: Sequence[Mapping], config: Mapping) -> list:
    """A run's inputs as W&B artifacts: the data, the encoder, the aggregator's checkpoint.

    Parameters
    ----------
    task : short name
    manifest : as `data_manifest` returns it
    config : the run's, with encoder, encoder_fingerprint, encoder_revision and the folder
        aggregator_checkpoint, if any
    """
    import wandb

    facts = {"task": task, "hash": digest(manifest), "n_tracks": len(manifest)}
    data = wandb.Artifact(artifact_name(task, "data"), type="dataset", metadata=facts)
    with data.new_file("manifest.json", encoding="utf-8") as file:
        json.dump(list(manifest), file, indent=1)
    name = str(config["encoder"])
    facts = {"encoder": name} | {
        key: config.get(f"encoder_{key}") for key in ("fingerprint", "revision", "untrained")
    }
    encoder = wandb.Artifact(artifact_name(name, "encoder"), type="encoder", metadata=facts)
    with encoder.new_file("encoder.json", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
    found = [data, encoder]
    checkpoint = config.get("aggregator_checkpoint")
    if checkpoint and Path(checkpoint).expanduser().is_dir():
        found.append(aggregator_artifact(Path(checkpoint).expanduser()))
    return found


def link_inputs(run, artifacts: Sequence) -> None:
    """Record on W&B's server what a run used; given up after `LINK_S`, as W&B waits for it."""
    failures = []

    def use():
        try:
            for artifact in artifacts:
                run.use_artifact(artifact)
        except Exception as error:  # whatever it is, the run itself is complete
            failures.append(next(iter(str(error).splitlines()), type(error).__name__))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(LINK_S)
    if failures or thread.is_alive():
        log.warning(
            "W&B has no record of the data and the encoder that this run used (%s)",
            hide_home(failures[0]) if failures else f"no answer in {LINK_S} s",
        )


def aggregator_artifact(folder: Path):
    """A pretrained aggregator as a W&B artifact.

    The same files are the same version to W&B, so that pretraining's model and the probes that use
    it are linked.
    """
    import wandb

    artifact = wandb.Artifact(artifact_name(folder.name, "aggregator"), type="model")
    for name in ("config.json", "README.md", "history.csv"):
        if (folder / name).is_file():
            add_text(artifact, folder / name)
    artifact.add_file(str(folder / "model.safetensors"), policy="immutable")
    return artifact


def add_text(artifact, path: Path) -> None:
    """Add a text file to an artifact, without the paths of the user's home."""
    text = path.read_text(encoding="utf-8")
    # In JSON a path may be escaped, so that it doesn't look like one.
    shown = (
        json.dumps(hide_home(json.loads(text)), indent=2, ensure_ascii=False)
        if path.suffix == ".json"
        else hide_home(text)
    )
    if shown.strip() == text.strip():
        artifact.add_file(str(path))
        return
    with artifact.new_file(path.name, encoding="utf-8") as file:
        file.write(shown)


def artifact_name(name: str, kind: str) -> str:
    """A name with only the characters that W&B takes."""
    return f"{kind}-" + slug(name)[:120]
