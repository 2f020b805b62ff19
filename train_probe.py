"""One experiment: task x encoder x segments x aggregator -> result.

    accelerate launch train_probe.py --seg 10 --agg mean
    accelerate launch train_probe.py --task emo --seg full --seeds 1234 1235 1236
    accelerate launch train_probe.py --task my_music.csv --encoder muq --layer 6 --agg stats
    accelerate launch train_probe.py --seg 10 30 full --agg hierarchical --layer mix
    accelerate launch train_probe.py --agg transformer:aggregators/mine
    accelerate launch train_probe.py --task my_music.csv --folds 5 --group_column artist

Audio is cut into segments; each is encoded once by a frozen encoder and kept in a store. The
track's tokens are joined by an aggregator, and MARBLE's probe is trained on the result, chosen on
the validation split and tested once. Writes runs/NAME/result.json, config.json,
predictions.parquet, probe.safetensors (with --agg attention also attention.parquet), and tracks
the run in W&B (offline without a login).
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.aggregators.flag_rules import check_flags
from tune.aggregators.registry import CHOICES, find_row, readable_name, split_name
from tune.cli.flags import FLAGS, SEVERAL, add_groups
from tune.cli.parser import Parser, read_arguments, run_script, set_up_logging, to_words
from tune.segments.rules import parse_rules
from tune.tasks.label_kinds import KINDS
from tune.tasks.registry import TASKS, default_encoder, default_layer

GROUPS = {
    "data": "task data_dir kind label_column audio_column data_revision yes folds group_column "
    "allow_outside strict",
    "strategy": "encoder trust_remote_code revision channels layer seg hop min_tail min_seg "
    "max_seg agg tokens frame_rate skip_degenerate",
    "aggregators that learn": "aggregator_checkpoint readout tune_aggregator aggregator_lr",
    "probe (MARBLE's protocol)": "seeds epochs patience batch_size lr",
    "machine": "mixed_precision batch_seconds memory_budget compile store cache_dir",
    "output": "output_dir report_to project group name tags overwrite",
}
MIXED = ", ".join(name for name, row in TASKS.items() if row.layer == "mix")
CHANGES = {
    "task": dict(help=f"{', '.join(TASKS)}; {FLAGS['task']['help']}"),
    "kind": dict(choices=["auto", *KINDS]),
    "layer": dict(
        metavar="last|all|mix|K",
        help="hidden layer: the last, number K (0 is the front end), all: one probe a layer, the "
        "best chosen on validation, or mix: all layers, averaged by weights that the probe learns "
        f"(default: last; mix for {MIXED}, but with --agg transformer)",
    ),
    "seg": dict(**SEVERAL, type=to_words, default=["10"]),
    "agg": dict(
        help=f"how the segments' embeddings are joined: {CHOICES}; whitened, attention and "
        "hierarchical (several --seg) learn with the probe, transformer is pretrained by "
        "pretrain_aggregator.py (transformer:DIR names its checkpoint as well)"
    ),
    "epochs": dict(default=50, help="at most this many"),
    "patience": dict(default=20),
    "batch_size": dict(default=64, help="effective batch, over all processes"),
    "lr": dict(
        help="Adam's rate (default: the task's, by python -m tune.tasks list; 5e-3 for classes of "
        "your own, else 1e-3)"
    ),
    "group": dict(help="W&B group (default: task-encoder)"),
    "overwrite": dict(help="replace the run called --name"),
}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="train_probe.py", description=__doc__)
    add_groups(parser, GROUPS, CHANGES)
    parser.with_config()
    args = parser.parse_args(argv)
    if not args.seeds or min(args.seeds) < 0:
        parser.error("--seeds needs one or more numbers of 0 or above")
    if not args.seg:
        parser.error("--seg needs a value: seconds, full or structure")
    with parser.show_errors():
        args.seg = list(dict.fromkeys(rule.name for rule in rules_of(args)))
        args.agg, args.aggregator_checkpoint = split_name(args.agg, args.aggregator_checkpoint)
        one_layer = find_row(args.agg).pretrained  # a Transformer joins one layer's tokens only
        args.layer = args.layer or ("last" if one_layer else default_layer(args.task))
        check_flags(
            args.agg,
            args.seg,
            args.layer,
            aggregator_checkpoint=args.aggregator_checkpoint,
            readout=args.readout,
            tune_aggregator=args.tune_aggregator,
            aggregator_lr=args.aggregator_lr,
        )
    return args


def rules_of(args):
    """The segment rules asked for."""
    return parse_rules(args.seg, args.hop, args.min_tail, args.min_seg, args.max_seg)


args = read_arguments(parse_args) if __name__ == "__main__" else None

import logging
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from tune.aggregators.degenerate import degenerate_reason
from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.transformer import checkpoint as transformer
from tune.probing.bank import (
    EarlyStopping,
    NonFiniteLossLocator,
    PaddedIndices,
    ProbeBank,
    ProbeData,
    make_optimizers,
)
from tune.probing.intervals import main_score
from tune.runs import result as results
from tune.runs.outcome import join_folds, score_test
from tune.runs.tracking import Tracker, check_tracker
from tune.store.extractor import Extractor
from tune.system.files import cache_folder
from tune.tasks.load import SPLITS, check_task, check_whole, load_task, short_name

log = logging.getLogger("tune.train_probe")


def main(args):
    """Run the experiment: data, encoder, store, features, probe, test, result."""
    check_tracker(args.report_to)
    accelerator = Accelerator(
        mixed_precision="no",  # the probe's; the encoder has its own
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(args.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_up_logging(accelerator.is_main_process)
    if args.tokens is None:
        args.tokens, args.frame_rate = transformer.tokens_of(
            args.aggregator_checkpoint, args.frame_rate
        )
    run_name = name_run(args)
    extractor, task = load(args, accelerator)
    aggregator = make_aggregator(args, extractor)
    given = vars(args) | {"seg": results.joined_name(extractor.rules)}
    config = results.describe_run(
        "train_probe.py",
        given | task.settings | aggregator.settings,
        sys.argv[1:],
        extractor,
        accelerator,
    )
    tags = [task.name, config["encoder"], f"seg {given['seg']}", readable_name(args.agg)]
    tracker = Tracker(accelerator, args.report_to)
    tracker.start(
        args.project,
        config,
        name=run_name,
        group=args.group or f"{task.name}-{config['encoder']}",
        tags=[*tags, *args.tags],
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
    name += "-tuned" * args.tune_aggregator
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
        mix=args.layer == "mix",
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
        print(*tracker.finish(result, outcome["predictions"], folder), sep="\n")


def probe(args, accelerator, tracker, extractor, task, aggregator, reports, history):
    """Aggregate, train and test one split: the outcome, tracks that were cut, seconds."""
    rows, device = [report.rows for report in reports], accelerator.device
    features, tokens, truncated = aggregator.load(task.splits, extractor.collection, rows, device)
    data = ProbeData(
        task,
        features,
        device,
        n_scales=len(aggregator.scales),
        mix=aggregator.mix,
        tokens=tokens,
        raw=aggregator.tune,
    )
    started = time.perf_counter()
    poolings = aggregator.poolings(data, args.seeds * data.n_layers, device)
    bank, selection = train(accelerator, tracker, task, data, poolings, args, history)
    outputs = predict(accelerator, bank, data, "test", data.layer_of(len(args.seeds)))
    outcome = score_test(
        outputs, task, data, bank, selection, aggregator, args.seeds, extractor.layers
    )
    return outcome, truncated, time.perf_counter() - started


def train(accelerator, tracker, task, data, poolings, args, history):
    """Train one probe per layer and seed side by side; return the bank with its best weights.

    Each epoch is added to the history. A probe that has stopped keeps its last losses in the
    curves, which are means over all.
    """
    seeds = args.seeds * data.n_layers
    rows = data.layer_of(len(args.seeds))  # (M, 1)
    n_in = poolings[0].n_out if poolings else data.n_in
    bank = ProbeBank(seeds, n_in, data.n_out, dtype=data.dtype, poolings=poolings)
    positions = PaddedIndices(data.n_train, args.batch_size, accelerator.num_processes)
    loader = DataLoader(positions, batch_size=positions.block)
    optimizers, plateaus = make_optimizers(
        bank, task.recipe, args.lr or task.recipe.lr, args.aggregator_lr
    )
    model, loader, *optimizers = accelerator.prepare(bank, loader, *optimizers)
    selection = EarlyStopping(bank, args.patience)
    train_losses, val_losses, scores = (np.full(len(seeds), np.nan) for _ in range(3))

    for epoch in range(1, args.epochs + 1):
        learning = np.flatnonzero(~selection.stopped).tolist()  # the m that haven't stopped
        # DDP wants a gradient of every weight.
        which = learning if accelerator.num_processes == 1 else list(range(len(seeds)))
        orders = bank.orders(data.n_train, which).to(accelerator.device)  # (m, n)
        total, locator = train_epoch(
            accelerator, model, bank, optimizers, loader, data, rows, which, orders, args.batch_size
        )
        out = predict(accelerator, model, data, "val", rows[which], which)  # (m, n, C)
        each = data.kind.loss(out, data.labels_for("val", len(out))).mean(1).cpu().numpy()
        predictions = data.predict(out)
        for i in learning:
            at = which.index(i)
            train_losses[i], val_losses[i] = total[at], each[at]
            scores[i] = main_score(task.kind, data.truth["val"], predictions[at])
        if not (np.isfinite(train_losses).all() and np.isfinite(val_losses).all()):
            tracks = task.splits["train"]["path"]
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
        tracker.log(row, step=len(history))  # folds come one after the other
        if accelerator.is_main_process:
            print_epoch(row, args.epochs, metric)
        if done:
            break
    selection.restore(bank)
    return bank, selection


def train_epoch(
    accelerator, model, bank, optimizers, loader, data, rows, which, orders, batch_size
):
    """Train the m probes in `which` for an epoch: their losses (m,), and where they aren't finite.

    Parameters
    ----------
    rows : (M, 1), each probe's layer
    orders : (m, n), each probe's order of the training tracks
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
        loss = each.sum(1) / size * accelerator.num_processes  # (m,)
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
    n = len(data.truth[split])
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
