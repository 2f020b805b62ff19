"""python -m tune.embeddings similar | agreement | duplicates | groups | map | hubness."""

from tune.cli.commands import run_verb

if __name__ == "__main__":
    run_verb(
        "tune.embeddings",
        {
            "similar": "tune.embeddings.similar",
            "agreement": "tune.embeddings.agreement",
            "duplicates": "tune.embeddings.duplicates",
            "groups": "tune.embeddings.groups",
            "map": "tune.embeddings.map",
            "hubness": "tune.embeddings.hubness",
        },
    )
