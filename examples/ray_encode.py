"""Encodes a task or a folder of music with Ray Data: some workers decode, others encode and store.

    pip install "tune-embeddings[ray]"
    python examples/ray_encode.py /net/music --encoder muq --seg 10 --store /net/store \
        --encoders 4 --decoders 64

Without RAY_ADDRESS it runs on this machine alone. Files are hashed, looked up and decoded on CPUs;
actors with a GPU each get the samples through Ray's object store, encode them in shared batches and
write the rows. What is stored is neither decoded nor encoded again: an actor that dies is started
again by Ray, and the command, killed and run again, goes on where it stopped. Music and store are
on folders that all machines share.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.cli.parser import one_line, positive_int, read_arguments, run_script, set_up_logging
from tune.store.store import default_root
from tune.tasks.encode_shard import find_paths, load_extractor, make_parser, read


def parse_args(argv=None):
    """Read the command line: that of `python -m tune.store encode`, and how many workers."""
    parser = make_parser("ray_encode.py", __doc__)
    group = parser.add_argument_group("workers")
    group.add_argument("--encoders", type=positive_int, default=1, help="actors that encode")
    group.add_argument("--decoders", type=positive_int, default=2, help="actors that decode")
    group.add_argument("--gpus", type=float, help="of an encoder (default: 1 where there are any)")
    group.add_argument("--tracks", type=positive_int, default=32, help="sent to an encoder at once")
    args = read(parser, argv)
    if len(args.rules) > 1:
        parser.error("one --seg a time: run the command for each")
    if args.shard:
        parser.error("--shard is for python -m tune.store encode: Ray deals out the tracks itself")
    args.store = Path(args.store or default_root()).resolve()
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import ray
import torch

from tune.audio.decode import AudioError, Sound, decode
from tune.store.encode import encode_tracks
from tune.store.look_ahead import Lookup
from tune.store.store import Store


def load(args):
    """The encoder with its rule, layers and store, on this worker's GPU if it has one."""
    return load_extractor(args, "cuda" if torch.cuda.is_available() else "cpu")


def describe(args) -> tuple:
    """The rows' collection and the encoder's sample rate, by a worker that can encode."""
    extractor = load(args)
    return extractor.collection, extractor.encoder.sample_rate


class Decode:
    """Hashes a file, looks it up, and decodes it if it isn't stored."""

    def __init__(self, args, collection, sample_rate: int):
        self.args, self.sample_rate = args, sample_rate
        (rule,), encoder = args.rules, SimpleNamespace(sample_rate=sample_rate)
        self.lookup = Lookup(Store(args.store), collection, encoder, rule)

    def __call__(self, track: dict) -> dict:
        """Path to path, content, samples (n,) float32 as bytes, notes, result."""
        path, content, stored, reason = self.lookup(track["path"])
        sound = Sound(np.empty(0, np.float32))
        result = "stored before" if stored else reason or ""
        if not result:
            try:
                sound = decode(path, self.sample_rate, channels=self.args.channels)
            except AudioError as error:
                result = str(error)
        samples, notes = sound.samples.tobytes(), json.dumps(sound.notes)
        return {**track, "content": content, "samples": samples, "notes": notes, "result": result}


class KnownFiles(Store):
    """A store that knows its files' contents: they aren't read again."""

    def content(self, path) -> str:
        """The content that was found where the file was decoded."""
        return self.contents[path]


class Encode:
    """Encodes decoded tracks and writes their rows."""

    def __init__(self, args):
        self.args, self.extractor = args, load(args)
        self.extractor.store = KnownFiles(args.store)

    def decode(self, path, sample_rate: int, channels: str) -> Sound:
        """Samples that came with the batch."""
        return self.sounds.pop(path)

    def __call__(self, batch: dict) -> dict:
        """Tracks of a batch to their results: "encoded", or why they are skipped."""
        results, paths = list(batch["result"]), list(batch["path"])
        todo = [i for i, result in enumerate(results) if not result]
        self.extractor.store.contents = {paths[i]: batch["content"][i] for i in todo}
        self.sounds = {
            paths[i]: Sound(
                np.frombuffer(batch["samples"][i], np.float32), tuple(json.loads(batch["notes"][i]))
            )
            for i in todo
        }
        report = encode_tracks(
            [paths[i] for i in todo],
            self.extractor.encoder,
            self.args.rules[0],
            self.extractor.store,
            self.extractor.collection,
            frame_rate=self.extractor.frame_rate,
            batch_seconds=self.args.batch_seconds,
            decoder=self,
        )
        reasons = {item["path"]: item["reason"] for item in report.skipped}
        for i in todo:
            results[i] = reasons.get(paths[i], "encoded")
        return {"path": np.array(paths), "result": np.array(results)}


def main(args):
    """Find the tracks, start the pipeline, report."""
    set_up_logging(True)
    paths = find_paths(args)
    ray.init(log_to_driver=False)
    if args.gpus is None:
        args.gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
    on_gpu = {"num_cpus": 1, "num_gpus": args.gpus}
    collection, sample_rate = ray.get(ray.remote(**on_gpu)(describe).remote(args))
    n_blocks = min(len(paths), max(4 * args.decoders, min(10_000, len(paths) // 8)))
    tracks = ray.data.from_items([{"path": p} for p in paths], override_num_blocks=n_blocks)
    done = tracks.map(
        Decode,
        fn_constructor_args=(args, collection, sample_rate),
        compute=ray.data.ActorPoolStrategy(size=args.decoders),
        num_cpus=0.5,
    ).map_batches(
        Encode,
        fn_constructor_args=(args,),
        batch_size=args.tracks,
        compute=ray.data.ActorPoolStrategy(size=args.encoders),
        **on_gpu,
    )
    counts = Counter()
    for track in done.iter_rows():
        kind = track["result"].partition(":")[0]
        counts[kind] += 1
        if kind not in ("encoded", "stored before"):
            if args.strict:
                sys.exit(one_line(f"error: {track['path']}: {track['result']}"))
            print(one_line(f"skipped {track['path']}: {track['result']}"))
    print(f"{len(paths)} tracks: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))


if __name__ == "__main__":
    run_script(lambda: main(args))
