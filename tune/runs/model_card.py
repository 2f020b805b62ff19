"""Results of runs in a model card for the hub: `python -m tune.runs card runs/NAME [more ...]`.

    python -m tune.runs card runs/NAME                       # prints the YAML header of a README.md
    python -m tune.runs card runs/A runs/B --out README.md   # adds it to a card, keeping the rest

The block is the hub's `model-index`: for each run and metric the mean over seeds, with the 95 %
interval, the seeds and the strategy in its `args`. It is parsed again before it is printed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tune.cli.parser import Parser
from tune.encoders.hub import LICENCES
from tune.system.files import atomic_write_text
from tune.tasks.label_kinds import label_kind
from tune.tasks.load import TASKS

STRATEGY = ("encoder", "layer", "seg", "hop", "agg", "tokens", "precision")


def eval_results(run: Path) -> list[EvalResult]:
    """A run's metrics as the hub's results.

    Raises
    ------
    ValueError
        When it is no run of train_probe.py.
    """
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        strategy = {name: result[name] for name in STRATEGY if result[name] is not None}
        row = TASKS.get(result["task"])
        return [
            EvalResult(
                task_type=label_kind(result["kind"]).hub_task,
                task_name=f"a probe on frozen embeddings: {result['task']}",
                dataset_type=(row and row.hub) or result["task"],
                dataset_name=result["task"],
                dataset_split="test",
                metric_type=name,
                metric_name=f"test {name}",
                metric_value=round(value["mean"], 4),
                metric_args={
                    "ci_low": round(value["ci_low"], 4),
                    "ci_high": round(value["ci_high"], 4),
                    "std": round(value["std"], 4),
                    "seeds": result["seeds"],
                    "n_test_tracks": result["n_tracks"]["test"],
                    **strategy,
                },
            )
            for name, value in result["metrics"].items()
            if value["mean"] is not None
        ]
    except FileNotFoundError as error:
        raise ValueError(f"{run} is no run of train_probe.py: no {error.filename}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else f"{error!r}"
        raise ValueError(f"the run {run} can't be read ({what}): run it again") from error


def card_data(runs: Sequence[Path], name: str | None = None) -> ModelCardData:
    """The header of a model card with the results of one encoder's runs.

    Parameters
    ----------
    name : the model's name; None is the runs' encoder

    Raises
    ------
    ValueError
        When the runs have several encoders and no name is given, or none has a metric.
    """
    results = [item for run in runs for item in eval_results(run)]
    if not results:
        raise ValueError("none of the runs has a defined metric, so there is nothing for a card")
    encoders = sorted({item.metric_args["encoder"] for item in results})
    if len(encoders) > 1 and name is None:
        raise ValueError(
            f"the runs have several encoders ({', '.join(encoders)}): give the model's --name"
        )
    return ModelCardData(
        model_name=name or encoders[0],
        eval_results=results,
        tags=["music", "audio", "tune"],
        **_licence(runs),
    )


def _licence(runs: Sequence[Path]) -> dict[str, str]:
    """The header's lines on the licence of the encoder's weights, where the runs name one."""
    read = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs]
    found = {result.get("encoder_licence") for result in read}
    if len(found) != 1 or None in found:
        return {}
    shown = found.pop()
    ids = {text: key for key, text in LICENCES.items()}
    return {"license": ids[shown]} if shown in ids else {"license": "other", "license_name": shown}


def write_card(data: ModelCardData, out: Path) -> None:
    """Add the results to a README.md, keeping its text and the rest of its header."""
    if out.exists():
        card = ModelCard.load(out, ignore_metadata_errors=False)
        card.data.model_name, card.data.eval_results = data.model_name, data.eval_results
        text = str(card)
    else:
        text = f"---\n{data.to_yaml()}\n---\n\n# {data.model_name}\n"
    atomic_write_text(out, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write a card."""
    parser = Parser(prog="python -m tune.runs card", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--name", help="the model's name (default: the runs' encoder)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a README.md to add it to (created if missing)"
    )
    args = parser.parse_args(argv)
    data = card_data(args.runs, args.name)
    text = f"---\n{data.to_yaml()}\n---\n"
    read = ModelCard(text).data.eval_results
    assert [r.metric_value for r in read] == [r.metric_value for r in data.eval_results]
    if args.out is None:
        print(text, end="")
    else:
        write_card(data, args.out)
        print(f"  results    {len(read)} metrics of {len(args.runs)} runs: {args.out}")
