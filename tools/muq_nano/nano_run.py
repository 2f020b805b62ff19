"""The output folder of muq-nano's pretraining: the model so far, and the state to resume from.

    OUT/config.json, model.safetensors, history.csv     what --encoder OUT loads, and the curve
    OUT/pretrain.json                      when it is finished: command, music, curve, versions
    OUT/state/                             at every save, until it is finished

A state appears whole or not at all. A command that asks for something else doesn't go on from it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from muq_nano.nano import MaskedMuQ, write_model
from tune.aggregators.transformer.pretraining_state import save_state
from tune.runs import result
from tune.system.files import write_csv

STATE = "state"
OURS = {
    "config.json",
    "model.safetensors",
    "model.tmp",
    "history.csv",
    "pretrain.json",
    STATE,
    f"{STATE}.tmp",
    f"{STATE}.before",
}
# Flags that change neither the music nor the training.
INDIFFERENT = {"out", "overwrite", "workers", "corpus", "cache_dir", "data_dir"}


def open_run(accelerator, out: Path, args: Mapping, overwrite: bool) -> dict:
    """Open --out: a new run, or the unfinished one that the same command began.

    Returns
    -------
    dict of step, history, wanted

    Raises
    ------
    ValueError
        When --out holds a finished model, a run of another command, or other files.
    """
    wanted = json.loads(
        json.dumps({k: v for k, v in args.items() if k not in INDIFFERENT}, default=str)
    )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; a model needs a folder")
    foreign = sorted({p.name for p in out.iterdir()} - OURS) if out.is_dir() else []
    if foreign:
        raise ValueError(f"--out {out} holds other files ({foreign[0]}): choose another folder")
    accelerator.wait_for_everyone()
    state = out / STATE
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if overwrite and out.is_dir():
                shutil.rmtree(out)
            if (out / f"{STATE}.before").exists() and not state.exists():
                (out / f"{STATE}.before").rename(state)  # cut off between two renames
            shutil.rmtree(out / f"{STATE}.tmp", ignore_errors=True)
            out.mkdir(parents=True, exist_ok=True)
    if (out / "pretrain.json").exists():
        raise ValueError(f"{out} holds a finished model: give another --out, or --overwrite")
    if not (state / "progress.json").is_file():
        return {"step": 0, "history": [], "wanted": wanted}
    run = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    differing = [
        f"--{k} {run['wanted'].get(k)} (now {wanted.get(k)})"
        for k in sorted({*run["wanted"], *wanted})
        if run["wanted"].get(k) != wanted.get(k)
    ]
    if differing:
        raise ValueError(
            f"{out} holds an unfinished run with other settings: {', '.join(differing)}. "
            f"Give the same, another --out, or --overwrite"
        )
    return run


def save(accelerator, model: MaskedMuQ, out: Path, run: Mapping) -> None:
    """Write the model and the state to go on from; each appears whole or not at all."""
    aside, state, before = (out / f"{STATE}{end}" for end in (".tmp", "", ".before"))
    save_state(accelerator, aside)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    text = json.dumps({k: run[k] for k in ("step", "history", "wanted")})
    (aside / "progress.json").write_text(text, encoding="utf-8")
    write_model(model, out)
    write_csv(out / "history.csv", run["history"])
    if state.exists():
        state.rename(before)
    aside.rename(state)
    shutil.rmtree(before, ignore_errors=True)


def finish(
    out: Path, run: Mapping, arguments: Sequence[str], accelerator, init: Path | None = None
) -> None:
    """Write the facts, with those of the model that it began with; the state has done its work."""
    before = init / "pretrain.json" if init else None
    facts = {
        "command": " ".join(["tools/muq_nano/pretrain_nano.py", *arguments]),
        "corpus": run["corpus"],
        "history": run["history"],
        "wanted": run["wanted"],
        "versions": result.versions(),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "init": json.loads(before.read_text(encoding="utf-8"))
        if before and before.is_file()
        else None,
    }
    (out / "pretrain.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out / STATE).rename(out / f"{STATE}.tmp")  # never half a state under its name
    shutil.rmtree(out / f"{STATE}.tmp", ignore_errors=True)
