"""The pipeline from compressed files, compared with the encoder alone.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --encoder muq-nano --tracks 2 --duration 5
    python benchmarks/pipeline.py --card_speed 650 --tracks 200

The pipeline: ogg files (44.1 kHz, stereo) are hashed, decoded, mixed down, resampled, cut, encoded
and stored, as train_probe.py does it; some tracks are encoded while the next ones are hashed and
decoded and the last ones written. The encoder alone: the same segments, already in memory, in the
same batches. Both sides run in turn in every round; a ratio of 1 means that everything but the
encoder is hidden behind it. --batches both measures batches within a track and batches that tracks
share, as on a GPU. The time of decoding and resampling alone is measured too. Writes medians,
spreads and the ratio as JSON.

--card_speed says how fast a card this machine's cores can feed, without the card: in place of the
encoder stands a clock, which takes each batch's audio at that many times real time while the cores
are free, as they are beside a GPU. All else is real.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys

from flags import add_common, check_common

from tune.cli.parser import Parser, positive_float, positive_int, read_arguments, run_script
from tune.segments.rules import parse_rule

NAME = "pipeline"
FILE_RATE = 44_100  # Hz
NAMES = {False: "within a track", True: "shared by tracks"}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=3,
        help="times that each side runs, in turn; the median counts",
    )
    parser.add_argument("--tracks", type=positive_int, default=4, metavar="N", help="files")
    parser.add_argument(
        "--duration",
        type=positive_float,
        default=30.0,
        metavar="SECONDS",
        help="length of each file",
    )
    parser.add_argument(
        "--seg", default="10", metavar="SECONDS|full|structure", help="segment length"
    )
    parser.add_argument(
        "--precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="the encoder's; no is float32",
    )
    parser.add_argument(
        "--batches",
        choices=["auto", "track", "shared", "both"],
        default="auto",
        help="within a track, or shared by tracks; auto: shared on a GPU",
    )
    parser.add_argument(
        "--card_speed",
        type=positive_float,
        metavar="TIMES",
        help="no encoder but a clock that encodes at so many times real time (a GPU's stand-in: "
        "MuQ-large in fp16 by arithmetic 650 on an RTX 2080 Ti, 9,000 seen on an H100)",
    )
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, [args.seg])
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import soundfile
import torch

from tune.audio.decode import read_audio
from tune.audio.processes import DecodeProcesses
from tune.encoders.base import SAMPLE_RATE, Encoder
from tune.store import encode as encoding
from tune.store.batches import SharedBatches, encode_segments
from tune.store.encode import decode_threads, encode_tracks, shares_batches
from tune.store.store import Store

DECODED_ALONE = 24  # files that are decoded one after the other


class Card(Encoder):
    """A clock in place of an encoder on a GPU: batches take their time, one after the other.

    Parameters
    ----------
    speed : seconds of audio that it encodes a second
    """

    def __init__(self, speed: float):
        super().__init__(
            f"a card at {speed:g} x real time",
            frame_rate=25.0,
            n_layers=12,
            embedding_dim=1024,
            precision="no",
            device="cpu",
            fingerprint="none",
            untrained=True,
        )
        self.speed, self.free_at = speed, 0.0

    def begin(self, audio, layers, frame_rate=None):
        """Begin a batch when the one before it is done; it doesn't wait."""
        np.stack(audio)  # copied, as to a GPU
        seconds = len(audio) * len(audio[0]) / self.sample_rate / self.speed
        self.free_at = max(time.perf_counter(), self.free_at) + seconds
        states = np.zeros((len(audio), 1, len(layers), self.embedding_dim), np.float32)
        return _CardBatch(self, states, seconds, self.free_at)


class _CardBatch:
    """A batch on the card."""

    def __init__(self, card: Card, states: np.ndarray, seconds: float, done_at: float):
        self.card, self.states, self.seconds, self.done_at = card, states, seconds, done_at

    def result(self, *, each: bool = False) -> np.ndarray:
        """Wait for the card."""
        time.sleep(max(0.0, self.done_at - time.perf_counter()))
        self.card.passes += len(self.states)
        return self.states


def main(args):
    """Write the files, run both sides in turn, report."""
    device = common.choose_device(args)
    if args.precision == "fp16" and device.type == "cpu":
        common.fail("--precision fp16 needs a GPU")
    if args.card_speed:
        device, encoder = torch.device("cpu"), Card(args.card_speed)
        encoding.DECODE_THREADS = os.cpu_count()  # as beside a GPU
    else:
        encoder = common.load_ours(args.encoder, args.weights, device, args.precision)
    rule, layers = parse_rule(args.seg), [encoder.n_layers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i:04d}.ogg") for i in range(args.tracks)]
        write_files(paths, args.duration)
        file_bytes = sum(Path(path).stat().st_size for path in paths)
        tracks, _, _ = decode_together(paths, device)
        spans = [rule.cut(samples, SAMPLE_RATE) for samples in tracks]
        encoder.embed(tracks[0][None, : SAMPLE_RATE * 2], layers)  # warm
        kinds = {"track": [False], "shared": [True], "both": [False, True]}
        kinds = kinds.get(args.batches, [shares_batches(encoder)])
        kinds = [True] if args.card_speed else kinds

        def decode():
            for path in paths[:DECODED_ALONE]:
                read_audio(path, SAMPLE_RATE)

        def encode(shared):
            if not shared:
                for samples, cuts in zip(tracks, spans, strict=True):
                    encode_segments(samples, cuts, encoder, layers)
                return
            batches = SharedBatches(encoder, layers, None, None, lambda segments: None)
            for samples, cuts in zip(tracks, spans, strict=True):
                batches.add(None, samples, cuts)
            batches.flush()

        def run(store_folder, shared):
            store = Store(store_folder)
            collection = store.collection(encoder, layers, None)
            return encode_tracks(paths, encoder, rule, store, collection, share_batches=shared)

        seconds = {"decode": [], "decode in processes": [], "start of processes": []}
        share = len(paths[:DECODED_ALONE]) / len(paths)
        for i in range(args.rounds):
            seconds["decode"].append(common.clock(device, decode)[1] / share)
            _, start_s, decode_s = decode_together(paths, device)
            seconds["start of processes"].append(start_s)
            seconds["decode in processes"].append(decode_s)
            for shared in kinds:
                name = NAMES[shared]
                took = common.clock(device, lambda shared=shared: encode(shared))[1]
                seconds.setdefault(f"encoder, {name}", []).append(took)
                report, took = common.clock(
                    device, lambda i=i, shared=shared: run(folder / f"{i}-{shared}", shared)
                )
                seconds.setdefault(f"pipeline, {name}", []).append(took)
                assert report.encoder_passes == sum(map(len, spans))
            print(f"round {i + 1} of {args.rounds} done", file=sys.stderr)

    times = {name: common.time_statistics(each) for name, each in seconds.items()}
    found = {
        NAMES[shared]: {
            "pipeline": times[f"pipeline, {NAMES[shared]}"],
            "encoder_alone": times[f"encoder, {NAMES[shared]}"],
            "ratio": times[f"pipeline, {NAMES[shared]}"]["median_s"]
            / times[f"encoder, {NAMES[shared]}"]["median_s"],
        }
        for shared in kinds
    }
    usual = found[NAMES[kinds[-1]]]
    audio_s = sum(map(len, tracks)) / SAMPLE_RATE
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "encoder": encoder.name,
            "card_speed": args.card_speed,
            "tracks": args.tracks,
            "duration_s": args.duration,
            "seg": args.seg,
            "precision": args.precision,
            "rounds": args.rounds,
            "audio_s": audio_s,
            "file_bytes": file_bytes,
            "file_format": f"ogg vorbis, {FILE_RATE} Hz, 2 channels",
            "batches": NAMES[kinds[-1]],
            **usual,
            "by_batches": found,
            "decode_and_resample_alone": times["decode"],
            "decode_and_resample_in_processes": times["decode in processes"],
            "start_of_processes": times["start of processes"],
        },
        variant="-card" if args.card_speed else "",
    )
    shown = {
        "decode": "decode and resample alone",
        "start of processes": f"starting {decode_threads(device)} processes",
        "decode in processes": "decode and resample in them",
    }
    alone = "the clock" if args.card_speed else "encoder alone, segments in memory"
    for shared in kinds:
        name = NAMES[shared]
        shown[f"encoder, {name}"] = f"{alone}, batches {name}"
        shown[f"pipeline, {name}"] = f"files to store, batches {name}"
    common.print_table(
        f"{encoder.name}, {args.tracks} ogg files of {args.duration:g} s: seconds, median of "
        f"{args.rounds} rounds",
        ["", "seconds", "times real time"],
        [
            [
                text,
                common.show_spread(times[key]),
                "" if key.startswith("start") else f"{audio_s / times[key]['median_s']:.3g}",
            ]
            for key, text in shown.items()
        ],
        [
            *(
                f"ratio, files to store / {alone}, batches {name}: {each['ratio']:.3f}x"
                for name, each in found.items()
            ),
            str(path),
        ],
    )


def decode_together(paths: list[str], device) -> tuple[list[np.ndarray], float, float]:
    """Decode files as the pipeline does where they are many: each thread with its process.

    Returns the samples, and the seconds of starting the processes and of decoding.
    """
    n = decode_threads(device)
    all_there = threading.Barrier(n)

    def start(path):
        all_there.wait()  # each thread gets one, hence a process
        processes.decode(path, SAMPLE_RATE)

    def decode(path):
        return processes.decode(path, SAMPLE_RATE).samples

    with DecodeProcesses() as processes, ThreadPoolExecutor(n) as pool:
        started = time.perf_counter()
        list(pool.map(start, [paths[0]] * n))
        begun = time.perf_counter()
        tracks = list(pool.map(decode, paths))
    return tracks, begun - started, time.perf_counter() - begun


def write_files(paths: list[str], duration_s: float) -> None:
    """Write composed stereo files, each from another place of one piece of music."""
    n_samples = round(duration_s * FILE_RATE)
    music = common.compose(2 * duration_s, FILE_RATE, seed=0, channels=2)
    starts = np.linspace(0, len(music) - n_samples, len(paths)).astype(int)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda p, at: write_ogg(p, music[at : at + n_samples]), paths, starts))


def write_ogg(path: str, samples: np.ndarray) -> None:
    """Write a stereo file, a second at a time (libsndfile overflows on large blocks)."""
    with soundfile.SoundFile(path, "w", FILE_RATE, 2, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(samples), FILE_RATE):
            file.write(samples[start : start + FILE_RATE])


if __name__ == "__main__":
    run_script(lambda: main(args))
