"""Main effects and means over strategies: who is compared with whom, and what is left out."""

import sys
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from compare_runs import guesses, write_grid, write_run
from rich.console import Console

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.html_report import render
from tune.comparison.tables import others, print_views, some_of, write_markdown
from tune.runs.load import read_folders


def view_of(root):
    """The only task below a folder."""
    configurations, left = merge(read_folders([root])[0])
    assert not left
    (view,) = analyse(configurations)
    return view


def printed(view):
    """The view as the terminal shows it."""
    with redirect_stdout(StringIO()) as out:
        print_views([view], [], "holm", Console(width=170, file=sys.stdout))
    return out.getvalue()


@pytest.fixture
def labels(rng):
    return rng.integers(0, 3, 40)


def test_a_single_layer_is_compared_whatever_layers_the_other_was_run_with(tmp_path, rng, labels):
    runs = [
        ("mel", "mean", {"layer": 0, "layer_asked": "last"}),
        ("mel", "max", {"layer": 0, "layer_asked": "last"}),
        ("mel", "stats", {"layer": 0, "layer_asked": "all", "config": {"layers": [0]}}),
        ("muq-nano", "mean", {"layer": 3, "layer_asked": "all"}),
        ("muq-nano", "mean", {"layer": 2, "layer_asked": 2}),
        ("muq-nano", "max", {"layer": 4, "layer_asked": "last"}),
        ("muq-nano", "stats", {"layer": 1, "layer_asked": 1}),
        ("muq", "mean", {"layer": 6, "layer_asked": 6}),
    ]
    for i, (encoder, agg, fields) in enumerate(runs):
        predictions = guesses(rng, labels, 0.9 if encoder == "muq-nano" else 0.4)
        write_run(tmp_path, str(i), labels, predictions, encoder=encoder, agg=agg, **fields)
    view = view_of(tmp_path)
    pairs = {frozenset((p.name, p.other)): p for p in view.encoder_pairs}
    # Of several layers the best by validation, `all`, stands for muq-nano.
    pair = pairs[frozenset(("mel", "muq-nano"))]
    assert len(pair.strategies) == 3
    assert pair.left_out == {"muq-nano": ["10 s mean (layer 2)"], "mel": []}
    assert pair.difference.word == "better"
    assert len(pairs[frozenset(("mel", "muq"))].strategies) == 1
    # Two encoders of several layers share a strategy only with the same layers.
    assert view.encoders_apart == [("muq-nano", "muq")]
    shown = printed(view)
    assert "left out: muq-nano 10 s mean (layer 2)" in shown
    assert "encoders not compared: muq-nano and muq (no strategy, or" in shown


def test_the_strategies_outside_a_mean_are_named(tmp_path, rng):
    labels, _ = write_grid(tmp_path, rng)
    write_run(tmp_path, "lonely", labels, guesses(rng, labels, 0.5), seg="60", agg="stats")
    write_run(tmp_path, "mel", labels, guesses(rng, labels, 0.5), encoder="mel", layer=0)
    view = view_of(tmp_path)
    (segments, aggregators) = view.encoders[0].effects
    assert segments.left_out == aggregators.left_out == ["60 s stats"]
    (pair,) = view.encoder_pairs
    assert pair.strategies == ["10 s mean"]
    assert len(pair.left_out["muq-nano"]) == 9
    shown = printed(view)
    assert shown.count("; left out: 60 s stats") == 2
    assert "left out: muq-nano 10 s max, 10 s whitened, 30 s max and 6 others" in shown
    write_markdown([view], "holm", tmp_path / "c.md")
    assert "| muq-nano 10 s max, 10 s whitened, 30 s max and 6 others |" in (
        (tmp_path / "c.md").read_text()
    )
    page = render([view], [], correction="holm")
    assert "Left out: <span>60 s stats</span>." in page
    assert "muq-nano 10 s max, 10 s whitened and 7 others</td>" in page


def test_a_level_whose_predictions_are_the_references_is_said_to_equal_it(tmp_path, rng, labels):
    for seg in ("10", "30"):
        mean = guesses(rng, labels, 0.6)
        nearly = mean.copy()
        nearly[0, 0] = (labels[0] + 1) % 3 if mean[0, 0] == labels[0] else labels[0]
        for agg, predictions in (("mean", mean), ("gated", mean), ("attention", nearly)):
            write_run(tmp_path, f"{seg}-{agg}", labels, predictions, seg=seg, agg=agg)
    view = view_of(tmp_path)
    (effect,) = [e for e in view.encoders[0].effects if e.factor == "aggregator"]
    words = {level.name: level.word for level in effect.levels}
    assert words == {"mean": "reference", "gated": "= mean", "attention": "can't tell"}
    (equal,) = [level for level in effect.levels if level.same_as]
    assert equal.difference is None
    line = next(x for x in printed(view).splitlines() if "effect of aggregator" in x)
    assert f"gated {equal.mean:.3f} (= mean)" in line
    assert '<span class="pill none">= mean</span>' in render([view], [], correction="holm")


@pytest.mark.parametrize(("n", "text"), [(0, ""), (1, "1 other"), (2, "2 others")])
def test_one_other_and_two_others(n, text):
    assert others(n) == text
    assert some_of([*"abc", *"x" * n]) == "a, b, c" + (f" and {text}" if text else "")


@pytest.mark.parametrize("n", [9, 11])
def test_the_table_by_class_says_how_many_it_leaves_out(tmp_path, rng, labels, n):
    for i in range(n):
        write_run(tmp_path, str(i), labels, guesses(rng, labels, 0.5), seg=str(5 + i))
    text = "1 other." if n == 9 else "3 others."
    assert f"the best strategies, without {text}" in render(
        [view_of(tmp_path)], [], correction="holm"
    )


def test_nothing_is_called_fastest_where_all_cost_the_same(tmp_path, rng, labels):
    for agg in ("mean", "max", "stats"):
        cost = {"embedding_dim": 384 if agg == "stats" else 192}
        write_run(tmp_path, agg, labels, guesses(rng, labels, 0.6), agg=agg, cost=cost)
    advice = {a.question: a for a in view_of(tmp_path).encoders[0].advice}
    assert advice["fastest"].configuration is None
    assert advice["fastest"].evidence == "3 strategies cost about the same: 0.0909 s a track"
    assert advice["smallest"].configuration.dim == 192


def test_guidelines_with_one_answer_for_one_reason_are_one_card(tmp_path, rng, labels):
    for agg, right in (("mean", 0.9), ("max", 0.5)):
        fast = agg == "mean"
        cost = {"encode_seconds_stored": 10.0 if fast else 20.0, "embedding_dim": 192 * (2 - fast)}
        write_run(tmp_path, agg, labels, guesses(rng, labels, right), agg=agg, cost=cost)
    view = view_of(tmp_path)
    questions = [a.question for a in view.encoders[0].advice]
    assert "fastest, smallest" in questions
    assert not {"fastest", "smallest"} & set(questions)
    cards = render([view], [], correction="holm").split('class="card')
    assert sum("fastest" in card for card in cards) == 1
    texts = [(a.answer, a.evidence) for a in view.encoders[0].advice]
    assert len(set(texts)) == len(texts)


def test_means_of_a_pair_are_those_of_its_strategies(tmp_path, rng, labels):
    said = {}
    for encoder, layer, right in (("mel", 0, 0.5), ("muq-nano", 4, 0.8)):
        for agg in ("mean", "max"):
            said[encoder, agg] = guesses(rng, labels, right)
            fields = {"layer_asked": "last" if encoder == "mel" else "all", "layer": layer}
            name = f"{encoder}-{agg}"
            write_run(
                tmp_path, name, labels, said[encoder, agg], encoder=encoder, agg=agg, **fields
            )
    (pair,) = view_of(tmp_path).encoder_pairs
    means = [
        np.mean([(said[name, agg] == labels).mean() for agg in ("mean", "max")])
        for name in (pair.name, pair.other)
    ]
    assert (pair.mean, pair.mean_of_other) == pytest.approx(means)
