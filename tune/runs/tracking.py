"""Experiment tracking through Accelerate's trackers: W&B by default, any others, or none.

Mode, server and login are W&B's own settings (`wandb_settings`). Without a login, W&B runs
offline: the run is complete on disk, can be viewed with `wandb leet` and uploaded with `wandb
sync`. Project, entity, group, name, notes, tags and job type: a flag, else W&B's settings, else our
default. Metric names: `train/loss`, `val/<metric>`, `test/<metric>`, `cost/<what>_<unit>`.

The experiment never depends on W&B. If the server is down, slow or refuses the key, the run goes
offline, with a message and `wandb_fallback` in its configuration; the message names the command
that uploads it later. No host name, user name or path of the home folder is sent, unless W&B's own
variables (`WANDB_X_DISABLE_META=false`, `WANDB_HOST`) ask for it.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from tune.cli.parser import ROOT
from tune.runs.lineage import (
    LOCAL,
    add_text,
    aggregator_artifact,
    artifact_name,
    digest,
    link_inputs,
    tracked_config,
    used_artifacts,
)
from tune.runs.predictions import read_predictions
from tune.runs.wandb_tables import result_tables
from tune.system.files import hide_home
from tune.system.signals import Terminated

log = logging.getLogger(__name__)

# Module that each of Accelerate's trackers needs.
TRACKERS = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
}
# Curves over epochs and their value in a run's summary (None: the last). The best score is
# val/best_score, a number that only rises: a sweep's metric has to be a plain one.
CURVES = {"train/loss": "min", "val/loss": "min", "val/*": None, "lr": None}
TAG_LENGTH = 64  # W&B refuses a run with a longer tag, such as a long path
REASON_LENGTH = 500
INIT_S, FINISH_S = 15, 120  # timeouts of W&B's server
AGENT_S = 2.0  # in which an agent ends that gets the signal that its run gets
SPARE_BYTES = 1 << 16  # with less than this the disk is full
TABLE_ROWS = 10_000  # a larger predictions table is cut in W&B; predictions.parquet has all


def check_tracker(report_to: str) -> list[str]:
    """The trackers of --report_to: names separated by commas, "all" that are installed, or "none".

    Returns
    -------
    list of str
        Names in `TRACKERS`, wandb last, so that its failures keep nothing from the others.

    Raises
    ------
    ValueError
        When a tracker is unknown, its package isn't installed, or W&B refuses its settings.
    """
    if report_to == "none":
        return []
    installed = [name for name, package in TRACKERS.items() if importlib.util.find_spec(package)]
    names = installed if report_to == "all" else report_to.split(",")
    for name in names:
        if name not in TRACKERS:
            raise ValueError(
                f"--report_to must be none, all or some of {', '.join(TRACKERS)}, got {name!r}"
            )
        if name not in installed:
            raise ValueError(f"--report_to {name} needs its package: pip install {TRACKERS[name]}")
    if "wandb" in names:
        wandb_settings()  # a setting that W&B refuses is an error now, not after the encoding
    return sorted(set(names), key=lambda name: (name == "wandb", name))


def wandb_settings():
    """W&B's settings as `wandb.init` will read them; starts nothing, calls no server.

    Raises
    ------
    ValueError
        When an environment variable or a settings file holds a value that W&B refuses.
    """
    import pydantic
    from wandb.sdk.wandb_setup import singleton

    try:
        return singleton().settings
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = "_".join(map(str, first["loc"])) or "settings"
        raise ValueError(
            f"W&B refuses {name} {first['input']!r} ({first['msg']}): correct "
            f"WANDB_{name.upper()} or W&B's settings file, or pass --report_to none"
        ) from error


def wandb_mode(default: str = "online") -> str:
    """W&B's mode by its own settings; offline where nobody is logged in to its server.

    Parameters
    ----------
    default : where neither WANDB_MODE nor a settings file names one

    Returns
    -------
    str
        "online", "shared", "offline" or "disabled".
    """
    settings = wandb_settings()
    mode = settings.mode if "mode" in settings.model_fields_set else default
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's older names
    if mode in ("offline", "disabled"):
        return mode
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        login = authenticate_session(
            host=settings.base_url, source="TUNE", prompt=False, update_session=False
        )
    except wandb_failures():  # a key of the wrong form: W&B says so when the run begins
        login = True
    return mode if login else "offline"


class Tracker:
    """One run's tracking; every method does nothing when there is no tracker.

    Parameters
    ----------
    accelerator : built with `log_with=report_to` (None for "none")
    report_to : as `check_tracker` takes it

    Attributes
    ----------
    default_mode : W&B's mode where its environment and settings files name none
    """

    default_mode = "online"

    def __init__(self, accelerator: Accelerator, report_to: str):
        self.accelerator, self.names = accelerator, check_tracker(report_to)
        self.wandb = "wandb" in self.names
        self.mode = wandb_mode(self.default_mode) if self.wandb else None
        self.why_offline: str | None = None  # where W&B's settings don't ask for it
        self.lost: str | None = None  # why nothing more can be logged

    def start(
        self,
        config: MutableMapping,
        *,
        given: Mapping[str, str | None],
        default: Mapping[str, str],
        tags: Sequence[str],
        resolved: Mapping | None = None,
        log_code: bool = False,
    ) -> None:
        """Start a run with its configuration; `wandb_fallback` is added if it has to be offline.

        A server that doesn't answer within `INIT_S`, or refuses the key, makes the run offline.

        Parameters
        ----------
        given : the user's flags, of project, entity, name, group, notes and job_type; None if not
            given
        default : values for those that neither a flag nor W&B's settings name
        tags : added to those of W&B's settings
        resolved : as `tune.runs.lineage.tracked_config` takes it
        log_code : log TUNE's code and the state of its git repository to W&B
        """
        self.resolved, self.log_code = resolved or {}, log_code
        self.agent = find_agent() if self.wandb else None
        for name in self.names:
            if name != "wandb":
                self._init(name, given.get("project") or default["project"], config, {})
        if self.wandb:
            project, about = wandb_identity(given, default, tags)
            config |= {"project": project, "group": about["group"]}
            try:
                self._begin_wandb(project, config, about)
            except KeyboardInterrupt as error:  # it may have begun
                self.fail(error)
                raise

    def _begin_wandb(self, project: str, config: MutableMapping, about: Mapping) -> None:
        """Begin W&B's run, offline where it can't be online, which the configuration says."""

        def start(mode, settings):
            if mode == "offline" and self.mode != "offline":
                config["wandb_fallback"] = "offline"
            if self.log_code:
                settings.disable_git, settings.git_root = False, str(ROOT)
            init = {**about, "mode": mode, "settings": settings}
            self._init("wandb", project, config, init)

        _, self.mode, self.why_offline = begin_wandb_run(start, self.mode)
        if self.log_code and self.accelerator.is_main_process:
            with self._surviving():
                run = self.accelerator.get_tracker("wandb", unwrap=True)
                run.log_code(str(ROOT), name="code-tune", include_fn=is_code)

    def _init(self, name: str, project: str, config: Mapping, init: Mapping) -> None:
        """Begin one tracker's run, beside those of the others."""
        accelerator, config = self.accelerator, tracked_config(config, self.resolved)
        if name == "tensorboard":  # its hyperparameters are scalars
            config = {
                k: v if isinstance(v, bool | int | float | str) else str(v)
                for k, v in config.items()
            }
        begun, every = accelerator.trackers, accelerator.log_with
        accelerator.trackers, accelerator.log_with = [], [name]
        try:
            accelerator.init_trackers(project, config=config, init_kwargs={name: init})
            begun = [*begun, *accelerator.trackers]
        finally:
            accelerator.trackers, accelerator.log_with = begun, every
        if name == "wandb" and accelerator.is_main_process:
            run = self.accelerator.get_tracker("wandb", unwrap=True)
            if run.resumed and run.summary.get("failed"):
                run.summary["failed"] = None  # that was an earlier attempt
            run.define_metric("epoch", hidden=True)
            for name, summary in CURVES.items():
                run.define_metric(name, step_metric="epoch", summary=summary)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; those that are undefined (NaN) are left out.

        Steps that a resumed W&B run has from before are the same again, and not logged to it.
        """
        numbers = {k: v for k, v in values.items() if not math.isnan(v)}
        with self._surviving():
            for tracker in self.accelerator.trackers:
                if step is None or step >= self._first_step(tracker):
                    tracker.log(numbers, step=step)

    def _first_step(self, tracker) -> int:
        """The step from which on a tracker's run is new: above 0 where W&B's was resumed."""
        if tracker.name == "wandb" and self.accelerator.is_main_process:
            return tracker.tracker.starting_step
        return 0

    def update_config(self, values: Mapping) -> None:
        """Add values that are known only later to the configuration."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb" and self.accelerator.is_main_process:
                with self._surviving():
                    tracker.tracker.config.update(dict(values), allow_val_change=True)

    def _log_final(self, values: Mapping[str, float]) -> None:
        """Log a run's final numbers: W&B's summary, without a curve of one point."""
        numbers = {k: v for k, v in values.items() if not math.isnan(v)}
        with self._surviving():
            for tracker in self.accelerator.trackers:
                if tracker.name == "wandb":
                    tracker.tracker.summary.update(numbers)
                else:
                    tracker.log(numbers)

    def finish(
        self,
        result: Mapping,
        predictions: Mapping[str, list],
        folder: Path,
        manifest: Sequence[Mapping] = (),
        files: Mapping[str, str] | None = None,
        n_players: int = 0,
        curves: Sequence[Sequence[float]] = (),
    ) -> list[str]:
        """Log the final results: `test/` and `cost/` numbers, tables of the test, the probe.

        Parameters
        ----------
        result : as in result.json
        predictions : columns of the predictions table
        folder : the run's; its result, configuration and probe go into one artifact of type
            "probe"
        manifest : as `tune.runs.lineage.data_manifest` returns it
        files, n_players, curves : as `tune.runs.wandb_tables.result_tables` takes them

        Returns
        -------
        list of str
            Lines for the user: where the run is, how to look at it and to upload it.
        """
        numbers = {}
        for name, m in result["metrics"].items():
            numbers[f"test/{name}"] = m["mean"]
            for part in ("std", "ci_low", "ci_high"):
                numbers[f"test/{name}_{part}"] = m[part]
        numbers["test/score"] = next(iter(result["metrics"].values()))["mean"]
        numbers |= {f"cost/{k}": v for k, v in result["cost"].items() if isinstance(v, int | float)}
        n = sum(result["n_tracks"].values())
        numbers["cost/encode_seconds_per_track"] = result["cost"]["encode_seconds_stored"] / n
        self._log_final(numbers)
        if not self.wandb:
            return []
        with self._surviving():
            if not self.lost:
                tables = result_tables(
                    result, read_predictions(folder), predictions, files, n_players, curves
                )
                self._log_result(result, predictions, folder, manifest, tables)
        return self._finish_wandb()

    def _log_result(self, result, predictions, folder, manifest, tables) -> None:
        """Log a probe's tables, charts and artifact."""
        import wandb

        run = self.accelerator.get_tracker("wandb", unwrap=True)
        facts = ("layer", "degenerate", "segments_per_track", "n_tracks", "encoder_untrained")
        run.summary.update({k: result[k] for k in facts} | {"skipped": len(result["skipped"])})
        rows = zip(*(column[:TABLE_ROWS] for column in predictions.values()), strict=True)
        table = wandb.Table(columns=list(predictions), data=[hide_home(list(row)) for row in rows])
        run.log({"predictions": table} | _charts(result) | tables)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = {"layer": result["layer"], "task_hash": digest(manifest)}
        run.config.update(found, allow_val_change=True)
        main = next(iter(result["metrics"]))
        facts = {k: result[k] for k in ("task", "encoder", "seg", "agg", "layer")}
        facts |= {main: result["metrics"][main]["mean"], "task_hash": found["task_hash"]}
        name = artifact_name(folder.name, "probe")
        artifact = wandb.Artifact(name, type="probe", metadata=facts)
        add_text(artifact, folder / "result.json")
        shown = hide_home({k: v for k, v in config.items() if k not in LOCAL})
        with artifact.new_file("config.json", encoding="utf-8") as file:
            json.dump(shown, file, indent=2)
        artifact.add_file(str(folder / "probe.safetensors"))
        aliases = [alias_of(result["task"]), alias_of(result["encoder"])]
        run.log_artifact(artifact, aliases=["latest", *aliases])
        if not run.offline:  # W&B records what a run used on its server only
            link_inputs(run, used_artifacts(result["task"], manifest, config))

    def finish_aggregator(self, progress: Mapping, folder: Path) -> list[str]:
        """Log a pretrained aggregator's best epoch and baselines, and itself as an artifact.

        Parameters
        ----------
        progress : as `tune.aggregators.transformer.pretraining_state` keeps it
        folder : the aggregator's: its files go into one artifact of type "model"

        Returns
        -------
        As `finish`
        """
        numbers = {f"baseline/{k.replace(' ', '_')}": v for k, v in progress["baselines"].items()}
        self._log_final(numbers | {"val/best_loss": progress["best_loss"]})
        if not self.wandb:
            return []
        if self.lost:
            return self._finish_wandb()
        with self._surviving():
            run = self.accelerator.get_tracker("wandb", unwrap=True)
            run.summary.update({"best_epoch": progress["best_epoch"]})
            artifact = aggregator_artifact(folder)
            artifact.metadata = {"best_loss": progress["best_loss"]}
            run.log_artifact(artifact, aliases=["latest", "best"])
        return self._finish_wandb()

    def skip(self, why: Mapping[str, str]) -> list[str]:
        """Mark a run as skipped; it ends as finished.

        Parameters
        ----------
        why : degenerate and, where there is one, same_as (`degenerate_reason`)

        Returns
        -------
        As `finish`
        """
        if not (self.wandb and self.accelerator.is_main_process):
            return []
        with self._surviving():
            if not self.lost:
                self.accelerator.get_tracker("wandb", unwrap=True).summary.update(dict(why))
        return self._finish_wandb()

    def fail(self, error: BaseException) -> None:
        """Close the run as failed with the reason in its summary, or as preempted.

        SIGTERM is preemption, after which W&B hands an agent's run out again under its id, unless
        the run's agent lives on: that is how an agent stops a run (early termination, or a user).
        """
        if self.wandb and self.accelerator.is_main_process:
            import wandb

            if wandb.run is not None:
                text = hide_home(" ".join(str(error).split()))[:REASON_LENGTH]
                kind = type(error).__name__
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                with self._surviving():
                    wandb.run.summary["failed"] = "stopped" if stopped else text or kind
                    if isinstance(error, Terminated) and self._is_preempted():
                        wandb.run.mark_preempting()
                    if wandb_settings().sweep_id and not stopped:  # nobody watches an agent
                        wandb.run.alert(f"{wandb.run.name} failed", text or kind, level="ERROR")
                    wandb.run.finish(exit_code=1)

    def _is_preempted(self) -> bool:
        """Whether a SIGTERM came from the machine: without an agent, or with the agent gone."""
        if not wandb_settings().sweep_id:
            return True
        return self.agent is not None and has_ended(self.agent, AGENT_S)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Survive failures of W&B: warn once, and log no more to it."""
        try:
            yield
        except wandb_failures() as error:
            self.lost = self.lost or _clause(error)
            log.warning(
                "W&B can't be logged to any more (%s): the run goes on without it and is "
                "complete in its own folder",
                self.lost,
            )
            self.accelerator.trackers = self._others()  # nothing more is tried

    def _others(self) -> list:
        """The trackers that have begun, without W&B's."""
        return [tracker for tracker in self.accelerator.trackers if tracker.name != "wandb"]

    def _finish_wandb(self) -> list[str]:
        """Finish the run; return lines on where it is and how to upload it."""
        import wandb

        run, self.accelerator.trackers = wandb.run, self._others()
        return [] if run is None else finish_run(run, self.mode, self.why_offline, self.lost)


def find_agent():
    """The `wandb agent` that started this process, a `psutil.Process`; None without one."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = process.cmdline()
            if "agent" in words and any("wandb" in word for word in words):
                return process
    return None


def has_ended(process, timeout_s: float) -> bool:
    """Whether a process ends within some seconds; one that is being reaped has."""
    import psutil

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def is_code(path: str, root: str) -> bool:
    """Whether a file is part of what runs: the scripts, the package and their dependencies."""
    relative = Path(path).relative_to(root)
    if relative.parts[0] == "tune":
        return relative.suffix in (".py", ".html", ".css", ".js")
    return str(relative) == "setup.cfg" or (len(relative.parts) == 1 and relative.suffix == ".py")


def alias_of(name: str) -> str:
    """A name as an artifact's alias, which may hold neither / nor :, nor look like a version."""
    return name.replace("/", "-").replace(":", "-")


def wandb_identity(
    given: Mapping[str, str | None], default: Mapping[str, str], tags: Sequence[str]
) -> tuple[str, dict]:
    """A W&B run's project, and the rest of its identity: flag, then W&B's settings, then default.

    The group of an agent's run is its sweep. W&B itself keeps an agent's run id, sweep and project.

    Returns
    -------
    project, and the arguments of `wandb.init`: entity, name, group, notes, job_type and tags
    """
    settings = wandb_settings()
    theirs = {
        "project": settings.project,
        "entity": settings.entity,
        "name": settings.run_name,
        "group": settings.run_group or settings.sweep_id,
        "notes": settings.run_notes,
        "job_type": settings.run_job_type,
    }
    about = {key: given.get(key) or theirs[key] or default.get(key) for key in theirs}
    tags = [*(settings.run_tags or ()), *tags]
    about["tags"] = list(dict.fromkeys(hide_home(tag)[:TAG_LENGTH] for tag in tags))
    return about.pop("project"), about


def begin_wandb_run(start, mode: str) -> tuple:
    """Start a W&B run; offline if nobody is logged in or the server can't be used.

    Parameters
    ----------
    start : (mode, settings) to a run, such as `wandb.init`; its mode is None where W&B's own
        settings are to choose it
    mode : as `wandb_mode` says

    Returns
    -------
    run, mode, and why it is offline, unless W&B's settings ask for it

    Raises
    ------
    ValueError
        When the log can't be written either.
    """
    why = None
    try:
        asked = wandb_settings()._offline
        if mode == "offline" and not asked:
            why = "not logged in" if wandb_mode() == mode else "the default of python -m tune.sweep"
        try:
            return start("offline" if why else None, _settings(mode)), mode, why
        except wandb_failures() as error:
            if mode in ("offline", "disabled"):
                raise
            mode, why = "offline", _clause(error)
            log.warning(
                "W&B's server can't be used (%s): this run is tracked offline; its last lines "
                "say how to upload it",
                why,
            )
        return start(mode, _settings(mode)), mode, why
    except wandb_failures() as error:
        raise ValueError(
            f"W&B can't start its log ({_clause(error)}): free disk space, set another folder "
            f"with WANDB_DIR, or pass --report_to none"
        ) from error


def finish_run(run, mode: str, why: str | None = None, lost: str | None = None) -> list[str]:
    """Finish a W&B run; return lines on where it is and how to upload it.

    Parameters
    ----------
    why : why it is offline, unless W&B's settings ask for it
    lost : why nothing more could be logged
    """
    folder, late = Path(run.dir).parent, None
    if mode == "disabled":
        run.finish()
        return []
    try:
        run.finish()
    except wandb_failures() as error:
        late = _clause(error)
    path = short_path(folder)
    if incomplete := _disk_error(folder) or lost:
        return [
            f"  wandb      the log in {path} is incomplete ({incomplete}); the run's own "
            f"folder is complete",
            f"             upload what there is:  wandb sync {path}",
        ]
    if mode == "offline":
        why = why or ("WANDB_MODE" if os.environ.get("WANDB_MODE") else "W&B's settings file")
        return [
            f"  wandb      offline ({why}); view:    wandb leet {path}",
            f"             upload:  wandb login && wandb sync {path}",
        ]
    if late:
        return [
            f"  wandb      not all of it has arrived ({late}): {run.url}",
            f"             upload:  wandb sync {path}",
        ]
    return [f"  wandb      {run.url}"] if run.url else []


def _settings(mode: str):
    """W&B's settings: timeouts, resuming, and nothing that identifies the machine or its user.

    W&B's own variables (WANDB_INIT_TIMEOUT, WANDB_HOST, ...) take precedence.
    """
    import wandb

    wanted = {
        "init_timeout": INIT_S,
        "finish_timeout": FINISH_S,
        "finish_timeout_raises": True,
        "x_disable_meta": True,
        "host": "-",
        "disable_git": True,
    }
    if mode in ("online", "shared") and wandb_settings().run_id:
        wanted["resume"] = "allow"  # an agent's run, given out again, or WANDB_RUN_ID
    wanted = {k: v for k, v in wanted.items() if f"WANDB_{k.upper()}" not in os.environ}
    return wandb.Settings(**wanted, **({"silent": True} if mode == "offline" else {}))


def wandb_failures() -> tuple[type[BaseException], ...]:
    """The exceptions of W&B when its server, its process or its disk fails."""
    try:
        import wandb
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    except ImportError:  # another tracker
        return ()
    return (
        wandb.errors.Error,
        OSError,
        HandleAbandonedError,
        MailboxClosedError,
        WandbApiFailedError,
    )


def _clause(error: BaseException) -> str:
    """An error as one clause."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if "no message" in text or not text:  # what wandb 0.31 says to a key that is refused
        text = "it refused the connection or the key" if "no message" in text else ""
    return hide_home(text.strip().rstrip(".:")) or type(error).__name__


def _disk_error(folder: Path) -> str | None:
    """Why a folder can't be written to, or None. W&B ignores a full disk silently."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SPARE_BYTES))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _charts(result: Mapping) -> dict:
    """Quality against cost, one dot a run: W&B draws the dots of all runs that are shown together.

    Peak memory and seconds were taken when the rows were made.
    """
    import wandb

    cost, (name, metric) = result["cost"], next(iter(result["metrics"].items()))
    n = sum(result["n_tracks"].values())
    seconds, peak = cost.get("encode_seconds_stored"), cost.get("encode_peak_memory_bytes")
    axes = {
        "seconds a track": seconds / n if seconds else None,
        "peak memory, GB": peak / 1e9 if peak else None,
        "embedding size": cost["embedding_dim"],
    }
    strategy = f"{result['encoder']} {result['seg']} {result['agg']}"
    out = {}
    for axis, value in axes.items():
        if value is not None and metric["mean"] is not None:
            columns = ["strategy", "task", axis, name, "low", "high"]
            row = [
                strategy,
                result["task"],
                value,
                metric["mean"],
                metric["ci_low"],
                metric["ci_high"],
            ]
            table = wandb.Table(columns=columns, data=[row])
            title = f"{result['task']}: {name} against {axis}"
            key = "".join(c if c.isalnum() else "_" for c in f"{name}_against_{axis}")
            out[f"quality/{key}"] = wandb.plot.scatter(table, axis, name, title=title)
    return out


def short_path(path: Path) -> Path:
    """A path relative to the working folder when it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
