"""What a strategy costs: peak memory, seconds a track, throughput.

    python profile.py --seg 10 30 60 full --agg mean concat transformer --duration 45
    python profile.py --seg full --duration 30 60 120 --budget 11GB --plot full.png
    python profile.py --seg 10 30 full --agg mean hierarchical
    python profile.py --agg transformer --aggregator_checkpoint aggregators/mine
    python profile.py --seg 10 --use_seconds 10 30 60 --pick first spread --duration 240
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
GROUPS = {
    "grid (several values each)": "seg use_seconds pick agg fusion duration encoder layer "
    "mixed_precision batch_seconds",
    "what is joined, and by which Transformer": "tokens frame_rate aggregator_checkpoint",
    "how it is measured": "weights trust_remote_code revision audio repeats memory_budget compile",
    "output": "budget plot out report_to",
}
CHANGES = {
    "seg": dict(
        nargs="+",
        default=["10", "full"],
        help="segment length in seconds, full, or structure: cut where the music changes, which "
        "noise doesn't, so give --audio (default: 10 full)",
    ),
    "fusion": dict(
        nargs="+",
        default=["early"],
        help="early: segments are joined by each --agg; late: they aren't, and a track keeps all, "
        "since the probe's outputs are averaged; it goes with --agg mean (default: early)",
    ),
    "encoder": dict(
        nargs="+",
        default=["muq"],
        metavar="NAME",
        help="as in train_probe.py; all but muq, muq-nano, mel and your own need --weights "
        "pretrained (default: muq)",
    ),
    "layer": dict(
        nargs="+", default=["last"], metavar="last|all|mix|K", help="hidden layer (default: last)"
    ),
    "mixed_precision": dict(
        nargs="+",
        default=["auto"],
        help="the encoder's precision (default: auto, as in train_probe.py)",
    ),
    "batch_seconds": dict(
        nargs="+", default=[60.0], help="audio seconds per encoder batch (default: 60)"
    ),
    "use_seconds": dict(
        nargs="+",
        default=[None],
        help="use no more of each track than this, in whole segments, at least one (default: all)",
    ),
    "pick": dict(
        nargs="+",
        default=[None],
        help="which segments --use_seconds takes: first, middle, spread or central, for which all "
        "are encoded (default: first)",
    ),
    "tokens": dict(
        default="segment", help="one vector a segment, or pooled frames as the study's Transformer"
    ),
    "aggregator_checkpoint": dict(
        help="measure this Transformer, a folder that pretrain_aggregator.py wrote or a hub id "
        "(default: the recipe tune with random weights, at the encoder's size)"
    ),
    "memory_budget": dict(
        default=None,
        metavar="SIZE",
        help="what the encoder should stay within, such as 2GB, or 0.5 of the device's memory "
        "(default: its own)",
    ),
    "budget": dict(help="say which cells fit into this, and the longest full track that does"),
    "out": dict(metavar="FILE", help="write everything as JSON"),
    "report_to": dict(
        choices=["wandb", "none"],
        default="none",
        metavar=None,
        help="log cost/... of each cell to W&B",
    ),
}


def parse_args(argv=None):
    """Read the command line."""
    from pathlib import Path

    from tune.aggregators.registry import CHOICES
    from tune.cli.flags import add_groups, to_size
    from tune.cli.parser import Parser

    agg = f"how the segments' embeddings are joined: {CHOICES}; hierarchical joins all --seg in one"
    types = {
        "agg": dict(
            nargs="+", default=["mean"], metavar="NAME", help=f"{agg} cell (default: mean)"
        ),
        "memory_budget": CHANGES["memory_budget"] | {"type": to_size},
        "budget": CHANGES["budget"] | {"type": to_size},
        "out": CHANGES["out"] | {"type": Path},
    }
    parser = Parser(prog="profile.py", description=__doc__.split("\n\nThis file")[0])
    add_groups(parser, GROUPS, CHANGES | types)
    parser.with_config()
    args = parser.parse_args(argv)
    with parser.show_errors():
        args.seg = list(dict.fromkeys(map(segment_name, args.seg)))
        args.agg = list(dict.fromkeys(args.agg))
        check_grid(args)
    args.duration = args.duration or [45.0]
    return args


def segment_name(text: str) -> str:
    """Read a segment rule; the name that results go by, unless that rounds it."""
    from tune.segments.rules import parse_rule

    name = parse_rule(text).name
    return name if parse_rule(name) == parse_rule(text) else text


def check_grid(args) -> None:
    """Raise ValueError when flags don't belong together, or a file can't be written."""
    import importlib.util

    from tune.aggregators.flag_rules import check_flags
    from tune.aggregators.registry import find_row
    from tune.segments.pick import read_pick
    from tune.segments.rules import parse_rule

    for seconds, pick in picks(args):
        for seg in args.seg if len(args.seg) == 1 else [s for s in args.seg if s != "full"]:
            parse_rule(seg, pick=read_pick(seconds, pick))
    if "late" in args.fusion and "mean" not in args.agg:
        raise ValueError("--fusion late joins no embeddings: it goes with --agg mean")
    if args.audio and args.duration:
        raise ValueError("--audio and --duration exclude each other: a file has its own length")
    rows = {agg: find_row(agg) for agg in args.agg}
    for agg, row in rows.items():
        for layer in args.layer:
            segs = args.seg if row.several_segs else args.seg[:1]
            check_flags(agg, segs, layer, needs_checkpoint=False)
    if args.aggregator_checkpoint and not any(row.pretrained for row in rows.values()):
        raise ValueError("--aggregator_checkpoint belongs to --agg transformer")
    if args.plot:
        if args.audio or len(set(args.duration or ())) < 2:
            raise ValueError("--plot draws against track length: give two or more --duration")
        if args.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {args.plot.name!r}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib: pip install matplotlib")
    for flag, path in (("out", args.out), ("plot", args.plot)):
        if path and path.is_dir():
            raise ValueError(f"--{flag} {path} is a folder; a file is needed")


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
    started = start_wandb(record) if args.report_to == "wandb" else None
    for path in filter(None, (args.out, args.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)

    rows = record["rows"]
    for i, cell in enumerate(cells, start=1):
        settings = describe(cell)
        print(f"[{i}/{len(cells)}] {report.describe_config(settings)}", file=sys.stderr)
        found = measure(cell, args.repeats)
        rows.append(report.complete_row(settings, found, rates[cell.precision]))
        write_json(args.out, record)  # a long grid that is stopped keeps what it has
        if started:
            started[0].log(numbers(rows[-1]), step=i)
    console = Console(width=None if sys.stdout.isatty() else 190)
    report.print_costs(rows, name, console)
    if budget:
        record["budget"] = report.budget_answer(rows, budget)
        report.print_budget(rows, record["budget"], console)
        write_json(args.out, record)
    if args.plot:
        report.plot_costs(rows, name, args.plot)
    if started:
        from tune.runs.tracking import finish_run

        print(*finish_run(*started), sep="\n")


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
    strategies = [
        (*strategy, fusion)
        for strategy in strategies
        for fusion in dict.fromkeys(args.fusion)
        if fusion == "early" or strategy[1] == "mean"
    ]
    wanted = [
        (track, *strategy, (None, None) if strategy[0] == "full" else picked)
        for track in ([(None, tuple(args.audio))] if args.audio else tracks)
        for strategy in strategies
        for picked in picks(args)
    ]
    if args.budget:
        lengths = set(args.duration)
        if len(lengths) == 1:
            lengths.add(args.duration[0] / 2)
        agg = (plain or ["mean"])[0]
        wanted += [((s, ()), "full", agg, "early", (None, None)) for s in sorted(lengths)]
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
            fusion=fusion,
            use_seconds=picked[0],
            pick=picked[1],
            **fixed,
        )
        for encoder, precision, layer, batch_s in settings
        for track, seg, agg, fusion, picked in wanted
    ]
    return dict.fromkeys(cells)


def picks(args) -> list[tuple]:
    """Pairs of --use_seconds and --pick; all of each track is no pair of several."""
    import itertools

    if args.use_seconds == [None]:
        return [(None, pick) for pick in args.pick]
    pairs = itertools.product(args.use_seconds, [pick or "first" for pick in args.pick])
    return [(None, None) if seconds == "all" else (seconds, pick) for seconds, pick in pairs]


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
    settings = (
        "seg",
        "agg",
        "fusion",
        "layer",
        "encoder",
        "precision",
        "batch_seconds",
        "duration_s",
    )
    out = {f"cell/{key}": row[key] for key in settings}
    values = {k: v for k, v in row.items() if k not in settings and not isinstance(v, bool)}
    return out | {f"cost/{k}": v for k, v in values.items() if isinstance(v, int | float)}


def start_wandb(record) -> tuple:
    """Begin a W&B run, offline without a login or a server: the run, its mode, and why."""
    import wandb

    from tune.runs.tracking import begin_wandb_run, wandb_identity, wandb_mode

    project, about = wandb_identity({}, {"project": "tune", "job_type": "profile"}, [])
    about |= {
        "project": project,
        "config": {key: record[key] for key in ("machine", "versions", "git_sha", "command")},
    }
    return begin_wandb_run(
        lambda mode, settings: wandb.init(mode=mode, settings=settings, **about), wandb_mode()
    )


def write_json(path, record) -> None:
    """Write the record, whole or not at all."""
    import json

    from tune.system.files import atomic_write_text

    if path is not None:
        atomic_write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    from tune.cli.parser import read_arguments, run_script

    args = read_arguments(parse_args)
    run_script(lambda: main(args))
