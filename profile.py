"""What a strategy costs: peak memory, seconds a track, throughput.

    python profile.py --seg 10 30 60 full --agg mean concat transformer --duration 45
    python profile.py --seg full --duration 30 60 120 --budget 11GB --plot full.png
    python profile.py --seg 10 30 full --agg mean hierarchical
    python profile.py --agg transformer --aggregator_checkpoint aggregators/mine
    python profile.py --encoder muq-nano --seg 10 structure --audio song.mp3 --out costs.json

Every flag that takes several values spans a grid; each cell is measured in a process of its own.
Only hierarchical takes all --seg together, as one cell: its cost is that of all scales. The GPU is
used where there is one (CUDA_VISIBLE_DEVICES= leaves it out). Weights are random unless you ask
for others: what encoding and joining cost doesn't depend on them, and nothing is downloaded. For
the study's track lengths (45 s: EMO, 30 s: GTZAN) its figures stand beside ours.

This file bears the name of a standard-library module, which cProfile, and through it torch's
compiler and every optimizer, imports; scripts put the repository root first on the path, so ours
is what they get. Imported, it therefore steps aside for the standard library's module.
"""

import sys

if __name__ != "__main__":
    import importlib.util
    import sysconfig
    from pathlib import Path

    _path = Path(sysconfig.get_path("stdlib"), "profile.py")
    _spec = importlib.util.spec_from_file_location(__name__, _path)
    _module = importlib.util.module_from_spec(_spec)
    # The import system returns whatever stands here once this file has run.
    sys.modules[__name__] = _module
    _spec.loader.exec_module(_module)


# Imports are inside the functions: imported as the standard library's module, this loads nothing.
def parse_args(argv=None):
    """Read the command line."""
    import importlib.util
    from argparse import ArgumentTypeError
    from pathlib import Path

    from tune.aggregators.registry import CHOICES, find_row
    from tune.cli.flags import add
    from tune.cli.parser import Parser, positive_float, positive_int
    from tune.segments.rules import parse_rule
    from tune.system.memory import parse_budget

    def checked(read):
        """Argument type: what `read` makes of the text, its error in one line."""

        def check(text):
            try:
                return read(text)
            except ValueError as error:
                raise ArgumentTypeError(str(error)) from error

        return check

    def amount(text):
        """An amount of memory, as it was written."""
        parse_budget(text, 10**12)
        return text

    def segment(text):
        """Read a segment rule; the name that results go by, unless that rounds it."""
        name = parse_rule(text).name
        return name if parse_rule(name) == parse_rule(text) else text

    # The form only: a fraction is one of the device's memory, which isn't known yet.
    size = checked(amount)
    parser = Parser(prog="profile.py", description=__doc__.split("\n\nThis file")[0])
    grid = parser.add_argument_group("grid (several values each)")
    add(
        grid,
        "seg",
        type=checked(segment),
        nargs="+",
        default=["10", "full"],
        help="segment length in seconds, full, or "
        "structure: cut where the music changes, which noise doesn't, so give "
        "--audio (default: 10 full)",
    )
    grid.add_argument(
        "--agg",
        nargs="+",
        default=["mean"],
        metavar="NAME",
        help=f"how the segments' embeddings are joined: {CHOICES}; "
        "hierarchical joins all --seg in one cell (default: mean)",
    )
    grid.add_argument(
        "--duration",
        type=positive_float,
        nargs="+",
        metavar="SECONDS",
        help="length of the track of noise that is encoded (default: 45)",
    )
    grid.add_argument(
        "--encoder",
        nargs="+",
        default=["muq"],
        metavar="NAME",
        help="as in train_probe.py; all but muq, muq-nano, mel and your own "
        "need --weights pretrained (default: muq)",
    )
    add(
        grid,
        "layer",
        nargs="+",
        default=["last"],
        metavar="last|all|mix|K",
        help="hidden layer (default: last)",
    )
    add(
        grid,
        "mixed_precision",
        nargs="+",
        default=["auto"],
        help="the encoder's precision (default: auto, as in train_probe.py)",
    )
    add(
        grid,
        "batch_seconds",
        nargs="+",
        default=[60.0],
        help="audio seconds per encoder batch (default: 60)",
    )
    joining = parser.add_argument_group("what is joined, and by which Transformer")
    add(
        joining,
        "tokens",
        default="segment",
        help="one vector a segment, or pooled frames as the study's Transformer",
    )
    add(joining, "frame_rate", default=1.0)
    add(
        joining,
        "aggregator_checkpoint",
        help="measure this Transformer, a folder that pretrain_aggregator.py wrote or a "
        "hub id (default: the recipe tune with random weights, at the encoder's size)",
    )
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--weights",
        choices=["random", "pretrained"],
        default="random",
        help="random needs no download",
    )
    add(how, "trust_remote_code", "revision")
    how.add_argument(
        "--audio",
        nargs="+",
        default=[],
        metavar="FILE",
        help="decode and encode these files instead of noise",
    )
    how.add_argument(
        "--repeats", type=positive_int, default=3, help="timed runs of a cell; the median is shown"
    )
    add(
        how,
        "memory_budget",
        type=size,
        metavar="SIZE",
        help="what the encoder should "
        "stay within, such as 2GB, or 0.5 of the device's memory (default: its own)",
    )
    add(how, "compile")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--budget",
        type=size,
        metavar="SIZE",
        help="say which cells fit into this, and the longest full track that does",
    )
    output.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw memory and time against track length (.png, .svg or .pdf; needs matplotlib)",
    )
    output.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    add(
        output,
        "report_to",
        choices=["wandb", "none"],
        default="none",
        help="log cost/... of each cell to W&B",
    )
    parser.with_config()
    args = parser.parse_args(argv)
    if args.audio and args.duration:
        parser.error("--audio and --duration exclude each other: a file has its own length")
    args.duration = args.duration or [45.0]
    args.seg, args.agg = list(dict.fromkeys(args.seg)), list(dict.fromkeys(args.agg))
    try:
        aggregators = {agg: find_row(agg) for agg in args.agg}
    except ValueError as error:
        parser.error(str(error))
    joins_all = [agg for agg, row in aggregators.items() if row.several_segs]
    if joins_all and len(args.seg) < 2:
        parser.error(f"--agg {joins_all[0]} needs several --seg, such as 10 30 full")
    pretrained = any(row.pretrained for row in aggregators.values())
    several = [layer for layer in args.layer if layer in ("all", "mix")]
    if pretrained and several:
        parser.error(f"a Transformer joins one layer's tokens: --layer last or K, not {several[0]}")
    if args.aggregator_checkpoint and not pretrained:
        parser.error("--aggregator_checkpoint belongs to --agg transformer")
    if args.plot:
        if args.audio or len(set(args.duration)) < 2:
            parser.error("--plot draws against track length: give two or more --duration")
        if args.plot.suffix not in (".png", ".svg", ".pdf"):
            parser.error(f"--plot must end in .png, .svg or .pdf, got {args.plot.name!r}")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install matplotlib")
    for flag, path in (("out", args.out), ("plot", args.plot)):
        if path and path.is_dir():
            parser.error(f"--{flag} {path} is a folder; a file is needed")
    return args


def main(args) -> None:
    """Measure every cell of the grid, then print, write, draw and log."""

    import torch
    from rich.console import Console

    from tune.encoders.base import DTYPES
    from tune.profiling import report
    from tune.profiling.arithmetic import matrix_rate
    from tune.profiling.measure import measure
    from tune.runs import result
    from tune.system.files import hide_home
    from tune.system.memory import device_memory, parse_budget

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = device_memory(device)
    budget = parse_budget(args.budget, memory) if args.budget else None
    cells = list(grid(args, device, memory))
    rates = {p: matrix_rate(device, DTYPES[p]) for p in dict.fromkeys(c.precision for c in cells)}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the cells' memory, not ours
    name = result.device_name(device)
    record = {
        "machine": {
            "device": name,
            "memory_bytes": memory,
            "threads": torch.get_num_threads(),
            "matrix_flops_per_second": rates,
        },
        "versions": result.versions(),
        "git_sha": result.git_sha(),
        "command": hide_home(" ".join(["profile.py", *sys.argv[1:]])),
        "repeats": args.repeats,
        "rows": [],
    }
    wandb_run = start_wandb(record) if args.report_to == "wandb" else None
    for path in filter(None, (args.out, args.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)

    rows = record["rows"]
    for i, cell in enumerate(cells, start=1):
        settings = describe(cell)
        print(f"[{i}/{len(cells)}] {report.describe_config(settings)}", file=sys.stderr)
        found = measure(cell, args.repeats)
        rows.append(report.complete_row(settings, found, rates[cell.precision]))
        write_json(args.out, record)  # a long grid that is stopped keeps what it has
        if wandb_run:
            wandb_run.log(numbers(rows[-1]), step=i)
    console = Console(width=None if sys.stdout.isatty() else 190)
    report.print_costs(rows, name, console)
    if budget:
        record["budget"] = report.budget_answer(rows, budget)
        report.print_budget(rows, record["budget"], console)
        write_json(args.out, record)
    if args.plot:
        report.plot_costs(rows, name, args.plot)
    if wandb_run:
        wandb_run.finish()


def grid(args, device, memory):
    """Yield every cell once; a budget needs the full track at two durations or more."""
    import itertools

    from tune.aggregators.registry import find_row
    from tune.audio.decode import AudioError, check_file
    from tune.encoders.base import precision_on
    from tune.profiling.measure import ProfileConfig
    from tune.system.memory import parse_budget

    for path in args.audio:
        try:
            check_file(path)
        except AudioError as error:
            raise ValueError(f"--audio {path}: {error}") from error
    precisions = [precision_on(device, precision) for precision in args.mixed_precision]
    fixed = {
        "weights": args.weights,
        "device": device.type,
        "memory_budget": parse_budget(args.memory_budget, memory) if args.memory_budget else None,
        "compile": args.compile,
        "trust_remote_code": args.trust_remote_code,
        "revision": args.revision,
        "frame_rate": args.frame_rate if args.tokens == "frame" else None,
    }
    tracks = [(seconds, ()) for seconds in args.duration]
    plain = [agg for agg in args.agg if not find_row(agg).several_segs]
    strategies = list(itertools.product(args.seg, plain))
    strategies += [("+".join(args.seg), agg) for agg in args.agg if agg not in plain]
    wanted = [
        (track, *strategy)
        for track in ([(None, tuple(args.audio))] if args.audio else tracks)
        for strategy in strategies
    ]
    if args.budget:
        lengths = set(args.duration)
        if len(lengths) == 1:
            lengths.add(args.duration[0] / 2)
        wanted += [((seconds, ()), "full", (plain or ["mean"])[0]) for seconds in sorted(lengths)]
    settings = itertools.product(args.encoder, precisions, args.layer, args.batch_seconds)
    cells = [
        ProfileConfig(
            seg,
            agg,
            track[0],
            layer,
            encoder,
            precision=precision,
            batch_seconds=batch_s,
            audio=track[1],
            aggregator_checkpoint=checkpoint_of(args, agg),
            **fixed,
        )
        for encoder, precision, layer, batch_s in settings
        for track, seg, agg in wanted
    ]
    return dict.fromkeys(cells)


def checkpoint_of(args, agg):
    """The checkpoint of a cell with this aggregator: only the Transformer has one."""
    from tune.aggregators.registry import find_row

    return args.aggregator_checkpoint if find_row(agg).pretrained else None


def describe(cell) -> dict:
    """A cell's settings as they go into a row; files and checkpoints without their folders."""
    from dataclasses import asdict
    from pathlib import Path

    from tune.aggregators.registry import find_row, readable_name

    checkpoint = cell.aggregator_checkpoint
    if checkpoint and Path(checkpoint).is_dir():
        checkpoint = Path(checkpoint).resolve().name
    return (
        asdict(cell)
        | {
            "audio": [Path(path).name for path in cell.audio],
            "aggregator_checkpoint": checkpoint,
            "agg": readable_name(cell.agg),
        }
        | find_row(cell.agg).record
    )


def numbers(row) -> dict:
    """A row's numbers under W&B's names; what was measured goes under cost/."""
    settings = ("seg", "agg", "layer", "encoder", "precision", "batch_seconds", "duration_s")
    out = {f"cell/{key}": row[key] for key in settings}
    values = {k: v for k, v in row.items() if k not in settings and not isinstance(v, bool)}
    return out | {f"cost/{k}": v for k, v in values.items() if isinstance(v, int | float)}


def start_wandb(record):
    """Begin a W&B run, offline without a login."""
    import os

    import wandb

    from tune.runs.tracking import wandb_mode

    config = {key: record[key] for key in ("machine", "versions", "git_sha", "command")}
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "tune"),
        job_type="profile",
        mode=wandb_mode(),
        config=config,
        settings=wandb.Settings(silent=True),
    )


def write_json(path, record) -> None:
    """Write the record, whole or not at all."""
    import json

    from tune.system.files import atomic_write_text

    if path is not None:
        atomic_write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    from tune.cli.parser import begin, run_script

    args = begin(parse_args)
    run_script(lambda: main(args))
