"""python -m tune.sweep as its users run it: real subprocesses on small tasks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, make_task, run
from wandb_file import read_runs

from tune.sweep import pool
from tune.sweep import worker as sweep_worker
from tune.sweep.config import propose
from tune.sweep.journal import Sweep
from tune.sweep.pool import ctrl_c_noted
from tune.sweep.summary import write_duplicate

SMALL = {
    "program": "train_probe.py",
    "name": "small",
    "project": "mine",
    "method": "grid",
    "metric": {"name": "val/best_accuracy", "goal": "maximize"},
    "parameters": {
        "encoder": {"value": "muq-nano"},
        "epochs": {"value": 3},
        "seeds": {"value": [1, 2]},
        "min_tail": {"value": 0.5},
        "seg": {"values": ["1", "20", "full"]},
        "agg": {"values": ["mean", "max"]},
    },
}


def write(folder, config, **parameters):
    """Write a sweep file."""
    config = config | {"parameters": config["parameters"] | parameters}
    (folder / "s.yaml").write_text(yaml.safe_dump(config))
    return config


def run_sweep(*flags, cwd):
    """Run python -m tune.sweep."""
    return run("-m", "tune.sweep", "s.yaml", *flags, cwd=cwd)


def interrupt(folder, flags, number):
    """Send the sweep and its workers a signal after the first cell; return code and stderr."""
    begun = subprocess.Popen(
        [sys.executable, "-m", "tune.sweep", "s.yaml", *flags],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not any('"finished"' in j.read_text() for j in folder.glob("runs/.sweeps/*.jsonl")):
        assert begun.poll() is None, begun.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(begun.pid, number)
    _, stderr = begun.communicate(timeout=60)
    return begun.returncode, stderr


def results_of(folder):
    """Every result.json by (segments, aggregator)."""
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    return {(r["seg"], r["agg"]): r for r in found}


def test_interrupted_it_goes_on_and_cells_that_cut_nothing_are_marked(tmp_path):
    write(tmp_path, SMALL, task={"value": str(make_task(tmp_path / "tones"))})
    flags = ["--workers=2", f"--store={tmp_path / 'store'}", "--margin=0.9"]
    code, stderr = interrupt(tmp_path, [flags[1]], signal.SIGINT)  # to all, as Ctrl-C does
    assert code == 130, stderr
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    (journal,) = tmp_path.glob("runs/.sweeps/*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    early = [
        tmp_path / "runs" / li["name"] / "result.json" for li in lines if li["state"] == "finished"
    ]
    first = {path: path.stat().st_mtime_ns for path in early}

    done = run_sweep(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == was for path, was in first.items())
    results = results_of(tmp_path)
    assert set(results) == {(s, a) for s in ("1", "20", "full") for a in ("mean", "max")}
    full = results["full", "mean"]
    for key in (("20", "mean"), ("20", "max"), ("full", "max")):
        assert results[key]["same_as"].startswith("small-agg-mean-seg-full-")
        assert results[key]["metrics"] == full["metrics"]
        assert results[key]["degenerate"] == ("equals full" if key[0] == "20" else None)
    assert "same_as" not in full
    # Each segment once, by whom ever: 18 tracks of 2.57, 2.94 and 2.2 s, and each as a whole.
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 36
    assert done.stdout.count("= full mean") == 3
    assert "small: 6 runs" in done.stdout
    assert "against full mean" in done.stdout
    assert "margin 0.9; 2 comparisons" in done.stdout
    assert "<svg" in (tmp_path / "runs" / "small.html").read_text()
    assert "wandb sync" in done.stdout

    records, unbegun = read_runs(tmp_path / "wandb")
    assert len(unbegun) <= 2  # a worker's, if it was just about to begin one
    whole = [r for r in records if r["exit_code"] == 0 and "test/accuracy" in r["summary"]]
    assert {(r["config"]["seg"], r["config"]["agg"]) for r in whole} >= {
        ("1", "mean"),
        ("1", "max"),
        ("full", "mean"),
    }
    assert {r["run"].run_group for r in whole} == {"small"}
    assert {r["run"].project for r in whole} == {"mine"}
    marked = [r for r in records if r["summary"].get("same_as") == results["20", "mean"]["same_as"]]
    assert len(marked) >= 3
    assert {r["summary"]["degenerate"] for r in marked} == {
        "equals full",
        "max of one piece is its mean",
    }
    assert all(r["exit_code"] == 0 and not r["history"] for r in marked)

    again = run_sweep(*flags, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert read_runs(tmp_path / "wandb") == (records, unbegun)


def work_interrupted_as_a_run_begins(connection, folder_only):
    """A worker that gets a Ctrl-C in W&B's `init`: at the run's folder, or with the run begun."""
    from wandb.sdk import wandb_init

    from tune.sweep.worker import work

    def interrupted(*args):
        raise KeyboardInterrupt

    if folder_only:
        wandb_init._WandbInit.init = interrupted  # the folder is there, its log isn't
    else:
        wandb_init._set_global_run = interrupted
    work(connection, "train_probe.py", None)


@pytest.mark.parametrize("folder_only", [True, False])
def test_a_run_that_a_signal_meets_as_it_begins_isnt_closed_as_finished(
    tmp_path, monkeypatch, folder_only
):
    monkeypatch.chdir(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    worker = spawn.Process(target=work_interrupted_as_a_run_begins, args=(there, folder_only))
    worker.start()
    argv = [
        f"--task={make_task(tmp_path / 'tones')}",
        "--encoder=mel",
        "--seg=1",
        f"--store={tmp_path / 'store'}",
        f"--output_dir={tmp_path / 'runs'}",
    ]
    assert here.recv() == ("ready",)
    here.send(("run", "one", argv, tmp_path / "log.txt"))
    worker.join(60)
    assert worker.exitcode == 130
    records, unbegun = read_runs(tmp_path / "wandb")
    assert len(unbegun) == folder_only
    assert [(r["exit_code"], r["history"]) for r in records] == [(130, [])] * (not folder_only)


@pytest.mark.slow
def test_a_schedulers_sigterm_closes_the_runs_and_it_goes_on(tmp_path):
    write(
        tmp_path,
        SMALL,
        task={"value": str(make_task(tmp_path / "tones"))},
        encoder={"value": "mel"},
        seg={"values": ["0.5", "1", "1.5"]},
    )
    code, stderr = interrupt(tmp_path, ["--workers=2"], signal.SIGTERM)
    assert code == 143, stderr
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    records, unbegun = read_runs(tmp_path / "wandb")
    assert records
    assert len(unbegun) <= 2  # a worker's, if it was just about to begin one
    for record in records:
        assert record["exit_code"] is not None or not record["history"]  # closed once it was begun
        assert record["exit_code"] != 0 or "test/accuracy" in record["summary"]
    (journal,) = tmp_path.glob("runs/.sweeps/*.jsonl")  # a result may be there, its run not closed
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    early = {
        p: p.stat().st_mtime_ns
        for p in (
            tmp_path / "runs" / li["name"] / "result.json"
            for li in lines
            if li["state"] == "finished"
        )
    }
    assert early
    done = run_sweep(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(results_of(tmp_path)) == 6
    assert all(p.stat().st_mtime_ns == was for p, was in early.items())


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    make_task(tmp_path / "tones")
    write(
        tmp_path,
        SMALL,
        task={"values": ["nowhere", "tones"]},
        seg={"value": "1"},
        agg={"value": "mean"},
        encoder={"value": "mel"},
    )
    done = run_sweep("--report_to=none", cwd=tmp_path)
    assert done.returncode == 2
    assert set(results_of(tmp_path)) == {("1", "mean")}
    assert "unknown task 'nowhere'" in done.stderr
    assert "1 of 2 runs failed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "failed:" in done.stdout
    assert "wandb sync" not in done.stdout
    (log,) = tmp_path.glob("runs/.sweeps/logs/small-task-nowhere*.log")
    assert "unknown task 'nowhere'" in log.read_text()


def test_a_search_stops_early_and_is_taken_up_again(tmp_path):
    make_task(tmp_path / "tones", n=(8, 4, 2), seconds=4)
    config = {
        "program": "pretrain_aggregator.py",
        "name": "search",
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2},
        "parameters": {
            "tasks": {"value": ["tones"]},
            "encoder": {"value": "mel"},
            "seg": {"value": "1"},
            "epochs": {"value": 8},
            "patience": {"value": 8},
            "num_layers": {"value": 1},
            "batch_size": {"value": 2},
            "lr": {"values": [1e-3, 2e-3, 1e-8]},
        },
    }
    write(tmp_path, config)
    done = run_sweep("--report_to=none", f"--store={tmp_path / 's'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (journal,) = tmp_path.glob("runs/.sweeps/search-*.jsonl")
    last = {line["name"]: line for line in map(json.loads, journal.read_text().splitlines())}
    states = {line["config"]["lr"]: line["state"] for line in last.values()}
    assert states == {1e-3: "finished", 2e-3: "finished", 1e-8: "stopped"}
    for line in last.values():
        folder = tmp_path / "aggregators" / line["name"]
        assert (folder / "pretrain.json").exists() == (line["state"] == "finished")
        assert (
            len(line["history"]) == 8
            if line["state"] == "finished"
            else 2 < len(line["history"]) < 8
        )
    assert "stopped early" in done.stdout
    assert "best val loss" in done.stdout
    before = journal.read_text()
    again = run_sweep("--report_to=none", f"--store={tmp_path / 's'}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert journal.read_text() == before
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_bayesian_search_with_early_termination_runs_to_its_end(tmp_path):
    make_task(tmp_path / "tones", n=(8, 4, 2), seconds=4)
    config = yaml.safe_load((ROOT / "sweeps" / "pretrain.yaml").read_text())
    assert (config["method"], config["early_terminate"]["type"]) == ("bayes", "hyperband")
    config["early_terminate"] |= {"min_iter": 2, "eta": 2}
    small = {"tasks": ["tones"], "encoder": "mel", "seg": "1", "epochs": 8, "patience": 8}
    small = {name: {"value": value} for name, value in small.items()}
    write(tmp_path, config, **small, batch_size={"values": [2, 4]}, num_layers={"values": [1, 2]})
    flags = ["--count=8", "--report_to=none", f"--store={tmp_path / 's'}"]
    done = run_sweep(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (journal,) = tmp_path.glob("runs/.sweeps/pretrain-*.jsonl")
    last = {line["name"]: line for line in map(json.loads, journal.read_text().splitlines())}
    assert len(last) == 8
    rates = [line["config"]["lr"] for line in last.values()]
    assert len(set(rates)) == 8
    given = config["parameters"]["lr"]
    assert given["min"] <= min(rates) <= max(rates) <= given["max"]
    for line in last.values():
        assert line["state"] in ("finished", "stopped")
        assert (len(line["history"]) == 8) == (line["state"] == "finished")
        folder = tmp_path / "aggregators" / line["name"]
        assert (folder / "pretrain.json").exists() == (line["state"] == "finished")
    assert "pretrain: 8 runs" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agg=stats"], "--agg: s.yaml varies it; change it there"),
        (["--name=x"], "--name: the sweep names its runs' folders itself"),
        (["x"], "x: flags for the runs are written --flag=value"),
        (["--workers=0"], "expected a whole number above 0"),
        (["--search_seed=-1"], "--search_seed must be 0 or above, got -1"),
    ],
)
def test_flags_that_can_not_be_end_in_one_line(tmp_path, flags, message):
    write(tmp_path, SMALL)
    done = run_sweep(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_worker_says_what_is_wrong_with_a_cell(monkeypatch):
    monkeypatch.setitem(sys.modules, "train_probe", None)
    worker = sweep_worker.Worker(None, "train_probe.py")
    assert worker.check(["--agg=mean"]) is None
    assert "--agg must be one of mean" in worker.check(["--agg=means"])
    assert "unrecognized arguments: --agregator=mean" in worker.check(["--agregator=mean"])
    loaded = []

    def load(name, **kwargs):
        loaded.append((name, kwargs))
        return object()

    for layer, name in (("last", "mel"), ("last", "mel"), ("2", "mel"), ("2", "mel"), ("2", "x")):
        worker.args = worker.script.parse_args([f"--layer={layer}"])
        worker.load_encoder(load, name, device="cpu")
    assert len(loaded) == 3


def test_a_random_search_goes_on_as_it_would_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "program": "train_probe.py",
        "name": "r",
        "method": "random",
        "parameters": {"lr": {"min": 1e-4, "max": 1e-2}, "agg": {"values": ["mean", "max"]}},
    }

    def names(sweep, n):
        runs = [sweep.next() for _ in range(n)]
        for run in runs:
            sweep.note(run, "finished")
            sweep.folder(run.name).mkdir()
            (sweep.folder(run.name) / "result.json").write_text("{}")
        return [run.name for run in runs]

    whole = names(Sweep(config, tmp_path / "at-once", [], 5, 7), 5)
    assert len(set(whole)) == 5
    runs = tmp_path / "runs"
    first = names(Sweep(config, runs, [], 5, 7), 2)
    second = Sweep(config, runs, [], 5, 7)
    assert first + names(second, 3) == whole
    assert second.next() is None
    # One that was under way comes again before anything new, also with a result: its W&B run
    # was cut off.
    third = Sweep(config, runs, [], 6, 7)
    run = third.next()
    third.note(run, "running")
    third.folder(run.name).mkdir()
    (third.folder(run.name) / "result.json").write_text("{}")
    assert Sweep(config, runs, [], 6, 7).next().name == run.name


def test_a_duplicate_is_a_copy_that_says_so(tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    (original / "result.json").write_text(json.dumps({"seg": "full", "agg": "mean", "x": 1}))
    (original / "config.json").write_text(json.dumps({"seg": "full", "agg": "mean"}))
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["a"]}), original / "predictions.parquet")
    write_duplicate(tmp_path / "same", original, {"seg": "60", "agg": "max", "task": "t"})
    result = json.loads((tmp_path / "same" / "result.json").read_text())
    assert result == {
        "seg": "60",
        "agg": "max",
        "x": 1,
        "same_as": "original",
        "degenerate": "equals full",
    }
    assert pq.read_table(tmp_path / "same" / "predictions.parquet").to_pydict() == {"id": ["a"]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["original", "same"]


def test_a_dead_workers_cell_is_marked_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SMALL | {"parameters": {"agg": {"values": ["mean"]}}}
    (run,) = propose(config, [], 9, [], 1)
    monkeypatch.setattr(pool, "work", os._exit)  # leaves at once, by an error
    whole = Sweep(config, tmp_path / "runs", [], None, 1)
    with pytest.raises(ValueError, match="worker processes died"):
        pool.run_all(whole, 1)
    assert whole.next().name == run.name  # it was never given out


def test_ctrl_c_is_not_lost_where_python_drops_exceptions():
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # the handler runs between two instructions, here

    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_noted() as pressed:
        Dying()
        assert pressed
        with pytest.raises(KeyboardInterrupt):  # the second one doesn't wait
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_journal_with_the_old_name_of_a_field_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"program": "train_probe.py", "method": "grid", "parameters": {"seg": {"value": 20}}}
    sweep = Sweep(config, tmp_path / "runs", [], None, 1)
    run = sweep.next()
    run.same_as = "full-track"
    sweep.note(run, "same")
    sweep.folder(run.name).mkdir()
    (sweep.folder(run.name) / "result.json").write_text("{}")
    journal = sweep.journal.read_text()
    sweep.journal.write_text(journal.replace('"same_as"', '"twin"'))
    (again,) = Sweep(config, tmp_path / "runs", [], None, 1).runs.values()
    assert (again.state, again.same_as) == ("same", "full-track")
