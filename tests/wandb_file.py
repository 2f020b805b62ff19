"""Read a W&B run back from its .wandb file, as the upload would see it.

The file is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB with records of checksum (4),
length (2), type (1: whole, 2/3/4: first, middle and last part) and data, each a protobuf Record.
"""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

BLOCK = 32_768


def records(path: Path):
    """Yield the protobuf records of a .wandb file."""
    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # whoever wrote it was killed
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read_run(folder: Path) -> dict:
    """Read an offline run's folder: {"run", "config", "history", "summary", "exit_code"}."""
    (path,) = folder.glob("*.wandb")
    out = {"run": None, "config": {}, "history": [], "summary": {}, "exit_code": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            out["run"] = record.run
            _update(out["config"], record.run.config.update)
        elif kind == "config":
            _update(out["config"], record.config.update)
        elif kind == "history":
            row = {}
            _update(row, record.history.item)
            out["history"].append(row)
        elif kind == "summary":
            _update(out["summary"], record.summary.update)
        elif kind == "exit":
            out["exit_code"] = record.exit.exit_code
    return out


def read_runs(folder: Path) -> tuple[list[dict], list[Path]]:
    """Read the offline runs in a folder, and name those whose log a signal kept from being begun.

    W&B makes a run's folder first and hands the run to its own process later; what is ended between
    the two leaves a folder without a log, which `wandb sync` passes over.
    """
    folders = sorted(folder.glob("offline-run-*"))
    unbegun = [path for path in folders if not list(path.glob("*.wandb"))]
    return [read_run(path) for path in folders if path not in unbegun], unbegun


def _update(target: dict, items) -> None:
    """Put protobuf items with JSON values into a dict."""
    for item in items:
        target[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
