"""Settings that can be skipped: they equal another cell by definition, or have no result.

A cell whose tracks are all one piece is the full track's, and over one piece a maximum or a mean
by duration is the mean. Whitening needs what varies within a track: over one piece it isn't
defined.
"""

from collections.abc import Mapping, Sequence

from tune.aggregators.registry import find_row, readable_name, split_name
from tune.segments.rules import Rule, is_degenerate


def is_uncut(rules: Sequence[Rule], pieces: Sequence[Sequence[int]]) -> bool:
    """Say whether every track is a single piece.

    Parameters
    ----------
    rules : the segment rules of a run
    pieces : for each rule, the number of segments of each track
    """
    return all(
        bool(counts) and (rule.name == "full" or is_degenerate(rule, counts))
        for rule, counts in zip(rules, pieces, strict=True)
    )


def degenerate_reason(
    rules: Sequence[Rule], pieces: Sequence[Sequence[int]], agg: str, tokens: str
) -> dict[str, str] | None:
    """Say why a run needn't be done, or None.

    Parameters
    ----------
    rules, pieces : as in `is_uncut`
    agg : the aggregator (`tune.aggregators.registry.find_row`)
    tokens : "segment" or "frame"; frames are several in any case

    Returns
    -------
    dict of degenerate, the reason, and same_as ("full mean") where it is another cell
    """
    if len(rules) > 1 or not is_uncut(rules, pieces):
        return None
    seg, row, agg = rules[0].name, find_row(agg), readable_name(agg)
    if tokens == "segment" and row.needs_several:
        return {"degenerate": f"undefined: every track is one piece, and {agg} needs several"}
    plain = row.of_one_piece or agg if tokens == "segment" else agg
    if (seg, agg) == ("full", plain):
        return None
    why = "equals full" if seg != "full" else f"{agg} of one piece is its {plain}"
    return {"degenerate": why, "same_as": f"full {plain}"}


def repeated_pick(use_seconds: float | str | None, pick: str | None) -> dict[str, str] | None:
    """Say why a run with all of each track repeats another one of a grid, or None.

    Examples
    --------
    >>> repeated_pick("all", "spread"), repeated_pick("all", "first"), repeated_pick(30, "spread")
    ({'degenerate': 'all of each track is used: --pick first does the same'}, None, None)
    """
    if use_seconds == "all" and pick not in (None, "first"):
        return {"degenerate": "all of each track is used: --pick first does the same"}
    return None


# Flags that mean nothing to a full track.
CUTTING = ("hop", "min_seg", "max_seg", "min_tail", "pad_tail", "use_seconds", "pick")


def full_track(values: Mapping, tokens: str = "segment") -> dict:
    """The full-track cell that a sweep's cell is equivalent to when none of its tracks is cut.

    Parameters
    ----------
    values : flag -> value
    tokens : "segment" or "frame"; frames are several also in one piece
    """
    out = {k: v for k, v in values.items() if k not in CUTTING}
    out["seg"] = "full"
    if "agg" in out and tokens == "segment":
        out["agg"] = find_row(split_name(out["agg"])[0]).of_one_piece or out["agg"]
    return out
