"""Arguments shared by the benchmarks; no heavy imports, so that usage errors are reported fast."""

import argparse
from pathlib import Path

from tune.cli.parser import Parser
from tune.segments.rules import parse_rule


def add_common(parser: Parser) -> None:
    """Add --encoder, --weights, --device and --out."""
    parser.add_argument(
        "--encoder",
        choices=["muq", "muq-nano"],
        default="muq",
        help="muq is MuQ-large; muq-nano is for a smoke test, not for a result",
    )
    parser.add_argument(
        "--weights",
        choices=["random", "pretrained"],
        default="random",
        help="MuQ-large with weights from a fixed seed (no download; the cost "
        "doesn't depend on them) or the hub's",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: the GPU where there is one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the JSON goes (default: "
        "benchmarks/results/NAME-DEVICE.json, and NAME-DEVICE-nano.json with "
        "muq-nano)",
    )


def check_common(parser: Parser, args, segs: list[str]) -> None:
    """End with one line when a segment length is none or --out can't be a file."""
    for seg in segs:
        try:
            parse_rule(seg)
        except ValueError as error:
            parser.error(str(error))
    if args.out:
        parent = next(p for p in args.out.absolute().parents if p.exists())
        if args.out.is_dir() or not parent.is_dir():
            parser.error(f"--out {args.out} can't be written: a file in a folder is needed")


def to_bytes(text: str) -> int:
    """Read an amount of memory: 16GB, 800MB or a number of bytes (GB is 10^9 bytes)."""
    units = {"GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1.0}
    upper = text.strip().upper()
    unit = next((u for u in units if upper.endswith(u)), "")
    try:
        value = float(upper.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        value = float("nan")
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected an amount such as 16GB, got {text!r}")
    return int(value)
