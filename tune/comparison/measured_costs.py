"""Peak memory measured by `profile.py --out FILE`, for runs that only read the store."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tune.comparison.configurations import Configuration

log = logging.getLogger(__name__)


def apply_costs(configurations: Sequence[Configuration], path: Path) -> int:
    """Give configurations the peak memory of the same strategy in a file of profile.py's.

    Of several track lengths the longest counts. Returns how many configurations got theirs.

    Raises
    ------
    ValueError
        When the file isn't one of profile.py's.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted(
            (row for row in record["rows"] if "failed" not in row),
            key=lambda row: row["duration_s"],
        )
        peaks = {
            _key(
                row["encoder"],
                row["layer"],
                row["seg"],
                row["agg"],
                row["precision"],
                row.get("frame_rate"),
                row.get("fusion", "early"),
            ): row
            for row in rows
        }
        device = record["machine"]["device"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--costs {path}: no file of profile.py --out ({error})") from error
    n = 0
    for configuration in configurations:
        r = configuration.result
        rate = None
        if r["tokens"] != "segment":  # "frame at 5 Hz"
            rate = float(r["tokens"].split()[-2])
        asked = [str(x) for x in (r.get("layer_asked"), r["layer"]) if x is not None]
        keys = [
            _key(
                r["encoder"],
                layer,
                r["seg"],
                r["agg"],
                r.get("precision"),
                rate,
                r.get("fusion", "early"),
            )
            for layer in asked
        ]
        row = next((peaks[key] for key in keys if key in peaks), None)
        if row is not None:
            configuration.memory_bytes = row["peak_memory_bytes"]
            configuration.memory_kind = row["peak_memory_kind"]
            configuration.memory_source = (
                f"profile.py, a track of {row['duration_s']:.0f} s on {device}"
            )
            n += 1
    log.info("%s: peak memory of %d of %d configurations", path, n, len(configurations))
    return n


def _key(encoder, layer, *rest) -> tuple:
    """The settings that a cost depends on."""
    return (Path(str(encoder)).name, str(layer), *rest)
