"""python -m tune.embeddings similar | agreement | duplicates."""

from tune.cli.commands import run_verb

if __name__ == "__main__":
    run_verb(
        "tune.embeddings",
        {
            "similar": "tune.embeddings.similar",
            "agreement": "tune.embeddings.agreement",
            "duplicates": "tune.embeddings.duplicates",
        },
    )
