"""Experiment tracking through Accelerate's trackers: W&B by default, any other, or none.

Without a login, W&B runs offline: the run is complete on disk, can be viewed with `wandb leet` and
uploaded with `wandb sync`. A sweep agent's run id, project and sweep come from W&B's environment
variables. Metric names: `train/loss`, `val/<metric>`,
`test/<metric>`, `cost/<what>_<unit>`.

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
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from tune.system.files import hide_home, slug
from tune.tasks.label_kinds import KINDS

log = logging.getLogger(__name__)

DEFAULT_URL = "https://api.wandb.ai"
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
TAG_LENGTH = 64  # W&B refuses a run with a longer tag, such as a long path
REASON_LENGTH = 500
INIT_S, FINISH_S = 15, 120  # timeouts of W&B's server
SPARE_BYTES = 1 << 16  # with less than this the disk is full
TABLE_ROWS = 10_000  # a larger predictions table is cut in W&B; predictions.parquet has all


def check_tracker(report_to: str) -> None:
    """Raise ValueError when a tracker is unknown or its package isn't installed."""
    if report_to == "none":
        return
    if report_to not in TRACKERS:
        raise ValueError(
            f"--report_to must be none or one of {', '.join(TRACKERS)}, got {report_to!r}"
        )
    if importlib.util.find_spec(TRACKERS[report_to]) is None:
        raise ValueError(
            f"--report_to {report_to} needs its package: pip install {TRACKERS[report_to]}"
        )


def wandb_mode() -> str:
    """Choose W&B's mode: WANDB_MODE when set, else online with a login and offline without."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online"
    from requests.utils import get_netrc_auth

    url = os.environ.get("WANDB_BASE_URL", DEFAULT_URL)
    return "online" if get_netrc_auth(url) else "offline"


class Tracker:
    """One run's tracking; every method does nothing when there is no tracker.

    Parameters
    ----------
    accelerator : built with `log_with=report_to` (None for "none")
    report_to : a name of `TRACKERS`, or "none"
    """

    def __init__(self, accelerator: Accelerator, report_to: str):
        self.accelerator, self.report_to = accelerator, report_to
        self.mode = wandb_mode() if report_to == "wandb" else None
        self.why_offline: str | None = None  # where that was not asked for
        self.lost: str | None = None  # why nothing more can be logged

    def start(
        self,
        project: str,
        config: MutableMapping,
        *,
        name: str,
        group: str | None,
        tags: Sequence[str],
        job_type: str = "probe",
    ) -> None:
        """Start a run with its configuration; `wandb_fallback` is added if it has to be offline.

        A server that doesn't answer within `INIT_S`, or refuses the key, makes the run offline.
        """
        if self.report_to == "none":
            return
        about = {
            "name": name,
            "group": group,
            "job_type": job_type,
            # An agent names the run's id, project and sweep itself, by environment variables.
            "tags": [hide_home(tag)[:TAG_LENGTH] for tag in tags],
        }
        if self.report_to == "wandb":
            project = os.environ.get("WANDB_PROJECT", project)
            self._begin_wandb(project, config, about)
        else:
            self._init(project, config, {})

    def _begin_wandb(self, project: str, config: MutableMapping, about: Mapping) -> None:
        """Begin W&B's run, offline where it can't be online, which the configuration says."""

        def start(mode, settings):
            self.accelerator.trackers = []
            if mode != self.mode:
                config["wandb_fallback"] = "offline"
            self._init(project, config, {"wandb": {**about, "mode": mode, "settings": settings}})

        _, self.mode, self.why_offline = begin_wandb_run(start, self.mode)

    def _init(self, project: str, config: Mapping, init: Mapping) -> None:
        """Begin the run."""
        config = hide_home(dict(config))
        if self.report_to == "tensorboard":  # its hyperparameters are scalars
            config = {
                k: v if isinstance(v, bool | int | float | str) else str(v)
                for k, v in config.items()
            }
        self.accelerator.init_trackers(project, config=config, init_kwargs=init)
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            run = self.accelerator.get_tracker("wandb", unwrap=True)
            run.define_metric("epoch", hidden=True)
            for name, best in best_values().items():
                run.define_metric(name, step_metric="epoch", summary=best)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; those that are undefined (NaN) are left out."""
        if self.report_to != "none" and not self.lost:
            numbers = {k: v for k, v in values.items() if not math.isnan(v)}
            with self._surviving():
                self.accelerator.log(numbers, step=step)

    def finish(self, result: Mapping, predictions: Mapping[str, list], folder: Path) -> list[str]:
        """Log the final results: `test/` and `cost/` numbers, predictions, the probe.

        Parameters
        ----------
        result : as in result.json
        predictions : columns of the predictions table
        folder : the run's; its result and probe go into one artifact of type "probe"

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
        self.log(numbers)
        if self.report_to != "wandb":
            return []
        with self._surviving():
            self._log_result(result, predictions, folder)
        return self._finish_wandb()

    def _log_result(self, result, predictions, folder) -> None:
        """Log a probe's table, charts and artifact."""
        import wandb

        run = self.accelerator.get_tracker("wandb", unwrap=True)
        facts = ("layer", "degenerate", "segments_per_track", "n_tracks", "encoder_untrained")
        run.summary.update({k: result[k] for k in facts} | {"skipped": len(result["skipped"])})
        rows = zip(*(column[:TABLE_ROWS] for column in predictions.values()), strict=True)
        table = wandb.Table(columns=list(predictions), data=[hide_home(list(row)) for row in rows])
        run.log({"predictions": table} | _charts(result))
        artifact = wandb.Artifact(_artifact_name(folder.name), type="probe")
        _add_text(artifact, folder / "result.json")
        artifact.add_file(str(folder / "probe.safetensors"))
        run.log_artifact(artifact)

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
        self.log(numbers | {"val/best_loss": progress["best_loss"]})
        if self.report_to != "wandb":
            return []
        with self._surviving():
            import wandb

            run = self.accelerator.get_tracker("wandb", unwrap=True)
            run.summary.update({"best_epoch": progress["best_epoch"]})
            artifact = wandb.Artifact(_artifact_name(folder.name, "aggregator"), type="model")
            for name in ("config.json", "README.md", "history.csv"):
                _add_text(artifact, folder / name)
            artifact.add_file(str(folder / "model.safetensors"))
            run.log_artifact(artifact)
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
        if self.report_to != "wandb" or not self.accelerator.is_main_process:
            return []
        with self._surviving():
            self.accelerator.get_tracker("wandb", unwrap=True).summary.update(dict(why))
        return self._finish_wandb()

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with the reason in its summary."""
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            import wandb

            if wandb.run is not None:
                text = hide_home(" ".join(str(error).split()))[:REASON_LENGTH]
                kind = type(error).__name__
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                with self._surviving():
                    wandb.run.summary["failed"] = "stopped" if stopped else text or kind
                    wandb.run.finish(exit_code=1)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Survive failures of W&B: warn once, and log no more."""
        if self.report_to != "wandb":
            yield
            return
        try:
            yield
        except _failures() as error:
            self.lost = self.lost or _clause(error)
            log.warning(
                "W&B can't be logged to any more (%s): the run goes on without it and is "
                "complete in its own folder",
                self.lost,
            )
            self.accelerator.trackers = []  # nothing more is tried

    def _finish_wandb(self) -> list[str]:
        """Finish the run; return lines on where it is and how to upload it."""
        import wandb

        run, self.accelerator.trackers = wandb.run, []
        return [] if run is None else finish_run(run, self.mode, self.why_offline, self.lost)


def best_values() -> dict[str, str]:
    """The summary of each curve: its minimum or maximum.

    `val/best_...` only ever rises: its last value is its best, and a plain number, which is what
    the metric of a sweep must be.
    """
    main = sorted({kind.recipe.main_metric for kind in KINDS.values()})
    return {"train/loss": "min", "val/loss": "min"} | {f"val/{name}": "max" for name in main}


def begin_wandb_run(start, mode: str) -> tuple:
    """Start a W&B run; offline if the server doesn't answer or refuses the key.

    Parameters
    ----------
    start : (mode, settings) to a run, such as `wandb.init`
    mode : as `wandb_mode` says

    Returns
    -------
    run, mode, and why it is offline, unless that was asked for

    Raises
    ------
    ValueError
        When the log can't be written either.
    """
    why = None
    try:
        try:
            return start(mode, _settings(mode)), mode, why
        except _failures() as error:
            if mode != "online":
                raise
            mode, why = "offline", _clause(error)
            log.warning(
                "W&B's server can't be used (%s): this run is tracked offline; its last lines "
                "say how to upload it",
                why,
            )
        return start(mode, _settings(mode)), mode, why
    except _failures() as error:
        raise ValueError(
            f"W&B can't start its log ({_clause(error)}): free disk space, set another folder "
            f"with WANDB_DIR, or pass --report_to none"
        ) from error


def finish_run(run, mode: str, why: str | None = None, lost: str | None = None) -> list[str]:
    """Finish a W&B run; return lines on where it is and how to upload it.

    Parameters
    ----------
    why : why it is offline, unless that was asked for
    lost : why nothing more could be logged
    """
    folder, late = Path(run.dir).parent, None
    try:
        run.finish()
    except _failures() as error:
        late = _clause(error)
    path = _short(folder)
    if incomplete := _disk_error(folder) or lost:
        return [
            f"  wandb      the log in {path} is incomplete ({incomplete}); the run's own "
            f"folder is complete",
            f"             upload what there is:  wandb sync {path}",
        ]
    if mode == "offline":
        why = why or ("WANDB_MODE" if os.environ.get("WANDB_MODE") else "not logged in")
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
    """W&B's settings: timeouts, and nothing that identifies the machine or its user.

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
    wanted = {k: v for k, v in wanted.items() if f"WANDB_{k.upper()}" not in os.environ}
    return wandb.Settings(**wanted, **({"silent": True} if mode == "offline" else {}))


def _failures() -> tuple[type[BaseException], ...]:
    """The exceptions of W&B when its server, its process or its disk fails."""
    try:
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    except ImportError:  # another tracker
        return ()
    return wandb.errors.Error, OSError, HandleAbandonedError, MailboxClosedError


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


def _add_text(artifact, path: Path) -> None:
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


def _artifact_name(name: str, kind: str = "probe") -> str:
    """A run's name with only the characters that W&B takes."""
    return f"{kind}-" + slug(name)[:120]


def _short(path: Path) -> Path:
    """A path relative to the working folder when it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
