"""python -m tune.comparison paired | attention."""

from tune.cli.commands import run_verb

if __name__ == "__main__":
    run_verb(
        "tune.comparison",
        {"paired": "tune.comparison.paired", "attention": "tune.comparison.attention_weights"},
    )
