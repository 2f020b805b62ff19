"""Each line of the table in docs/wandb.md, by the real W&B client from a home of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from wandb_server import WandbServer

KEY = "k" * 40
DEFAULT = {"project": "tune", "name": "strategy", "group": "tones-mel", "job_type": "probe"}
# One run by the Tracker that the scripts use, without audio: what it prints is read back.
SCRIPT = """
import json, sys
from types import SimpleNamespace
from accelerate import Accelerator
from tune.runs.tracking import Tracker, check_tracker
given = json.loads(sys.argv[1])
try:
    accelerator = Accelerator(cpu=True, log_with=check_tracker("wandb"))
    tracker = Tracker(accelerator, "wandb")
except ValueError as error:
    sys.exit(f"error: {error}")
config = {"lr": 0.005}
tracker.start(config, given=given, default=json.loads(sys.argv[2]), tags=given.get("tags", []))
for epoch, score in enumerate([0.5, 0.75, 0.7], start=1):
    best = max(0.5, score, 0.75 * (epoch > 1))
    row = {"epoch": epoch, "val/loss": 1 / epoch, "val/r2": score, "val/best_score": best}
    tracker.log(row, step=epoch)
tracker._log_final({"test/r2": 0.6})
print(*tracker._finish_wandb(), sep="\\n")
"""


@pytest.fixture(scope="module")
def server():
    """A running server."""
    with WandbServer() as server:
        yield server


class Home:
    """A fresh home, without an account, a settings file or W&B's variables."""

    def __init__(self, root: Path, server: WandbServer):
        self.root, self.server = root, server
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        self.env |= {"HOME": str(root), "PYTHONPATH": str(ROOT), "NETRC": str(root / ".netrc")}
        # The default server is never asked in a test.
        self.env["WANDB_BASE_URL"] = server.url

    def log_in(self):
        """Leave a key for the server, as `wandb login --host URL` does."""
        netrc = Path(self.env["NETRC"])
        netrc.write_text(
            f"machine {self.server.url.split('//')[1]}\n login user\n password {KEY}\n"
        )
        netrc.chmod(0o600)

    def run_wandb(self, *args):
        """Run a command of W&B's own program."""
        command = [Path(sys.executable).parent / "wandb", *args]
        subprocess.run(command, cwd=self.root, env=self.env, check=True, capture_output=True)

    def track(self, given=None, **env):
        """Track a run; return the process and the server's runs that it made."""
        before = set(self.server.runs)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(given or {}), json.dumps(DEFAULT)],
            cwd=self.root,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done, [run for name, run in self.server.runs.items() if name not in before]


@pytest.fixture
def home(tmp_path, server):
    """A fresh home beside a server."""
    return Home(tmp_path, server)


OFFLINE = {
    "no login": ({}, None, False, r"not logged in"),
    "wandb offline": ({}, "offline", True, "W&B's settings file"),
    "WANDB_MODE=dryrun": ({"WANDB_MODE": "dryrun"}, None, True, "WANDB_MODE"),
}


@pytest.mark.parametrize("row", OFFLINE)
def test_a_run_is_offline_where_wandb_says_so_or_nobody_is_logged_in(home, row):
    env, command, login, why = OFFLINE[row]
    if login:
        home.log_in()
    if command:
        home.run_wandb(command)
    asked = dict(home.server.called)
    done, made = home.track(**env)
    assert (done.returncode, made) == (0, []), done.stderr
    assert home.server.called == asked  # not one question
    (folder,) = (home.root / "wandb").glob("offline-run-*")
    assert f"offline ({why}); view:    wandb leet wandb/{folder.name}" in done.stdout


@pytest.mark.parametrize("row", ["wandb disabled", "WANDB_MODE=disabled"])
def test_disabled_is_silent_and_leaves_nothing(home, row):
    home.log_in()
    env = {}
    if row == "wandb disabled":
        home.run_wandb("disabled")
    else:
        env["WANDB_MODE"] = "disabled"
    done, made = home.track(**env)
    assert (done.returncode, made, done.stdout.strip()) == (0, [], ""), done.stderr
    assert not list(home.root.rglob("*.wandb"))


def test_a_login_to_a_server_of_ones_own_is_one(home):
    home.log_in()
    done, (run,) = home.track()
    assert done.returncode == 0, done.stderr
    assert "offline" not in done.stdout
    assert run.display_name == "strategy"
    # The curves: val/... over epochs, the best under one name, a test score that is no curve.
    assert [row["val/r2"] for row in run.rows] == [0.5, 0.75, 0.7]
    assert not any("test/r2" in row for row in run.rows)
    assert run.summary["test/r2"] == 0.6
    assert run.summary["val/r2"] == 0.7
    assert run.summary["val/best_score"] == 0.75
    assert run.summary["val/loss"]["min"] == pytest.approx(1 / 3)


def test_the_server_of_a_settings_file_is_used_and_shared_is_online(home):
    home.log_in()
    del home.env["WANDB_BASE_URL"]
    settings = home.root / ".config/wandb/settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nbase_url = {home.server.url}\nproject = theirs\n")
    done, (run,) = home.track(WANDB_MODE="shared")
    assert done.returncode == 0, done.stderr
    assert run.config["project"] == "theirs"


def test_a_mode_that_wandb_refuses_is_one_line(home):
    done, made = home.track(WANDB_MODE="nonsense")
    assert (done.returncode, made, done.stdout) == (1, [], "")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "W&B refuses mode 'nonsense'" in line
    assert "WANDB_MODE" in line


ENV = {
    "WANDB_PROJECT": "env-project",
    "WANDB_ENTITY": "env-entity",
    "WANDB_NAME": "env-name",
    "WANDB_RUN_GROUP": "env-group",
    "WANDB_TAGS": "env-tag,mel",
    "WANDB_JOB_TYPE": "ablation",
    "WANDB_NOTES": "env notes",
}


def test_wandbs_variables_come_before_our_defaults(home):
    home.log_in()
    done, (run,) = home.track({"tags": ["mel", "seg 1"]}, **ENV)
    assert done.returncode == 0, done.stderr
    assert run.config["project"] == "env-project"
    assert (run.display_name, run.group, run.job_type) == ("env-name", "env-group", "ablation")
    assert sorted(run.tags) == ["env-tag", "mel", "seg 1"]
    assert run.notes == "env notes"
    assert run.entity == "env-entity"


def test_flags_come_before_wandbs_variables(home):
    home.log_in()
    given = {key: f"flag-{key}" for key in ("project", "entity", "name", "group", "notes")}
    done, (run,) = home.track(given, **ENV)
    assert done.returncode == 0, done.stderr
    assert run.config["project"] == "flag-project"
    assert (run.display_name, run.group, run.notes) == ("flag-name", "flag-group", "flag-notes")
    assert (run.entity, run.job_type) == ("flag-entity", "ablation")


def test_advice_names_the_folder_of_wandb_dir(home):
    elsewhere = home.root / "elsewhere"
    elsewhere.mkdir()
    done, _ = home.track(WANDB_DIR=str(elsewhere))
    (folder,) = (elsewhere / "wandb").glob("offline-run-*")
    assert "wandb sync elsewhere/wandb/" + folder.name in done.stdout
