"""One experiment: task x encoder x segments x aggregator -> result.

    accelerate launch train_probe.py --seg 10 --agg mean
    accelerate launch train_probe.py --task emo --seg full --seeds 1234 1235 1236
    accelerate launch train_probe.py --task my_music.csv --encoder muq --layer 6 --agg stats
    accelerate launch train_probe.py --seg 10 --use_seconds 30 --pick spread
    accelerate launch train_probe.py --seg 10 30 full --agg hierarchical --layer mix
    accelerate launch train_probe.py --agg transformer:aggregators/mine
    accelerate launch train_probe.py --task my_music.csv --folds 5 --group_column artist
    accelerate launch train_probe.py --task gtzan --protocol marble

Audio is cut into segments; each is encoded once by a frozen encoder and kept in a store. The
track's tokens are joined by an aggregator, and a probe is trained on the result, chosen on the
validation split and tested once (--protocol marble: as MARBLE does it). Writes
runs/NAME/result.json, config.json, predictions.parquet, probe.safetensors (with --agg attention
also attention.parquet), and tracks the run in W&B (offline without a login).
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.aggregators.flag_rules import check_flags
from tune.aggregators.registry import CHOICES, find_row, readable_name, split_name
from tune.cli.flags import FLAGS, SEVERAL, add_groups, to_rates
from tune.cli.parser import Parser, read_arguments, run_script, set_up_logging, to_words
from tune.probing.protocols import (
    CLOSED_FORM,
    CUT,
    PROTOCOLS,
    adapted,
    check_fusion,
    check_probe,
    default_seeds,
    describe,
    kind_of,
    resolve,
)
from tune.segments.pick import read_pick
from tune.segments.rules import parse_rules
from tune.tasks.label_kinds import KINDS
from tune.tasks.registry import TASKS, default_encoder

GROUPS = {
    "data": "task data_dir kind label_column audio_column data_revision yes folds group_column "
    "allow_outside strict",
    "strategy": "encoder trust_remote_code revision channels layer seg hop min_tail "
    "pad_tail min_seg max_seg use_seconds pick agg fusion tokens frame_rate skip_degenerate",
    "aggregators that learn": "aggregator_checkpoint readout tune_aggregator aggregator_lr "
    "allow_seen",
    "probe": "protocol probe seeds epochs patience batch_size lr",
    "details of the protocol": "standardise target_scale plateau_patience plateau_factor "
    "accumulation val_unit tie_break test_weights averaged",
    "machine": "mixed_precision probe_precision batch_seconds memory_budget compile store "
    "cache_dir",
    "output": "output_dir report_to project entity group name tags notes log_audio "
    "log_code overwrite",
}
MIXED = ", ".join(name for name, row in TASKS.items() if row.layer == "mix")
CHANGES = {
    "task": dict(help=f"{', '.join(TASKS)}; {FLAGS['task']['help']}"),
    "kind": dict(choices=["auto", *KINDS]),
    "layer": dict(
        metavar="last|all|mix|reduce|K",
        help="hidden layer: the last, number K (0 is the front end), all: one probe a layer, the "
        "best chosen on validation, mix: all layers, averaged by weights that the probe learns, "
        "or reduce: MARBLE's linear layer over all of them side by side "
        f"(default: last; mix for {MIXED}, but with --agg transformer)",
    ),
    "seg": dict(**SEVERAL, type=to_words),
    "standardise": dict(
        choices=["dimension", "none"],
        help="the probe's input: each dimension to zero mean and unit variance by training "
        "statistics, or as it is (default: dimension)",
    ),
    "agg": dict(
        help=f"how the segments' embeddings are joined: {CHOICES}; whitened, attention and "
        "hierarchical (several --seg) learn with the probe, transformer is pretrained by "
        "pretrain_aggregator.py (transformer:DIR names its checkpoint as well)"
    ),
    "epochs": dict(help="at most this many (default: 50)"),
    "patience": dict(help="stop after this many without a better validation score (default: 20)"),
    "batch_size": dict(
        metavar="SAMPLES",
        help="effective batch, over all processes: tracks, or segments with --fusion late "
        "(default: 64)",
    ),
    "lr": dict(
        **SEVERAL,
        type=to_rates,
        help="Adam's rate; of several the best on validation, for each layer and seed (default: "
        "the task's, by python -m tune.tasks list; 5e-3 for classes of your own, else 1e-3)",
    ),
    "group": dict(help="W&B group (default: an agent's sweep, else task-encoder)"),
    "overwrite": dict(help="replace the run called --name"),
}


PRESET = list(PROTOCOLS["tune"][0].settings)


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="train_probe.py", description=__doc__)
    add_groups(parser, GROUPS, CHANGES)
    parser.set_defaults(**dict.fromkeys(PRESET))  # a protocol's
    parser.with_config()
    args = parser.parse_args(argv)
    if args.seg is not None and not args.seg:
        parser.error("--seg needs a value: seconds, full or structure")
    given = {name: getattr(args, name) for name in PRESET}
    known = kind_of(args.task, args.kind)
    vars(args).update(resolve(args.protocol, args.task, known, given, CUT))
    if args.seeds is None:
        args.seeds = default_seeds(args.probe)
    if not args.seeds or min(args.seeds) < 0:
        parser.error("--seeds needs one or more numbers of 0 or above")
    with parser.show_errors():
        args.seg = list(dict.fromkeys(rule.name for rule in rules_of(args)))
        if (pick := read_pick(args.use_seconds, args.pick)) is not None:
            args.pick = pick.how
        args.agg, args.aggregator_checkpoint = split_name(args.agg, args.aggregator_checkpoint)
        row = find_row(args.agg)
        if row.pretrained and given["layer"] is None:  # it joins one layer's tokens only
            args.layer = "last" if args.layer in ("mix", "reduce") else args.layer
        check_flags(
            args.agg,
            args.seg,
            args.layer,
            aggregator_checkpoint=args.aggregator_checkpoint,
            readout=args.readout,
            tune_aggregator=args.tune_aggregator,
            aggregator_lr=args.aggregator_lr,
        )
        check_fusion(args.fusion, args.agg, args.seg, given)
        check_probe(args.probe, row.learns or args.tune_aggregator, args.layer, given["lr"])
    if args.lr and len(args.lr) == 1:
        args.lr = args.lr[0]
    return args


def rules_of(args):
    """The segment rules asked for."""
    pick = read_pick(args.use_seconds, args.pick)
    limits = (args.min_seg, args.max_seg)
    return parse_rules(args.seg, args.hop, args.min_tail, *limits, args.pad_tail, pick)


args = read_arguments(parse_args) if __name__ == "__main__" else None

import logging
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from tune.aggregators.degenerate import degenerate_reason, repeated_pick
from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.transformer import checkpoint as transformer
from tune.aggregators.transformer import trained_on
from tune.encoders.base import launched_precision
from tune.probing import closed_form
from tune.probing.bank import (
    HIDDEN,
    EarlyStopping,
    NonFiniteLossLocator,
    PaddedIndices,
    ProbeBank,
    ProbeData,
    choose_rates,
    make_optimizers,
)
from tune.runs import result as results
from tune.runs.lineage import data_manifest
from tune.runs.outcome import audio_of_test, join_folds, score_test
from tune.runs.tracking import Tracker, check_tracker
from tune.store.encode import PATIENCE
from tune.store.extractor import Extractor
from tune.system.files import cache_folder
from tune.tasks.load import SPLITS, check_task, check_whole, load_task, short_name

log = logging.getLogger("tune.train_probe")


def main(args):
    """Run the experiment: data, encoder, store, features, probe, test, result."""
    trackers = check_tracker(args.report_to)
    args.mixed_precision = launched_precision(args.mixed_precision)
    accelerator = Accelerator(
        mixed_precision="no",  # the probe's; the encoder has its own
        log_with=trackers or None,
        project_dir=str(args.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[PATIENCE],
    )
    set_up_logging(accelerator.is_main_process)
    if args.tokens is None:
        args.tokens, args.frame_rate = transformer.tokens_of(
            args.aggregator_checkpoint, args.frame_rate
        )
    run_name = name_run(args)
    extractor, task = load(args, accelerator)
    protocol = apply_protocol(args, task)
    aggregator = make_aggregator(args, extractor)
    seen = find_seen(args, accelerator, extractor, task)
    given = vars(args) | {"seg": results.joined_name(extractor.rules)}
    config = results.describe_run(
        "train_probe.py",
        given
        | task.settings
        | aggregator.settings
        | {"protocol_settings": protocol, "seen_by_aggregator": seen},
        sys.argv[1:],
        extractor,
        accelerator,
    )
    tags = [task.name, config["encoder"], f"seg {given['seg']}", readable_name(args.agg)]
    tracker = Tracker(accelerator, args.report_to)
    group = f"{task.name}-{config['encoder']}"
    tracker.start(
        config,
        given=vars(args),
        default={"project": "tune", "name": run_name, "group": group, "job_type": "probe"},
        tags=[*tags, *args.tags],
        resolved={"task": task.name, "lr": args.lr or task.recipe.lr},
        log_code=args.log_code,
    )
    try:
        run(args, accelerator, tracker, extractor, task, aggregator, config, run_name)
    except BaseException as error:
        tracker.fail(error)
        raise
    accelerator.end_training()


def name_run(args) -> str:
    """The run's name: the one asked for, or one made of the strategy."""
    name = results.default_name(
        short_name(args.task),
        args.encoder or default_encoder(args.task),
        args.layer,
        rules_of(args),
        readable_name(args.agg),
        args.frame_rate if args.tokens == "frame" else None,
        args.channels,
    )
    name += "-late" * (args.fusion == "late") + "-tuned" * args.tune_aggregator
    name += "".join(f"-{k}" for k in (args.probe, args.protocol) if k not in ("mlp", "tune"))
    name += f"-{args.folds}-folds" * ((args.folds or 1) > 1)
    if args.aggregator_checkpoint:
        name += f"-{Path(args.aggregator_checkpoint).name}"
    return results.check_name(args.output_dir, args.name, name, args.overwrite)


def load(args, accelerator):
    """The encoder with its store, and the task."""
    check_task(args.task)
    with accelerator.main_process_first():  # only one process downloads or composes
        extractor = Extractor(
            args.encoder or default_encoder(args.task),
            rules_of(args),
            args.layer,
            frame_rate=args.frame_rate if args.tokens == "frame" else None,
            device=accelerator.device,
            precision=args.mixed_precision,
            memory_budget=args.memory_budget,
            batch_seconds=args.batch_seconds,
            channels=args.channels,
            store=args.store,
            compile=args.compile,
            trust_remote_code=args.trust_remote_code,
            revision=args.revision,
        )
        task = load_task(
            args.task,
            args.data_dir,
            cache_dir=args.cache_dir or cache_folder() / "demo",
            kind=args.kind,
            label_column=args.label_column,
            audio_column=args.audio_column,
            progress=accelerator.is_main_process,
            allow_outside=args.allow_outside,
            data_revision=args.data_revision,
            yes=args.yes,
            folds=args.folds,
            group_column=args.group_column,
        )
    if args.strict:
        check_whole(task, strict=True)
    for item in task.skipped:
        if args.strict:
            raise ValueError("{where}: {reason}".format(**item))
        log.warning("skipped %s: %s", item["where"], item["reason"])
    return extractor, task


def apply_protocol(args, task) -> dict:
    """Fill in the flags that weren't given; return the protocol as results have it."""
    settings = resolve(args.protocol, args.task, task.kind, vars(args))
    vars(args).update(settings)
    if args.batch_size % args.accumulation:
        raise ValueError(
            f"--batch_size {args.batch_size} can't be divided by --accumulation {args.accumulation}"
        )
    return describe(args.protocol, args.task, task.kind, settings, task.recipe)


def find_seen(args, accelerator, extractor, task) -> dict | None:
    """Test tracks that a pretrained aggregator has seen: refused, or allowed and marked."""
    if not args.aggregator_checkpoint:
        return None
    paths = [path for fold in task.folds or [task] for path in fold.splits["test"]["path"]]
    with accelerator.main_process_first():  # the others read what it found
        return trained_on.check_unseen(
            args.aggregator_checkpoint, paths, extractor.store, args.allow_seen
        )


def make_aggregator(args, extractor) -> TrackAggregator:
    """The aggregator, with a Transformer's checkpoint where one is named."""
    model = None
    if args.aggregator_checkpoint:
        model = transformer.load_for(
            args.aggregator_checkpoint,
            extractor.encoder,
            extractor.layers,
            extractor.collection,
            extractor.rules,
        )
    return TrackAggregator(
        args.agg,
        args.seg,
        sample_rate=extractor.encoder.sample_rate,
        window_s=extractor.collection.window_s,
        mix=args.layer in ("mix", "reduce"),
        reduce=args.layer == "reduce",
        model=model,
        readout=args.readout,
        tune=args.tune_aggregator,
        checkpoint=args.aggregator_checkpoint,
    )


def run(args, accelerator, tracker, extractor, task, aggregator, config, run_name) -> None:
    """Encode, train and test (each fold), and write the run."""
    paths = [path for split in SPLITS for path in task.splits[split]["path"]]
    reports = extractor.encode(paths, accelerator, strict=args.strict)
    pieces = [[len(spans) for _, spans in report.rows.values()] for report in reports]
    why = degenerate_reason(extractor.rules, pieces, args.agg, args.tokens)
    why = why or repeated_pick(args.use_seconds, args.pick)
    if why and args.skip_degenerate:
        print(f"skipped: {why['degenerate']}" + f" ({why.get('same_as')})" * ("same_as" in why))
        print(*tracker.skip(why), sep="\n")
        return
    skipped = (item for report in reports for item in report.skipped)
    task = task.without({item["path"]: item["reason"] for item in skipped})
    check_whole(task, args.strict)
    outcomes, history, truncated, seconds = [], [], 0, 0.0
    for number, fold in enumerate(task.folds or [task], 1):
        if task.folds and accelerator.is_main_process:
            print(f"fold {number} of {len(task.folds)}", flush=True)
        outcome, n_cut, took = probe(
            args, accelerator, tracker, extractor, fold, aggregator, reports, history
        )
        for row in history if task.folds else []:
            row.setdefault("fold", number)
        outcomes.append(outcome)
        truncated, seconds = max(truncated, n_cut), seconds + took
    outcome = join_folds(outcomes, task)
    if accelerator.is_main_process:
        result = results.assemble(task, extractor, reports, outcome, config, truncated, seconds)
        folder = results.write_run(
            args.output_dir,
            run_name,
            result=result,
            config=config,
            outcome=outcome,
            history=history,
            split_made=task.split_made,
            overwrite=args.overwrite,
            rename=args.name is None,
        )
        results.print_result(result, folder)
        manifest = data_manifest(task, reports[0].rows)
        shown = audio_of_test(task), args.log_audio, outcome["curves"]
        print(*tracker.finish(result, outcome["predictions"], folder, manifest, *shown), sep="\n")


def probe(args, accelerator, tracker, extractor, task, aggregator, reports, history):
    """Aggregate, train and test one split: the outcome, tracks that were cut, seconds."""
    rows, device = [report.rows for report in reports], accelerator.device
    collection, owners = extractor.collection, None
    if args.fusion == "late":
        features, owners = aggregator.load_segments(task.splits, collection, rows)
        tokens, truncated = None, 0
    else:
        features, tokens, truncated = aggregator.load(task.splits, collection, rows, device)
    data = ProbeData(
        task,
        features,
        device,
        n_scales=len(aggregator.scales),
        mix=aggregator.mix,
        tokens=tokens,
        raw=aggregator.tune,
        owners=owners,
        scale_inputs=args.standardise != "none",
        scale_targets=args.target_scale == "standardised",
        in_place=True,
        dtype=getattr(torch, args.probe_precision),
    )
    started = time.perf_counter()
    if args.probe in CLOSED_FORM:
        bank = selection = closed_form.fit(args.probe, data, len(args.seeds), args.averaged)
        outputs, metric = bank.outputs, task.recipe.main_metric
        best = float(bank.score.mean())
        history.append({"epoch": 0, f"val/{metric}": best, "val/best_score": best})
        tracker.log(history[-1], step=len(history) - 1)
    else:
        bank, selection = train(accelerator, tracker, task, data, aggregator, args, history)
        outputs = predict(accelerator, bank, data, "test", data.layer_of(len(args.seeds)))
    tracks = data.join("test", outputs, args.averaged)
    outcome = score_test(
        tracks, task, data, bank, selection, aggregator, args.seeds, extractor.layers
    )
    return outcome, truncated, time.perf_counter() - started


def train(accelerator, tracker, task, data, aggregator, args, history):
    """Train probes at each rate of --lr; return the bank of the best and its selection."""
    rates = args.lr if isinstance(args.lr, list) else [args.lr or task.recipe.lr]
    banks, selections = [], []
    for lr in rates:
        poolings = aggregator.poolings(data, args.seeds * data.n_layers, accelerator.device)
        bank, selection = train_bank(accelerator, tracker, task, data, poolings, lr, history, args)
        banks.append(bank)
        selections.append(selection)
    return choose_rates(banks, selections, rates) if len(rates) > 1 else (banks[0], selections[0])


def train_bank(accelerator, tracker, task, data, poolings, lr, history, args):
    """Train one probe per layer and seed side by side; return the bank and its selection.

    The bank has the weights to test, and `history` grows. A probe that has stopped keeps its last
    losses in the curves, which are means over all.
    """
    seeds = args.seeds * data.n_layers
    rows = data.layer_of(len(args.seeds))  # (M, 1)
    n_in = poolings[0].n_out if poolings else data.n_in
    hidden = HIDDEN if args.probe == "mlp" else 0
    bank = ProbeBank(seeds, n_in, data.n_out, hidden=hidden, dtype=data.dtype, poolings=poolings)
    positions = PaddedIndices(data.n_train, args.batch_size, accelerator.num_processes)
    loader = DataLoader(positions, batch_size=positions.block)
    recipe = adapted(task.recipe, vars(args))
    optimizers, plateaus = make_optimizers(bank, recipe, lr, args.aggregator_lr)
    if poolings and not isinstance(args.lr, list):
        used = args.aggregator_lr or poolings[0].default_lr(lr)
        tracker.update_config({"aggregator_lr": used})
    model, loader, *optimizers = accelerator.prepare(bank, loader, *optimizers)
    selection = EarlyStopping(
        bank, args.patience, tie_break=args.tie_break, weights=args.test_weights
    )
    micro_size = args.batch_size // args.accumulation
    train_losses, val_losses, scores = (np.full(len(seeds), np.nan) for _ in range(3))

    for epoch in range(1, args.epochs + 1):
        learning = np.flatnonzero(~selection.stopped).tolist()  # the m that haven't stopped
        # DDP wants a gradient of every weight.
        which = learning if accelerator.num_processes == 1 else list(range(len(seeds)))
        orders = bank.orders(data.n_train, which).to(accelerator.device)  # (m, n)
        total, locator = train_epoch(
            accelerator,
            model,
            bank,
            optimizers,
            loader,
            data,
            rows,
            which,
            orders,
            args.batch_size,
            micro_size,
        )
        out = predict(accelerator, model, data, "val", rows[which], which)  # (m, n, C)
        each = data.kind.loss(out, data.labels_for("val", len(out))).mean(1).cpu().numpy()
        found = data.val_scores(out, args.val_unit, args.averaged, micro_size)
        for i in learning:
            at = which.index(i)
            train_losses[i], val_losses[i], scores[i] = total[at], each[at], found[at]
        if not (np.isfinite(train_losses).all() and np.isfinite(val_losses).all()):
            tracks = data.sample_paths(task.splits["train"]["path"])
            where = locator.describe(accelerator, orders, args.batch_size, tracks)
            raise ValueError(f"the loss is not finite in epoch {epoch}{where}: try a lower --lr")
        done = selection.update(bank, epoch, scores, val_losses)
        for i in learning:
            plateaus[i].step(selection.comparable(scores, val_losses)[i])
        metric = task.recipe.main_metric
        row = {
            "epoch": epoch,
            "train/loss": float(train_losses.mean()),
            "val/loss": float(val_losses.mean()),
            f"val/{metric}": float(scores.mean()),
            f"val/best_{metric}": float(selection.best_score.mean()),
            "val/best_score": float(selection.best_score.mean()),  # by one name for all tasks
            "lr": float(np.mean([o.param_groups[0]["lr"] for o in optimizers])),
        }
        history.append(row)
        tracker.log(row, step=len(history))  # folds and rates come one after the other
        if accelerator.is_main_process:
            print_epoch(row, args.epochs, metric)
        if done:
            break
    selection.restore(bank)
    return bank, selection


def train_epoch(
    accelerator, model, bank, optimizers, loader, data, rows, which, orders, batch_size, micro_size
):
    """Train the m probes in `which` for an epoch: their losses (m,), and where they aren't finite.

    Parameters
    ----------
    rows : (M, 1), each probe's layer
    orders : (m, n), each probe's order of the training samples
    micro_size : samples whose gradients are added up to a batch's, each a mean; the batch's size
        where none are
    """
    model.train()
    device = accelerator.device
    total = torch.zeros(len(which), dtype=data.dtype, device=device)
    locator = NonFiniteLossLocator(device)
    for position in loader:  # (B,) of this process's share, -1 where there is no track
        real, position = position >= 0, position.clamp(min=0)
        keep = bank.dropout_masks(batch_size, which).to(device)
        index = orders[:, position]  # (m, B): each probe's own tracks
        x, mask = data.get_batch("train", rows[which], index)
        out = model(x, keep[:, position % batch_size], mask, which)
        each = data.kind.loss(out, data.labels["train"][index]) * real  # (m, B)
        start = position[0] // batch_size * batch_size
        size = (data.n_train - start).clamp(max=batch_size)
        # The mean over the whole batch: gradients are averaged over the processes.
        if micro_size == batch_size:
            loss = each.sum(1) / size * accelerator.num_processes  # (m,)
        else:
            sizes = (data.n_train - position // micro_size * micro_size).clamp(max=micro_size)
            parts = each / sizes * (micro_size / batch_size)  # a mean of means, also of fewer
            loss = parts.sum(1) * accelerator.num_processes
        for i in which:
            optimizers[i].zero_grad()
        accelerator.backward(loss.sum())
        for i in which:
            optimizers[i].step()
        total += each.sum(1).detach()
        locator.see(each)
    return accelerator.reduce(total).cpu().numpy() / data.n_train, locator


@torch.inference_mode()
def predict(accelerator, model, data, split, rows, which=None) -> torch.Tensor:
    """Outputs of the probes (`which`) for a whole split, (M, n, C), gathered from all processes."""
    model.eval()
    share = 256 if data.tokens is None else 32  # tracks at once
    n = data.n_samples(split)
    loader = accelerator.prepare(DataLoader(range(n), batch_size=share * accelerator.num_processes))
    out = []
    for position in loader:  # (B,)
        x, mask = data.get_batch(split, rows, position)
        part = model(x, mask=mask, which=which)  # (M, B, C)
        out.append(accelerator.gather_for_metrics(part.transpose(0, 1).contiguous()))
    return torch.cat(out).transpose(0, 1)


def print_epoch(row, epochs, metric) -> None:
    """One line an epoch."""
    print(
        f"epoch {row['epoch']:3d}/{epochs}  train loss {row['train/loss']:7.4f}  "
        f"val loss {row['val/loss']:7.4f}  val {metric} {row[f'val/{metric}']:6.3f}  "
        f"best {row[f'val/best_{metric}']:6.3f}  lr {row['lr']:.1e}",
        flush=True,
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
