"""Sweep files: W&B's YAML, checked by W&B's own schema, and the runs it asks for.

The engine is W&B's own (package `sweeps`): it proposes runs by grid, random or Bayesian search and
says which running ones to stop early. A run is one command line of the file's program.
"""

import hashlib
import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from tune.aggregators.registry import ENTRY_POINTS, find_row, readable_name
from tune.cli.parser import to_words
from tune.system.files import slug
from tune.system.plugins import registered
from tune.tasks.own_task import identify, own_spec

PROGRAMS = ("train_probe.py", "pretrain_aggregator.py")
# Flags that say where files go: they don't change a run's result.
PLACES = {"output_dir", "store", "cache_dir", "data_dir", "report_to"}
PLACES |= {"project", "entity", "group", "tags", "notes"}
TEXT_LENGTH = 40  # of a run's name, beside its digest


def engine() -> ModuleType:
    """Import W&B's package `sweeps`, without its warnings about pydantic.

    Raises
    ------
    ValueError
        When it isn't installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # By a name of its own: a folder called sweeps/ in the working folder imports as well.
            import sweeps.run
        except ModuleNotFoundError as error:
            raise ValueError(
                f"sweeps without an account need W&B's engine: pip install 'sweeps==0.2.0' "
                f"({error})"
            ) from None
    return sweeps


@dataclass
class SweepRun:
    """One experiment of a sweep.

    Attributes
    ----------
    config : flag -> value, as the engine proposed it
    name : its folder's name: readable, unique by everything that a result depends on
    argv : the program's arguments without the run's name
    state : pending, running, finished, failed, stopped (early termination), same (as `same_as`)
        or undefined (`error` says why)
    history : values of the sweep's metric, one an epoch
    same_as : the run that this one duplicates, because no track is cut
    error : why it failed, or isn't defined
    """

    config: dict
    name: str
    argv: list[str]
    state: str = "pending"
    history: list[float] = field(default_factory=list)
    same_as: str | None = None
    error: str | None = None


def read_sweep(path: Path) -> dict:
    """Read a sweep file.

    Raises
    ------
    ValueError
        When it is missing, no YAML, invalid by W&B's schema, or asks for what can't be had here.
    """
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the sweep file {path} can't be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        at = getattr(error, "problem_mark", None)
        where = f" in line {at.line + 1}" if at else ""
        raise ValueError(f"{path} is no YAML{where}: {getattr(error, 'problem', error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a sweep (method, parameters), got {config!r:.60}")
    for message in violations(config):
        raise ValueError(f"{path}: {message}")
    if config["method"] not in ("grid", "random", "bayes"):
        raise ValueError(f"{path}: the method must be grid, random or bayes, got custom")
    if config.get("program") not in PROGRAMS:
        raise ValueError(
            f"{path}: program must be {' or '.join(PROGRAMS)}, got {config.get('program')!r}"
        )
    needs_metric = config["method"] == "bayes" or "early_terminate" in config
    if needs_metric and "metric" not in config:
        raise ValueError(f"{path}: bayes and early_terminate need a metric (name and goal)")
    for name, parameter in config["parameters"].items():
        if "parameters" in parameter:
            raise ValueError(f"{path}: {name} is nested; a flag has one value")
    return config


def violations(config: Mapping) -> list[str]:
    """Violations of W&B's schema, one line each."""
    try:
        found = engine().schema_violations_from_proposed_config(config)
    except (ValueError, TypeError, AttributeError) as error:  # it checks while it parses
        found = [str(error)]
    return [" ".join(message.split())[:300] for message in found]


def fixed(config: Mapping) -> dict:
    """Parameters with one value."""
    return {
        k: p["value"] if "value" in p else p["values"][0]
        for k, p in config["parameters"].items()
        if "value" in p or len(p.get("values", ())) == 1
    }


def swept(config: Mapping) -> list[str]:
    """Names of the parameters that vary.

    Examples
    --------
    >>> swept({"parameters": {"seg": {"values": [10, 30]}, "agg": {"value": "mean"}}})
    ['seg']
    """
    return sorted(set(config["parameters"]) - set(fixed(config)))


def propose(
    config: Mapping, runs: Sequence[SweepRun], n: int, extra: Sequence[str], seed: int
) -> list[SweepRun]:
    """Ask the engine for up to n more runs.

    Parameters
    ----------
    runs : those there are already, with what is known of their metric
    extra : flags for every run, as given to `python -m tune.sweep`
    seed : random and Bayesian searches draw from it and from how many runs there are, so that
        an interrupted search goes on as it would have

    Returns
    -------
    list of SweepRun
        Fewer than n when a grid is exhausted.
    """
    random.seed(seed * 1_000_003 + len(runs))
    np.random.seed((seed * 1_000_003 + len(runs)) % 2**32)  # the engine draws from the global one
    return [make_run(values, config, extra) for values in _propose(config, runs, n)]


def to_stop(config: Mapping, runs: Sequence[SweepRun]) -> set[str]:
    """Names of the unfinished runs that early termination ends."""
    if "early_terminate" not in config:
        return set()
    stopped = engine().stop_runs(_plain_copy(config), _as_runs(config, runs))
    return {run.name for run in stopped}


def make_run(values: Mapping, config: Mapping, extra: Sequence[str]) -> SweepRun:
    """Turn an engine's proposal into a command line, as W&B's agent would (`--key=value`)."""
    argv = [f"--{key}={value}" for key, value in values.items()]
    given = set(values) | {flag.split("=")[0].removeprefix("--") for flag in extra}
    name = config.get("name") or "sweep"
    for flag, value in (("group", name), ("project", config.get("project"))):
        if flag not in given and value:
            argv.append(f"--{flag}={value}")
    argv += extra
    shown = "-".join(f"{key}-{_short(values[key], key)}" for key in swept(config))
    readable = slug(f"{name}-{shown}", also="+")
    readable = readable[: len(name) + 1 + TEXT_LENGTH].rstrip("-")
    return SweepRun(
        dict(values), f"{readable}-{digest(config['program'], argv + sources(argv))}", argv
    )


def sources(argv: Sequence[str]) -> list[str]:
    """Digests of the source files that flags name (plug-ins): a changed one is another run."""
    given = [flag.partition("=")[2] for flag in argv if flag.startswith("--agg=")]
    named = {agg for agg in given if readable_name(agg) != agg or agg in registered(ENTRY_POINTS)}
    own = [find_row(agg).own for agg in given if agg in named]
    tasks = [flag.partition("=")[2] for flag in argv if flag.startswith(("--task=", "--tasks="))]
    specs = [own_spec(word) for text in tasks for word in to_words(text)]
    own += [identify(spec)[1] for spec in specs if spec]
    return [found.sha256 for found in own if found]


def digest(what: str, flags: Sequence[str]) -> str:
    """Eight hexadecimal digits of what is run with which flags, wherever its results go."""
    telling = [flag for flag in flags if flag.split("=")[0].removeprefix("--") not in PLACES]
    return hashlib.sha256(json.dumps([what, sorted(telling)]).encode()).hexdigest()[:8]


def _propose(config: Mapping, runs: Sequence[SweepRun], n: int) -> list[dict]:
    """Ask the engine; plain values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, about fits of few points
        found = engine().next_runs(_plain_copy(config), _as_runs(config, runs), n=n)
    return [{k: _plain(v["value"]) for k, v in each.config.items()} for each in found if each]


def _as_runs(config: Mapping, runs: Sequence[SweepRun]) -> list:
    """Cells as the engine's runs; its fields are set by their aliases, as pydantic 2 wants it."""
    make = engine().SweepRun
    metric = config.get("metric", {}).get("name", "")
    states = {"pending": "running"} | dict.fromkeys(("stopped", "same", "undefined"), "finished")
    return [
        make(
            name=run.name,
            config={k: {"value": v} for k, v in run.config.items()},
            state=states.get(run.state, run.state),
            sampledHistory=[{metric: value} for value in run.history],
        )
        for run in runs
    ]


def _plain_copy(config: Mapping) -> dict:
    """A copy without keys that the engine doesn't know; it changes its arguments."""
    return json.loads(json.dumps({k: config[k] for k in config if k != "command"}))


def _plain(value):
    """No NumPy types in a command line."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the sweep's engine proposed {value}")
    return value


def _short(value, key: str = "") -> str:
    """A value in a run's name."""
    if key == "agg":
        return readable_name(str(value))
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value)
