"""All GPU checks and measurements in eight minutes, the most important first.

    bash benchmarks/gpu.sh results.json
    python benchmarks/gpu.py --steps rates sizes
    python benchmarks/gpu.py --rehearse

Each step has its own time limit and writes its part of one JSON while it runs, so measurements are
kept however it ends. A step that fails prints its traceback, and the next one runs in a new
process. Nothing is downloaded: synthetic audio, MuQ-large with random weights, muq-nano. --rehearse
runs the same code at a small scale on a CPU. benchmarks/README.md explains each figure.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tune.cli.parser import Parser, positive_float, read_arguments, run_script

POLL_S = 0.1
WORKER = [sys.executable, __file__]


@dataclass(frozen=True)
class Step:
    """A step: a function of a module beside this one, and the seconds that it may take.

    `fresh` asks for a process of its own, whose GPU memory nobody else has touched.
    """

    name: str
    module: str
    limit_s: float
    fresh: bool = False


STEPS = [
    Step("tests", "gpu_correct", 75),
    Step("golden", "gpu_correct", 40),
    Step("precision", "gpu_correct", 40),
    Step("invariance", "gpu_correct", 30),
    Step("overflow", "gpu_correct", 15),
    Step("out_of_memory", "gpu_correct", 30),
    Step("rows", "gpu_correct", 40),
    Step("shared", "gpu_correct", 40),
    Step("rates", "gpu_speed", 30),
    Step("graphed", "gpu_speed", 50),
    Step("pipeline", "gpu_scripts", 120),
    Step("sizes", "gpu_speed", 60),
    Step("study", "gpu_speed", 60),
    Step("small_card", "gpu_memory", 70, fresh=True),
    Step("where", "gpu_speed", 25, fresh=True),
    Step("variants", "gpu_speed", 60),
    Step("compiled", "gpu_speed", 90),
    Step("probe", "gpu_scripts", 120),
    Step("pretraining", "gpu_scripts", 45),
    Step("costs", "gpu_scripts", 100),
]
BY_NAME = {step.name: step for step in STEPS}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="gpu.py", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON (default: benchmarks/results/gpu-DEVICE.json)",
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=list(BY_NAME),
        default=[],
        metavar="STEP",
        help=f"only these, in this order, into the same JSON: {', '.join(BY_NAME)}",
    )
    parser.add_argument(
        "--limit",
        type=positive_float,
        default=480.0,
        metavar="SECONDS",
        help="end after this long, whatever is left (default: 480)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="walk every step on a CPU, in small"
    )
    parser.add_argument(
        "--commit", help="the project's commit, where the files came without their history"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # the folder of the parts
    args = parser.parse_args(argv)
    args.steps = args.steps or list(BY_NAME)
    if args.out and args.out.is_dir():
        parser.error(f"--out {args.out} is a folder; a file is needed")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None


def main(args) -> None:
    """Run the steps in worker processes, keep their parts, print the table."""
    if args.worker:
        work(args)
        return
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print(
            "error: there is no CUDA device: --rehearse walks the steps on a CPU", file=sys.stderr
        )
        sys.exit(2)
    import gpu_report

    out = args.out or gpu_report.default_path(args.rehearse)
    report = gpu_report.begin_report(out, args)
    until = time.monotonic() + args.limit
    todo = list(dict.fromkeys(args.steps))
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        while todo and time.monotonic() < until:
            for part in run_worker(args, todo, parts, until):
                report["steps"][part["step"]] = part | {"git_sha": report["git_sha"]}
                gpu_report.write(out, report)
            done = {path.stem for path in parts.glob("*.json")}
            left = [name for name in todo if name not in done]
            if left == todo:
                break  # a worker that doesn't begin its first step never will
            todo = left
    for name in todo:  # an earlier run's part stays
        part = {"step": name, "state": "not begun", "seconds": 0.0, "result": {}}
        report["steps"].setdefault(name, part)
    gpu_report.write(out, report)
    gpu_report.show(report, out)
    wrong = [
        name for name in args.steps if name in todo or not gpu_report.passed(report["steps"][name])
    ]
    if wrong:
        print(f"error: not as expected: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


def run_worker(args, todo: list[str], parts: Path, until: float):
    """Run steps in one process until it ends; yield each finished part.

    A step over its time limit, or the whole over its own, is ended with all that it started.
    """
    command = [*WORKER, "--worker", str(parts), "--steps", *todo]
    command += ["--rehearse"] if args.rehearse else []
    process = subprocess.Popen(command, start_new_session=True)
    seen: set[str] = set()
    begun, current = time.monotonic(), None
    try:
        while True:
            running = process.poll() is None
            for name in todo:
                path = parts / f"{name}.json"
                if name in seen or not path.exists():
                    continue
                part = json.loads(path.read_text(encoding="utf-8"))
                if part["state"] == "running" and running:
                    if current != name:
                        begun, current = time.monotonic(), name
                    over = time.monotonic() - begun > BY_NAME[name].limit_s
                    if not over and time.monotonic() < until:
                        continue
                    _kill(process)
                    part = json.loads(path.read_text(encoding="utf-8"))
                if part["state"] == "running":
                    took = time.monotonic() - begun
                    why = f"process ended with code {process.returncode}"
                    part |= {
                        "state": "stopped",
                        "seconds": took,
                        "error": f"stopped after {took:.0f} s ({why})",
                    }
                    path.write_text(json.dumps(part), encoding="utf-8")
                seen.add(name)
                yield part
            if not running:
                return
            if current is None and time.monotonic() > until:
                _kill(process)
            time.sleep(POLL_S)
    finally:
        _kill(process)


def _kill(process) -> None:
    """End a process and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def work(args) -> None:
    """Run steps in this process until one fails or the next one wants a process of its own."""
    import importlib
    import traceback

    from gpu_bench import Bench

    bench = Bench.make(args.rehearse)
    for i, name in enumerate(args.steps):
        step = BY_NAME[name]
        if step.fresh and i > 0:
            return
        path = args.worker / f"{name}.json"
        part = {"step": name, "state": "running", "seconds": 0.0, "result": {}}

        def record(part=part, path=path, **found):
            part["result"] |= found
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(part, allow_nan=False), encoding="utf-8")
            aside.replace(path)

        record()
        print(f"== {name}", file=sys.stderr)
        started = time.monotonic()
        try:
            getattr(importlib.import_module(step.module), name)(bench, record)
            part["state"] = "done"
        except Exception as error:  # whatever it is, the next step goes on
            traceback.print_exc()
            part |= {"state": "failed", "error": f"{type(error).__name__}: {error}"[:1000]}
        part["seconds"] = time.monotonic() - started
        record()
        if part["state"] == "failed":
            sys.exit(3)  # a CUDA error may have spoilt this process


if __name__ == "__main__":
    run_script(lambda: main(args))
