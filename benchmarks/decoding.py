"""Decoding speed of one core: files of each kind to mono at the encoder's rate.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --duration 10 --rounds 2

Each kind (wav of 16 bits, of 24 bits and of floats, flac, mp3, ogg, opus, m4a; 44.1 kHz stereo,
opus 48 kHz) is read by `read_audio` at its own rate and at 24 kHz, and by libsndfile where it can:
`soundfile.read` alone (both channels), and with NumPy's mean over them, which is what `read_audio`
gives. The sides run in turn in every round, in one thread, timed by that thread's processor time,
so that other programs hardly count. Speeds are seconds of audio a second; a ratio above 1 means
that `read_audio` is faster. Writes best times and ratios as JSON.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys
from pathlib import Path

from tune.cli.parser import Parser, positive_float, positive_int, read_arguments, run_script

NAME = "decoding"
RATE, OPUS_RATE = 44_100, 48_000  # Hz
KINDS = {  # kind -> ending, container, encoding of libsndfile or codec of FFmpeg
    "wav": ("wav", "WAV", "PCM_16"),
    "wav, 24 bits": ("wav", "WAV", "PCM_24"),
    "wav, floats": ("wav", "WAV", "FLOAT"),
    "flac": ("flac", "FLAC", "PCM_16"),
    "mp3": ("mp3", "mp3", "libmp3lame"),
    "ogg": ("ogg", "OGG", "VORBIS"),
    "opus": ("opus", "ogg", "libopus"),
    "m4a": ("m4a", "ipod", "aac"),
}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--rounds", type=positive_int, default=5, help="times that each side runs; the best counts"
    )
    parser.add_argument(
        "--duration",
        type=positive_float,
        default=60.0,
        metavar="SECONDS",
        help="length of each file",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the JSON goes (default: benchmarks/results/decoding-cpu.json)",
    )
    args = parser.parse_args(argv)
    args.encoder = args.weights = None
    args.device = "cpu"
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import contextlib
import tempfile
import time

import av
import common
import numpy as np
import soundfile

from tune.audio.decode import read_audio
from tune.encoders.base import SAMPLE_RATE


def main(args):
    """Write the files, read them by both ways in turn, report."""
    device = common.choose_device(args)
    kinds = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, (ending, container, codec) in KINDS.items():
            path = str(Path(name) / f"music.{ending}")
            rate = OPUS_RATE if kind == "opus" else RATE
            write_file(path, container, codec, rate, args.duration)
            kinds[kind] = measure(path, rate, args.rounds)
            print(f"{kind} done", file=sys.stderr)
    speeds = {
        kind: {way: args.duration / seconds for way, seconds in times.items()}
        for kind, times in kinds.items()
    }
    ratios = {
        kind: {way: times[way] / times["own_rate"] for way in ("libsndfile", "libsndfile_mono")}
        for kind, times in kinds.items()
        if "libsndfile" in times
    }
    path = common.write_report(
        NAME,
        args,
        device,
        {
            "duration_s": args.duration,
            "rounds": args.rounds,
            "target_rate": SAMPLE_RATE,
            "seconds": kinds,
            "times_real_time": speeds,
            "ratio_to_libsndfile": ratios,
        },
    )
    common.print_table(
        f"{args.duration:g} s of stereo: seconds of audio a second on one core",
        (
            "file",
            "at its own rate",
            f"at {SAMPLE_RATE:,} Hz",
            "libsndfile",
            "ratio",
            "and its mean",
            "ratio",
        ),
        [
            (
                kind,
                f"{speed['own_rate']:,.0f} x",
                f"{speed['target_rate']:,.0f} x",
                *(
                    text
                    for way in ("libsndfile", "libsndfile_mono")
                    for text in (
                        (f"{speed[way]:,.0f} x", f"{ratios[kind][way]:.2f}")
                        if kind in ratios
                        else ("can't read it", "")
                    )
                ),
            )
            for kind, speed in speeds.items()
        ],
        [f"best of {args.rounds} rounds, processor time of one thread", f"written to {path}"],
    )


def measure(path: str, rate: int, rounds: int) -> dict[str, float]:
    """Best processor seconds of each way to read a file."""
    ways = {
        "own_rate": lambda: read_audio(path, rate),
        "target_rate": lambda: read_audio(path, SAMPLE_RATE),
        "libsndfile": lambda: soundfile.read(path, dtype="float32"),
        "libsndfile_mono": lambda: soundfile.read(path, dtype="float32")[0].mean(axis=1),
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for way, read in ways.items():
            with contextlib.suppress(soundfile.LibsndfileError):  # no m4a, not every Opus
                started = time.thread_time()
                read()
                best[way] = min(best.get(way, np.inf), time.thread_time() - started)
    return best


def write_file(path: str, container: str, codec: str, rate: int, duration_s: float) -> None:
    """Write composed stereo music, a second at a time (libsndfile overflows on large blocks)."""
    music = common.compose(duration_s, rate, seed=0, channels=2).astype(np.float32)
    seconds = [music[start : start + rate] for start in range(0, len(music), rate)]
    if codec in soundfile.available_subtypes():
        with soundfile.SoundFile(path, "w", rate, 2, codec, format=container) as file:
            for part in seconds:
                file.write(part)
        return
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        for i, part in enumerate(seconds):
            frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", "stereo")
            frame.sample_rate, frame.pts = rate, i * rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


if __name__ == "__main__":
    run_script(lambda: main(args))
