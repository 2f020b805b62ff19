"""Runs as a model card's results, read back by the hub's own library."""

import json

import numpy as np
import pytest
import yaml
from compare_runs import write_run
from huggingface_hub import ModelCard

from tune.runs.model_card import card_data, main


@pytest.fixture
def runs(tmp_path, rng):
    """Two runs whose metrics have intervals."""
    labels = rng.integers(0, 3, 30)
    for name, task, value in (("a", "gtzan", 0.81237), ("b", "mine", 0.5)):
        metrics = {
            "accuracy": {
                "mean": value,
                "std": 0.01,
                "ci_low": value - 0.1,
                "ci_high": value + 0.1,
                "per_seed": [value],
            },
            "r2": {"mean": None, "std": 0.0, "ci_low": None, "ci_high": None, "per_seed": [None]},
        }
        write_run(tmp_path, name, labels, np.stack([labels]), task=task, metrics=metrics)
    return tmp_path


def test_a_card_holds_the_results_as_the_hub_reads_them(runs, capsys):
    main([str(runs / "a"), str(runs / "b")])
    text = capsys.readouterr().out
    first, second = ModelCard(text).data.eval_results
    assert first.metric_value == 0.8124
    assert first.metric_type == "accuracy"
    assert first.dataset_type == "m-a-p/GTZAN"
    assert first.task_type == "audio-classification"
    assert first.metric_args["ci_low"] == 0.7124
    assert first.metric_args["seg"] == "10"
    assert first.metric_args["n_test_tracks"] == 30
    assert second.dataset_type == "mine"
    header = yaml.safe_load(text.split("---")[1])
    assert header["model-index"][0]["name"] == "muq-nano"
    assert len(header["model-index"][0]["results"]) == 2


def test_a_cards_text_and_other_fields_stay(runs):
    card = runs / "README.md"
    card.write_text("---\nlicense: mit\nlanguage: ko\n---\n# My model\n\nText.\n")
    for _ in range(2):  # again changes nothing
        main([str(runs / "a"), "--name=mine", "--out", str(card)])
    loaded = ModelCard.load(card)
    assert loaded.text.strip() == "# My model\n\nText."
    assert (loaded.data.license, loaded.data.language) == ("mit", "ko")
    assert loaded.data.model_name == "mine"
    assert [r.metric_value for r in loaded.data.eval_results] == [0.8124]
    main([str(runs / "b"), "--out", str(runs / "new.md")])
    assert ModelCard.load(runs / "new.md").data.eval_results[0].metric_value == 0.5


def test_what_is_no_run_is_said(runs, rng):
    with pytest.raises(ValueError, match="is no run of train_probe"):
        card_data([runs])
    labels = rng.integers(0, 3, 30)
    metrics = {"accuracy": {"mean": 0.1, "std": 0.0, "ci_low": 0.0, "ci_high": 0.2}}
    write_run(runs, "c", labels, np.stack([labels]), encoder="mel", metrics=metrics)
    with pytest.raises(ValueError, match="several encoders"):
        card_data([runs / "a", runs / "c"])
    assert card_data([runs / "a", runs / "c"], "both").model_name == "both"


@pytest.mark.parametrize(
    ("licence", "header"),
    [
        ("CC-BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("MIT, see its card", {"license": "other", "license_name": "MIT, see its card"}),
        (None, {}),
    ],
)
def test_a_new_card_names_the_licence_of_the_weights(runs, licence, header):
    path = runs / "a" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_licence": licence}))
    found = card_data([runs / "a"]).to_dict()
    assert {key: found[key] for key in found if key.startswith("license")} == header
