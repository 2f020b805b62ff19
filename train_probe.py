"""One experiment: task x encoder x segments x aggregator -> result.

    accelerate launch train_probe.py --seg 10 --agg mean
    accelerate launch train_probe.py --task emo --seg full --seeds 1234 1235 1236
    accelerate launch train_probe.py --task my_music.csv --encoder muq --layer 6 --agg stats

Audio is cut into segments; each is encoded once by a frozen encoder and kept in a store. The
track's tokens are joined by an aggregator, and MARBLE's probe is trained on the result, chosen on
the validation split and tested once. Writes runs/NAME/result.json, config.json,
predictions.parquet and probe.safetensors, and tracks the run in W&B (offline without a login).
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.cli import (
    Parser,
    positive_float,
    positive_int,
    run_script,
    set_up_logging,
    to_bool,
    to_ints,
)
from tune.segments import parse_rule


# fmt: off
def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="train_probe.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--task", default="demo", help="demo, demo-mood, demo-form, emo, gtzan, or "
                      "PATH: a folder or .jsonl in MARBLE's layout, or a .csv/.tsv with the "
                      "columns path,label[,split]")
    data.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR",
                      help="folder that holds (or gets) the hub's data sets, EMO/ and GTZAN/")
    data.add_argument("--kind", choices=["auto", "classes", "numbers"], default="auto",
                      help="what a PATH task's labels are; auto reads it off them")
    data.add_argument("--strict", nargs="?", const=True, default=False, type=to_bool,
                      metavar="BOOL", help="end at the first bad file instead of reporting it")
    strategy = parser.add_argument_group("strategy")
    strategy.add_argument("--encoder", help="muq (the default), muq-nano (the demo tasks' "
                          "default), mel, a folder with MuQ's config.json and "
                          "model.safetensors, or a hub id")
    strategy.add_argument("--layer", default="last", metavar="last|all|K",
                          help="hidden layer: the last, number K (0 is the front end), or all: "
                          "one probe a layer, the best chosen on validation")
    strategy.add_argument("--seg", default="10", metavar="SECONDS|full",
                          help="segment length in seconds, or full for the whole track")
    strategy.add_argument("--hop", type=positive_float, metavar="SECONDS",
                          help="distance between segment starts (default: the segment length)")
    strategy.add_argument("--min_tail", type=float, default=1.0, metavar="SECONDS",
                          help="a last piece shorter than this is dropped unless it's the only one")
    strategy.add_argument("--agg", choices=["mean", "max", "concat", "stats"], default="mean",
                          help="how the segments' embeddings are joined")
    strategy.add_argument("--tokens", choices=["segment", "frame"], default="segment",
                          help="what is joined: one vector a segment, or pooled frames")
    strategy.add_argument("--frame_rate", type=positive_float, default=1.0, metavar="HZ",
                          help="pooled frames a second with --tokens frame")
    probe = parser.add_argument_group("probe (MARBLE's protocol)")
    probe.add_argument("--seeds", type=to_ints, nargs="+", default=[[1234]], metavar="SEED",
                       help="one probe a seed, trained side by side (default: 1234)")
    probe.add_argument("--epochs", type=positive_int, default=50, help="at most this many")
    probe.add_argument("--patience", type=positive_int, default=20, metavar="EPOCHS",
                       help="stop after this many without a better validation score")
    probe.add_argument("--batch_size", type=positive_int, default=64, metavar="TRACKS",
                       help="effective batch, over all processes")
    probe.add_argument("--lr", type=positive_float, metavar="RATE",
                       help="Adam's rate (default: 5e-3 for classes, 1e-3 for numbers)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--mixed_precision", choices=["auto", "no", "fp16", "bf16"],
                         default="auto", help="the encoder's precision; auto: fp16 on a GPU "
                         "below compute capability 8.0, bf16 from there, float32 on a CPU")
    machine.add_argument("--batch_seconds", type=positive_float, default=60.0, metavar="SECONDS",
                         help="audio seconds per encoder batch; halves itself on out-of-memory")
    machine.add_argument("--memory_budget", default="2GB", metavar="SIZE|SHARE",
                         help="what the encoder's weights and activations should stay within: a "
                         "size such as 2GB, or a share of the device's memory such as 0.5; it sets "
                         "the chunks of MuQ's front end and changes no result")
    machine.add_argument("--compile", nargs="?", const=True, default=False, type=to_bool,
                         metavar="BOOL", help="pass the encoder through torch.compile")
    machine.add_argument("--store", type=Path, metavar="DIR", help="embedding store "
                         "(default: $TUNE_STORE, or tune/store in the user's cache folder)")
    machine.add_argument("--cache_dir", type=Path, metavar="DIR", help="where composed demo "
                         "music is kept (default: tune/demo in the user's cache folder)")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="the run goes to DIR/NAME")
    output.add_argument("--report_to", default="wandb", metavar="TRACKER",
                        help="wandb (offline without a login), none, tensorboard, trackio, ...")
    output.add_argument("--project", default="tune", help="the tracker's project")
    output.add_argument("--group", help="W&B group (default: task-encoder)")
    output.add_argument("--name", help="the run's name (default: made of the strategy)")
    output.add_argument("--tags", nargs="*", default=[], metavar="TAG", help="W&B tags")
    output.add_argument("--overwrite", nargs="?", const=True, default=False, type=to_bool,
                        metavar="BOOL", help="replace the run called --name")
    args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(s for part in args.seeds for s in part))
    if not args.seeds or min(args.seeds) < 0:
        parser.error("--seeds needs one or more numbers of 0 or above")
    try:
        parse_rule(args.seg, args.hop, args.min_tail)
    except ValueError as error:
        parser.error(str(error))
    return args
# fmt: on


args = parse_args() if __name__ == "__main__" else None

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

from tune import results
from tune.costs import device_memory, parse_budget
from tune.encoder import resolve_layers, resolve_precision
from tune.encoders import load_encoder
from tune.encoding import encode_shared
from tune.features import load_task_features
from tune.metrics import bootstrap, main_score, score
from tune.probe import Positions, ProbeBank, ProbeData, Selection, losses
from tune.store import Store, cache_folder, default_root
from tune.tasks import SPLITS, TASKS, check_task, load_task, short_name
from tune.tracking import Tracker, check_tracker

log = logging.getLogger("tune.train_probe")


def main(args):
    """Run the experiment: data, encoder, store, features, probe, test, result."""
    check_tracker(args.report_to)
    rule = parse_rule(args.seg, args.hop, args.min_tail)
    accelerator = Accelerator(
        mixed_precision="no",  # the probe's; the encoder has its own
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(args.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_up_logging(accelerator.is_main_process)
    device = accelerator.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    precision = resolve_precision(args.mixed_precision, device.type, capability)
    budget = parse_budget(args.memory_budget, device_memory(device))
    encoder_name = args.encoder or (TASKS[args.task].encoder if args.task in TASKS else "muq")
    frame_rate = args.frame_rate if args.tokens == "frame" else None
    default = results.default_name(
        short_name(args.task), encoder_name, args.layer, rule, args.agg, frame_rate
    )
    run_name = results.check_name(args.output_dir, args.name, default, args.overwrite)

    check_task(args.task)
    with accelerator.main_process_first():  # only one process downloads or composes
        encoder = load_encoder(
            encoder_name, precision=precision, device=device, memory_budget=budget,
            compile=args.compile,
        )  # fmt: skip
        layers = resolve_layers(args.layer, encoder.n_layers)
        encoder.keep_layers(max(layers))
        check_fits(rule, frame_rate, encoder)
        task = load_task(
            args.task, args.data_dir, cache_dir=args.cache_dir or cache_folder() / "demo",
            kind=args.kind, progress=accelerator.is_main_process,
        )  # fmt: skip
    if task.skipped and args.strict:
        raise ValueError("{where}: {reason}".format(**task.skipped[0]))
    for item in task.skipped:
        log.warning("skipped %s: %s", item["where"], item["reason"])
    store = Store(args.store or default_root())
    collection = store.collection(encoder, layers, frame_rate)

    config = results.describe_run(vars(args), sys.argv[1:], encoder, layers, accelerator)
    tracker = Tracker(accelerator, args.report_to)
    tracker.start(
        args.project, config, name=run_name, group=args.group or f"{task.name}-{encoder.name}",
        tags=[task.name, encoder.name, f"seg {rule.name}", args.agg, *args.tags],
    )  # fmt: skip
    try:
        paths = [path for split in SPLITS for path in task.splits[split]["path"]]
        report = encode_shared(
            accelerator, paths, encoder, rule, store, collection, frame_rate=frame_rate,
            batch_seconds=args.batch_seconds, strict=args.strict,
        )  # fmt: skip
        task = task.without({item["path"] for item in report.skipped})
        features, truncated = load_task_features(task.splits, collection, report.rows, args.agg)
        data = ProbeData(task, features, device)

        started = time.perf_counter()
        bank, selection, history = train(accelerator, tracker, task, data, layers, args)
        outcome = evaluate(accelerator, bank, selection, task, data, layers, args.seeds)
        if accelerator.is_main_process:
            result = results.assemble(
                task, encoder, rule, collection, report, outcome, config, device,
                layer_asked=args.layer, agg=args.agg, seeds=args.seeds, truncated=truncated,
                probe_seconds=time.perf_counter() - started,
            )  # fmt: skip
            folder = results.write_run(
                args.output_dir, run_name, result=result, config=config, outcome=outcome,
                history=history, split_made=task.split_made,
                overwrite=args.overwrite, rename=args.name is None,
            )  # fmt: skip
            results.print_result(result, folder)
            for line in tracker.finish(result, outcome["predictions"], folder):
                print(line)
    except BaseException:
        tracker.fail()
        raise
    accelerator.end_training()


def check_fits(rule, frame_rate, encoder) -> None:
    """Raise when the encoder can't take the pieces that the rule makes, or the frame rate."""
    for flag, value in (("--min_tail", rule.min_tail_s), ("--seg", rule.length_s)):
        if value is not None and value < encoder.min_seconds:
            raise ValueError(
                f"{flag} {value:g}: {encoder.name} needs at least {encoder.min_seconds:g} s"
            )
    if frame_rate is not None:
        encoder.pool_width(frame_rate)


def train(accelerator, tracker, task, data, layers, args):
    """Train one probe per layer and seed side by side; return the bank with its best weights."""
    recipe, metric = task.recipe, task.recipe.main_metric
    seeds = args.seeds * len(layers)
    rows = data.layer_of(len(layers), len(args.seeds))  # (M, 1)
    bank = ProbeBank(seeds, data.n_in, data.n_out, dtype=data.dtype)
    positions = Positions(data.n_train, args.batch_size, accelerator.num_processes)
    loader = DataLoader(positions, batch_size=positions.block)
    lr = args.lr or recipe.lr
    optimizers = [Adam(probe.parameters(), lr=lr, fused=True) for probe in bank.probes]
    plateaus = [
        ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=recipe.plateau_patience)
        for optimizer in optimizers
    ]
    model, loader, *optimizers = accelerator.prepare(bank, loader, *optimizers)
    selection, history = Selection(bank, args.patience), []

    for epoch in range(1, args.epochs + 1):
        model.train()
        orders = bank.orders(data.n_train).to(accelerator.device)  # (M, n)
        total = torch.zeros(len(seeds), dtype=data.dtype, device=accelerator.device)
        for position in loader:  # (B,) of this process's share, -1 where there is no track
            real, position = position >= 0, position.clamp(min=0)
            keep = bank.dropout_masks(args.batch_size).to(accelerator.device)
            index = orders[:, position]  # (M, B): each probe's own tracks
            out = model(data.inputs["train"][rows, index], keep[:, position % args.batch_size])
            each = losses(task.kind, out, data.labels["train"][index]) * real  # (M, B)
            start = position[0] // args.batch_size * args.batch_size
            size = (data.n_train - start).clamp(max=args.batch_size)
            # The mean over the whole batch: gradients are averaged over the processes.
            loss = each.sum(1) / size * accelerator.num_processes  # (M,)
            for optimizer in optimizers:
                optimizer.zero_grad()
            accelerator.backward(loss.sum())
            for optimizer in optimizers:
                optimizer.step()
            total += each.sum(1).detach()
        train_loss = accelerator.reduce(total).mean().item() / data.n_train

        out = predict(accelerator, model, data.inputs["val"], rows)  # (M, n, C)
        val_losses = losses(task.kind, out, data.labels_for("val", len(out))).mean(1).cpu().numpy()
        if not (np.isfinite(train_loss) and np.isfinite(val_losses).all()):
            raise ValueError(f"the loss is not finite in epoch {epoch}: try a lower --lr")
        guesses = data.decide(out)
        scores = np.array([main_score(task.kind, data.truth["val"], g) for g in guesses])
        done = selection.update(bank, epoch, scores, val_losses)
        for plateau, value in zip(plateaus, selection.comparable(scores, val_losses), strict=True):
            plateau.step(value)
        row = {
            "epoch": epoch,
            "train/loss": train_loss,
            "val/loss": float(val_losses.mean()),
            f"val/{metric}": float(scores.mean()),
            f"val/best_{metric}": float(selection.best_score.mean()),
            "lr": float(np.mean([o.param_groups[0]["lr"] for o in optimizers])),
        }
        history.append(row)
        tracker.log(row, step=epoch)
        if accelerator.is_main_process:
            print(
                f"epoch {epoch:3d}/{args.epochs}  train loss {train_loss:7.4f}  "
                f"val loss {row['val/loss']:7.4f}  val {metric} {row[f'val/{metric}']:6.3f}  "
                f"best {row[f'val/best_{metric}']:6.3f}  lr {row['lr']:.1e}",
                flush=True,
            )
        if done:
            break
    selection.restore(bank)
    return bank, selection, history


@torch.inference_mode()
def predict(accelerator, model, inputs, rows) -> torch.Tensor:
    """Outputs of every probe for a whole split, (M, n, C), gathered from all processes."""
    model.eval()
    batch_size = 256 * accelerator.num_processes
    loader = accelerator.prepare(DataLoader(range(inputs.shape[1]), batch_size=batch_size))
    out = []
    for position in loader:  # (B,)
        share = model(inputs[rows, position])  # (M, B, C)
        out.append(accelerator.gather_for_metrics(share.transpose(0, 1).contiguous()))
    return torch.cat(out).transpose(0, 1)


def evaluate(accelerator, bank, selection, task, data, layers, seeds) -> dict:
    """Test once: the layer chosen on validation, every seed."""
    by_layer = selection.best_score.reshape(len(layers), len(seeds)).mean(1)
    chosen = int(by_layer.argmax())
    rows = data.layer_of(len(layers), len(seeds))
    out = predict(accelerator, bank, data.inputs["test"], rows)
    mine = slice(chosen * len(seeds), (chosen + 1) * len(seeds))
    out, truth = out[mine], data.truth["test"]  # (S, n, C)
    guesses = data.decide(out)  # (S, n) or (S, n, C)
    each = [score(task.kind, truth, guess, task.targets) for guess in guesses]
    per_seed = {name: [s[name] for s in each] for name in each[0]}
    intervals = bootstrap(task.kind, truth, guesses, task.targets)
    probe = {
        f"seed{seed}.{name}": value
        for seed, p in zip(seeds, bank.probes[mine], strict=True)
        for name, value in p.state_dict().items()
    }
    return {
        "metrics": results.summarise(per_seed, intervals),
        "chance": score(task.kind, truth, data.guess("test"), task.targets),
        "layer": layers[chosen],
        "layer_scores": dict(zip(map(str, layers), by_layer.tolist(), strict=True)),
        "best_epochs": selection.best_epoch[mine].tolist(),
        "probe": probe | data.constants(chosen),
        "predictions": results.prediction_columns(
            task.kind, task.splits["test"]["id"], seeds, truth, guesses,
            out.softmax(-1).cpu().numpy(), task.classes, task.targets,
        ),
    }  # fmt: skip


if __name__ == "__main__":
    run_script(lambda: main(args))
