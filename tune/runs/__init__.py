"""Runs: what train_probe.py writes, and reading it again.

result          result.json, the run's folder, the table that ends a run
outcome         the test scored; folds put together
predictions     predictions.parquet
load            runs read from folders
tracking        W&B and other trackers
lineage         configuration, data, encoder and checkpoint as W&B shows them
model_card      python -m tune.runs card
wandb_report    python -m tune.runs wandb_report
"""

from tune.system.lazy import lazy_names

PUBLIC = {"read_run": "load"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
