"""W&B and `compare.py`: runs read from a project's artifacts, and the report logged to one."""

import json
import tempfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tune.runs.load import Run, SkippedRun, read_run

# Types of runs without a test split; any other may be a probe's, whatever WANDB_JOB_TYPE calls it.
NO_TEST_SPLIT = {"profile", "pretraining", "comparison", "sweep-controller"}


def read_project(path: str, api=None) -> tuple[list[Run], list[SkippedRun]]:
    """Read every probe's run of a W&B project.

    Parameters
    ----------
    path : "ENTITY/PROJECT"
    api : a `wandb.Api`, or None for one with the user's login

    Returns
    -------
    runs, and those that can't be used

    Raises
    ------
    ValueError
        When there is no login, or no such project.
    """
    import wandb

    from tune.runs.tracking import wandb_failures

    if path.count("/") != 1 or not all(path.split("/")):
        raise ValueError(f"--wandb takes ENTITY/PROJECT, got {path!r}")
    runs, left = [], []
    try:
        api = api or wandb.Api()
        found = list(api.runs(path))
    except (*wandb_failures(), ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--wandb {path}: {text}") from error
    for run in found:
        if getattr(run, "job_type", "probe") in NO_TEST_SPLIT:
            continue
        where = f"{path}/{run.id} ({run.name})"
        facts = getattr(run, "summary", None) or {}
        if run.state == "finished" and facts.get("same_as", facts.get("degenerate")):
            left.append(SkippedRun(where, f"not run: {facts['degenerate']}"))
            continue
        if run.state != "finished":
            why = f": {facts['failed']}" if facts.get("failed") else ""
            left.append(SkippedRun(where, f"the run's state is {run.state}{why}"))
            continue
        try:
            runs.append(_read(run, where))
        except ValueError as error:
            left.append(SkippedRun(where, str(error)))
    return runs, left


def log_report(path: str, page: str, configurations) -> list[str]:
    """Log a comparison to W&B, as a run of type "comparison"; offline without a login.

    Parameters
    ----------
    path : "PROJECT" or "ENTITY/PROJECT"
    page : the report, as HTML
    configurations : pandas.DataFrame, every configuration

    Returns
    -------
    list of str : lines for the user
    """
    import wandb

    from tune.runs.tracking import begin_wandb_run, finish_run, wandb_identity, wandb_mode
    from tune.system.files import hide_home

    mode = wandb_mode()
    entity, _, project = path.rpartition("/")
    given = {"entity": entity, "project": project}
    project, about = wandb_identity(given, {"job_type": "comparison", "name": "compare"}, [])
    run, mode, why = begin_wandb_run(
        lambda mode, settings: wandb.init(project=project, mode=mode, settings=settings, **about),
        mode,
    )
    page = hide_home(page)
    run.log(
        {"report": wandb.Html(page, inject=False), "cells": wandb.Table(dataframe=configurations)}
    )
    artifact = wandb.Artifact("report", type="report")
    with artifact.new_file("report.html", encoding="utf-8") as file:
        file.write(page)
    run.log_artifact(artifact)
    return finish_run(run, mode, why)


def _read(run, where: str) -> Run:
    """Fetch what a run left, as the folder that it had on disk."""
    probe = table = None
    for artifact in run.logged_artifacts():
        if artifact.type == "probe":
            probe = artifact
        elif artifact.type == "run_table" and "predictions" in artifact.name:
            table = artifact
    if probe is None or table is None:
        missing = "result" if probe is None else "table of predictions"
        raise ValueError(f"it logged no {missing}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fetched = Path(probe.get_entry("result.json").download(root=scratch))
        if fetched != folder / "result.json":
            fetched.rename(folder / "result.json")
        rows = table.get("predictions")
        columns = dict(zip(rows.columns, map(list, zip(*rows.data, strict=True)), strict=True))
        pq.write_table(pa.table(columns), folder / "predictions.parquet")
        try:  # as the run's folder has it; W&B's own has names with units, and values resolved
            fetched = Path(probe.get_entry("config.json").download(root=scratch))
            if fetched != folder / "config.json":
                fetched.rename(folder / "config.json")
        except (KeyError, FileNotFoundError):  # a run of an earlier version
            config = json.dumps(dict(run.config), default=str)
            (folder / "config.json").write_text(config, encoding="utf-8")
        read = read_run(folder)
    expected = len(read.result["seeds"]) * read.result["n_tracks"]["test"]
    if len(rows.data) != expected:
        raise ValueError(
            f"its table holds {len(rows.data)} of {expected} predictions: W&B cuts "
            "large tables, so use the run's folder"
        )
    made = datetime.fromisoformat(run.created_at.replace("Z", "+00:00")).timestamp()
    return Run(run.name, where, made, read.predictions, read.config)
