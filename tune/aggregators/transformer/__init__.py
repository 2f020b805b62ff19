"""The Transformer aggregator.

model, recipes, checkpoint                       the model, its settings, loading it
masking, batches, corpus, pretraining_state      masked-modelling pretraining
trained_on                                       its tracks, and test tracks among them
"""

from tune.system.lazy import lazy_names

PUBLIC = {"AggregatorConfig": "model", "AggregatorModel": "model", "load_aggregator": "checkpoint"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
