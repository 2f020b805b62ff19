"""The Transformer aggregator: model, recipes, masked-modelling pretraining, checkpoints."""

from tune.system.lazy import door

PUBLIC = {"AggregatorConfig": "model", "AggregatorModel": "model", "load_aggregator": "checkpoint"}
__getattr__, __dir__, __all__ = door(__name__, PUBLIC)
