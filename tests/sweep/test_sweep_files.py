"""The files in sweeps/: valid by W&B's own schema, their keys flags, their runs command lines."""

import importlib

import pytest
import yaml
from conftest import ROOT

from tune.aggregators.degenerate import degenerate_reason, full_track
from tune.segments.rules import parse_rule
from tune.sweep import config as sweep_files
from tune.sweep.config import make_run, propose, read_sweep, swept, to_stop

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
SIZES = {
    "aggregators": 210,
    "composed": 189,
    "protocols": 72,
    "demo": 9,
    "paper": 32,
    "full": 84,
    "hierarchical": 6,
    "layers": 60,
    "fewest_seconds": 336,
}


def parse_args_of(config):
    """The parse_args of a sweep's program."""
    return importlib.import_module(config["program"].removesuffix(".py")).parse_args


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    """Let the scripts be imported from the repository's root."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_all_the_sweeps_are_here():
    names = {file.stem for file in FILES}
    assert {"paper", "full", "demo", "layers", "pretrain"} <= names
    assert not (ROOT / "sweeps" / "__init__.py").exists()  # it would hide the package `sweeps`


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_is_valid_by_wandbs_schema(file):
    config = yaml.safe_load(file.read_text())
    assert sweep_files.violations(config) == []
    assert read_sweep(file) == config
    assert (ROOT / config["program"]).is_file()
    assert config["command"][:3] == ["${env}", "accelerate", "launch"]
    assert config["command"][-2:] == ["${program}", "${args}"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_is_a_command_line_that_parses(file):
    config = read_sweep(file)
    runs = propose(config, [], 1000 if config["method"] == "grid" else 5, [], 1234)
    assert len(runs) == SIZES.get(file.stem, 5)
    assert len({run.name for run in runs}) == len(runs)
    parse_args = parse_args_of(config)
    for run in runs:
        args = parse_args(run.argv)
        assert args.group == config["name"]
        for key, value in run.config.items():
            got = getattr(args, key)
            if key == "agg":  # a Transformer's checkpoint may be named with it
                value, _, checkpoint = value.partition(":")
                assert args.aggregator_checkpoint == (checkpoint or None)
            if isinstance(got, list) and not isinstance(value, list):
                (got,) = got
            if isinstance(got, float):
                assert got == pytest.approx(value)
            else:
                assert list(map(str, got if isinstance(got, list) else [got])) == list(
                    map(str, value if isinstance(value, list) else [value])
                )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_is_what_wandbs_agent_makes_of_it(file):
    from wandb.sdk.launch.sweeps import utils

    config = read_sweep(file)
    (run,) = propose(config, [], 1, [], 1234)
    args = {"args": {k: {"value": v} for k, v in run.config.items()}}
    filled = {
        "env": ["/usr/bin/env"],
        "program": [config["program"]],
        "args": utils.create_sweep_command_args(args)["args"],
    }
    command = []
    for word in utils.create_sweep_command(list(config["command"])):
        command += filled[word[2:-1]] if word.startswith("${") else [word]
    assert command[:4] == ["/usr/bin/env", "accelerate", "launch", "--quiet"]
    assert command[5:] == run.argv[: len(run.config)]


def test_the_metric_is_one_that_the_program_logs():
    for file in FILES:
        config = read_sweep(file)
        if "metric" in config:
            source = (ROOT / config["program"]).read_text()
            assert f'"{config["metric"]["name"]}"' in source


def test_the_papers_grid_is_the_studys():
    config = read_sweep(ROOT / "sweeps" / "paper.yaml")
    runs = {
        (c.config["task"], c.config["seg"], c.config["agg"].partition(":")[0])
        for c in propose(config, [], 1000, [], 1)
    }
    assert runs == {
        (t, s, a)
        for t in ("emo", "gtzan")
        for s in ("10", "30", "60", "full")
        for a in ("mean", "max", "concat", "transformer")
    }
    assert config["parameters"]["seeds"]["value"] == [1234]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: grid", "'parameters' is a required property"),
        ("method: fast\nparameters: {agg: {value: mean}}", "'fast' is not one of"),
        ("method: grid\nparameters: {agg: {vlaue: mean}}", "not valid under any of the given"),
        ("method: grid\nparameters: {agg: {value: mean}}", "program must be train_probe.py or"),
        ("program: rm.py\nmethod: grid\nparameters: {agg: {value: mean}}", "got 'rm.py'"),
        (
            "program: train_probe.py\nmethod: bayes\nparameters: {lr: {min: 0.1, max: 0.2}}",
            "need a metric",
        ),
        ("program: train_probe.py\nmethod: custom\nparameters: {agg: {value: mean}}", "got custom"),
        ("method: [", "is no YAML in line"),
        ("- a\n- b", "must hold a sweep"),
        ("", "must hold a sweep"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_sweep(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml can't be read: No such file"):
        read_sweep(tmp_path / "none.yaml")


def test_a_cells_name_tells_what_varies_and_changes_with_all_that_matters():
    config = read_sweep(ROOT / "sweeps" / "demo.yaml")
    assert swept(config) == ["agg", "seg"]
    values = {"agg": "mean", "seg": "10", "seeds": [1, 2], "task": "demo"}
    run = make_run(values, config, [])
    assert run.name.startswith("demo-agg-mean-seg-10-")
    assert run.argv == [
        "--agg=mean",
        "--seg=10",
        "--seeds=[1, 2]",
        "--task=demo",
        "--group=demo",
        "--project=tune",
    ]
    assert make_run(values, config, ["--epochs=3"]).name != run.name
    assert make_run(values | {"seeds": [1]}, config, []).name != run.name
    places = ["--store=/a", "--report_to=none", "--group=g", "--project=p"]
    moved = make_run(values, config, places)
    assert moved.name == run.name
    assert moved.argv[-4:] == places
    assert len([flag for flag in moved.argv if flag.startswith("--group=")]) == 1


def test_a_grid_gives_each_cell_once_and_goes_on_where_it_stopped():
    config = read_sweep(ROOT / "sweeps" / "demo.yaml")
    every = propose(config, [], 1000, [], 1)
    rest = propose(config, every[:4], 1000, [], 1)
    assert [c.name for c in rest] == [c.name for c in every[4:]]
    assert propose(config, every, 3, [], 1) == []


def test_a_bayesian_search_follows_the_metric_and_repeats_itself():
    config = {
        "program": "pretrain_aggregator.py",
        "method": "bayes",
        "name": "s",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"dropout": {"min": 0.0, "max": 0.9}, "num_layers": {"values": [1, 2]}},
    }
    runs = []
    for _ in range(14):
        (run,) = propose(config, runs, 1, [], 7)
        assert isinstance(run.config["dropout"], float)
        run.state, run.history = "finished", [1.0, (run.config["dropout"] - 0.3) ** 2]
        runs.append(run)
    (again,) = propose(config, runs[:-1], 1, [], 7)
    assert again.config == runs[-1].config
    (other,) = propose(config, runs[:-1], 1, [], 8)
    assert other.config != again.config
    late = [abs(c.config["dropout"] - 0.3) for c in runs[6:]]
    assert sum(distance < 0.1 for distance in late) >= 4  # at random: 8 * 0.22


def test_early_termination_stops_the_run_that_lags_behind():
    config = read_sweep(ROOT / "sweeps" / "pretrain.yaml")
    runs = propose(config, [], 3, [], 1)
    for run, level in zip(runs, (0.2, 0.3, 0.9), strict=True):
        run.state, run.history = "running", [level] * 5
    assert to_stop(config, runs) == set()  # min_iter: 5, and the sixth epoch is number 5
    for run in runs:
        run.history.append(run.history[-1])
    assert runs[2].name in to_stop(config, runs)
    assert runs[0].name not in to_stop(config, runs)
    runs[2].state = "stopped"
    assert runs[2].name not in to_stop(config, runs)
    assert to_stop({k: v for k, v in config.items() if k != "early_terminate"}, runs) == set()


@pytest.mark.parametrize(
    ("given", "is_cell"),
    [
        ({"seg": "60", "agg": "mean"}, {"seg": "full", "agg": "mean"}),
        ({"seg": "60", "agg": "max", "hop": 30}, {"seg": "full", "agg": "mean"}),
        ({"seg": "full", "agg": "max"}, {"seg": "full", "agg": "mean"}),
        ({"seg": "30", "agg": "concat"}, {"seg": "full", "agg": "concat"}),
        ({"seg": 30, "task": "emo"}, {"seg": "full", "task": "emo"}),
    ],
)
def test_a_cell_that_cuts_nothing_is_that_of_the_full_track(given, is_cell):
    assert full_track(given) == is_cell


def test_a_maximum_of_frames_is_no_mean():
    assert full_track({"seg": "60", "agg": "max"}, "frame") == {"seg": "full", "agg": "max"}


@pytest.mark.parametrize(
    ("seg", "counts", "agg", "tokens", "same_as"),
    [
        ("60", [1, 1], "mean", "segment", "full mean"),
        ("60", [1, 2], "mean", "segment", None),
        ("full", [1, 1], "mean", "segment", None),
        ("full", [1, 1], "max", "segment", "full mean"),
        ("60", [1, 1], "concat", "segment", "full concat"),
        ("full", [1], "concat", "segment", None),
        ("60", [1, 1], "max", "frame", "full max"),
        ("full", [1, 1], "max", "frame", None),
        ("full", [1, 1], "whitened", "segment", "undefined"),
        ("full", [1, 1], "whitened", "frame", None),
        ("30", [2, 2], "whitened", "segment", None),
    ],
)
def test_what_needs_no_run(seg, counts, agg, tokens, same_as):
    why = degenerate_reason([parse_rule(seg)], [counts], agg, tokens)
    if same_as == "undefined":
        assert why["degenerate"].startswith("undefined")
        assert "same_as" not in why
    else:
        assert (why or {}).get("same_as") == same_as


def test_several_lengths_are_never_needless():
    rules = [parse_rule("60"), parse_rule("full")]
    assert degenerate_reason(rules, [[1], [1]], "hierarchical", "segment") is None


def test_without_the_engine_it_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sweeps.run":
            raise ModuleNotFoundError("No module named 'sweeps.run'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'sweeps==0\.2\.0'"):
        sweep_files.engine()
