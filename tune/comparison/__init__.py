"""Compare runs: what `compare.py` computes and prints.

configurations      runs merged over seeds
significance        scores of configurations and their verdicts against a baseline
jackknife           scores and differences, with the variance of tracks and seeds
verdicts            better, equivalent, as good, worse or can't tell, by a margin
selection           choosing apart from scoring
main_effects        of segments, aggregators and encoders
recommend           advice, also within a budget
fewest_seconds      quality against the seconds of each track that are used
over_tasks          differences over several tasks, as a random effect
stability           of embeddings and decisions under changes of the audio
per_class           by class, by track, attention
published_results   figures of the study and of papers beside ours
measured_costs      peak memory measured by profile.py
analysis            all of these for each task
tables, figures, html_report, wandb_runs    output, and runs read from W&B
paired, attention_weights                   python -m tune.comparison paired | attention
"""

from tune.system.lazy import lazy_names

PUBLIC = {"analyse": "analysis"}
__getattr__, __dir__, __all__ = lazy_names(__name__, PUBLIC)
