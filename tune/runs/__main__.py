"""python -m tune.runs card | wandb_report."""

from tune.cli.commands import run_verb

if __name__ == "__main__":
    run_verb(
        "tune.runs", {"card": "tune.runs.model_card", "wandb_report": "tune.runs.wandb_report"}
    )
