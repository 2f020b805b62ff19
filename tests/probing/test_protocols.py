"""The table of protocols against MARBLE's configurations, and the parts that it switches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from probe_data import CPU, normal
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from tune.aggregators.track_features import Features
from tune.aggregators.trainable import Reduce, make_mixes
from tune.probing import closed_form
from tune.probing.bank import EarlyStopping, ProbeBank, ProbeData, choose_rates
from tune.probing.protocols import (
    CUT,
    DIFFERS,
    PROTOCOLS,
    check_fusion,
    check_probe,
    describe,
    resolve,
    rows_of,
)
from tune.tasks.label_kinds import label_kind
from tune.tasks.registry import TASKS

# Read off MARBLE v2's configs/probe.MuQ.<Task>.yaml at 938c03a: clip_seconds, channel_mode, layers
# (None is MLPReduce), lr, patience and factor of ReduceLROnPlateau, patience of EarlyStopping,
# max_epochs, batch_size x devices, accumulate_grad_batches.
CONFIGURATIONS = {
    "emo": (15, "first", 6, 1e-3, 5, 0.5, 20, 50, 16, 4),
    "gtzan": (30.2, "first", 6, 5e-3, 6, 0.5, 20, 50, 8, 8),
    "gs": (30, "first", None, 1e-3, 5, 0.1, 20, 50, 16, 4),
    "mtt": (30, "mix", None, 1e-3, 3, 0.5, 10, 50, 128, 1),
    "mtg-genre": (30, "mix", None, 1e-3, 3, 0.5, 10, 20, 128, 1),
    "mtg-instrument": (30, "mix", None, 1e-3, 3, 0.5, 10, 20, 128, 1),
    "mtg-moodtheme": (30, "mix", None, 1e-3, 3, 0.5, 10, 20, 128, 1),
    "mtg-top50": (30, "mix", None, 1e-3, 3, 0.5, 10, 20, 128, 1),
}


@pytest.mark.parametrize("task", CONFIGURATIONS)
def test_marble_is_what_its_configurations_say(task):
    row = TASKS[task]
    found = describe("marble", task, row.kind, resolve("marble", task, row.kind, {}), row.training)[
        "settings"
    ]
    clip, channels, layer, lr, wait, factor, patience, epochs, batch, added = CONFIGURATIONS[task]
    expected = {
        "seg": [f"{clip:g}"],
        "min_tail": pytest.approx(0.8 * clip),
        "pad_tail": True,
        "channels": channels,
        "layer": "reduce" if layer is None else str(layer),
        "fusion": "late",
        "standardise": "none",
        "target_scale": "raw",
        "lr": lr,
        "plateau_patience": wait,
        "plateau_factor": factor,
        "patience": patience,
        "epochs": epochs,
        "batch_size": batch * added,
        "accumulation": added,
        "test_weights": "last",
        "tie_break": "none",
        "val_unit": {"emo": "batch", "gtzan": "segment", "gs": "segment"}.get(task, "track"),
        "averaged": "probabilities" if task == "gtzan" else "outputs",
        "mixed_precision": "auto",
    }
    assert found == expected


def test_tune_leaves_the_rate_to_the_recipe_and_the_rest_as_it_was():
    found = resolve("tune", "gs", "keys", {})
    assert (found["epochs"], found["patience"], found["batch_size"]) == (50, 20, 64)
    assert (found["seg"], found["min_tail"], found["layer"]) == (["10"], 1.0, "mix")
    assert found["lr"] is found["plateau_patience"] is found["plateau_factor"] is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("task", [*TASKS, "my.csv"])
def test_a_flag_wins_over_its_protocol_and_is_told(protocol, task):
    row = TASKS.get(task)
    kind = row.kind if row else "classes"
    given = {"epochs": 7, "test_weights": "best", "channels": "right"}
    settings = resolve(protocol, task, kind, given)
    assert {k: settings[k] for k in given} == given
    said = describe(protocol, task, kind, settings, label_kind(kind).recipe)
    assert said["changed"].keys() <= given.keys()
    assert {"epochs", "channels"} <= said["changed"].keys()
    assert None not in said["settings"].values()
    assert said["sources"]
    assert said["differs"] == list(DIFFERS.get(protocol, ()))


def test_flags_that_cut_do_not_depend_on_the_kind_of_label():
    for protocol in PROTOCOLS:
        for row in PROTOCOLS[protocol]:
            kinds = ("classes", "keys", "numbers", "tags")
            assert row.applies_to not in kinds or not set(row.settings) & set(CUT)


def test_every_row_names_its_source_and_only_known_settings():
    known = set(PROTOCOLS["tune"][0].settings)
    for rows in PROTOCOLS.values():
        assert all(row.source and set(row.settings) <= known for row in rows)
    assert len(rows_of("marble", "emo", "numbers")) > len(rows_of("tune", "emo", "numbers"))


def test_clips_of_another_length_keep_marbles_rule_for_the_last_one():
    given = {"seg": ["10"]}
    found = resolve("marble", "gtzan", "classes", given)
    assert (found["min_tail"], found["pad_tail"]) == (8.0, True)
    assert not resolve("marble", "gtzan", "classes", {"seg": ["full"]})["pad_tail"]


@pytest.mark.parametrize(("agg", "segs"), [("concat", ["10"]), ("mean", ["10", "30"])])
def test_late_fusion_joins_no_embeddings(agg, segs):
    with pytest.raises(ValueError, match="--fusion late averages the outputs"):
        check_fusion("late", agg, segs, {})
    check_fusion("early", agg, segs, {})


def test_flags_of_late_fusion_belong_to_it():
    with pytest.raises(ValueError, match="--val_unit batch belongs to --fusion late"):
        check_fusion("early", "mean", ["10"], {"val_unit": "batch"})
    check_fusion("late", "mean", ["10"], {"val_unit": "batch"})


@pytest.mark.parametrize("settings", [(True, "last", None), (False, "mix", None)])
def test_closed_form_learns_no_aggregator(settings):
    with pytest.raises(ValueError, match="has no gradient"):
        check_probe("ridge", *settings)
    check_probe("linear", *settings)


def test_closed_form_has_no_rate():
    with pytest.raises(ValueError, match="no learning rate"):
        check_probe("knn", False, "last", [0.1])


# Late fusion


def segments(rng, kind="classes", n_layers=1, spread=1.0, **kwargs):
    """Data of tracks of one to three segments each: (data, owners, features)."""
    sizes = {"train": 12, "val": 6, "test": 5}
    task = SimpleNamespace(kind=kind, classes=[], targets=[], splits={})
    features, owners = {}, {}
    for split, n in sizes.items():
        owners[split] = torch.arange(n).repeat_interleave(torch.arange(n) % 3 + 1)
        label = np.arange(n) % 3
        values = normal(rng, n_layers, len(owners[split]), 4, scale=spread)
        values += torch.from_numpy(label)[owners[split], None]
        features[split] = Features(values, torch.ones_like(values, dtype=torch.bool), 0)
        labels = {
            "classes": label.tolist(),
            "numbers": (label[:, None] + rng.normal(0, 0.1, (n, 2))).tolist(),
            "tags": np.eye(3, dtype=bool)[label].tolist(),
        }
        task.splits[split] = {"label": labels[kind]}
    task.classes, task.targets = ["a", "b", "c"], ["x", "y"] * (kind == "numbers")
    return ProbeData(task, features, CPU, owners=owners, **kwargs), owners, features


def test_a_segment_has_its_tracks_label(rng):
    data, owners, _ = segments(rng)
    assert data.n_train == data.n_samples("train") == len(owners["train"])
    expected = data.truth["train"][owners["train"]]
    assert data.labels["train"].tolist() == expected.tolist()
    assert data.sample_truth("train").tolist() == expected.tolist()
    paths = [f"{i}.wav" for i in range(12)]
    assert data.sample_paths(paths)[:4] == ["0.wav", "1.wav", "1.wav", "2.wav"]


@pytest.mark.parametrize("kind", ["classes", "numbers", "tags"])
def test_outputs_are_averaged_over_a_tracks_segments(rng, kind):
    data, owners, _ = segments(rng, kind)
    outputs = normal(rng, 2, len(owners["test"]), data.n_out)
    joined = data.join("test", outputs)
    assert joined.shape == (2, 5, data.n_out)
    for track in range(5):
        expected = outputs[:, owners["test"] == track].mean(1)
        torch.testing.assert_close(joined[:, track], expected)


@pytest.mark.parametrize(("kind", "squash"), [("classes", "softmax"), ("tags", "sigmoid")])
def test_probabilities_are_averaged_over_a_tracks_segments(rng, kind, squash):
    data, owners, _ = segments(rng, kind)
    outputs = normal(rng, 2, len(owners["test"]), data.n_out, scale=3)
    probabilities = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid}[squash]
    joined = probabilities(data.join("test", outputs, "probabilities"))
    for track in range(5):
        expected = probabilities(outputs)[:, owners["test"] == track].mean(1)
        torch.testing.assert_close(joined[:, track], expected)


def test_without_late_fusion_nothing_is_joined(rng):
    _, _, features = segments(rng)
    task = SimpleNamespace(kind="classes", classes=["a", "b", "c"], splits={})
    task.splits = {s: {"label": [0] * f.values.shape[1]} for s, f in features.items()}
    outputs = normal(rng, 1, 9, 3)
    assert ProbeData(task, features, CPU).join("test", outputs) is outputs


def test_raw_inputs_and_targets_are_as_they_came(rng):
    data, owners, features = segments(rng, "numbers", scale_inputs=False, scale_targets=False)
    assert torch.equal(data.inputs["val"][0], features["val"].values[0])
    expected = data.truth["val"][owners["val"]]
    np.testing.assert_array_equal(data.labels["val"], expected)
    outputs = normal(rng, 1, 3, 2)
    np.testing.assert_array_equal(data.predict(outputs), outputs)
    assert not any(name.startswith("target.") for name in data.constants(0))


# Validation


def test_validation_is_of_tracks_segments_or_batches(rng):
    data, owners, _ = segments(rng, "numbers", scale_targets=False)
    outputs, truth = normal(rng, 2, len(owners["val"]), 2), data.truth["val"]
    tracks = data.val_scores(outputs, "track", "outputs", 5)
    rows = data.val_scores(outputs, "segment", "outputs", 5)
    batches = data.val_scores(outputs, "batch", "outputs", 4)
    each = truth[owners["val"]]
    for m in range(2):
        assert tracks[m] == pytest.approx(r2_score(truth, data.join("val", outputs)[m]))
        assert rows[m] == pytest.approx(r2_score(each, outputs[m]))
        sums = sum(
            r2_score(each[i : i + 4], outputs[m, i : i + 4]) * len(each[i : i + 4])
            for i in range(0, len(each), 4)
        )
        assert batches[m] == pytest.approx(sums / len(each))


def stop(scores, losses, **settings) -> tuple:
    """An early stopping over a probe's epochs; weights are filled with the epoch's number."""
    bank = ProbeBank([0], 2, 2, hidden=3)
    selection = EarlyStopping(bank, 2, **settings)
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True), 1):
        with torch.no_grad():
            for p in bank.parameters():
                p.fill_(epoch)
        if selection.update(bank, epoch, np.array([score]), np.array([loss])):
            break
    selection.restore(bank)
    return epoch, int(bank.probes[0].w2.mean()), selection


def test_an_equal_score_is_no_improvement_where_ties_are_not_broken():
    scores, losses = [0.5, 0.5, 0.5, 0.5], [4.0, 3.0, 2.0, 1.0]
    assert stop(scores, losses)[:2] == (4, 4)
    assert stop(scores, losses, tie_break="none")[:2] == (3, 1)


def test_last_weights_are_those_of_the_epoch_that_stopped():
    ended, weights, selection = stop([0.5, 0.9, 0.8, 0.7, 1.0], [1.0] * 5, weights="last")
    assert (ended, weights) == (4, 4)
    assert (selection.best_epoch, selection.epoch, selection.score) == ([2], [4], [0.7])


def test_each_probe_takes_the_rate_that_is_best_on_validation():
    banks = [ProbeBank([1, 2], 3, 2), ProbeBank([1, 2], 3, 2)]
    selections = [EarlyStopping(bank, 1) for bank in banks]
    for selection, scores in zip(selections, ([0.5, 0.5], [0.4, 0.6]), strict=True):
        selection.update(banks[0], 1, np.array(scores), np.ones(2))
    kept = banks[0].probes[0], banks[1].probes[1]
    bank, selection = choose_rates(banks, selections, [0.1, 0.01])
    assert (bank.probes[0], bank.probes[1]) == kept
    assert selection.chosen["lr"].tolist() == [0.1, 0.01]
    assert selection.score.tolist() == [0.5, 0.6]


# Probes


def test_linear_probe_is_one_linear_layer(rng):
    bank, x = ProbeBank([3, 4], 5, 2, hidden=0), normal(rng, 2, 7, 5)
    assert bank.dropout_masks(7).shape == (2, 7, 0)
    for i, probe in enumerate(bank.probes):
        assert {name for name, _ in probe.named_parameters()} == {"w2", "b2"}
        expected = F.linear(x[i], probe.w2.T, probe.b2[0])
        torch.testing.assert_close(bank(x, bank.dropout_masks(7))[i], expected)


def test_ridge_is_scikit_learns_classifier_of_the_best_strength(rng):
    data, _, _ = segments(rng, n_layers=2)
    found = closed_form.fit("ridge", data, n_seeds=2)
    labels = data.labels["train"].numpy()
    for layer in range(2):
        x = {s: v[layer].numpy() for s, v in data.inputs.items()}
        scores = {}
        for alpha in closed_form.STRENGTHS:
            model = RidgeClassifier(alpha=alpha).fit(x["train"], labels)
            out = torch.from_numpy(model.decision_function(x["val"]))[None]
            guess = data.join("val", out)[0].argmax(-1).numpy()
            scores[alpha] = np.mean(guess == data.truth["val"])
        best = max(scores, key=lambda alpha: (scores[alpha], alpha))
        mine = 2 * layer
        assert found.chosen["alpha"][mine : mine + 2].tolist() == [best, best]
        assert found.score[mine] == pytest.approx(scores[best])
        expected = RidgeClassifier(alpha=best).fit(x["train"], labels).decision_function(x["test"])
        np.testing.assert_allclose(found.outputs[mine], expected, atol=1e-9)
        w2, b2 = found.probes[mine].w2, found.probes[mine].b2
        np.testing.assert_allclose((data.inputs["test"][layer] @ w2 + b2).detach(), expected)


def test_neighbours_vote(rng):
    data, _, _ = segments(rng)
    found = closed_form.fit("knn", data, n_seeds=1)
    x, labels = {s: v[0].numpy() for s, v in data.inputs.items()}, data.labels["train"].numpy()
    model = KNeighborsClassifier(n_neighbors=int(found.chosen["neighbours"][0]))
    shares = model.fit(x["train"], labels).predict_proba(x["test"])
    np.testing.assert_allclose((found.outputs[0] + 1) / 2, shares)


@pytest.mark.parametrize("probe", ["ridge", "knn"])
@pytest.mark.parametrize("kind", ["numbers", "tags"])
def test_closed_form_takes_every_kind_of_label(rng, probe, kind):
    data, owners, _ = segments(rng, kind, spread=0.1)
    found = closed_form.fit(probe, data, n_seeds=1)
    assert found.outputs.shape == (1, len(owners["test"]), data.n_out)
    assert found.score[0] > {"numbers": 0.0, "tags": 0.8}[kind]


# MLPReduce


def test_reduce_is_a_linear_layer_over_all_layers_side_by_side(rng):
    reduce = Reduce(3, 4, torch.float64, generator=torch.Generator().manual_seed(5))
    linear = nn.Linear(12, 4).double()
    with torch.no_grad():
        linear.weight.copy_(reduce.weight.T)
        linear.bias.copy_(reduce.bias[0])
    x = normal(rng, 6, 3, 4)  # (B, K, D)
    torch.testing.assert_close(reduce(x), linear(x.flatten(1)))
    torch.testing.assert_close(reduce(x[0]), linear(x.flatten(1))[0])
    bound = 12**-0.5
    assert reduce.weight.abs().max() <= bound
    assert reduce.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.3)


def test_each_seed_draws_its_own_reduction():
    data = SimpleNamespace(n_views=3, n_in=4, dtype=torch.float64)
    one, two, again = make_mixes(data, [1, 2, 1], CPU, reduce=True)
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, two.weight)
