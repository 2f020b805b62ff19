"""Run a W&B sweep file without an account: `python -m tune.sweep FILE [--workers N] ...`.

    python -m tune.sweep sweeps/demo.yaml
    python -m tune.sweep sweeps/full.yaml --workers 2 --data_dir=/music --store=/big/store
    python -m tune.sweep sweeps/pretrain.yaml --count 30

The runs are those that W&B's own engine proposes (grid, random, Bayesian, with early termination).
Each is an ordinary run of the file's program with an offline W&B run; `wandb sync` uploads them
(with a login, WANDB_MODE=online tracks them live).
Other flags are passed on to every run, written as --flag=value. If the sweep is stopped, the same
command continues it: finished runs are skipped, failed ones are tried again. A run whose tracks are
all one segment equals the full track's; it is marked as such instead of being run again.
At the end the runs are compared as compare.py does, by --margin or --retain, on the terminal and in
OUTPUT_DIR/NAME.html.
"""

from collections.abc import Sequence
from pathlib import Path

from tune.cli.flags import add_groups
from tune.cli.parser import Parser, positive_int
from tune.sweep.config import read_sweep, swept
from tune.sweep.journal import Sweep
from tune.sweep.pool import run_all
from tune.sweep.summary import print_comparison, print_table


def joined(words: Sequence[str]) -> list[str]:
    """Flags and their values as one word each: --store DIR becomes --store=DIR.

    Examples
    --------
    >>> joined(["--store", "rows", "--seg=10", "--strict"])
    ['--store=rows', '--seg=10', '--strict']
    """
    out: list[str] = []
    for word in words:
        takes = out and out[-1].startswith("--") and "=" not in out[-1]
        if takes and not word.startswith("--"):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def parse_args(argv: Sequence[str] | None = None):
    """Read the command line."""
    parser = Parser(prog="python -m tune.sweep", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a W&B sweep file")
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="runs side by side, each worker with an encoder of its own (on "
        "several GPUs, distributed over them)",
    )
    parser.add_argument(
        "--count",
        type=positive_int,
        metavar="N",
        help="at most this many runs (default: the whole grid, or 20 of a "
        "random or Bayesian search)",
    )
    parser.add_argument(
        "--search_seed",
        type=int,
        default=1234,
        metavar="SEED",
        help="seed of a random or Bayesian search",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="runs go to DIR/NAME, the sweep's journal and logs to DIR/.sweeps",
    )
    add_groups(parser, {"comparison at the end": "margin retain correction"}, {})
    args, extra = parser.parse_known_args(argv)
    extra = joined(extra)
    for flag in extra:
        if not flag.startswith("--") or "=" not in flag:
            parser.error(f"{flag}: flags for the runs are written --flag=value, after FILE")
    if args.search_seed < 0:
        parser.error(f"--search_seed must be 0 or above, got {args.search_seed}")
    return args, extra


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep and print the table of its runs."""
    args, extra = parse_args(argv)
    config = read_sweep(args.file)
    given = {flag.split("=")[0].removeprefix("--") for flag in extra}
    taken = {"name", "out", "overwrite"} & {*config["parameters"], *given}
    if taken:
        raise ValueError(f"--{min(taken)}: the sweep names its runs' folders itself")
    if both := given & set(swept(config)):
        raise ValueError(f"--{min(both)}: {args.file} varies it; change it there")
    sweep = Sweep(config, args.output_dir, extra, args.count, args.search_seed)
    run_all(sweep, args.workers)
    runs = list(sweep.runs.values())
    folders = {c.name: sweep.folder(c.name) for c in runs}
    failed = [c for c in runs if c.state == "failed"]
    if sweep.program == "train_probe.py":
        page = args.output_dir / f"{config.get('name') or 'sweep'}.html"
        judged_by = {"margin": args.margin, "retain": args.retain, "correction": args.correction}
        if print_comparison(config, runs, folders, page, **judged_by):
            print(f"  report     {page}")
            print(f"  choose     python compare.py {args.output_dir} --budget 4GB")
    else:
        print_table(config, runs, folders)
    if not any(flag.startswith("--report_to=") for flag in extra):
        from tune.runs.tracking import short_path, wandb_mode, wandb_settings

        if wandb_mode("offline") == "offline":
            runs_of_wandb = short_path(Path(wandb_settings().wandb_dir)) / "offline-run-*"
            print(f"  wandb      offline; upload:  wandb login && wandb sync {runs_of_wandb}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed; the same command tries them "
            f"again (logs: {sweep.logs})"
        )
