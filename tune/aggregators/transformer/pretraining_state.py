"""What pretraining leaves on disk: the best aggregator so far, and the state to go on from.

    OUT/config.json, model.safetensors     the best epoch's aggregator, in Hugging Face form
    OUT/README.md, history.csv, pretrain.json     when it is finished: model card, curve, facts
    OUT/trained_on.safetensors             then as well (`trained_on`)
    OUT/state/                             after each epoch, until it is finished

A state appears whole or not at all. It holds Accelerate's files and progress.json, with what the
run was asked for: a command that asks for something else doesn't go on from it.
"""

import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from tune.system.files import flush, save_tensors, write_csv

STATE = "state"
OURS = {
    "config.json",
    "model.safetensors",
    ".model.tmp",
    "README.md",
    "history.csv",
    "pretrain.json",
    "trained_on.safetensors",
    STATE,
    f"{STATE}.before",
    f"{STATE}.tmp",
}
# Flags that change neither the tokens nor the training (the encoder's own numbers are compared by
# its fingerprint).
INDIFFERENT = {
    "yes",
    "store",
    "cache_dir",
    "data_dir",
    "out",
    "overwrite",
    "report_to",
    "project",
    "entity",
    "group",
    "tags",
    "notes",
    "strict",
    "batch_seconds",
    "gradient_checkpointing",
    "patience",
    "trust_remote_code",
    "revision",
}


def asked_for(args: Mapping, recipe: Mapping, encoder: str) -> dict:
    """What a run's result depends on, as JSON would give it back."""
    kept = {k: v for k, v in args.items() if k not in INDIFFERENT and k not in recipe}
    return json.loads(json.dumps(kept | dict(recipe) | {"encoder": encoder}, default=str))


def open_folder(accelerator, out: Path, wanted: dict, overwrite: bool) -> dict:
    """Open --out: a new run's progress, or that of the run to go on with.

    Returns
    -------
    dict of epoch (the last complete one), history, best_epoch, best_loss, baselines, wanted

    Raises
    ------
    ValueError
        When --out holds a finished aggregator, one of another command, or other files.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; an aggregator needs a folder")
    state, before, aside = out / STATE, out / f"{STATE}.before", out / f"{STATE}.tmp"
    foreign = sorted({p.name for p in out.iterdir()} - OURS) if out.is_dir() else []
    if overwrite and foreign:
        raise ValueError(
            f"--out {out} holds other files ({foreign[0]}), which --overwrite would delete: "
            f"choose another folder"
        )
    accelerator.wait_for_everyone()  # all have looked before anything is changed
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if overwrite and out.is_dir():
                shutil.rmtree(out)
            if before.exists() and not state.exists():  # cut off between two renames
                before.rename(state)
            if aside.exists() and not state.exists() and not (out / "pretrain.json").exists():
                for name in ("config.json", "model.safetensors", ".model.tmp"):
                    (out / name).unlink(missing_ok=True)  # cut off before its first state
            shutil.rmtree(aside, ignore_errors=True)
    if (state / "progress.json").is_file():
        progress = json.loads((state / "progress.json").read_text(encoding="utf-8"))
        old = progress["wanted"]
        differing = [
            f"--{k} {old.get(k)} (now {wanted.get(k)})"
            for k in sorted({*old, *wanted})
            if old.get(k) != wanted.get(k)
        ]
        if differing:
            raise ValueError(
                f"{out} holds an unfinished run with other settings: {', '.join(differing)}. "
                f"Give the same, another --out, or --overwrite"
            )
        return progress
    if (out / "pretrain.json").exists():
        raise ValueError(f"{out} holds a finished aggregator: choose another --out or --overwrite")
    if out.is_dir() and (there := sorted(p.name for p in out.iterdir())):
        raise ValueError(f"--out {out} holds other files ({there[0]}): choose an empty folder")
    return {
        "epoch": 0,
        "history": [],
        "best_epoch": 0,
        "best_loss": None,
        "baselines": {},
        "wanted": wanted,
    }


def check_tracks(tracks: Mapping) -> None:
    """Raise ValueError when no track of a split has two tokens."""
    for split, data in tracks.items():
        if not len(data):
            raise ValueError(
                f"all {len(data.single)} {split} tracks have one token only, and nothing can be "
                f"predicted from nothing: use a shorter --seg, or --tokens frame"
            )


def check_same_data(progress: dict, fingerprint: str, tracks: Mapping, out: Path) -> None:
    """Raise ValueError when a run goes on with other audio, segments or encoder weights."""
    rows = {split: [data.rows[path] for path in data.paths] for split, data in tracks.items()}
    digest = hashlib.sha256(json.dumps([fingerprint, rows]).encode()).hexdigest()
    if progress.setdefault("data", digest) != digest:
        raise ValueError(
            f"{out} holds an unfinished run on other data: the tracks or the encoder's weights "
            f"have changed since. Choose another --out, or --overwrite"
        )


def note(progress: dict, row: Mapping, track_weight: float) -> bool:
    """Add an epoch's row to the progress; say whether it is the best so far."""
    progress["epoch"] = row["epoch"]
    progress["history"].append(dict(row))
    loss = row["val/loss"] + track_weight * row["val/track_loss"]
    better = progress["best_loss"] is None or loss < progress["best_loss"]
    if better:
        progress["best_loss"], progress["best_epoch"] = loss, row["epoch"]
    return better


def save(accelerator, model, out: Path, progress: Mapping, better: bool) -> None:
    """Write the state after an epoch, and the aggregator when the epoch was the best."""
    aside, state, before = out / f"{STATE}.tmp", out / STATE, out / f"{STATE}.before"
    if accelerator.is_main_process:
        aside.mkdir(parents=True, exist_ok=True)  # marks what follows as an unfinished run's
        if better:
            save_model(accelerator.unwrap_model(model), out)
    accelerator.wait_for_everyone()
    save_state(accelerator, aside)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (aside / "progress.json").write_text(json.dumps(progress, indent=1), encoding="utf-8")
        for file in filter(Path.is_file, aside.rglob("*")):
            flush(file)
        shutil.rmtree(before, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            state.rename(before)
        aside.rename(state)
        shutil.rmtree(before, ignore_errors=True)
    accelerator.wait_for_everyone()


def save_state(accelerator, folder: Path) -> None:
    """Write Accelerate's state; what the machine refuses (a full disk) is an OSError that says it.

    PyTorch raises a RuntimeError in which the reason is lost, or the complaint about a file without
    an end that follows from it.
    """
    try:
        accelerator.save_state(str(folder))
    except (RuntimeError, SafetensorError) as error:
        said = f"{error} {error.__context__}"
        if not re.search(r"os error \d|iostream error|inline_container|PytorchStreamWriter", said):
            raise
        text = "can't be written, is the disk full or a quota reached?"
        raise OSError(errno.EIO, text, str(folder)) from error


def save_model(model, out: Path) -> None:
    """Write config.json and model.safetensors, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    aside = out / ".model.tmp"
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_tensors(weights, aside, {"format": "pt"}, safetensors.torch.save)
    flush(aside)
    aside.replace(out / "model.safetensors")
    aside.write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    flush(aside)
    aside.replace(out / "config.json")


def finish(out: Path, progress: Mapping, described: Mapping, corpus, tracks) -> None:
    """Write the curve, the model card and the facts; the state has done its work."""
    write_csv(out / "history.csv", progress["history"])
    (out / "README.md").write_text(
        _card(out.name, progress, described, corpus, tracks), encoding="utf-8"
    )
    facts = {k: v for k, v in progress.items() if k not in ("history", "wanted")}
    facts |= {
        "config": described,
        "refused": corpus.refused,
        "skipped": corpus.skipped,
        "n_tracks": {split: len(data) for split, data in tracks.items()},
        "n_tokens": {split: sum(data.lengths) for split, data in tracks.items()},
        "test_splits_checked": corpus.checked,
    }
    text = json.dumps(facts, indent=2, default=str)
    (out / "pretrain.json").write_text(text + "\n", encoding="utf-8")
    if (out / STATE).exists():
        (out / STATE).rename(out / f"{STATE}.tmp")  # never half a state under its name
    shutil.rmtree(out / f"{STATE}.tmp", ignore_errors=True)


def _card(name: str, progress: Mapping, described: Mapping, corpus, tracks) -> str:
    """A short model card."""
    recipe = described["recipe"]
    last = progress["history"][progress["best_epoch"] - 1]
    lines = [
        "---",
        "library_name: tune",
        "tags: [music, aggregation, masked-modelling]",
        "---",
        "",
        f"# {name}",
        "",
        f"A Transformer that joins a track's {described['tokens']} tokens into one embedding, "
        f"pretrained by TUNE's `pretrain_aggregator.py` (masked modelling, {recipe['objective']}).",
        "",
        f"- tokens: encoder `{described['encoder']}`"
        + (" (untrained)" if described["encoder_untrained"] else "")
        + f", layer {described['layers'][0]}, `--seg {described['seg']}`",
        f"- learnt from {len(tracks['train'])} tracks ({sum(tracks['train'].lengths)} tokens), "
        f"validated on {len(tracks['val'])}",
        f"- no track of the test splits of {', '.join(corpus.checked) or 'no task'}; "
        f"{len(corpus.refused)} were refused",
        f"- best epoch {progress['best_epoch']} of {progress['epoch']}: validation loss "
        f"{last['val/loss']:.4f}",
        *(f"- to beat: {what} {loss:.4f}" for what, loss in progress["baselines"].items()),
        f"- recipe: {', '.join(f'{k} {v}' for k, v in recipe.items())}",
        f"- made by: `{described['command']}` on {described['device']}",
        "",
        "    train_probe.py --agg transformer --aggregator_checkpoint DIR",
        "    tune.transformer.load_aggregator(DIR).embed(tokens, mask)",
        "",
        "Limits: it fits the encoder, layer and kind of token above and no others. Embeddings made "
        "with MuQ's weights are bound by their licence, CC-BY-NC 4.0.",
        "",
    ]
    return "\n".join(lines)
