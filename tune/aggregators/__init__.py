"""Aggregators: a track's tokens (N, D) to one embedding (D').

registry            the table of aggregators, and those without parameters
track_aggregator    an aggregator applied to tracks, fitted or loaded
track_features      a task's tracks as inputs of the probe
whitening           covariance within tracks, or of all tokens
trainable           aggregators that learn with the probe
poolings            those that are plain modules over tokens
view_selection      which views a gate lets through
flag_rules          which flags belong together
degenerate          settings that equal the full track
transformer/        the pretrained Transformer
"""

from tune.system.lazy import lazy_names

PUBLIC = {
    "AGGREGATORS": "registry",
    "TrackAggregator": "track_aggregator",
    "aggregate_track": "registry",
}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
