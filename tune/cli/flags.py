"""Every flag of the scripts, declared once; a script names groups of them and what differs there.

add_groups(parser, {"machine": "batch_seconds store"}, {"batch_seconds": dict(default=30.0)})
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from tune.cli.parser import (
    Flattened,
    Joined,
    positive_float,
    positive_int,
    share,
    to_bool,
    to_ints,
    to_words,
)
from tune.system.memory import parse_budget


def to_shard(text: str) -> tuple[int, int]:
    """Read I/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N such as 0/4 (I from 0), got {text!r}")
    return int(found[1]), int(found[2])


def to_rates(text: str) -> list[float]:
    """Read learning rates."""
    return [positive_float(word) for word in to_words(text)]


def to_bytes(text: str) -> int:
    """Read an amount of memory with a unit, in bytes: there's no device to take a share of."""
    if not text.strip().lower().endswith("b"):
        raise argparse.ArgumentTypeError(f"expected a size with a unit, such as 4GB, got {text!r}")
    to_size(text)
    return parse_budget(text, 1)


def to_size(text: str) -> str:
    """Read an amount of memory, or a share of a device's that isn't known yet, as it is written."""
    try:
        parse_budget(text, 10**12)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


# A switch: --flag, --flag=true, --flag=false.
def seconds_or_all(text: str) -> float | str:
    """Read a number of seconds, or "all"."""
    return text if text == "all" else positive_float(text)


BOOL = dict(nargs="?", const=True, default=False, type=to_bool, metavar="BOOL")
# Values between spaces or commas, each once.
SEVERAL = dict(nargs="+", action=Flattened)

FLAGS = {
    # Data
    "task": dict(
        default="demo",
        help="PATH: a folder or .jsonl in MARBLE's layout, or a .csv/.tsv with the columns "
        "path,label[,split]; hub:NAME, a data set with a column of audio; or your own: "
        "FILE.py:NAME, a function that gives the rows (python -m tune.tasks lists and checks them)",
    ),
    "kind": dict(
        default="auto",
        help="what the labels of a PATH or hub:NAME are: one of several classes, one of the 24 "
        "keys, numbers, or tags (lists, or names between semicolons); auto reads it off them, but "
        "for keys",
    ),
    "label_column": dict(
        metavar="NAME", help="the labels' column in a .csv, .tsv or hub:NAME (default: label)"
    ),
    "audio_column": dict(
        metavar="NAME", help="the audio's (default: path, or the only column of audio of hub:NAME)"
    ),
    "folds": dict(
        type=positive_int,
        metavar="K",
        help="cross-validation in K folds of all tracks, each tested once; 1: the task's split, or "
        "one that is made (default: 5 for a PATH without a split and of 10 to 399 tracks, else 1)",
    ),
    "group_column": dict(
        metavar="NAME",
        help="column whose values group tracks: no group is on both sides of a fold, and intervals "
        "resample whole groups (default: the first there is of group, artist, album, song and "
        "track; none: no column)",
    ),
    "tasks": dict(
        **SEVERAL,
        type=to_words,
        default=[],
        metavar="TASK",
        help="tasks as in train_probe.py; their train splits are learnt from, their val splits "
        "validated on (default: demo demo-mood demo-form, unless --audio_dir is given)",
    ),
    "audio_dir": dict(type=Path, metavar="DIR", help="audio files, with subfolders"),
    "val_share": dict(
        type=share,
        default=0.1,
        metavar="SHARE",
        help="share of --audio_dir that is kept for validation",
    ),
    "data_dir": dict(
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder that holds (or gets) the data sets, such as EMO/ and GTZAN/",
    ),
    "allow_seen": dict(
        **BOOL,
        help="go on though the aggregator was trained on some of the test tracks, and mark the "
        "result",
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
    "encoder": dict(
        help="muq (the default), muq-nano (the demo tasks' default), mel, a folder with a model's "
        "config.json and model.safetensors, a hub id: MuQ, MuQ-MuLan or any transformers audio "
        "model (python -m tune.encoders list), or your own: FILE.py:NAME"
    ),
    "trust_remote_code": dict(
        **BOOL, help="let an encoder that needs Python code of its own (MERT) execute it"
    ),
    "revision": dict(
        metavar="COMMIT",
        help="branch, tag or commit of an encoder from the hub (default: its main branch)",
    ),
    "channels": dict(
        choices=["mix", "first", "left", "right", "mid"],
        default="mix",
        help="what becomes of a file's channels: their mean, one of them, or mid, the mean of the "
        "front pair (default: mix)",
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
    "use_seconds": dict(
        type=seconds_or_all,
        metavar="SECONDS|all",
        help="use no more of each track than this, in whole segments, at least one (default: all)",
    ),
    "pick": dict(
        choices=["first", "middle", "spread", "central"],
        help="which segments --use_seconds takes: the first, those in the middle, spread over the "
        "track, or central: nearest to its mean embedding, for which all are encoded (default: "
        "first)",
    ),
    "pad_tail": dict(
        **BOOL, help="lengthen the last segment to a whole one with zeros, as MARBLE does"
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
    "skip_degenerate": dict(
        **BOOL,
        help="stop, marked, if every track is one segment: the same as --seg full (or undefined), "
        "as sweeps ask for",
    ),
    # Aggregator
    "agg": dict(default="mean", metavar="NAME|FILE.py:NAME"),
    "n_tokens": dict(
        type=positive_int,
        metavar="N",
        help="tokens that --agg concat lays end to end; missing ones are zeros (default: the "
        "longest track's)",
    ),
    "tokens": dict(
        choices=["segment", "frame"],
        help="what is joined: one vector a segment, or pooled frames (default: segment; with a "
        "Transformer's checkpoint, what it was trained on)",
    ),
    "frame_rate": dict(
        type=positive_float,
        default=1.0,
        metavar="HZ",
        help="pooled frames a second with --tokens frame",
    ),
    "aggregator_checkpoint": dict(
        metavar="DIR",
        help="the Transformer: what pretrain_aggregator.py wrote to --out, or a hub id; frozen",
    ),
    "readout": dict(
        choices=["cls", "mean", "residual", "order", "gated"],
        help="the Transformer's embedding: its [CLS] state, the mean of the token states, the "
        "tokens' own mean with [CLS] beside it, the first cosines of the token states (order), or "
        "gated: the tokens' own mean, with those of the others that are better on tracks left out "
        "of training and validation (default: as the checkpoint says)",
    ),
    "tune_aggregator": dict(
        **BOOL,
        help="train the Transformer with the probe, one copy a seed; without a checkpoint it "
        "starts from scratch",
    ),
    "aggregator_lr": dict(
        type=positive_float,
        metavar="RATE",
        help="Adam's rate for what learns in front of the probe (default: the probe's for "
        "attention, ten times that for the weights of hierarchical, whitened and --layer mix, 1e-4 "
        "for the Transformer)",
    ),
    "from_run": dict(
        metavar="DIR",
        help="take the strategy of a run of train_probe.py, and the attention, mix or whitening it "
        "learned",
    ),
    "run_seed": dict(
        type=int, metavar="SEED", help="of which of the run's seeds (default: its first)"
    ),
    # The Transformer's recipe
    "recipe": dict(choices=["tune", "study"], default="tune", help="the preset"),
    "hidden_size": dict(
        type=positive_int, metavar="H", help="width (tune and study: the token's size)"
    ),
    "num_layers": dict(type=positive_int, metavar="N", help="Transformer layers"),
    "num_heads": dict(
        type=positive_int,
        metavar="N",
        help="attention heads (tune and study: as many as the width allows, up to 8)",
    ),
    "intermediate_size": dict(
        type=positive_int, metavar="F", help="width of the feed-forward blocks"
    ),
    "dropout": dict(type=share, metavar="P", help="dropout"),
    "standardise": dict(
        choices=["none", "dimension", "within"],
        help="tokens as they are, each dimension to unit variance, or whitened by what varies "
        "within tracks",
    ),
    "positions": dict(
        choices=["rotary", "learned"], help="ModernBERT's relative ones, or learned ones as in BERT"
    ),
    "mask_prob": dict(type=share, metavar="P", help="share of masked tokens"),
    "span": dict(type=positive_int, metavar="TOKENS", help="masked in a row"),
    "objective": dict(
        choices=["mse", "cosine", "infonce"],
        help="squared error, cosine, or telling the masked token from the others of its track and "
        "batch",
    ),
    "track_weight": dict(
        type=float,
        metavar="W",
        help="weight of the [CLS] token's own objective: recognise the masked part of its own "
        "track",
    ),
    "weight_decay": dict(type=float, metavar="W", help="AdamW's decay"),
    "schedule": dict(choices=["cosine", "constant"], help="after the warm-up"),
    "warmup": dict(type=float, metavar="SHARE", help="share of the steps in which the rate rises"),
    # Training
    "seed": dict(type=int, default=1234, help="of weights, masks and order"),
    "seeds": dict(
        **SEVERAL,
        type=to_ints,
        metavar="SEED",
        help="one probe a seed, trained side by side; verdicts want 20, such as $(seq 1234 1253) "
        "(default: 1234 to 1238; 1234 for ridge and knn, which don't depend on it)",
    ),
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
    "micro_tokens": dict(
        type=positive_int,
        default=8192,
        metavar="TOKENS",
        help="tokens that pass through the model at once; a step's tracks are divided accordingly "
        "and their gradients added up",
    ),
    "gradient_checkpointing": dict(**BOOL, help="less memory, a third more time"),
    # The probe's protocol
    "protocol": dict(
        choices=["tune", "marble", "study"],
        default="tune",
        help="a preset of flags, of which each can be given beside it: ours, MARBLE v2's for MuQ, "
        "or the original study's (docs/evaluation.md lists them)",
    ),
    "fusion": dict(
        choices=["early", "late"],
        help="early: a probe on each track's joined embedding; late: a probe on segments, whose "
        "outputs are averaged per track (default: early)",
    ),
    "probe": dict(
        choices=["mlp", "linear", "ridge", "knn"],
        default="mlp",
        help="MARBLE's, with one hidden layer; linear, trained alike; ridge regression in closed "
        "form or nearest neighbours, whose strength or number is chosen on validation",
    ),
    "probe_precision": dict(
        choices=["float64", "float32"],
        default="float64",
        help="of the probes: float64 gives the same numbers on every machine, float32 takes half "
        "the time and memory with many tracks and --layer all",
    ),
    "target_scale": dict(
        choices=["standardised", "raw"],
        help="labels that are numbers: by training statistics, or as they are (default: "
        "standardised)",
    ),
    "plateau_patience": dict(
        type=positive_int,
        metavar="EPOCHS",
        help="lower the rate after more than this many without a better validation score "
        "(default: the task's)",
    ),
    "plateau_factor": dict(
        type=share, metavar="SHARE", help="what it is multiplied by then (default: the task's)"
    ),
    "accumulation": dict(
        type=positive_int,
        metavar="N",
        help="weigh a batch's samples as if it were the gradients of N batches added up: in an "
        "epoch's last, incomplete batch they weigh otherwise (default: 1)",
    ),
    "val_unit": dict(
        choices=["track", "segment", "batch"],
        help="what is scored on validation with --fusion late: tracks, segments, or segments batch "
        "by batch, averaged (default: track)",
    ),
    "tie_break": dict(
        choices=["loss", "none"],
        help="an equal validation score with a lower loss counts as better, or doesn't "
        "(default: loss)",
    ),
    "test_weights": dict(
        choices=["best", "last"],
        help="the epoch that is tested: the best on validation, or the last (default: best)",
    ),
    "averaged": dict(
        choices=["outputs", "probabilities"],
        help="what --fusion late averages (default: outputs, before softmax or sigmoid)",
    ),
    # Machine
    "mixed_precision": dict(
        choices=["auto", "no", "fp16", "bf16"],
        default="auto",
        help="the encoder's precision; auto: that of accelerate launch or accelerate config, else "
        "fp16 on a GPU below compute capability 8.0, bf16 from there, float32 on a CPU",
    ),
    "batch_seconds": dict(
        type=positive_float,
        metavar="SECONDS",
        help="audio seconds per encoder batch; halves itself on out-of-memory (default: 60; on a "
        "GPU as many as its memory holds)",
    ),
    "memory_budget": dict(
        default="2GB",
        metavar="SIZE|SHARE",
        help="what the encoder's weights and activations should stay within: a size such as 2GB, "
        "or a share of the device's memory such as 0.5; it sets the chunks of MuQ's front end and "
        "changes no result",
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
    # Output of the probe and of pretraining
    "output_dir": dict(
        type=Path, default=Path("runs"), metavar="DIR", help="the run goes to DIR/NAME"
    ),
    "report_to": dict(
        default="wandb",
        nargs="+",
        action=Joined,
        metavar="TRACKER",
        help="one or more of wandb (offline without a login), tensorboard, trackio, ...; all that "
        "are installed; or none",
    ),
    "project": dict(help="the tracker's project (default: W&B's own setting, else tune)"),
    "entity": dict(help="W&B user or team"),
    "group": dict(help="W&B group (default: an agent's sweep)"),
    "name": dict(help="the run's name (default: made of the strategy)"),
    "tags": dict(nargs="*", default=[], metavar="TAG", help="W&B tags"),
    "notes": dict(help="W&B notes"),
    "overwrite": dict(**BOOL, help="replace what is there"),
    # embed.py: output, and what is like a song
    "out": dict(
        metavar="FILE|DIR",
        help="x.parquet, x.npy (with x.csv and x.json), or a folder for datasets.load_from_disk",
    ),
    "segments": dict(
        metavar="FILE|DIR",
        help="also write one row a segment, with start_s and end_s, in any of the formats",
    ),
    "shard": dict(
        type=to_shard,
        metavar="I/N",
        help="only the share of machine I of N (from 0): writes x.shard-I-of-N.parquet",
    ),
    "merge": dict(
        nargs="+",
        metavar="FILE",
        help="put the shards of one command together (files or globs) and write --out",
    ),
    "like": dict(
        metavar="SONG",
        help="show the tracks most like a song: one of the tracks, or any audio file; without "
        "MUSIC, among those in --out",
    ),
    "k": dict(type=positive_int, default=10, metavar="N", help="this many"),
    "whiten": dict(
        **BOOL, help="even out the directions in which the collection varies before comparing"
    ),
    "mutual_proximity": dict(**BOOL, help="rank tracks that are near to everything lower"),
    "m3u": dict(type=Path, metavar="FILE", help="write them as a playlist"),
    "space": dict(
        metavar="ready|pca:D|whitened|whitened:D",
        help="add the column embedding_unit: float32, of unit length, centred (ready), cut to D "
        "directions, or whitened, so that cosines in any database rank as --like does",
    ),
    "good_only": dict(
        **BOOL,
        help="leave out the rows of files that can't be used; they go to FILE.failed.csv beside",
    ),
    # profile.py: how it is measured
    "duration": dict(
        type=positive_float,
        nargs="+",
        metavar="SECONDS",
        help="length of the track of noise that is encoded (default: 45)",
    ),
    "weights": dict(
        choices=["random", "pretrained"], default="random", help="random needs no download"
    ),
    "audio": dict(
        nargs="+", default=[], metavar="FILE", help="decode and encode these files instead of noise"
    ),
    "repeats": dict(type=positive_int, default=3, help="timed runs of a cell; the median is shown"),
    "plot": dict(
        type=Path,
        metavar="FILE",
        help="draw memory and time against track length (.png, .svg or .pdf; needs matplotlib)",
    ),
    # compare.py
    "wandb": dict(metavar="ENTITY/PROJECT", help="read this W&B project as well"),
    "costs": dict(
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="take peak memory from files that profile.py wrote to --out",
    ),
    "stability": dict(
        type=positive_int,
        metavar="N",
        help="change N test tracks (lead-in, gain, mp3, noise), embed them again, and say how far "
        "each strategy's embedding moves and how often its decision flips",
    ),
    "baseline": dict(
        metavar="SEG[:AGG]|NAME",
        help="full, 10:mean, or a run's name (default: the full track's mean, or that of 10 s "
        "where there is none)",
    ),
    "root": dict(
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder that the tracks' paths are relative to (default: here)",
    ),
    "margin": dict(
        type=positive_float,
        default=0.02,
        help="the greatest loss that is put up with: two points of accuracy, 0.02 of R² or AUC",
    ),
    "retain": dict(
        type=share,
        metavar="SHARE",
        help="instead of --margin: the share of the baseline's score above chance to be kept, such "
        "as 0.98",
    ),
    "correction": dict(
        choices=["holm", "none"], default="holm", help="of p-values for the number of comparisons"
    ),
    "budget": dict(metavar="SIZE"),
    "max_seconds": dict(
        type=positive_float,
        metavar="SECONDS",
        help="seconds of encoding a track that it must stay within",
    ),
    "html": dict(type=Path, metavar="FILE", help="the report, one file that works offline"),
    "csv": dict(type=Path, metavar="FILE", help="every cell, every column"),
    "parquet": dict(type=Path, metavar="FILE", help="the same as Parquet"),
    "markdown": dict(type=Path, metavar="FILE", help="tables and guidelines"),
    "latex": dict(type=Path, metavar="FILE", help="tables (booktabs)"),
    "figures": dict(type=Path, metavar="DIR", help="PNG and SVG figures"),
    "log_to": dict(
        metavar="[ENTITY/]PROJECT",
        help="log the report and the table of cells to W&B, as a run of type comparison (offline "
        "without a login)",
    ),
}


def add(group, *names: str, **changes) -> None:
    """Add flags to a parser or an argument group.

    Parameters
    ----------
    names : of `FLAGS`, without the dashes
    changes : what is otherwise in this script, such as another default or help
    """
    for name in names:
        dashes = "--" if len(name) > 1 else "-"
        group.add_argument(dashes + name, **{**FLAGS[name], **changes})


def add_groups(
    parser, groups: Mapping[str, str], changes: Mapping[str, Mapping] | None = None
) -> None:
    """Add groups of flags to a parser.

    Parameters
    ----------
    groups : title of a group, with its description after a line break -> names of `FLAGS` between
        spaces; those of the title "" belong to no group
    changes : name -> what is otherwise in this script
    """
    for heading, names in groups.items():
        title, _, description = heading.partition("\n")
        group = parser.add_argument_group(title, description or None) if title else parser
        for name in names.split():
            add(group, name, **(changes or {}).get(name, {}))
