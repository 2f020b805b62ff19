"""The store's packs, compared with a file for each row: the time to find and read a track's row.

    python benchmarks/store.py
    python benchmarks/store.py --rows 1000 --rows 3000 --sample 200

For each number of rows a collection is filled, one half of the time as packs, the other half as a
file for each row (the layout before packs). The same tracks, drawn at random, are then looked up
in both, in turn: the track's length, which is all that a look-up costs beside the row, and the
row itself, checked by its checksum. Of up to 1,000 tracks a second run over real files, which
encodes nothing, is timed too, without its start-up. All times are the processor's, which other
work on the machine changes little (of the second run also the wall's). Writes medians, spreads and
ratios as JSON.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from flags import check_common

from tune.cli.parser import Parser, positive_int, read_arguments, run_script

NAME = "store"


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog=f"{NAME}.py", description=__doc__)
    parser.add_argument(
        "--rows",
        type=positive_int,
        action="append",
        metavar="N",
        help="rows of the store; may be given several times (default: 1000, 30000, 300000)",
    )
    parser.add_argument(
        "--max_files",
        type=positive_int,
        default=30_000,
        metavar="N",
        help="no file for each row above this many rows",
    )
    parser.add_argument(
        "--sample", type=positive_int, default=1000, metavar="N", help="tracks looked up"
    )
    parser.add_argument("--width", type=positive_int, default=1024, help="values of a token")
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=5,
        help="times that each side runs, in turn; the median counts",
    )
    parser.add_argument("--folder", type=Path, help="where the stores go (default: temporary)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the JSON goes (default: benchmarks/results/NAME-DEVICE.json)",
    )
    args = parser.parse_args(argv)
    args.rows = sorted(args.rows or [1000, 30_000, 300_000])
    args.device, args.encoder, args.weights = "cpu", "none", "none"
    check_common(parser, args, [])
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import json
import random
import statistics
import tempfile
import time
from types import SimpleNamespace

import common
import numpy as np
import soundfile
from safetensors.numpy import save

from tune.encoders.registry import load_encoder
from tune.segments.rules import parse_rule
from tune.store.collection import Row, checksum_of, digest_of
from tune.store.encode import encode_tracks
from tune.store.packs import MAX_ROWS, cut_digest
from tune.store.store import Store

RATE, SPANS = 24_000, [[0, 240_000], [240_000, 480_000], [480_000, 720_000]]
ENCODER = SimpleNamespace(
    name="made up", fingerprint="0" * 64, precision="no", sample_rate=RATE, n_layers=3
)


def row_bytes(content: str, tokens: np.ndarray) -> bytes:
    """One row as its own file would hold it."""
    row = {"content": content, "spans": SPANS, "counts": [1] * 3, "silent": False, "seconds": 1.0}
    info = json.dumps(row | {"peak_bytes": 0})
    meta = {
        "n_samples": str(SPANS[-1][1]),
        "checksum": checksum_of(tokens, info),
        "info": info,
        "n_samples_checksum": digest_of([content, SPANS[-1][1]]),
    }
    return save({"tokens": tokens}, meta)


def fill(root: Path, n_rows: int, width: int, packed: bool) -> list[str]:
    """Fill a store; return the contents. Rows are not flushed one by one: that isn't timed."""
    rng = np.random.default_rng(0)
    collection = Store(root).collection(ENCODER, [3], None)
    tokens = rng.standard_normal((3, 1, width)).astype(np.float32)
    contents, rows, cut = [rng.bytes(32).hex() for _ in range(n_rows)], [], cut_digest(SPANS)
    collection.write(contents[0], SPANS[-1][1], Row(tokens, SPANS, [1] * 3, False, 1.0))
    for i, content in enumerate(contents[1:]):
        tokens[0, 0, 0] = i
        data = row_bytes(content, tokens)
        if packed:
            rows.append((content, cut, SPANS[-1][1], time.time(), data))
            if len(rows) == MAX_ROWS:
                collection.packs.add(rows)
                rows = []
        else:
            path = collection.folder / content[:2] / f"{content}-{cut}.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    if rows:
        collection.packs.add(rows)
    collection.pack() if packed else None
    return contents


def look_up(collection, contents: list[str]) -> dict[str, float]:
    """Microseconds a track of the processor: its length alone, and length and row."""
    start = time.process_time()
    for content in contents:
        assert collection.length(content) == SPANS[-1][1]
    between = time.process_time()
    for content in contents:
        collection.length(content)
        assert collection.read(content, SPANS) is not None
    end = time.process_time()
    n = len(contents) / 1e6
    return {"length": (between - start) / n, "row": (end - between) / n}


def second_run(folder: Path, n_tracks: int, rounds: int) -> dict[str, dict]:
    """Microseconds a track of `encode_tracks` when all is stored, before and after packing.

    By the processor's time (of all threads), and by the wall's.
    """
    encoder, rule = load_encoder("mel"), parse_rule("10")
    paths = [str(folder / f"{i}.wav") for i in range(n_tracks)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.full(4_800, i / (2 * n_tracks) + 0.1, np.float32), RATE)
    store = Store(folder / "store")
    time.sleep(2.1)  # hashes of young files aren't remembered
    found = {}
    for name in ("files", "packs"):
        collection = store.collection(encoder, [0], None)
        encode_tracks(paths, encoder, rule, store, collection)
        collection.pack() if name == "packs" else None
        processor, wall = [], []
        for _ in range(rounds):
            collection = store.collection(encoder, [0], None)
            encode_tracks(paths[:1], encoder, rule, store, collection)  # start-up
            start, started = time.process_time(), time.perf_counter()
            report = encode_tracks(paths, encoder, rule, store, collection)
            processor.append((time.process_time() - start) * 1e6 / n_tracks)
            wall.append((time.perf_counter() - started) * 1e6 / n_tracks)
            assert report.encoded_tracks == 0
        found[name] = {"tracks": n_tracks, "processor": summary(processor), "wall": summary(wall)}
    return found


def summary(times: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median_us": statistics.median(times), "min_us": min(times), "max_us": max(times)}


def main(args):
    """Fill the stores, look up, report."""
    device = common.choose_device(args)
    results: dict = {"rounds": args.rounds, "width": args.width, "sample": args.sample, "rows": {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        sides = {}
        for n_rows in args.rows:
            for side in ("packs", "files"):
                if side == "packs" or n_rows <= args.max_files:
                    root = Path(name, f"{side}-{n_rows}")
                    contents = fill(root, n_rows, args.width, side == "packs")
                    picked = random.Random(0).choices(contents, k=args.sample)
                    sides[side, n_rows] = (root, picked)
        times: dict = {}
        for _ in range(args.rounds):
            for key, (root, picked) in sides.items():
                collection = Store(root).collection(ENCODER, [3], None)
                start = time.process_time()
                collection.length(picked[0])
                opened = (time.process_time() - start) * 1e6
                found = {"open": opened, **look_up(collection, picked)}
                for what, value in found.items():
                    times.setdefault((*key, what), []).append(value)
        for (side, n_rows, what), values in times.items():
            place = results["rows"].setdefault(str(n_rows), {}).setdefault(side, {})
            place[what] = summary(values)
        files = Path(name, "second")
        files.mkdir()
        results["second_run"] = second_run(files, min(args.rows[0], 1000), args.rounds)
    few, many = (results["rows"][str(n)]["packs"] for n in (args.rows[0], args.rows[-1]))
    growth = {what: many[what]["median_us"] / few[what]["median_us"] for what in ("length", "row")}
    results["growth"] = growth
    path = common.write_report(NAME, args, device, results)
    table = [
        [f"{int(n):,}", side, *(f"{found[w]['median_us']:,.1f}" for w in found)]
        for n, both in results["rows"].items()
        for side, found in both.items()
    ]
    run = results["second_run"]
    common.print_table(
        f"microseconds of the processor a track, median of {args.rounds} rounds",
        ["rows", "layout", "first look-up", "length", "length and row"],
        table,
        [
            f"packs, most rows / fewest: length {growth['length']:.2f}x, row {growth['row']:.2f}x",
            *(
                f"second run, {name}: {run[name]['processor']['median_us']:.0f} us a track, "
                f"{run[name]['wall']['median_us']:.0f} by the wall's clock"
                for name in run
            ),
            str(path),
        ],
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
