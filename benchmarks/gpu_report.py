"""The JSON of gpu.py, and its one-screen table."""

import datetime
import json
import os
import sys
from pathlib import Path

import common
import torch

from tune.runs.result import device_name, git_sha, versions


def default_path(rehearse: bool) -> Path:
    """The path of the JSON."""
    device = torch.device("cpu" if rehearse else "cuda")
    slug = "rehearsal" if rehearse else device_name(device).lower().replace(" ", "-")
    return common.RESULTS / f"gpu-{slug}.json"


def begin_report(path: Path, args) -> dict:
    """The report to fill: an earlier one of this device goes on, when only some steps are asked."""
    device = torch.device("cpu" if args.rehearse else "cuda")
    head = {
        "benchmark": "gpu",
        "command": " ".join(["python benchmarks/gpu.py", *_shown(sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "machine": common.describe_machine(device) | _describe_gpu(device),
        "versions": versions(),
        "git_sha": args.commit or git_sha(),
    }
    steps = {}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["machine"]["device"] == head["machine"]["device"]:
            steps = earlier["steps"]
    return head | {"steps": steps}


def _shown(words: list[str]) -> list[str]:
    """The arguments that change a number."""
    out, skip = [], False
    for word in words:
        if not skip and word not in ("--out", "--commit"):
            out.append(word)
        skip = word in ("--out", "--commit")
    return out


def _describe_gpu(device) -> dict:
    """Memory, capability and libraries of the GPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu_memory_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def write(path: Path, report: dict) -> None:
    """Write the report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(report, indent=1, allow_nan=False) + os.linesep, encoding="utf-8")
    aside.replace(path)


def passed(part: dict) -> bool:
    """Whether a step finished and all its checks passed."""
    return part["state"] == "done" and all(c["ok"] for c in part["result"].get("checks", []))


def show(report: dict, path: Path) -> None:
    """Print a line for each step: its state, its time and its figures."""
    rows = []
    for name, part in report["steps"].items():
        state = "ok" if passed(part) else "WRONG" if part["state"] == "done" else part["state"]
        say = SUMMARIES.get(name, _checks)
        try:
            said = say(part["result"])
        except (KeyError, IndexError, TypeError, ValueError):  # a part that was cut short
            said = ""
        rows.append([name, state, f"{part['seconds']:.0f} s", part.get("error") or said])
    machine = report["machine"]
    common.print_table(
        f"{machine['device']}, torch {report['versions']['torch']}",
        ["step", "state", "took", "figures"],
        rows,
        [str(path)],
        left=4,
    )
    for name, part in report["steps"].items():
        for check in part["result"].get("checks", []):
            if not check["ok"]:
                limit = check.get("at_most", check.get("at_least"))
                bound = "at most" if "at_most" in check else "at least"
                said = f"{check['what']} is {check['value']:.3g}, {bound} {limit:g} expected"
                print(f"{name}: {said}")


def _checks(result: dict) -> str:
    """The first check of each kind that came nearest to its limit."""
    checks = result["checks"]
    highest = [c for c in checks if "at_most" in c]
    lowest = [c for c in checks if "at_least" in c]
    said = []
    if highest:
        said.append(f"largest difference {max(c['value'] for c in highest):.1e}")
    if lowest:
        said.append(f"smallest value {min(c['value'] for c in lowest):.6g}")
    return f"{sum(c['ok'] for c in checks)} of {len(checks)} checks; {', '.join(said)}"


def _tflops(value: float) -> str:
    return f"{value / 1e12:.3g}"


def _rates(result):
    return "\n".join(
        f"{p}: matmul {_tflops(r['matmul'])}, conv {_tflops(r['convolution'])} "
        f"({_tflops(r['convolution_channels_last'])} channels-last) TFLOP/s"
        for p, r in result["flop_per_s"].items()
    ) + (
        f"; copy {result['copy_bytes_per_s'] / 1e9:.0f} GB/s, "
        f"a launch {result['launch_s'] * 1e6:.1f} us"
    )


def _sizes(result):
    groups = {}
    for r in result["rows"]:
        groups.setdefault(f"{r['precision']}, {r['budget']} budget", []).append(
            f"{r['batch']} x {r['segment_s']:g} s {r['audio_s_per_s']:,.0f}x "
            f"({r['share_of_matmul']:.0%}, "
            f"{(r['peak_bytes'] - r['rest_bytes']) / 1e9:.2f} GB above rest)"
        )
    return "\n".join(f"{name}: {', '.join(cells)}" for name, cells in groups.items())


def _study(result):
    return "\n".join(
        f"{name}, {c['seg']}: {c['study']['median_s']:.3g} s / {c['ours']['median_s']:.3g} s = "
        f"{c['ratio']:.1f}x"
        for name, report in result.items()
        for c in report["cells"]
    )


def _small(result):
    groups = {}
    for r in result["rows"]:
        length = f"{r['length_s']:g} s" + (f" in {r['segment_s']:g} s" if "segment_s" in r else "")
        groups.setdefault(f"{r['side']}, {r['precision']}, {r['cap_gb']:g} GB", []).append(
            f"{length}: {r['peak_bytes'] / 1e9:.2f} GB, {r['seconds']:.2g} s"
            if r["fits"]
            else f"{length}: doesn't fit"
        )
    return "\n".join(f"{name}: {', '.join(cells)}" for name, cells in groups.items())


def _where(result):
    return "\n".join(
        f"{name}: {p['busy_s'] * 1e3:.3g} ms busy, gaps {p['gap_share']:.0%}, "
        f"{p['launches']:.0f} launches, "
        f"{p['kernels'][0]['name'][:24]} {p['kernels'][0]['share']:.0%}"
        for name, p in result["passes"].items()
    )


def _variants(result):
    return "\n".join(
        f"{name}: " + ", ".join(f"{v} {_flight(r)}" for v, r in rows.items())
        for name, rows in result["passes"].items()
    )


def _flight(row: dict) -> str:
    """Milliseconds one by one and in flight, and the share of the card's matrix rate."""
    return (
        f"{row['median_s'] * 1e3:.3g} ms ({row['in_flight_s'] * 1e3:.3g} in flight, "
        f"{row['in_flight_share_of_matmul']:.0%})"
    )


def _compiled(result):
    return "\n".join(
        f"{name}: first {rows['first_run_s']:.0f} s, cosine {rows['cosine']:.6f}, "
        + ", ".join(f"{v} {_flight(r)}" for v, r in rows.items() if isinstance(r, dict))
        for name, rows in result["passes"].items()
    )


def _pipeline(result):
    return "\n".join(
        f"{precision}, batches {name}: files to store {each['pipeline']['median_s']:.3g} s, "
        f"encoder alone {each['encoder_alone']['median_s']:.3g} s, {each['ratio']:.2f}x"
        for precision, report in result.items()
        for name, each in report["by_batches"].items()
    )


def _probe(result):
    runs = {k: v for k, v in result.items() if k != "checks"}
    return "\n".join(
        f"{name}: probes {r['cost']['probe_seconds']:.3g} s, encoding "
        f"{r['cost']['encode_seconds']:.3g} s, "
        + ", ".join(f"{m} {v['mean']:.3f}" for m, v in r["metrics"].items())
        for name, r in runs.items()
    )


def _pretraining(result):
    lines = (result["history"] or "no history").strip().splitlines()
    return f"{len(lines) - 1} epochs; {lines[-1]}"


def _costs(result):
    return "; ".join(
        f"{r['seg']}: {r['peak_memory_bytes'] / 1e9:.2f} GB, {r['seconds_per_track'] * 1e3:.3g} ms"
        if "peak_memory_bytes" in r
        else f"{r['seg']}: {r.get('failed')}"
        for r in result["rows"]
    )


SUMMARIES = {
    "rates": _rates,
    "sizes": _sizes,
    "study": _study,
    "small_card": _small,
    "where": _where,
    "variants": _variants,
    "graphed": _variants,
    "compiled": _compiled,
    "pipeline": _pipeline,
    "probe": _probe,
    "pretraining": _pretraining,
    "costs": _costs,
}
