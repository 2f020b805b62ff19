"""A probe that encodes once, compared with one that encodes in every epoch.

    python benchmarks/per_epoch.py
    python benchmarks/per_epoch.py --encoder muq-nano --tracks 6 --duration 3

Ours: every track of train and val is decoded, encoded and stored once, then the probe is trained
for 50 epochs from the store. The study and MARBLE v2 push the audio through the backbone in every
epoch. Of that side ONE epoch's encoding is measured and multiplied by 50. It is the fairest to
that side: it runs OUR fast encoder, its audio is already decoded in memory, and its probe costs
what ours does. The test split is encoded once on both sides and left out. Writes both sides and
the ratio as JSON.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys

from flags import add_common, check_common

from tune.cli.parser import Parser, positive_float, positive_int, read_arguments, run_script
from tune.segments.rules import parse_rule

NAME = "per_epoch"


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--tracks",
        type=positive_int,
        default=9,
        metavar="N",
        help="tracks of train and val together (a third is val), at least 6",
    )
    parser.add_argument(
        "--duration",
        type=positive_float,
        default=20.0,
        metavar="SECONDS",
        help="length of each track",
    )
    parser.add_argument(
        "--seg", default="10", metavar="SECONDS|full|structure", help="segment length"
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=50,
        help="of the probe; all are trained, without an early stop",
    )
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, [args.seg])
    if args.tracks < 6:
        parser.error(f"--tracks must be 6 or more, got {args.tracks}")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import common
import soundfile
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.track_features import load_task_features
from tune.audio.decode import read_audio
from tune.encoders.base import SAMPLE_RATE
from tune.probing.bank import ProbeData
from tune.store.encode import encode_segments, encode_tracks
from tune.store.store import Store
from tune.tasks.load import load_task

ROOT = Path(__file__).resolve().parent.parent


def main(args):
    """Compose the task, encode it for one epoch, then run our way, and report."""
    device = common.choose_device(args)
    accelerator = Accelerator(
        cpu=device.type == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    encoder = common.load_ours(args.encoder, args.weights, device)
    rule, layers = parse_rule(args.seg), [encoder.n_layers]
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder), args.tracks, args.duration)
        splits = {split: task.splits[split] for split in ("train", "val")}
        paths = [path for split in splits.values() for path in split["path"]]
        tracks = [read_audio(path, SAMPLE_RATE) for path in paths]
        spans = [rule.cut(samples, SAMPLE_RATE) for samples in tracks]
        encode_segments(tracks[0], spans[0], encoder, layers)  # warm

        def encode_an_epoch():
            for samples, cuts in zip(tracks, spans, strict=True):
                encode_segments(samples, cuts, encoder, layers)

        _, epoch_s = common.clock(device, encode_an_epoch)
        print(f"one epoch's encoding: {epoch_s:.1f} s", file=sys.stderr)
        store = Store(Path(folder) / "store")
        collection = store.collection(encoder, layers, None)
        report, encode_s = common.clock(
            device, lambda: encode_tracks(paths, encoder, rule, store, collection)
        )
        script, history = import_train_probe(), []
        flags = ["--seeds=1234", "--batch_size=64", f"--epochs={args.epochs}"]
        recipe = script.parse_args([*flags, f"--patience={args.epochs + 1}"])
        script.apply_protocol(recipe, task)
        aggregator = TrackAggregator("mean", [rule.name], sample_rate=SAMPLE_RATE)
        silent = SimpleNamespace(log=lambda *args, **kwargs: None)

        def probe():
            features, _ = load_task_features(splits, collection, [report.rows], "mean")
            data = ProbeData(task, features, device)
            with contextlib.redirect_stdout(io.StringIO()):
                script.train(accelerator, silent, task, data, aggregator, recipe, history)

        _, probe_s = common.clock(device, probe)

    assert len(history) == args.epochs
    ours = {
        "encode_and_store_s": encode_s,
        "probe_s": probe_s,
        "total_s": encode_s + probe_s,
        "encoder_passes": report.encoder_passes,
    }
    every = {
        "measured_epochs": 1,
        "measured_encode_s": epoch_s,
        "multiplied_by": args.epochs,
        "encode_s": epoch_s * args.epochs,
        "probe_s": probe_s,
        "total_s": epoch_s * args.epochs + probe_s,
        "encoder_passes": sum(map(len, spans)) * args.epochs,
        "how": f"one epoch's encoding measured and multiplied by {args.epochs}, with our encoder, "
        "audio already in memory, and our probe's seconds added",
    }
    ratio = every["total_s"] / ours["total_s"]
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "tracks": {split: len(data) for split, data in splits.items()},
            "duration_s": args.duration,
            "seg": args.seg,
            "epochs": args.epochs,
            "encode_once": ours,
            "encode_every_epoch": every,
            "ratio": ratio,
        },
    )
    show(args, ours, every, ratio, path)


def make_task(folder: Path, n_tracks: int, duration_s: float):
    """Write composed tracks of two classes and a CSV, and load them as a task; test has two."""
    n_val = n_tracks // 3
    splits = ["train"] * (n_tracks - n_val) + ["val"] * n_val + ["test"] * 2
    lines = ["path,label,split"]
    for i, split in enumerate(splits):
        samples = common.compose(duration_s if split != "test" else 1.0, SAMPLE_RATE, seed=i)
        soundfile.write(folder / f"{i:04d}.wav", samples, SAMPLE_RATE)
        lines.append(f"{i:04d}.wav,{('one', 'other')[i % 2]},{split}")
    (folder / "composed.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_task(str(folder / "composed.csv"), cache_dir=folder)


def import_train_probe():
    """The script train_probe.py as a module, for its training loop."""
    spec = importlib.util.spec_from_file_location("train_probe", ROOT / "train_probe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def show(args, ours, every, ratio, path) -> None:
    """Print the table."""
    rows = [
        [
            name,
            f"{encode:.2f}",
            f"{side['probe_s']:.2f}",
            f"{side['total_s']:.2f}",
            str(side["encoder_passes"]),
        ]
        for name, encode, side in (
            ("encode once (ours)", ours["encode_and_store_s"], ours),
            ("encode in every epoch", every["encode_s"], every),
        )
    ]
    common.print_table(
        f"{args.encoder}, {args.tracks} tracks of {args.duration:g} s, {args.epochs} epochs: "
        "seconds",
        ["", "encode", "probe", "total", "encoder passes"],
        rows,
        [
            f"ratio: {ratio:.1f}x",
            f"encode in every epoch: ONE epoch measured ({every['measured_encode_s']:.2f} s) and "
            f"multiplied by {args.epochs},",
            "with our fast encoder and audio already in memory: the fairest to that side",
            str(path),
        ],
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
