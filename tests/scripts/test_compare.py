"""compare.py: runs to cells, cells to verdicts, against SciPy, plain loops and by hand."""

import inspect
import json
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compare_runs import guesses, write_grid, write_run
from conftest import ROOT, run
from rich.console import Console
from wandb_file import read_run

from tune.comparison.analysis import analyse, choose_baseline, pareto
from tune.comparison.configurations import Configuration, merge
from tune.comparison.jackknife import paired_difference
from tune.comparison.main_effects import balanced, main_effects
from tune.comparison.measured_costs import apply_costs
from tune.comparison.paired import compare
from tune.comparison.per_class import break_down
from tune.comparison.published_results import study_table
from tune.comparison.recommend import Limits, advise, relative_costs, validation_score
from tune.comparison.significance import Scores, common_ids, compare_to_baseline
from tune.comparison.tables import _md, _tex, frame, print_views, verdict_notes, write_markdown
from tune.comparison.verdicts import MARGIN
from tune.comparison.wandb_runs import read_project
from tune.runs.load import read_folders
from tune.runs.predictions import read_predictions
from tune.sweep.summary import print_comparison
from tune.tasks.label_kinds import class_accuracy


@pytest.fixture
def labels(rng):
    return rng.integers(0, 3, 40)


def configurations_below(root):
    """Cells of all runs below a folder, by label; nothing may be left out."""
    runs, left = read_folders([root])
    assert not left
    configurations, left = merge(runs)
    return {configuration.label: configuration for configuration in configurations}


def test_a_gate_that_let_in_nothing_is_the_mean_and_no_other_strategy_is(tmp_path, rng, labels):
    mean, other = guesses(rng, labels, 0.6), guesses(rng, labels, 0.6)
    shut, open_ = [1.0, 0.0, 0.0], [1.0, 0.4, 0.0]
    for name, agg, predictions, weights in (
        ("gated", "gated", mean, [shut] * 3),
        ("opened", "gated", mean, [shut, open_, shut]),
        ("other", "gated", other, [shut] * 3),
        ("mixed", "whitened", mean, [shut] * 3),
    ):
        about = {"view_weights": dict(zip("012", weights, strict=True)), "readout": None}
        fields = {"agg": agg, "aggregator": about}
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, "mean", labels, mean)
        write_run(tmp_path / name, name, labels, predictions, **fields)
        found = configurations_below(tmp_path / name)
        same = found[f"10 s {agg}"].duplicate_of is found["10 s mean"]
        assert same == (name == "gated"), name


def test_a_folder_of_links_to_runs_is_read(tmp_path, rng, labels):
    write_run(tmp_path / "runs", "one", labels, guesses(rng, labels, 0.6))
    links = tmp_path / "links"
    links.mkdir()
    (links / "run").symlink_to(tmp_path / "runs" / "one")
    (links / "again").symlink_to(links)  # a circle
    assert list(configurations_below(links)) == ["10 s mean"]
    runs, left = read_folders([links, tmp_path / "runs"])
    assert (len(runs), left) == (1, [])


def test_other_seeds_join_and_the_newest_of_the_same_seed_counts(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.6, n_seeds=5)
    write_run(tmp_path, "old", labels, p[:2], seeds=[0, 1], age=50)
    write_run(tmp_path, "new", labels, p[2:4], seeds=[1, 2])
    write_run(tmp_path, "more", labels, p[4:], seeds=[7], age=90)
    configurations, left = merge(read_folders([tmp_path])[0])
    assert len(configurations) == 1
    assert configurations[0].seeds == [1, 2, 7]
    assert np.array_equal(configurations[0].predictions, p[2:])
    assert [run.name for run in configurations[0].runs] == ["new", "more"]
    assert len(left) == 1
    assert left[0].where.endswith("old")
    assert "replaced by the newer new: the same configuration and seed 1" in left[0].reason


@pytest.mark.parametrize(
    "other",
    [
        {"seg": "30"},
        {"agg": "max"},
        {"encoder": "mel"},
        {"tokens": "frame at 5 Hz"},
        {"hop": 5.0},
        {"layer": 2, "layer_asked": "2"},
        {"layer": "mix", "layer_asked": "mix"},
        {"task": "u"},
        {"precision": "bf16"},
        {"config": {"lr": 0.1}},
        {"min_tail": 5.0},
        {"channels": "left"},
        {"aggregator": {"checkpoint": "x/tune", "tuned": False, "readout": "cls"}},
    ],
)
def test_what_changes_a_number_makes_another_cell(tmp_path, rng, labels, other):
    write_run(tmp_path, "a", labels, guesses(rng, labels, 0.5), seeds=[0, 1, 2])
    write_run(tmp_path, "b", labels, guesses(rng, labels, 0.5), seeds=[3, 4, 5], **other)
    configurations, left = merge(read_folders([tmp_path])[0])
    assert len(configurations) == 2
    assert not left
    names = [(c.result["task"], c.result["encoder"], c.label) for c in configurations]
    assert len(set(names)) == 2


def test_the_last_layer_by_name_or_number_is_one_cell(tmp_path, rng, labels):
    write_run(tmp_path, "a", labels, guesses(rng, labels, 0.5, 1), seeds=[0])
    write_run(tmp_path, "b", labels, guesses(rng, labels, 0.5, 1), seeds=[1], layer_asked="4")
    assert [configuration.seeds for configuration in merge(read_folders([tmp_path])[0])[0]] == [
        [0, 1]
    ]


def test_checkpoints_of_the_same_name_are_told_apart(tmp_path, rng, labels):
    for parent in "xy":
        aggregator = {"checkpoint": f"{parent}/tune", "tuned": False, "readout": "cls"}
        write_run(
            tmp_path,
            parent,
            labels,
            guesses(rng, labels, 0.5),
            agg="transformer",
            aggregator=aggregator,
        )
    assert set(configurations_below(tmp_path)) == {
        "10 s transformer (x/tune)",
        "10 s transformer (y/tune)",
    }


def test_other_weights_or_another_split_do_not_join(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    write_run(tmp_path, "new", labels, p, seeds=[0, 1, 2])
    write_run(
        tmp_path, "weights", labels, p, seeds=[3, 4, 5], age=1, config={"encoder_fingerprint": "f"}
    )
    write_run(tmp_path, "split", labels[1:], p[:, 1:], seeds=[6, 7, 8], age=1)
    configurations, left = merge(read_folders([tmp_path])[0])
    assert [configuration.seeds for configuration in configurations] == [[0, 1, 2]]
    reasons = sorted(item.reason for item in left)
    assert reasons == [
        "another test split than the newer new",
        "other weights of the encoder than the newer new",
    ]


def test_what_is_no_run_is_named_with_its_reason(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    for name in ("good", "no-predictions", "broken", "foreign", "list", "cut", "seeds", "hidden"):
        write_run(tmp_path, name, labels, p)
    (tmp_path / "no-predictions" / "predictions.parquet").unlink()
    (tmp_path / "broken" / "result.json").write_text("{")
    (tmp_path / "foreign" / "result.json").write_text('{"accuracy": 1}')
    (tmp_path / "list" / "result.json").write_text("[]")
    (tmp_path / "cut" / "predictions.parquet").write_bytes(b"PAR1")
    result = json.loads((tmp_path / "seeds" / "result.json").read_text())
    (tmp_path / "seeds" / "result.json").write_text(json.dumps(result | {"seeds": [1]}))
    (tmp_path / "hidden").rename(tmp_path / ".hidden.tmp")
    runs, left = read_folders([tmp_path, tmp_path])
    assert [r.name for r in runs] == ["good"]
    assert sorted(item.where.rsplit("/")[-1] for item in left) == [
        "broken",
        "cut",
        "foreign",
        "list",
        "no-predictions",
        "seeds",
    ]
    assert all(item.reason and "\n" not in item.reason for item in left)
    with pytest.raises(ValueError, match="no such folder"):
        read_folders([tmp_path / "nowhere"])


def test_memory_is_that_of_a_run_which_encoded(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    write_run(tmp_path, "first", labels, p, cost={"peak_memory_bytes": 3 * 10**9})
    later = {"peak_memory_bytes": 10**9, "encoder_passes": 0}
    write_run(tmp_path, "later", labels, p, agg="max", cost=later)
    write_run(tmp_path, "alone", labels, p, seg="30", cost=later)
    configurations = configurations_below(tmp_path)
    assert (
        configurations["10 s mean"].memory_bytes
        == configurations["10 s max"].memory_bytes
        == 3 * 10**9
    )
    assert configurations["10 s max"].memory_source == "first, which encoded the same"
    assert configurations["30 s mean"].memory_bytes is None


def test_memory_from_profile(tmp_path, rng, labels):
    write_run(tmp_path, "a", labels, guesses(rng, labels, 0.5), cost={"encoder_passes": 0})
    rows = [
        {
            "encoder": "muq-nano",
            "layer": "last",
            "seg": "10",
            "agg": "mean",
            "precision": "no",
            "frame_rate": None,
            "duration_s": s,
            "peak_memory_bytes": int(s * 10**7),
            "peak_memory_kind": "allocated",
        }
        for s in (60.0, 30.0)
    ]
    rows.append(rows[0] | {"failed": "out of memory", "duration_s": 90.0})
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"machine": {"device": "H"}, "rows": rows}))
    configurations = configurations_below(tmp_path)
    assert apply_costs(list(configurations.values()), file) == 1
    assert configurations["10 s mean"].memory_bytes == 6 * 10**8
    assert configurations["10 s mean"].memory_source == "profile.py, a track of 60 s on H"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"no file of profile\.py"):
        apply_costs(list(configurations.values()), file)


def test_a_degenerate_cell_repeats_the_full_track(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    write_run(tmp_path, "full", labels, p, seg="full", min_tail=None)
    write_run(tmp_path, "60", labels, p, seg="60", degenerate="equals full")
    write_run(tmp_path, "90", labels, p, seg="90", degenerate="equals full", agg="stats")
    write_run(tmp_path, "10", labels, guesses(rng, labels, 0.6))
    (view,) = analyse(merge(read_folders([tmp_path])[0])[0])
    words = {row.configuration.label: row.verdict for row in view.rows}
    assert words["60 s mean"] == "= full mean"
    assert words["90 s stats"] == "can't tell"  # nothing else stands for it
    assert view.rows[[r.configuration.label for r in view.rows].index("60 s mean")].fronts == {}


def test_a_difference_is_that_of_the_paired_runs(tmp_path, rng, labels):
    a, b = guesses(rng, labels, 0.5), guesses(rng, labels, 0.7)
    write_run(tmp_path, "a", labels, a)
    write_run(tmp_path, "b", labels, b, agg="max")
    configurations = configurations_below(tmp_path)
    (found,) = compare_to_baseline(
        configurations["10 s mean"], [configurations["10 s max"]], Scores(), "holm"
    ).values()
    expected = paired_difference("classes", labels, a, b)["accuracy"]
    assert found.difference.value == pytest.approx((b == labels).mean() - (a == labels).mean())
    assert (found.low, found.high) == pytest.approx(expected.interval())
    assert found.difference.n_tracks == 40


def test_groups_of_tracks_are_taken_together(tmp_path, rng, labels):
    """Tracks in pairs whose predictions are alike say no more than half as many tracks."""
    p = guesses(rng, labels[::2].repeat(2), 0.5)[:, ::2].repeat(2, 1)
    write_run(tmp_path, "a", labels[::2].repeat(2), p)
    (alone,) = configurations_below(tmp_path).values()
    grouped = replace(alone, groups=[f"artist {i // 2}" for i in range(40)])
    scores = Scores()
    half, whole = (scores.estimate(c) for c in (grouped, alone))
    assert (half.n_groups, half.n_tracks, whole.n_groups) == (20, 40, 40)
    assert half.group_variance == pytest.approx(whole.group_variance, rel=0.05)  # of half as many


def test_sets_of_the_same_distribution_are_seldom_told_apart():
    """Tracks differ in difficulty; both sets draw from the same. Wrong words: at most 5 of 100."""
    rng, apart, n_draws = np.random.default_rng(5), 0, 300
    labels, ids = np.arange(100) % 3, [f"{i:03d}" for i in range(100)]
    run = SimpleNamespace(result={"kind": "classes", "targets": []})
    for _ in range(n_draws):
        difficulty = rng.beta(2, 1, 100)
        a, b = (
            Configuration([run], ids, labels, guesses(rng, labels, difficulty, n_seeds=5))
            for _ in range(2)
        )
        (found,) = compare_to_baseline(a, [b], Scores(), "holm").values()
        apart += found.word in ("better", "worse")
    assert apart <= 0.07 * n_draws


def test_comparison_on_common_tracks_and_what_cannot_be_compared(tmp_path, rng, labels):
    p = guesses(rng, labels, 0.5)
    ids = [f"track{i:02d}" for i in range(40)]
    write_run(tmp_path, "full", labels, p, seg="full", min_tail=None)
    write_run(tmp_path, "less", labels[5:], p[:, 5:], ids=ids[5:])
    write_run(tmp_path, "apart", labels, p, agg="max", ids=[f"x{i}" for i in range(40)])
    write_run(tmp_path, "relabelled", (labels + 1) % 3, p, agg="stats")
    (view,) = analyse(merge(read_folders([tmp_path])[0])[0])
    rows = {row.configuration.label: row for row in view.rows}
    assert rows["10 s mean"].difference.difference.n_tracks == 35
    assert rows["10 s mean"].verdict == "can't tell"
    assert rows["10 s max"].difference == "no test track in common"
    assert rows["10 s stats"].difference == "different labels for the same tracks"
    assert rows["10 s max"].verdict == "-"
    assert "10 s stats: different labels" in view.notes[0]


def test_baselines(tmp_path, rng):
    write_grid(tmp_path, rng)
    configurations = list(configurations_below(tmp_path).values())
    assert choose_baseline(configurations, None).label == "full mean"
    assert choose_baseline(configurations, "10:max").label == "10 s max"
    assert choose_baseline(configurations, "30").label == "30 s mean"
    assert choose_baseline(configurations, "30-whitened").label == "30 s whitened"
    assert choose_baseline(configurations, "60") is None
    with pytest.raises(ValueError, match="--baseline 60: no such configuration or run"):
        analyse(configurations, baseline="60")


def test_verdicts_and_correction(tmp_path, rng):
    write_grid(tmp_path, rng)
    configurations = list(configurations_below(tmp_path).values())
    (view,) = analyse(configurations)
    words = {row.configuration.label: row.verdict for row in view.rows}
    assert {k for k, v in words.items() if v == "better"} == {
        "10 s whitened",
        "30 s whitened",
        "full whitened",
    }
    assert words["full mean"] == "baseline"
    (raw,) = analyse(configurations, correction="none")
    for one, other in zip(view.rows, raw.rows, strict=True):
        if not one.is_baseline:
            assert one.difference.alone == other.difference.alone == other.verdict
            assert all(one.difference.p[word] >= p for word, p in other.difference.p.items())


def test_a_share_to_retain_gives_each_encoder_its_margin(tmp_path, rng, labels):
    write_run(tmp_path, "chance", (labels + 1) % 3, labels[None], encoder="poor")
    for agg, right in (("mean", 0.9), ("max", 0.9)):
        write_run(tmp_path, agg, labels, guesses(rng, labels, right), agg=agg)
    (view,) = analyse(list(merge(read_folders([tmp_path])[0])[0]), retain=0.9)
    views = {encoder.name: encoder for encoder in view.encoders}
    (score,) = [
        row.mean
        for row in view.rows
        if row.configuration.label == "10 s mean" and row.encoder != "poor"
    ]
    assert views["muq-nano"].margin == pytest.approx(0.1 * (score - 0.333))
    assert views["poor"].margin is None
    assert "no verdicts: the baseline's 0.000 is not above chance" in views["poor"].note
    (wide,) = analyse(list(merge(read_folders([tmp_path])[0])[0]), margin=0.5)
    assert {row.verdict for row in wide.rows} == {"baseline", "equivalent"}


def test_the_default_margin_is_the_same_everywhere(tmp_path):
    import compare

    assert compare.parse_args([str(tmp_path)]).margin == MARGIN
    assert inspect.signature(print_comparison).parameters["margin"].default == MARGIN


def test_under_a_table_is_said_what_its_verdicts_rest_on(tmp_path, rng, labels):
    for agg in ("mean", "max", "stats", "whitened", "concat", "attention"):
        write_run(tmp_path, agg, labels, guesses(rng, labels, 0.5, n_seeds=1), agg=agg)
    (view,) = analyse(list(configurations_below(tmp_path).values()))
    first, seeds, *rest = verdict_notes(view, view.encoders[0], "holm")
    assert first == (
        "margin 0.02; 5 comparisons, corrected over all (Holm); each word is one-sided at 2.5 %"
    )
    assert seeds.startswith("one seed in 5 of 5 comparisons: probe noise is not in it")
    assert [line.split(":")[0] for line in rest[:-1]] == [
        f"10 s {agg}" for agg in ("attention", "concat", "max")
    ]
    assert "a margin of 0.02 needs about" in rest[0]
    assert rest[-1] == "and 2 more that can't be told"


def test_balanced_grid_against_all_subsets(rng):
    for _ in range(30):
        grid = {(s, a): None for s in "12345" for a in "wxyz" if rng.random() < 0.6}
        levels, others = balanced(grid, "segments")
        best = 0
        for k in range(2, 6):
            for chosen in combinations("12345", k):
                full = [a for a in "wxyz" if all((s, a) in grid for s in chosen)]
                best = max(best, k * len(full))
        assert len(levels) * len(others) == best
        assert all((s, a) in grid for s in levels for a in others)


def test_main_effects_by_hand(tmp_path, rng):
    labels, chosen = write_grid(tmp_path, rng)
    write_run(tmp_path, "lonely", labels, guesses(rng, labels, 0.5), seg="60", agg="stats")
    configurations = list(configurations_below(tmp_path).values())
    segments, aggregator = main_effects(configurations, Scores(), "holm")
    assert [x.name for x in segments.levels] == ["10 s", "30 s", "full"]
    assert (segments.reference, segments.n_configurations) == ("full", 9)
    assert aggregator.reference == "mean"
    for x in aggregator.levels:
        expected = np.mean([(chosen[s, x.name] == labels).mean() for s in ("10", "30", "full")])
        assert x.mean == pytest.approx(expected)
    verdicts = {x.name: x.difference and x.difference.word for x in aggregator.levels}
    assert verdicts["whitened"] == "better"
    assert verdicts["mean"] is None


def test_encoders_are_compared_over_the_strategies_that_both_have(tmp_path, rng, labels):
    said = {}
    for name, right in (("poor", 0.4), ("good", 0.8), ("alike", 0.8)):
        for seg, agg in (("10", "mean"), ("10", "max"), ("30", "mean")):
            said[name, seg, agg] = guesses(rng, labels, right)
            write_run(
                tmp_path,
                f"{name}-{seg}-{agg}",
                labels,
                said[name, seg, agg],
                encoder=name,
                seg=seg,
                agg=agg,
                layer={"poor": 4}.get(name, 9),
            )
    write_run(tmp_path, "more", labels, guesses(rng, labels, 0.1), encoder="good", seg="60")
    write_run(tmp_path, "else", labels, guesses(rng, labels, 0.9), encoder="lone", layer_asked=3)
    configurations, left = merge(read_folders([tmp_path])[0])
    assert not left
    (view,) = analyse(configurations)
    pairs = {frozenset((p.name, p.other)): p for p in view.encoder_pairs}
    assert set(pairs) == {frozenset(p) for p in combinations(("poor", "good", "alike"), 2)}
    pair = pairs[frozenset(("good", "poor"))]
    assert (pair.name, pair.other, len(pair.strategies)) == ("good", "poor", 3)
    means = [
        np.mean([(p == labels).mean() for (n, *_), p in said.items() if n == name])
        for name in ("good", "poor")
    ]
    assert (pair.mean, pair.mean_of_other) == pytest.approx(means)
    assert pair.difference.difference.value == pytest.approx(means[0] - means[1])
    # As one run whose seeds are those of all the strategies.
    stacked = [
        np.concatenate([p for (n, *_), p in said.items() if n == name]) for name in ("poor", "good")
    ]
    expected = paired_difference("classes", labels, *stacked)["accuracy"].interval()
    assert (pair.difference.low, pair.difference.high) == pytest.approx(expected, abs=0.03)
    assert pair.difference.word == "better"
    assert pairs[frozenset(("good", "alike"))].difference.word == "can't tell"
    with redirect_stdout(StringIO()) as out:
        print_views([view], [], "holm", Console(width=170, file=sys.stdout))
    (line,) = [x for x in out.getvalue().splitlines() if "encoders good" in x and "poor" in x]
    assert "better; mean over 10 s max, 10 s mean, 30 s mean" in line
    write_markdown([view], "holm", tmp_path / "c.md")
    assert "| good | " in (tmp_path / "c.md").read_text()


def test_pareto_against_a_plain_loop(rng):
    cost, quality = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    for i, on in enumerate(pareto(cost, quality)):
        beaten = any(
            cost[j] <= cost[i]
            and quality[j] >= quality[i]
            and (cost[j] < cost[i] or quality[j] > quality[i])
            for j in range(40)
        )
        assert on == (not beaten)


def test_guidelines(tmp_path, rng):
    write_grid(tmp_path, rng)
    configurations = list(configurations_below(tmp_path).values())
    scores = Scores()
    full = choose_baseline(configurations, None)
    advice = {
        a.question: a
        for a in advise(configurations, scores, "holm", Limits(10**9, 0.2), 0.02, full)
    }
    assert advice["best quality"].configuration.result["agg"] == "whitened"
    assert "as the highest of 9, which adds about 0." in advice["best quality"].evidence
    assert advice["best balance"].answer == "none"  # three are alike, as far as 40 tracks tell
    assert "; nearest: " in advice["best balance"].evidence
    assert " whitened, accuracy 0." in advice["best balance"].evidence
    assert advice["as good as full mean"].answer == "10 s whitened"
    assert "loses at most 0." in advice["as good as full mean"].evidence
    assert advice["fastest"].answer == "10 s whitened"
    assert advice["smallest"].configuration.dim == 192
    assert "worse" in advice["smallest"].evidence
    assert advice["within 1 GB and 0.2 s a track"].answer == "10 s whitened"
    assert "3 of 9 fit" in advice["within 1 GB and 0.2 s a track"].evidence
    none = advise(configurations, scores, "holm", Limits(10**6))[-1]
    assert (none.answer, none.configuration) == ("none", None)
    assert "no strategy is known to fit; nearest: 10 s " in none.evidence
    assert ", 1 GB, is 0.999 GB above your budget" in none.evidence
    near = advise(configurations, scores, "holm", Limits(seconds=0.09))[-1]
    assert ", 0.0909 s, is 0.909 ms above your budget" in near.evidence
    costs = relative_costs(configurations)
    assert configurations[int(costs.argmin())].label == "10 s max"


def test_the_best_is_chosen_on_validation_where_it_is_known(tmp_path, rng, labels):
    for agg, right, validation in (("mean", 0.6, 0.8), ("max", 0.95, 0.7), ("stats", 0.5, 0.6)):
        p, scored = guesses(rng, labels, right, 4), {"layer_scores": {"4": validation}}
        write_run(tmp_path, f"{agg}-a", labels, p[:3], agg=agg, seeds=[1, 2, 3], **scored)
        scored = {"layer_scores": {"4": validation - 0.04}}
        write_run(tmp_path, f"{agg}-b", labels, p[3:], agg=agg, seeds=[4], **scored)
    configurations = list(configurations_below(tmp_path).values())
    best = advise(configurations, Scores(), "holm", Limits())[0]
    assert best.answer == "10 s mean"
    assert "chosen on validation (0.790)" in best.evidence  # three seeds of 0.80, one of 0.76
    assert validation_score(best.configuration) == pytest.approx(0.79)
    best.configuration.runs[1].result["folds"] = {"n": 5, "group_column": None}
    assert validation_score(best.configuration) is None  # validation tracks are tested on as well
    own = (best.configuration.predictions == labels).mean()
    assert best.evidence.startswith(f"accuracy {own:.3f} (")


def test_guidelines_say_when_nothing_can_be_told_apart(tmp_path, rng, labels):
    for agg in ("mean", "max", "stats"):
        write_run(tmp_path, agg, labels, guesses(rng, labels, 0.6), agg=agg)
    (view,) = analyse(list(configurations_below(tmp_path).values()))
    best, balance, *_ = view.encoders[0].advice
    assert best.evidence.endswith("of the other 2: 2 can't tell")
    assert balance.configuration is None
    assert "none of 3 is shown to be as good as each of the others within 0.02" in balance.evidence
    needed = float(balance.evidence.rsplit("would need --margin ")[1])
    (wider,) = analyse([row.configuration for row in view.rows], margin=needed)
    assert wider.encoders[0].advice[1].configuration is not None


def test_an_unknown_cost_is_not_taken_to_fit(tmp_path, rng, labels):
    for agg in ("mean", "max"):
        write_run(
            tmp_path, agg, labels, guesses(rng, labels, 0.6), agg=agg, cost={"encoder_passes": 0}
        )
    (view,) = analyse(list(configurations_below(tmp_path).values()), limits=Limits(bytes=10**12))
    assert view.encoders[0].advice[-1].configuration is None
    assert "the cost of 2 of 2 is unknown" in view.encoders[0].advice[-1].evidence


def test_the_studys_tables(tmp_path, rng, labels):
    numbers = rng.normal(0, 1, (40, 2))
    p = numbers + rng.normal(0, 0.5, (2, 40, 2))
    write_run(tmp_path, "emo", numbers, p, targets=("arousal", "valence"), task="emo")
    write_run(
        tmp_path,
        "gtzan",
        labels,
        guesses(rng, labels, 0.8),
        task="gtzan",
        seg="full",
        min_tail=None,
    )
    emo, gtzan = analyse(list(configurations_below(tmp_path).values()))
    assert [view.task for view in (emo, gtzan)] == ["emo", "gtzan"]
    lines = {line.strategy: line for line in emo.study}
    assert lines["10 s mean"].study == {"r2_valence": "0.547", "r2_arousal": "0.760"}
    assert lines["10 s mean"].study_cost == "3.55 GB, 46 s"
    (ours,) = lines["10 s mean"].ours.values()
    assert list(ours) == ["r2_valence", "r2_arousal"]
    assert lines["10 s concat"].ours == {}
    (configuration,) = lines["10 s mean"].ours
    for name, text in zip(ours, lines["10 s mean"].texts(configuration), strict=True):
        _, low, high = ours[name]
        figure = {"r2_valence": 0.547, "r2_arousal": 0.760}[name]
        where = "below" if figure < low else "above" if figure > high else "inside"
        assert text.endswith(f"({low:.3f} to {high:.3f}; study {where})")
    studied = {line.strategy: line.study for line in gtzan.study}
    assert studied["full track mean"] == {"accuracy": "0.845"}
    assert study_table("demo", [], None) == []


def test_breakdown_by_hand(tmp_path):
    labels = np.array([0, 0, 1, 1])
    write_run(tmp_path, "a", labels, np.array([[0, 0, 1, 2], [0, 1, 1, 2]]))
    write_run(tmp_path, "b", labels, np.array([[0, 0, 2, 2], [0, 0, 2, 2]]), agg="max")
    configurations = configurations_below(tmp_path)
    a, b = configurations["10 s mean"], configurations["10 s max"]
    assert class_accuracy(a.labels, a.predictions, 3) == pytest.approx(
        [0.75, 0.5, np.nan], nan_ok=True
    )
    found = break_down([a, b], [b], Scores())
    assert found.configurations == [b, a]
    assert [d.id for d in found.disputed] == ["track02", "track01"]
    assert found.disputed[0].label == "b"
    assert (found.disputed[0].best, found.disputed[0].worst) == ("10 s mean", "10 s max")
    assert found.disputed[0].spread == pytest.approx(0.5)


def test_breakdown_by_target(tmp_path, rng):
    truth = rng.normal(0, 1, (30, 2))
    near, far = truth + 0.1, truth.copy()
    far[7] += 5
    write_run(tmp_path, "a", truth, near[None], targets=("x", "y"))
    write_run(tmp_path, "b", truth, far[None], targets=("x", "y"), agg="max")
    (view,) = analyse(list(configurations_below(tmp_path).values()))
    assert view.breakdown.parts == ["x", "y"]
    assert view.breakdown.disputed[0].id == "track07"
    assert view.breakdown.disputed[0].best == "10 s mean"


class FakeArtifact:
    """A W&B artifact that hands out a run's folder."""

    def __init__(self, folder, kind):
        self.folder, self.type = folder, kind
        self.name = "run-1-predictions:v0" if kind == "run_table" else "probe-x:v0"

    def get_entry(self, name):
        def download(root):
            return shutil.copy(self.folder / name, root)

        return SimpleNamespace(download=download)

    def get(self, name):
        table = pd.read_parquet(self.folder / f"{name}.parquet")
        return SimpleNamespace(columns=list(table), data=table.values.tolist())


def fake_run(folder, state="finished", kinds=("probe", "run_table"), **fields):
    """A run as wandb.Api gives it."""
    made = [FakeArtifact(folder, kind) for kind in kinds]
    return SimpleNamespace(
        **{
            "id": folder.name,
            "name": folder.name,
            "state": state,
            "config": {"lr": None},
            "created_at": "2026-11-23T10:00:00Z",
            "job_type": "probe",
            "logged_artifacts": lambda: made,
        }
        | fields
    )


def test_a_wandb_project(tmp_path, rng, labels):
    folder = write_run(tmp_path, "a", labels, guesses(rng, labels, 0.5))
    cut = write_run(tmp_path, "cut", labels, guesses(rng, labels, 0.5))
    table = pd.read_parquet(cut / "predictions.parquet")
    table[table.id < "track20"].to_parquet(cut / "predictions.parquet")
    marked, broken = fake_run(folder), fake_run(folder, state="failed")
    marked.summary = {"degenerate": "equals full", "same_as": "full mean"}
    broken.summary = {"failed": "the disk is full"}
    runs = [
        fake_run(folder),
        fake_run(folder, state="crashed"),
        fake_run(cut),
        marked,
        broken,
        fake_run(folder, kinds=["probe"]),
        fake_run(folder, job_type="profile"),
    ]
    api = SimpleNamespace(runs=lambda path: runs)
    found, left = read_project("me/tune", api)
    assert [r.name for r in found] == ["a"]
    assert np.array_equal(
        found[0].predictions.predictions, read_folders([folder])[0][0].predictions.predictions
    )
    reasons = " ".join(item.reason for item in left)
    assert len(left) == 5
    assert "state is crashed" in reasons
    assert "state is failed: the disk is full" in reasons
    assert "not run: equals full" in reasons
    assert "60 of 120 predictions" in reasons
    assert "no table of predictions" in reasons
    with pytest.raises(ValueError, match="takes ENTITY/PROJECT"):
        read_project("tune", api)


def test_the_script_writes_all_it_is_asked_for(tmp_path, rng):
    write_grid(tmp_path / "runs", rng)
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "result.json").write_text("{}")
    done = run(
        ROOT / "compare.py",
        "runs",
        "--csv=c.csv",
        "--parquet=c.parquet",
        "--latex=c.tex",
        "--markdown=c.md",
        "--figures=figures",
        "--html=r.html",
        "--budget=2GB",
        "--max_seconds=0.1",
        "--baseline=10:mean",
        "--log_to=me/tune",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "against 10 s mean" in done.stdout
    assert "1 run left out" in done.stdout
    assert "within 2 GB and 0.1 s a track" in done.stdout
    table = pd.read_csv(tmp_path / "c.csv")
    same = pd.read_parquet(tmp_path / "c.parquet")
    assert len(table) == len(same) == 9
    assert list(table) == list(same)
    assert set(table.verdict) == {"baseline", "better", "can't tell"}
    assert set(table.margin.dropna()) == {0.02}
    assert (table.needed_tracks.dropna() > 40).all()
    assert table.seconds_per_track.min() == pytest.approx(10 / 110)
    assert (tmp_path / "c.md").read_text().count("**better**") == 3
    assert (tmp_path / "c.tex").read_text().count(r"\begin{tabular}") == 1
    assert len(list((tmp_path / "figures").iterdir())) == 8
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert "upload:  wandb login && wandb sync wandb/offline-run-" in done.stdout
    (record,) = [read_run(path) for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert (record["run"].entity, record["run"].project) == ("me", "tune")
    assert record["run"].job_type == "comparison"
    assert record["summary"]["cells/nrows"] == 9
    assert record["summary"]["report/_type"] == "html-file"


def test_text_is_shown_as_it_is():
    assert _md("<b>|*x*  #1") == r"&#60;b&#62;&#124;\*x\* \#1"
    assert _tex(r"a_b & 5% \x") == r"a\_b \& 5\% \textbackslash{}x"


def test_a_table_has_a_row_for_every_cell(tmp_path, rng):
    write_grid(tmp_path, rng)
    table = frame(analyse(list(configurations_below(tmp_path).values())))
    assert table.strategy.is_unique
    assert table.accuracy.equals(table["mean"])
    assert (table.accuracy_ci_low < table.accuracy).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to compare"),
        (["nowhere"], "no such folder"),
        (["."], "no run of train_probe"),
        (["runs", "--baseline", "60"], "no such configuration or run"),
        (["runs", "--budget", "4"], "a unit"),
        (["runs", "--max_seconds=0"], "above 0"),
        (["runs", "--margin=0"], "above 0"),
        (["runs", "--retain=98"], "from 0 to below 1"),
        (["runs", "--html", "no/r.html"], "that exists"),
        (["runs", "--wandb", "x"], "ENTITY/PROJECT"),
        (["runs", "--parquet", "x.csv"], "must end in"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, rng, args, message):
    if "runs" in args:
        labels = rng.integers(0, 3, 20)
        write_run(tmp_path / "runs", "a", labels, guesses(rng, labels, 0.5))
    done = run(ROOT / "compare.py", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_common_ids_are_sorted(tmp_path, rng, labels):
    write_run(tmp_path, "a", labels, guesses(rng, labels, 0.5))
    configurations = list(configurations_below(tmp_path).values())
    assert common_ids(configurations) == sorted(configurations[0].ids)


def test_older_runs_take_the_groups_of_the_newest(tmp_path, rng, labels):
    """Differences are paired group by group, also with a run that was made before groups were."""
    ids = [f"track{i:02d}" for i in range(len(labels))]
    songs = {name: f"song{i // 4}" for i, name in enumerate(ids)}
    for agg, age in (("mean", 0), ("max", 50)):
        p = guesses(rng, labels, 0.6)
        folder = write_run(tmp_path, agg, labels, p, ids=ids, agg=agg, seg="full", age=age)
        if agg == "mean":
            table = pq.read_table(folder / "predictions.parquet")
            groups = pa.array([songs[name] for name in table["id"].to_pylist()])
            pq.write_table(table.append_column("group", groups), folder / "predictions.parquet")
    configurations, _ = merge(read_folders([tmp_path])[0])
    assert all(c.groups == [songs[name] for name in c.ids] for c in configurations)
    (view,) = analyse(configurations)
    (verdict,) = [row.difference for row in view.rows if row.difference is not None]
    n = len(labels)
    assert (verdict.difference.n_tracks, verdict.difference.n_groups) == (n, -(-n // 4))
    if verdict.word == "can't tell":
        assert f"{n} tracks in {-(-n // 4)} groups" in str(verdict)
    old, new = (read_predictions(tmp_path / name) for name in ("max", "mean"))
    assert compare(old, new)["accuracy"].n_groups == compare(new, old)["accuracy"].n_groups
    assert compare(old, new)["accuracy"].n_groups == -(-n // 4)
