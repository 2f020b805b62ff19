"""The pipeline from compressed files, compared with the encoder alone.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --encoder muq-nano --tracks 2 --duration 5

The pipeline: ogg files (44.1 kHz, stereo) are hashed, decoded, mixed down, resampled, cut, encoded
and stored, as train_probe.py does it; some tracks are encoded while the next ones are hashed and
decoded and the last ones written. The encoder alone: the same segments, already in memory, in the
same batches. Both sides run in turn in every round; a ratio of 1 means that everything but the
encoder is hidden behind it. --batches both measures batches within a track and batches that tracks
share, as on a GPU. The time of decoding and resampling alone is measured too. Writes medians,
spreads and the ratio as JSON.
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
    add_common(parser)
    args = parser.parse_args(argv)
    check_common(parser, args, [args.seg])
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import soundfile

from tune.audio.decode import read_audio
from tune.audio.processes import DecodeProcesses
from tune.encoders.base import SAMPLE_RATE
from tune.store.batches import SharedBatches, encode_segments
from tune.store.encode import decode_threads, encode_tracks, shares_batches
from tune.store.store import Store


def main(args):
    """Write the files, run both sides in turn, report."""
    device = common.choose_device(args)
    if args.precision == "fp16" and device.type == "cpu":
        common.fail("--precision fp16 needs a GPU")
    encoder = common.load_ours(args.encoder, args.weights, device, args.precision)
    rule, layers = parse_rule(args.seg), [encoder.n_layers]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i:04d}.ogg") for i in range(args.tracks)]
        write_files(paths, args.duration)
        file_bytes = sum(Path(path).stat().st_size for path in paths)
        with DecodeProcesses() as processes:
            tracks = decode_together(paths, processes, device)
        spans = [rule.cut(samples, SAMPLE_RATE) for samples in tracks]
        encode_segments(tracks[0], spans[0], encoder, layers)  # warm
        kinds = {"track": [False], "shared": [True], "both": [False, True]}
        kinds = kinds.get(args.batches, [shares_batches(encoder)])

        def decode():
            for path in paths:
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

        seconds = {"decode": [], "decode in processes": []}
        for i in range(args.rounds):
            seconds["decode"].append(common.clock(device, decode)[1])
            with DecodeProcesses() as processes:
                decode_together(paths, processes, device)  # they are started
                took = common.clock(device, lambda: decode_together(paths, processes, device))[1]
            seconds["decode in processes"].append(took)
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
        },
    )
    shown = {
        "decode": "decode and resample alone",
        "decode in processes": "the same in processes that run already",
    }
    for shared in kinds:
        name = NAMES[shared]
        shown[f"encoder, {name}"] = f"encoder alone, segments in memory, batches {name}"
        shown[f"pipeline, {name}"] = f"files to store, batches {name}"
    common.print_table(
        f"{args.encoder}, {args.tracks} ogg files of {args.duration:g} s: seconds, median of "
        f"{args.rounds} rounds",
        ["", "seconds", "times real time"],
        [
            [text, common.show_spread(times[key]), f"{audio_s / times[key]['median_s']:.3g}"]
            for key, text in shown.items()
        ],
        [
            *(
                f"ratio, files to store / encoder alone, batches {name}: {each['ratio']:.3f}x"
                for name, each in found.items()
            ),
            str(path),
        ],
    )


def decode_together(paths: list[str], processes: DecodeProcesses, device) -> list[np.ndarray]:
    """Decode files as the pipeline does where they are many: each thread with its process."""
    with ThreadPoolExecutor(decode_threads(device)) as pool:
        return list(pool.map(lambda path: processes.decode(path, SAMPLE_RATE).samples, paths))


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
