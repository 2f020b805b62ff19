"""A task checked, and what was found."""

import json

from tune.tasks.check import check
from tune.tasks.load import load_task


def report_of(path, tmp_path, **kwargs):
    """Check a task of one's own."""
    task = load_task(str(path), tmp_path, cache_dir=tmp_path, usable=False)
    return check(task, progress=False, workers=2, **{"min_tracks": 1, **kwargs})


def problems(report, kind) -> list[str]:
    """Problems of a kind."""
    return [p["text"] for p in report["problems"] if p["kind"] == kind]


def rows_of(folder, split):
    """Rows of one of make_task's lists."""
    return [json.loads(line) for line in (folder / f"tones.{split}.jsonl").read_text().splitlines()]
