"""From a track's tokens (N, D) to one embedding (D')."""

from tune.system.lazy import door

PUBLIC = {
    "AGGREGATORS": "registry",
    "TrackAggregator": "track_aggregator",
    "aggregate_track": "registry",
}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
