"""Training probes in float64 and in float32, in the shape of MagnaTagATune with all layers.

    python benchmarks/probes.py
    python benchmarks/probes.py --device cuda --tracks 18706
    python benchmarks/probes.py --tracks 200 --layers 2 --size 64 --seeds 2 --rounds 1

Made-up embeddings and tags; train_probe.py's own loop trains one probe per layer and seed side by
side, two epochs in either precision in turn, of which the second counts: the first has what comes
once. An epoch grows with the tracks: the whole of MagnaTagATune (18,706 training tracks) for 50
epochs is calculated from it. Writes medians, spreads and the ratio as JSON.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.cli.parser import Parser, positive_int, read_arguments, run_script

NAME = "probes"
MTT_TRAIN, MTT_TAGS, EPOCHS = 18_706, 50, 50
PRECISIONS = ("float64", "float32")


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    for flag, usual, text in (
        ("--tracks", 1024, "training tracks"),
        ("--layers", 13, "layers, each with a probe a seed"),
        ("--size", 1024, "values of an embedding"),
        ("--seeds", 5, "seeds"),
        ("--rounds", 3, "trainings in each precision; the median counts"),
    ):
        parser.add_argument(flag, type=positive_int, default=usual, metavar="N", help=text)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to train")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the JSON goes (default: benchmarks/results/probes-DEVICE.json)",
    )
    args = parser.parse_args(argv)
    args.encoder = args.weights = None
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import contextlib
import io
import time
from types import SimpleNamespace

import common
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from per_epoch import import_train_probe

from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.track_features import Features
from tune.encoders.base import SAMPLE_RATE
from tune.probing.bank import ProbeData
from tune.tasks.label_kinds import label_kind


def main(args):
    """Train in each precision in turn, report."""
    device = common.choose_device(args)
    accelerator = Accelerator(
        cpu=device.type == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    script = import_train_probe()
    seeds = [str(1234 + i) for i in range(args.seeds)]
    recipe = script.parse_args(["--task=mtt", "--epochs=2", "--seeds", *seeds])
    task = make_task(args.tracks)
    script.apply_protocol(recipe, task)
    aggregator = TrackAggregator("mean", ["full"], sample_rate=SAMPLE_RATE)
    ends = []  # of epochs
    tracker = SimpleNamespace(log=lambda *args, **kwargs: ends.append(time.perf_counter()))
    data = {
        name: ProbeData(
            task,
            make_features(task, args.layers, args.size),
            device,
            in_place=True,
            dtype=getattr(torch, name),
        )
        for name in PRECISIONS
    }

    def train(name):
        ends.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            script.train(accelerator, tracker, task, data[name], aggregator, recipe, [])
        return ends[1] - ends[0]

    seconds = {name: [] for name in PRECISIONS}
    for _ in range(args.rounds + 1):  # the first ones warm up
        for name in PRECISIONS:
            seconds[name].append(train(name))
    times = {name: common.time_statistics(each[1:]) for name, each in seconds.items()}
    whole_s = {
        name: each["median_s"] * MTT_TRAIN / args.tracks * EPOCHS for name, each in times.items()
    }
    ratio = times["float64"]["median_s"] / times["float32"]["median_s"]
    probes = args.layers * args.seeds
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "tracks": args.tracks,
            "layers": args.layers,
            "seeds": args.seeds,
            "size": args.size,
            "tags": MTT_TAGS,
            "rounds": args.rounds,
            "epoch": times,
            "ratio": ratio,
            "magnatagatune_s": whole_s,
        },
    )
    common.print_table(
        f"{probes} probes, {args.tracks:,} training tracks: seconds of an epoch, median of "
        f"{args.rounds}",
        ["precision", "seconds", f"MagnaTagATune, {EPOCHS} epochs"],
        [
            [name, common.show_spread(times[name]), f"{whole_s[name] / 60:.0f} min"]
            for name in PRECISIONS
        ],
        [f"ratio, float64 / float32: {ratio:.2f}x", str(path)],
    )


def make_task(n_train: int):
    """Tags that mean nothing, in splits of MagnaTagATune's shares."""
    rng, sizes = np.random.default_rng(0), {"train": n_train}
    sizes |= {"val": max(8, n_train // 10), "test": max(8, n_train // 4)}
    splits = {}
    for split, n in sizes.items():
        tags = (rng.random((n, MTT_TAGS)) < 0.1).astype(np.float32)
        tags[: min(n, MTT_TAGS)][np.diag_indices(min(n, MTT_TAGS))] = 1  # each at least once
        tags[-1] = 0
        splits[split] = {"path": [f"{split}-{i}" for i in range(n)], "label": tags.tolist()}
    parts = [f"tag {i}" for i in range(MTT_TAGS)]
    return SimpleNamespace(
        name="mtt", kind="tags", classes=parts, splits=splits, recipe=label_kind("tags").recipe
    )


def make_features(task, n_layers: int, size: int) -> dict:
    """Standard normal embeddings of every split: (V, n, D)."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for split, rows in task.splits.items():
        n = len(rows["path"])
        values = torch.randn(n_layers, n, size, generator=rng, dtype=torch.float64)
        found[split] = Features(values, torch.ones(n_layers, n, size, dtype=torch.bool), 0)
    return found


if __name__ == "__main__":
    run_script(lambda: main(args))
