"""Differences over several tasks, from runs with known answers."""

from itertools import product

import numpy as np
import pytest
from compare_runs import write_run
from rich.console import Console
from scipy.stats import ttest_1samp

from tune.comparison.analysis import analyse
from tune.comparison.configurations import merge
from tune.comparison.html_report import render
from tune.comparison.over_tasks import over_tasks
from tune.comparison.tables import print_views, write_markdown
from tune.runs.load import read_folders

N = 200
# How many tracks more than the mean's 120 a strategy gets right.
GAINS = {
    "whitened": {"a": 20, "b": 14, "c": 24, "d": 10},
    "stats": {"a": 60, "b": -40, "c": -40, "d": -30},
    "max": {"a": 4, "b": 2},
}


def views_of(root, tasks, encoders=("muq-nano",)):
    """Runs of the mean, of a gate that is the mean to the bit, and of strategies by `GAINS`."""
    labels = np.random.default_rng(0).integers(0, 3, N)
    for task, encoder in product(tasks, encoders):

        def write(agg, n_right, task=task, encoder=encoder, **fields):
            right = np.arange(N) < n_right
            predictions = np.tile(np.where(right, labels, (labels + 1) % 3), (2, 1))
            ids = [f"{i:04d}" for i in range(N)]
            fields |= {"task": task, "agg": agg, "encoder": encoder}
            write_run(root, f"{encoder}-{task}-{agg}", labels, predictions, ids=ids, **fields)

        write("mean", 120)
        write("gated", 120, same_as="mean")
        for agg, gains in GAINS.items():
            if task in gains:
                write(agg, 120 + gains[task] // (1 + encoders.index(encoder)))
    runs, left = read_folders([root])
    assert not left
    return analyse(merge(runs)[0], baseline="10:mean")


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """Four tasks."""
    return views_of(tmp_path_factory.mktemp("runs"), "abcd")


def test_tasks_are_draws_of_a_random_effect(views):
    (found,) = over_tasks(views, "none")
    effects = {effect.strategy: effect for effect in found.effects}
    assert found.tasks == list("abcd")
    for agg in ("whitened", "stats"):
        gains = np.array(list(GAINS[agg].values())) / N
        expected = ttest_1samp(gains, 0).confidence_interval(0.95)
        effect = effects[f"10 s {agg}"]
        assert effect.mean == pytest.approx(gains.mean())
        assert (effect.verdict.low, effect.verdict.high) == pytest.approx(tuple(expected))
    assert effects["10 s whitened"].verdict.word == "better"
    assert effects["10 s stats"].verdict.word == "can't tell"
    assert "10 s max" not in effects  # on two tasks only
    assert found.effects[0].strategy == "10 s whitened"  # the highest comes first


def test_a_strategy_that_is_the_baseline_everywhere_counts_as_nothing(views):
    (found,) = over_tasks(views)
    gate = next(e for e in found.effects if e.strategy == "10 s gated")
    assert gate.differences == dict.fromkeys("abcd", 0.0)
    assert gate.texts()[2:5] == ["+0.000", "", "= baseline"]


def test_what_was_chosen_by_looking_is_scored_on_the_task_left_out(views):
    (found,) = over_tasks(views)
    assert set(found.picks.values()) == {"10 s whitened"}
    assert found.chosen.mean == pytest.approx(np.mean(list(GAINS["whitened"].values())) / N)
    assert (
        "chosen for each task by the other tasks: 10 s whitened (4): +0.085" in (found.answers()[1])
    )


def test_the_chosen_one_is_no_better_than_by_luck(tmp_path, monkeypatch):
    """A strategy that shines on one task is chosen for the others, and fails there."""
    monkeypatch.setitem(GAINS, "whitened", {task: 1 for task in "abcd"})
    monkeypatch.setitem(GAINS, "stats", {"a": 76, "b": -20, "c": -20, "d": -20})
    (found,) = over_tasks(views_of(tmp_path, "abcd"))
    assert found.picks == {"a": "10 s whitened", **dict.fromkeys("bcd", "10 s stats")}
    assert found.chosen.mean == pytest.approx((1 - 20 * 3) / 4 / N)


def test_of_several_encoders_the_means_count(tmp_path):
    """The second encoder gains half of what the first does."""
    first, second, both = over_tasks(views_of(tmp_path, "abcd", ("muq-nano", "mel")), "none")
    assert (first.encoder, second.encoder) == ("mel", "muq-nano")
    assert both.encoder == "mean of 2 encoders"
    (of_both,) = (e for e in both.effects if e.strategy == "10 s whitened")
    assert of_both.differences == pytest.approx(
        {task: gain * 0.75 / N for task, gain in GAINS["whitened"].items()}
    )


def test_an_encoder_with_too_few_tasks_takes_no_means_from_the_others(tmp_path):
    views_of(tmp_path, "abcd", ("muq-nano", "mel"))
    found = over_tasks(views_of(tmp_path, "e", ("musicnn",)))
    assert [table.encoder for table in found] == ["mel", "muq-nano", "mean of 2 encoders"]


def test_two_tasks_are_too_few(tmp_path):
    assert over_tasks(views_of(tmp_path, "ab")) == []


def test_it_is_in_the_terminal_the_report_and_markdown(views, tmp_path):
    console = Console(width=170, record=True)
    print_views(views, [], "holm", console)
    shown = console.export_text()
    write_markdown(views, "holm", tmp_path / "r.md")
    title = "over 4 tasks, muq-nano: difference to 10 s mean, tasks as a random effect"
    assert title in shown
    assert title in (tmp_path / "r.md").read_text(encoding="utf-8")
    page = render(views, [], correction="holm")
    assert '<section id="over-tasks">' in page
    for text in (shown, page):
        assert "+0.120 c" in text  # whitened's highest
        assert "chosen for each task by the other tasks" in text
