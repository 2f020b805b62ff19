"""Experiment tracking through Accelerate's trackers: W&B by default, any other, or none.

W&B without a login goes offline by itself: the run is complete on disk, can be looked at with
`wandb leet` and uploaded with `wandb sync`. A sweep agent's run id, project and sweep come in by
W&B's own environment variables and are left alone. Metric names: `train/loss`, `val/<metric>`,
`test/<metric>`, `cost/<what>_<unit>`.
"""

import importlib.util
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

log = logging.getLogger(__name__)

DEFAULT_URL = "https://api.wandb.ai"
# Module that each of Accelerate's trackers needs.
TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio",
            "mlflow": "mlflow", "comet_ml": "comet_ml", "aim": "aim", "clearml": "clearml",
            "dvclive": "dvclive", "swanlab": "swanlab"}  # fmt: skip
# What a run's summary keeps of a curve. `val/best_...` only ever rises: its last value is its best,
# and a plain number, which is what the metric of a sweep must be.
BEST = {"train/loss": "min", "val/loss": "min", "val/accuracy": "max", "val/r2": "max"}
TAG_LENGTH = 64  # W&B refuses a run with a longer tag, such as a long path
REASON_LENGTH = 500
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

    def start(self, project: str, config: Mapping, *, name: str, group: str | None,
              tags: Sequence[str], job_type: str = "probe") -> None:  # fmt: skip
        """Begin a run with its configuration."""
        if self.report_to == "none":
            return
        init = {}
        if self.report_to == "wandb":
            import wandb

            quiet = {"settings": wandb.Settings(silent=True)} if self.mode == "offline" else {}
            # An agent names the run's id, project and sweep itself, by environment variables.
            tags = [tag[:TAG_LENGTH] for tag in tags]
            init = {"wandb": {"name": name, "group": group, "tags": tags, "mode": self.mode,
                              "job_type": job_type, **quiet}}  # fmt: skip
            project = os.environ.get("WANDB_PROJECT", project)
        config = dict(config)
        if self.report_to == "tensorboard":  # its hyperparameters are scalars
            config = {k: v if isinstance(v, bool | int | float | str) else str(v)
                      for k, v in config.items()}  # fmt: skip
        self.accelerator.init_trackers(project, config=config, init_kwargs=init)
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            run = self.accelerator.get_tracker("wandb", unwrap=True)
            run.define_metric("epoch", hidden=True)
            for name, best in BEST.items():
                run.define_metric(name, step_metric="epoch", summary=best)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; those that are undefined (NaN) are left out."""
        if self.report_to != "none":
            numbers = {k: v for k, v in values.items() if not math.isnan(v)}
            self.accelerator.log(numbers, step=step)

    def finish(self, result: Mapping, predictions: Mapping[str, list], folder: Path) -> list[str]:
        """Log what the run ended with: `test/` and `cost/` numbers, predictions, the probe.

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
        import wandb

        run = self.accelerator.get_tracker("wandb", unwrap=True)
        facts = ("layer", "degenerate", "segments_per_track", "n_tracks", "encoder_untrained")
        run.summary.update({k: result[k] for k in facts} | {"skipped": len(result["skipped"])})
        rows = zip(*(column[:TABLE_ROWS] for column in predictions.values()), strict=True)
        table = wandb.Table(columns=list(predictions), data=[list(row) for row in rows])
        run.log({"predictions": table} | _charts(result))
        artifact = wandb.Artifact(_artifact_name(folder.name), type="probe")
        for name in ("result.json", "probe.safetensors"):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        return farewell(run, self.mode)

    def finish_aggregator(self, progress: Mapping, folder: Path) -> list[str]:
        """Log a pretrained aggregator's best epoch and baselines, and itself as an artifact.

        Parameters
        ----------
        progress : as `tune.checkpoints` keeps it
        folder : the aggregator's: its files go into one artifact of type "model"

        Returns
        -------
        As `finish`
        """
        numbers = {f"baseline/{k.replace(' ', '_')}": v for k, v in progress["baselines"].items()}
        self.log(numbers | {"val/best_loss": progress["best_loss"]})
        if self.report_to != "wandb":
            return []
        import wandb

        run = self.accelerator.get_tracker("wandb", unwrap=True)
        run.summary.update({"best_epoch": progress["best_epoch"]})
        artifact = wandb.Artifact(_artifact_name(folder.name, "aggregator"), type="model")
        for name in ("config.json", "model.safetensors", "README.md", "history.csv"):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        return farewell(run, self.mode)

    def skip(self, why: Mapping[str, str]) -> list[str]:
        """Mark a run as one that needn't be done; it ends as finished.

        Parameters
        ----------
        why : degenerate and, where there is one, same_as (`tune.repeats.needless`)

        Returns
        -------
        As `finish`
        """
        if self.report_to != "wandb" or not self.accelerator.is_main_process:
            return []
        run = self.accelerator.get_tracker("wandb", unwrap=True)
        run.summary.update(dict(why))
        return farewell(run, self.mode)

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with the reason in its summary."""
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            import wandb

            if wandb.run is not None:
                home = str(Path.home())
                text = " ".join(str(error).split()).replace(home, "~")[:REASON_LENGTH]
                kind = type(error).__name__
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                wandb.run.summary["failed"] = "stopped" if stopped else text or kind
                wandb.run.finish(exit_code=1)


def farewell(run, mode: str) -> list[str]:
    """Where a W&B run is, and what to do with it."""
    if mode == "offline":
        why = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "not logged in"
        path = _short(Path(run.dir).parent)
        return [f"  wandb      offline ({why}); look:    wandb leet {path}",
                f"             upload:  wandb login && wandb sync {path}"]  # fmt: skip
    return [f"  wandb      {run.url}"] if run.url else []


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
            row = [strategy, result["task"], value, metric["mean"], metric["ci_low"],
                   metric["ci_high"]]  # fmt: skip
            table = wandb.Table(columns=columns, data=[row])
            title = f"{result['task']}: {name} against {axis}"
            key = "".join(c if c.isalnum() else "_" for c in f"{name}_against_{axis}")
            out[f"quality/{key}"] = wandb.plot.scatter(table, axis, name, title=title)
    return out


def _artifact_name(name: str, kind: str = "probe") -> str:
    """A run's name with only the characters that W&B takes."""
    return f"{kind}-" + "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:120]


def _short(path: Path) -> Path:
    """A path relative to the working folder when it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
