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
              tags: Sequence[str], folder: Path) -> None:  # fmt: skip
        """Begin a run with its configuration."""
        if self.report_to == "none":
            return
        init = {}
        if self.report_to == "wandb":
            import wandb

            quiet = {"settings": wandb.Settings(silent=True)} if self.mode == "offline" else {}
            # An agent names the run's id, project and sweep itself, by environment variables.
            init = {"wandb": {"name": name, "group": group, "tags": list(tags), "mode": self.mode,
                              "job_type": "probe", **quiet}}  # fmt: skip
            project = os.environ.get("WANDB_PROJECT", project)
        config = dict(config)
        if self.report_to == "tensorboard":  # its hyperparameters are scalars
            config = {k: v if isinstance(v, bool | int | float | str) else str(v)
                      for k, v in config.items()}  # fmt: skip
        self.accelerator.init_trackers(project, config=config, init_kwargs=init)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; those that are undefined (NaN) are left out."""
        if self.report_to != "none":
            numbers = {k: v for k, v in values.items() if not math.isnan(v)}
            self.accelerator.log(numbers, step=step)

    def finish(self, summary: Mapping, predictions: Mapping[str, list], files: Sequence[Path],
               name: str) -> list[str]:  # fmt: skip
        """Log what the run ended with and close it.

        Parameters
        ----------
        summary : nested numbers and strings, put into W&B's summary
        predictions : columns of the predictions table
        files : logged as one artifact of type "probe"
        name : name of that artifact

        Returns
        -------
        list of str
            Lines for the user: how to look at an offline run and upload it.
        """
        lines = []
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            import wandb

            run = self.accelerator.get_tracker("wandb", unwrap=True)
            run.summary.update(dict(summary))
            columns = list(predictions)
            rows = list(zip(*(c[:TABLE_ROWS] for c in predictions.values()), strict=True))
            run.log({"predictions": wandb.Table(columns=columns, data=[list(r) for r in rows])})
            artifact = wandb.Artifact(_artifact_name(name), type="probe")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
            if self.mode == "offline":
                folder = _short(Path(run.dir).parent)
                lines = [
                    f"W&B is offline (not logged in): look with  wandb leet {folder}",
                    f"                       upload with  wandb login && wandb sync {folder}",
                ]
                if os.environ.get("WANDB_MODE"):
                    lines[0] = lines[0].replace("not logged in", "WANDB_MODE")
            elif run.url:
                lines = [f"W&B: {run.url}"]
        if self.report_to != "none":
            self.accelerator.end_training()
        return lines

    def fail(self) -> None:
        """Close the run as failed."""
        if self.report_to == "wandb" and self.accelerator.is_main_process:
            import wandb

            if wandb.run is not None:
                wandb.run.finish(exit_code=1)


def _artifact_name(name: str) -> str:
    """A run's name with only the characters that W&B takes."""
    return "probe-" + "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:120]


def _short(path: Path) -> Path:
    """A path relative to the working folder when it lies below it."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
