"""Record what the scripts compute, to the bit, to check that a refactoring changes nothing.

    python tools/record_results.py before.json --work before --gamemusic MUSIC
    python tools/record_results.py after.json --work after --gamemusic MUSIC --against before.json

Runs the scripts on the demo tasks (and gamemusic, ../shared/data/gamemusic) with muq-nano and every
aggregator, pretrains a Transformer and embeds a folder; hashes each row of the store, metrics,
predictions, embeddings and weights. Make both recordings on one machine. With --against the
differences are listed, and the exit code is 1 if there are any; --reuse_store DIR copies an earlier
run's store first, to check that old rows are read.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AGGREGATORS = ["mean", "duration_mean", "max", "concat", "stats", "whitened", "attention"]
DEMO = ["demo", "demo-mood", "demo-form"]


def main(argv=None) -> None:
    """Run everything, hash it, write it, compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the JSON")
    parser.add_argument("--work", type=Path, required=True, help="a folder that doesn't exist yet")
    parser.add_argument("--gamemusic", type=Path, help="the task of real music")
    parser.add_argument("--against", type=Path, help="an earlier recording")
    parser.add_argument("--reuse_store", type=Path, help="a store to begin with")
    args = parser.parse_args(argv)
    work = args.work.resolve()
    work.mkdir(parents=True)
    if args.reuse_store:
        shutil.copytree(args.reuse_store, work / "store")
    tasks = DEMO + ([str(args.gamemusic.resolve())] if args.gamemusic else [])
    run_all(work, tasks, args.gamemusic)
    found = collect(work)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} things recorded in {args.out}")
    if args.against:
        before = json.loads(args.against.read_text(encoding="utf-8"))
        other = sorted(k for k in before | found if before.get(k) != found.get(k))
        for key in other:
            print(f"differs: {key}: {before.get(key)} before, {found.get(key)} after")
        print("nothing differs" if not other else f"{len(other)} of {len(before)} differ")
        sys.exit(1 if other else 0)


def run_all(work: Path, tasks: list[str], gamemusic: Path | None) -> None:
    """The runs: a sweep over tasks and aggregators, what a sweep can't hold, pretraining, embed."""
    common = ["--encoder", "muq-nano", "--store", str(work / "store"), "--report_to", "none"]
    probe = ["train_probe.py", *common, "--output_dir", str(work / "runs")]
    aggregator = str(work / "aggregator")
    run("pretrain_aggregator.py", *common, "--tasks", "demo", "--epochs", "2", "--out", aggregator)
    sweep = {
        "program": "train_probe.py",
        "method": "grid",
        "parameters": {
            "task": {"values": tasks},
            "agg": {"values": AGGREGATORS},
            "seg": {"value": 10},
            "encoder": {"value": "muq-nano"},
            "store": {"value": str(work / "store")},
            "report_to": {"value": "none"},
        },
    }
    (work / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    run("-m", "tune.sweep", str(work / "sweep.yaml"), "--output_dir", str(work / "runs"))
    for task in (tasks[0], tasks[-1]):
        task = ["--task", task]
        transformer = ["--agg", "transformer", "--aggregator_checkpoint", aggregator]
        run(*probe, *task, *transformer, "--name", f"{Path(task[1]).name}-transformer")
        run(
            *probe,
            *task,
            *transformer,
            "--tune_aggregator",
            "--epochs",
            "2",
            "--seeds",
            "1",
            "--name",
            f"{Path(task[1]).name}-tuned",
        )
        run(*probe, *task, "--agg", "hierarchical", "--seg", "10", "30", "full")
        run(*probe, *task, "--layer", "mix", "--agg", "whitened")
        run(*probe, *task, "--layer", "all", "--tokens", "frame", "--agg", "stats")
        run(*probe, *task, "--seg", "structure", "--agg", "mean")
    if gamemusic:
        for agg in ("mean", "whitened"):
            out = str(work / f"embed-{agg}.parquet")
            run("embed.py", str(gamemusic / "audio"), *common[:4], "--agg", agg, "--out", out)


def run(*command: str) -> None:
    """Run a Python program from the repository's root; its failure ends the recording."""
    print("$", " ".join(command), file=sys.stderr)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def collect(work: Path) -> dict:
    """Name and hash of everything that was computed."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    found = {}
    for path in sorted((work / "store").rglob("*.safetensors")):  # beside it: seconds it took
        tokens = load_file(path)["tokens"]
        key = f"store {path.relative_to(work / 'store')}"
        found[key] = digest(f"{tokens.shape}".encode() + tokens.tobytes())
    for folder in sorted(p.parent for p in (work / "runs").rglob("result.json")):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        name = folder.name
        if name.startswith("sweep-"):
            name = name.rpartition("-")[0]  # the end is a hash of the flags, the store's folder too
        found[f"metrics {name}"] = result["metrics"]
        found[f"segments {name}"] = result["segments_per_track"]
        table = pq.read_table(folder / "predictions.parquet")
        found[f"predictions {name}"] = digest(repr(table.to_pydict()).encode())
        weights = sorted(load_file(folder / "probe.safetensors").items())
        found[f"probe {name}"] = digest(b"".join(k.encode() + v.tobytes() for k, v in weights))
    for path in sorted(work.glob("embed-*.parquet")):
        found[f"embeddings {path.name}"] = digest(repr(pq.read_table(path).to_pydict()).encode())
    for name in ("model.safetensors", "config.json"):
        found[f"aggregator {name}"] = digest((work / "aggregator" / name).read_bytes())
    return found


def digest(data: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
