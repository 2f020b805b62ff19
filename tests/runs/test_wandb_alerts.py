"""A failing run of an agent alerts its user; nothing else does."""

import os

import pytest
from conftest import make_task, run_probe
from wandb_server import WandbServer


@pytest.mark.parametrize("sweep", ["sweep1", None])
def test_an_agents_failure_is_an_alert(tmp_path, sweep):
    task = make_task(tmp_path / "home" / "tones", n=(4, 2, 2))
    (task / "audio" / "003.wav").write_bytes(b"RIFF")
    with WandbServer() as server:
        env = {
            **server.env(),
            "HOME": str(tmp_path / "home"),
            "NETRC": os.devnull,
            "WANDB_RUN_ID": "one",
            **({"WANDB_SWEEP_ID": sweep} if sweep else {}),
        }
        command = ("--task", task, "--encoder=mel", "--seg=1", "--name=mine", "--strict")
        done = run_probe(*command, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert server.unknown == []
    run = server.runs["one"]
    assert run.exit_code == 1
    assert "~/tones/audio/003.wav: can't be decoded" in run.summary["failed"]
    found = [(a["runName"], a["title"], a["text"], a["severity"]) for a in server.alerts]
    assert found == [("one", "mine failed", run.summary["failed"], "ERROR")] * bool(sweep)
