"""Flags that several scripts have, each declared once: a script picks them by name.

machine = parser.add_argument_group("machine")
add(machine, "batch_seconds", "store")
add(machine, "memory_budget", default="2GB")
"""

from pathlib import Path

from tune.cli.parser import positive_float, positive_int, to_bool

# A switch: --flag, --flag=true, --flag=false.
BOOL = dict(nargs="?", const=True, default=False, type=to_bool, metavar="BOOL")

FLAGS = {
    # Data
    "data_dir": dict(
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder that holds (or gets) the data sets, such as EMO/ and GTZAN/",
    ),
    "allow_outside": dict(
        **BOOL,
        help="let a jsonl or a data set name files outside its data folder (a .csv or .tsv of your "
        "own always may)",
    ),
    "data_revision": dict(
        metavar="COMMIT",
        help="branch, tag or commit of a data set of the hub (default: the one that is there, else "
        "its main branch)",
    ),
    "yes": dict(**BOOL, help="fetch data sets of more than 20 GB without asking"),
    "strict": dict(
        **BOOL,
        help="end at the first bad file, and where a benchmark is not whole, instead of reporting "
        "it",
    ),
    # Encoder and segments
    "trust_remote_code": dict(
        **BOOL, help="let an encoder that needs Python code of its own (MERT) execute it"
    ),
    "revision": dict(
        metavar="COMMIT",
        help="branch, tag or commit of an encoder from the hub (default: its main branch)",
    ),
    "layer": dict(help="hidden layer"),
    "seg": dict(
        metavar="SECONDS|full|structure",
        help="segment length in seconds, full for the whole track, or structure: cut where the "
        "music changes; several with --agg hierarchical (default: 10)",
    ),
    "hop": dict(
        type=positive_float,
        metavar="SECONDS",
        help="distance between segment starts (default: the segment length)",
    ),
    "min_tail": dict(
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="a last piece shorter than this is dropped unless it's the only one",
    ),
    "min_seg": dict(
        type=positive_float,
        metavar="SECONDS",
        help="shortest segment of --seg structure (default: 5)",
    ),
    "max_seg": dict(
        type=positive_float,
        metavar="SECONDS",
        help="longest segment of --seg structure (default: 30)",
    ),
    # Aggregator
    "tokens": dict(
        choices=["segment", "frame"],
        help="what is joined: one vector a segment, or pooled frames (default: segment; with a "
        "Transformer's checkpoint, what it was trained on)",
    ),
    "frame_rate": dict(
        type=positive_float, metavar="HZ", help="pooled frames a second with --tokens frame"
    ),
    "aggregator_checkpoint": dict(
        metavar="DIR",
        help="the Transformer: what pretrain_aggregator.py wrote to --out, or a hub id; frozen",
    ),
    "readout": dict(
        choices=["cls", "mean", "residual"],
        help="the Transformer's embedding: its [CLS] state, the mean of the token states, or the "
        "tokens' own mean with [CLS] beside it (default: as the checkpoint says)",
    ),
    # Training
    "epochs": dict(type=positive_int, help="passes over the tracks"),
    "patience": dict(
        type=positive_int,
        metavar="EPOCHS",
        help="stop after this many without a better validation score",
    ),
    "batch_size": dict(
        type=positive_int,
        metavar="TRACKS",
        help="tracks per step, over all processes and accumulation",
    ),
    "lr": dict(type=positive_float, metavar="RATE", help="learning rate"),
    # Machine
    "mixed_precision": dict(
        choices=["auto", "no", "fp16", "bf16"],
        help="the encoder's precision; auto: fp16 on a GPU below compute capability 8.0, bf16 from "
        "there, float32 on a CPU",
    ),
    "batch_seconds": dict(
        type=positive_float,
        metavar="SECONDS",
        help="audio seconds per encoder batch; halves itself on out-of-memory",
    ),
    "memory_budget": dict(
        help="what the encoder's weights and activations should stay within: a size such as 2GB, "
        "or a share of the device's memory such as 0.5; it sets the chunks of MuQ's front end and "
        "changes no result"
    ),
    "compile": dict(**BOOL, help="pass the encoder through torch.compile"),
    "store": dict(
        type=Path,
        metavar="DIR",
        help="embedding store (default: $TUNE_STORE, or tune/store in the user's cache folder)",
    ),
    "cache_dir": dict(
        type=Path,
        metavar="DIR",
        help="where composed demo music is kept (default: tune/demo in the user's cache folder)",
    ),
    # Output
    "report_to": dict(help="wandb (offline without a login), none, tensorboard, trackio, ..."),
    "project": dict(default="tune", help="the tracker's project"),
    "group": dict(help="W&B group"),
    "tags": dict(nargs="*", default=[], metavar="TAG", help="W&B tags"),
    "overwrite": dict(**BOOL, help="replace what is there"),
}


def add(group, *names: str, **changes) -> None:
    """Add flags to a parser or an argument group.

    Parameters
    ----------
    names : of `FLAGS`, without the dashes
    changes : what is otherwise in this script, such as another default or help
    """
    for name in names:
        group.add_argument(f"--{name}", **{**FLAGS[name], **changes})
