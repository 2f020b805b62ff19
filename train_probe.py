"""One experiment: task x encoder x segments x aggregator -> result.

    accelerate launch train_probe.py --seg 10 --agg mean
    accelerate launch train_probe.py --task emo --seg full --seeds 1234 1235 1236
    accelerate launch train_probe.py --task my_music.csv --encoder muq --layer 6 --agg stats
    accelerate launch train_probe.py --seg 10 30 full --agg hierarchical --layer mix
    accelerate launch train_probe.py --agg transformer:aggregators/mine

Audio is cut into segments; each is encoded once by a frozen encoder and kept in a store. The
track's tokens are joined by an aggregator, and MARBLE's probe is trained on the result, chosen on
the validation split and tested once. Writes runs/NAME/result.json, config.json,
predictions.parquet, probe.safetensors (with --agg attention also attention.parquet), and tracks
the run in W&B (offline without a login).
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from argparse import ArgumentTypeError
from pathlib import Path

from tune.aggregators.registry import CHOICES, find_row, readable_name, split_name
from tune.cli.flags import BOOL, add
from tune.cli.parser import (
    Parser,
    begin,
    positive_float,
    run_script,
    set_up_logging,
    to_ints,
    to_words,
)
from tune.segments.rules import parse_rule
from tune.tasks.label_kinds import KINDS
from tune.tasks.registry import TASKS, default_layer


def to_agg(text):
    """Read an aggregator; the Transformer's may name its checkpoint."""
    try:
        find_row(split_name(text)[0])
    except ValueError as error:
        raise ArgumentTypeError(str(error).removeprefix("--agg ")) from error
    return text


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="train_probe.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--task",
        default="demo",
        help=f"{', '.join(TASKS)}; PATH: a folder or "
        ".jsonl in MARBLE's layout, or a .csv/.tsv with the columns "
        "path,label[,split]; or hub:NAME, a data set with a column of audio "
        "(python -m tune.tasks lists and checks them)",
    )
    add(data, "data_dir")
    data.add_argument(
        "--kind",
        choices=["auto", *KINDS],
        default="auto",
        help="what the labels of a PATH or hub:NAME are: one of several classes, one "
        "of the 24 keys, numbers, or tags (lists, or names between semicolons); auto "
        "reads it off them, but for keys",
    )
    data.add_argument(
        "--label_column",
        metavar="NAME",
        help="the labels' column in a .csv, .tsv or hub:NAME (default: label)",
    )
    data.add_argument(
        "--audio_column",
        metavar="NAME",
        help="the audio's (default: path, or the only column of audio of hub:NAME)",
    )
    add(data, "data_revision", "yes", "allow_outside", "strict")
    strategy = parser.add_argument_group("strategy")
    strategy.add_argument(
        "--encoder",
        help="muq (the default), muq-nano (the demo tasks' "
        "default), mel, a folder with a model's config.json and "
        "model.safetensors, a hub id: MuQ, MuQ-MuLan or any transformers "
        "audio model (python -m tune.encoders list), or your own: FILE.py:NAME",
    )
    add(strategy, "trust_remote_code", "revision")
    add(
        strategy,
        "layer",
        metavar="last|all|mix|K",
        help="hidden layer: the last, number K (0 is the front end), all: one "
        "probe a layer, the best chosen on validation, or mix: all layers, "
        "averaged by weights that the probe learns (default: last; mix for "
        f"{', '.join(n for n, row in TASKS.items() if row.layer == 'mix')}, but "
        "with --agg transformer)",
    )
    add(strategy, "seg", type=to_words, nargs="+", default=[["10"]])
    add(strategy, "hop", "min_tail", "min_seg", "max_seg")
    strategy.add_argument(
        "--agg",
        type=to_agg,
        default="mean",
        metavar="NAME|FILE.py:NAME",
        help="how the segments' "
        f"embeddings are joined: {CHOICES}; whitened, attention and "
        "hierarchical (several --seg) learn with the probe, transformer is "
        "pretrained by pretrain_aggregator.py (transformer:DIR names its "
        "checkpoint as well)",
    )
    add(strategy, "tokens")
    add(strategy, "frame_rate", default=1.0)
    strategy.add_argument(
        "--skip_degenerate",
        **BOOL,
        help="stop, marked, if every track is one segment: the same as --seg full (or undefined), "
        "as sweeps ask for",
    )
    trainable = parser.add_argument_group("aggregators that learn")
    add(trainable, "aggregator_checkpoint", "readout")
    trainable.add_argument(
        "--tune_aggregator",
        **BOOL,
        help="train the Transformer with the probe, one copy a "
        "seed; without a checkpoint it starts from scratch",
    )
    trainable.add_argument(
        "--aggregator_lr",
        type=positive_float,
        metavar="RATE",
        help="Adam's rate for what learns in front of the probe (default: the "
        "probe's for attention, ten times that for the weights of hierarchical, "
        "whitened and --layer mix, 1e-4 for the Transformer)",
    )
    probe = parser.add_argument_group("probe (MARBLE's protocol)")
    probe.add_argument(
        "--seeds",
        type=to_ints,
        nargs="+",
        default=[[1234]],
        metavar="SEED",
        help="one probe a seed, trained side by side (default: 1234)",
    )
    add(probe, "epochs", default=50, help="at most this many")
    add(probe, "patience", default=20)
    add(probe, "batch_size", default=64, help="effective batch, over all processes")
    add(
        probe,
        "lr",
        help="Adam's rate (default: the task's, by python -m tune.tasks list; 5e-3 for classes of "
        "your own, else 1e-3)",
    )
    machine = parser.add_argument_group("machine")
    add(machine, "mixed_precision", default="auto")
    add(machine, "batch_seconds", default=60.0)
    add(machine, "memory_budget", default="2GB", metavar="SIZE|SHARE")
    add(machine, "compile", "store", "cache_dir")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="the run goes to DIR/NAME",
    )
    add(output, "report_to", default="wandb", metavar="TRACKER")
    add(output, "project")
    add(output, "group", help="W&B group (default: task-encoder)")
    output.add_argument("--name", help="the run's name (default: made of the strategy)")
    add(output, "tags")
    add(output, "overwrite", help="replace the run called --name")
    parser.with_config()
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(s for part in args.seeds for s in part))
    if not args.seeds or min(args.seeds) < 0:
        parser.error("--seeds needs one or more numbers of 0 or above")
    args.seg = [word for part in args.seg for word in part]
    if not args.seg:
        parser.error("--seg needs a value: seconds, full or structure")
    try:
        rules = read_rules(args)
    except ValueError as error:
        parser.error(str(error))
    args.seg = list(dict.fromkeys(rule.name for rule in rules))
    args.agg, checkpoint = split_name(args.agg)
    aggregator = find_row(args.agg)
    if (len(args.seg) > 1) != aggregator.several_segs:
        parser.error(
            f"--agg {args.agg} needs several --seg, such as 10 30 full"
            if aggregator.several_segs
            else f"several --seg need --agg hierarchical, got --agg {args.agg}"
        )
    if checkpoint and args.aggregator_checkpoint:
        parser.error("the checkpoint is given twice: in --agg and as --aggregator_checkpoint")
    args.aggregator_checkpoint = checkpoint or args.aggregator_checkpoint
    one_layer = aggregator.pretrained  # a Transformer joins one layer's tokens only
    args.layer = args.layer or ("last" if one_layer else default_layer(args.task))
    if not aggregator.pretrained:
        for flag in ("aggregator_checkpoint", "readout", "tune_aggregator"):
            if getattr(args, flag):
                parser.error(f"--{flag} belongs to --agg transformer, got --agg {args.agg}")
    elif not args.aggregator_checkpoint and not args.tune_aggregator:
        parser.error(
            f"--agg {args.agg} needs --aggregator_checkpoint (pretrain_aggregator.py "
            "makes one) or --tune_aggregator, which trains it from scratch with the probe"
        )
    elif args.layer in ("all", "mix"):
        parser.error(f"a Transformer joins one layer's tokens: --layer last or K, not {args.layer}")
    if args.aggregator_lr and not (aggregator.learns or args.layer == "mix"):
        parser.error(f"--aggregator_lr: nothing learns in front of the probe with --agg {args.agg}")
    return args


def read_rules(args):
    """The segment rules asked for; among several, each takes the flags that it knows."""
    several = len(args.seg) > 1
    rules = []
    for seg in args.seg:
        cut_by_length = seg not in ("full", "structure")
        hop = None if several and not cut_by_length else args.hop
        limits = (None, None) if several and seg != "structure" else (args.min_seg, args.max_seg)
        rules.append(parse_rule(seg, hop, args.min_tail, *limits))
    return rules


args = begin(parse_args) if __name__ == "__main__" else None

import logging
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from tune.aggregators import trainable
from tune.aggregators.degenerate import degenerate_reason
from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.transformer import checkpoint as transformer
from tune.probing.bank import (
    EarlyStopping,
    NonFiniteLossLocator,
    PaddedIndices,
    ProbeBank,
    ProbeData,
    join_clips,
)
from tune.probing.intervals import bootstrap, main_score, score
from tune.runs import result as results
from tune.runs.tracking import Tracker, check_tracker
from tune.store.extractor import Extractor
from tune.system.files import cache_folder
from tune.tasks.load import SPLITS, check_task, check_whole, load_task, short_name

log = logging.getLogger("tune.train_probe")


def main(args):
    """Run the experiment: data, encoder, store, features, probe, test, result."""
    check_tracker(args.report_to)
    rules = read_rules(args)
    accelerator = Accelerator(
        mixed_precision="no",  # the probe's; the encoder has its own
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(args.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_up_logging(accelerator.is_main_process)
    device = accelerator.device
    encoder_name = args.encoder or (TASKS[args.task].encoder if args.task in TASKS else "muq")
    if args.tokens is None:
        args.tokens, args.frame_rate = transformer.tokens_of(
            args.aggregator_checkpoint, args.frame_rate
        )
    frame_rate = args.frame_rate if args.tokens == "frame" else None
    agg = readable_name(args.agg)
    default = results.default_name(
        short_name(args.task), encoder_name, args.layer, rules, agg, frame_rate
    )
    if args.tune_aggregator:
        default += "-tuned"
    if args.aggregator_checkpoint:
        default += f"-{Path(args.aggregator_checkpoint).name}"
    run_name = results.check_name(args.output_dir, args.name, default, args.overwrite)

    check_task(args.task)
    with accelerator.main_process_first():  # only one process downloads or composes
        extractor = Extractor(
            encoder_name,
            rules,
            args.layer,
            frame_rate=frame_rate,
            device=device,
            precision=args.mixed_precision,
            memory_budget=args.memory_budget,
            batch_seconds=args.batch_seconds,
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
        )
    if args.strict:
        check_whole(task, strict=True)
    if task.skipped and args.strict:
        raise ValueError("{where}: {reason}".format(**task.skipped[0]))
    for item in task.skipped:
        log.warning("skipped %s: %s", item["where"], item["reason"])
    encoder, layers, collection = extractor.encoder, extractor.layers, extractor.collection
    model = None
    if args.aggregator_checkpoint:
        model = transformer.load_for(args.aggregator_checkpoint, encoder, layers, collection, rules)

    aggregator = TrackAggregator(
        args.agg,
        args.seg,
        sample_rate=encoder.sample_rate,
        window_s=collection.window_s,
        mix=args.layer == "mix",
        model=model,
        readout=args.readout,
        tune=args.tune_aggregator,
    )

    given = vars(args) | {"seg": results.joined_name(rules)} | aggregator.settings
    config = results.describe_run(given, sys.argv[1:], encoder, layers, accelerator)
    tracker = Tracker(accelerator, args.report_to)
    tracker.start(
        args.project,
        config,
        name=run_name,
        group=args.group or f"{task.name}-{encoder.name}",
        tags=[task.name, encoder.name, f"seg {given['seg']}", agg, *args.tags],
    )
    try:
        paths = [path for split in SPLITS for path in task.splits[split]["path"]]
        reports = extractor.encode(paths, accelerator, strict=args.strict)
        pieces = [[len(spans) for _, spans in report.rows.values()] for report in reports]
        why = (
            degenerate_reason(rules, pieces, args.agg, args.tokens)
            if args.skip_degenerate
            else None
        )
        if why:
            print(f"skipped: {why['degenerate']}" + f" ({why.get('same_as')})" * ("same_as" in why))
            print(*tracker.skip(why), sep="\n")
            accelerator.end_training()
            return
        skipped = (item for report in reports for item in report.skipped)
        task = task.without({item["path"]: item["reason"] for item in skipped})
        check_whole(task, args.strict)
        scales = [report.rows for report in reports]
        features, tokens, truncated = aggregator.load(task.splits, collection, scales, device)
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
        seeds = args.seeds * data.n_layers
        joiners = aggregator.poolings(data, seeds, device)
        bank, selection, history = train(accelerator, tracker, task, data, joiners, args)
        outcome = evaluate(accelerator, bank, selection, task, data, layers, aggregator, args)
        if accelerator.is_main_process:
            result = results.assemble(
                task,
                encoder,
                rules,
                collection,
                reports,
                outcome,
                config,
                device,
                layer_asked=args.layer,
                agg=agg,
                seeds=args.seeds,
                truncated=truncated,
                probe_seconds=time.perf_counter() - started,
            )
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
            for line in tracker.finish(result, outcome["predictions"], folder):
                print(line)
    except BaseException as error:
        tracker.fail(error)
        raise
    accelerator.end_training()


def train(accelerator, tracker, task, data, joiners, args):
    """Train one probe per layer and seed side by side; return the bank with its best weights.

    A probe that has stopped keeps its last losses in the curves, which are means over all.
    """
    recipe, metric = task.recipe, task.recipe.main_metric
    seeds = args.seeds * data.n_layers
    rows = data.layer_of(len(args.seeds))  # (M, 1)
    n_in = joiners[0].n_out if joiners else data.n_in
    bank = ProbeBank(seeds, n_in, data.n_out, dtype=data.dtype, joiners=joiners)
    positions = PaddedIndices(data.n_train, args.batch_size, accelerator.num_processes)
    loader = DataLoader(positions, batch_size=positions.block)
    lr = args.lr or recipe.lr
    rates = {"probe": lr, "joiner": args.aggregator_lr or (joiners and joiners[0].default_lr(lr))}
    optimizers = [Adam(probe.groups(rates), fused=True) for probe in bank.probes]
    plateaus = [
        ReduceLROnPlateau(
            optimizer, "max", factor=recipe.plateau_factor, patience=recipe.plateau_patience
        )
        for optimizer in optimizers
    ]
    model, loader, *optimizers = accelerator.prepare(bank, loader, *optimizers)
    selection, history = EarlyStopping(bank, args.patience), []
    train_losses, val_losses, scores = (np.full(len(seeds), np.nan) for _ in range(3))
    which, device = list(range(len(seeds))), accelerator.device

    for epoch in range(1, args.epochs + 1):
        model.train()
        learning = ~selection.stopped
        if accelerator.num_processes == 1:  # DDP wants a gradient of every weight
            which = np.flatnonzero(learning).tolist()  # the m that haven't stopped
        orders = bank.orders(data.n_train, which).to(device)  # (m, n)
        total = torch.zeros(len(which), dtype=data.dtype, device=device)
        culprit = NonFiniteLossLocator(device)
        for position in loader:  # (B,) of this process's share, -1 where there is no track
            real, position = position >= 0, position.clamp(min=0)
            keep = bank.dropout_masks(args.batch_size, which).to(device)
            index = orders[:, position]  # (m, B): each probe's own tracks
            x, mask = data.pick("train", rows[which], index)
            out = model(x, keep[:, position % args.batch_size], mask, which)
            each = data.kind.loss(out, data.labels["train"][index]) * real  # (m, B)
            start = position[0] // args.batch_size * args.batch_size
            size = (data.n_train - start).clamp(max=args.batch_size)
            # The mean over the whole batch: gradients are averaged over the processes.
            loss = each.sum(1) / size * accelerator.num_processes  # (m,)
            for i in which:
                optimizers[i].zero_grad()
            accelerator.backward(loss.sum())
            for i in which:
                optimizers[i].step()
            total += each.sum(1).detach()
            culprit.see(each)
        total = accelerator.reduce(total).cpu().numpy() / data.n_train

        out = predict(accelerator, model, data, "val", rows[which], which)  # (m, n, C)
        each = data.kind.loss(out, data.labels_for("val", len(out))).mean(1).cpu().numpy()
        mine = [(place, i) for place, i in enumerate(which) if learning[i]]
        for place, i in mine:
            train_losses[i], val_losses[i] = total[place], each[place]
        if not (np.isfinite(train_losses).all() and np.isfinite(val_losses).all()):
            tracks = task.splits["train"]["path"]
            where = culprit.describe(accelerator, orders, args.batch_size, tracks)
            raise ValueError(f"the loss is not finite in epoch {epoch}{where}: try a lower --lr")
        guesses = data.decide(out)
        for place, i in mine:
            scores[i] = main_score(task.kind, data.truth["val"], guesses[place])
        done = selection.update(bank, epoch, scores, val_losses)
        for i in np.flatnonzero(learning):
            plateaus[i].step(selection.comparable(scores, val_losses)[i])
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
        tracker.log(row, step=epoch)
        if accelerator.is_main_process:
            print(
                f"epoch {epoch:3d}/{args.epochs}  train loss {row['train/loss']:7.4f}  "
                f"val loss {row['val/loss']:7.4f}  val {metric} {row[f'val/{metric}']:6.3f}  "
                f"best {row[f'val/best_{metric}']:6.3f}  lr {row['lr']:.1e}",
                flush=True,
            )
        if done:
            break
    selection.restore(bank)
    return bank, selection, history


@torch.inference_mode()
def predict(accelerator, model, data, split, rows, which=None) -> torch.Tensor:
    """Outputs of the probes (`which`) for a whole split, (M, n, C), gathered from all processes."""
    model.eval()
    share = 256 if data.tokens is None else 32  # tracks at once
    n = len(data.truth[split])
    loader = accelerator.prepare(DataLoader(range(n), batch_size=share * accelerator.num_processes))
    out = []
    for position in loader:  # (B,)
        x, mask = data.pick(split, rows, position)
        part = model(x, mask=mask, which=which)  # (M, B, C)
        out.append(accelerator.gather_for_metrics(part.transpose(0, 1).contiguous()))
    return torch.cat(out).transpose(0, 1)


def evaluate(accelerator, bank, selection, task, data, layers, aggregator, args) -> dict:
    """Test once: the layer chosen on validation, every seed."""
    seeds = args.seeds
    by_layer = selection.best_score.reshape(data.n_layers, len(seeds)).mean(1)
    chosen = int(by_layer.argmax())
    names = ["mix"] if args.layer == "mix" else layers
    out = predict(accelerator, bank, data, "test", data.layer_of(len(seeds)))
    mine = slice(chosen * len(seeds), (chosen + 1) * len(seeds))
    # (S, n, C), where a track may be several files
    out, truth, ids = join_clips(out[mine], data.truth["test"], task.splits["test"])
    probes = bank.probes[mine]
    guesses = data.decide(out)  # (S, n) or (S, n, C)
    each = [score(task.kind, truth, guess, task.targets) for guess in guesses]
    per_seed = {name: [s[name] for s in each] for name in each[0]}
    intervals = bootstrap(task.kind, truth, guesses, task.targets)
    weights = {
        f"seed{seed}.{name}": value
        for seed, p in zip(seeds, probes, strict=True)
        for name, value in p.state_dict().items()
    }
    return {
        "metrics": results.summarise(per_seed, intervals),
        "chance": score(task.kind, truth, data.guess("test")[: len(truth)], task.targets),
        "n_test_scored": len(ids),
        "tags_left_out": data.kind.unscored(truth, getattr(task, data.kind.parts)),
        "unknown_tags": task.unknown_tags,
        "layer": names[chosen],
        "layer_scores": dict(zip(map(str, names), by_layer.tolist(), strict=True)),
        "best_epochs": selection.best_epoch[mine].tolist(),
        "aggregator": trainable.describe(
            probes,
            seeds,
            views=data.view_names(aggregator.scales, layers),
            checkpoint=args.aggregator_checkpoint,
            tuned=args.tune_aggregator,
            readout=aggregator.readout_used,
        )
        | aggregator.row.record,
        "attention": trainable.attention_columns(probes, seeds, data, chosen, task.splits["test"]),
        "embedding_dim": bank.n_in,
        "probe": weights | data.constants(chosen, inputs=not args.tune_aggregator),
        "predictions": results.prediction_columns(
            task.kind,
            ids,
            seeds,
            truth,
            guesses,
            out.softmax(-1).cpu().numpy(),
            task.classes,
            task.targets,
        ),
    }


if __name__ == "__main__":
    run_script(lambda: main(args))
