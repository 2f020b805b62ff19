"""The commands: `python -m tune` lists them, `python -m tune.PACKAGE VERB` runs one."""

import importlib
import sys
from collections.abc import Mapping

from tune.cli.parser import run_script

SCRIPTS = {
    "train_probe.py": "one experiment: task, encoder, segments, aggregator -> a probe's score",
    "pretrain_aggregator.py": "pretrain the Transformer aggregator by masked modelling",
    "profile.py": "cost of a strategy: peak memory, time, throughput",
    "compare.py": "runs to tables, verdicts, plots, an HTML report and advice",
    "embed.py": "embeddings of your own music",
}
COMMANDS = {
    "tune.segments plot": "plot where a file is cut by structure",
    "tune.encoders list | check | convert": "list encoders; check one; convert a pickle",
    "tune.store list | size | prune": "list the embedding store; delete rows",
    "tune.store pack | encode": "pack rows; encode a share of the tracks, train nothing",
    "tune.demo list | export | play": "the synthetic music of the demo tasks",
    "tune.tasks list | show | check": "list and describe tasks; check a data set",
    "tune.runs card | wandb_report": "results for a model card; a W&B report",
    "tune.embeddings similar | agreement": "most similar tracks; k-NN label agreement",
    "tune.embeddings groups | map": "clusters with a medoid each; an HTML map with players",
    "tune.embeddings hubness": "tracks that are near to everything",
    "tune.embeddings duplicates": "the same samples, lossy copies and excerpts in a folder",
    "tune.comparison paired | attention": "paired differences of runs; attention weights",
    "tune.sweep": "run a W&B sweep file without an account",
}


def show_all() -> None:
    """Print every command, a line each."""
    rows = {**SCRIPTS, **{f"python -m {name}": about for name, about in COMMANDS.items()}}
    width = max(map(len, rows))
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")
    print("\nsee --help of each")


def run_verb(package: str, verbs: Mapping[str, str]) -> None:
    """Run `python -m PACKAGE VERB ...`.

    Parameters
    ----------
    package : such as "tune.embeddings"
    verbs : verb -> the module whose `main` takes the rest of the arguments
    """
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print(f"usage: python -m {package} {' | '.join(verbs)} ... (each with --help)\n")
        for name, module in verbs.items():
            about = importlib.import_module(module).__doc__.splitlines()[0]
            print(f"  {name:{max(map(len, verbs))}}  {about}")
        sys.exit(0 if sys.argv[1:] else 2)
    if verb not in verbs:
        print(
            f"python -m {package}: error: a verb is {' or '.join(verbs)}, got {verb!r}",
            file=sys.stderr,
        )
        sys.exit(2)
    run_script(lambda: importlib.import_module(verbs[verb]).main(rest))
