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
    return args
# fmt: on


args = parse_args() if __name__ == "__main__" else None

import dataclasses
import logging
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from tqdm import tqdm

from tune import results
from tune.aggregators import AGGREGATORS
from tune.encoders import load_encoder, resolve_layers, resolve_precision
from tune.encoding import EncodeReport, encode_tracks
from tune.features import count_tokens, load_features
from tune.metrics import bootstrap, main_score, score
from tune.probe import Positions, ProbeBank, ProbeData, Selection, losses
from tune.segments import describe_counts, is_degenerate, parse_rule
from tune.store import Store, cache_folder, default_root
from tune.tasks import SPLITS, TASKS, load_task
from tune.tracking import Tracker, check_tracker

log = logging.getLogger("tune.train_probe")


def main(args):
    """Run the experiment: data, encoder, store, features, probe, test, result."""
    check_tracker(args.report_to)
    rule = parse_rule(args.seg, args.hop, args.min_tail)
    accelerator = Accelerator(
        mixed_precision="no",  # the probe's; the encoder's is its own
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(args.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_up_logging(accelerator.is_main_process)
    device = accelerator.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    precision = resolve_precision(args.mixed_precision, device.type, capability)
    encoder_name = args.encoder or (TASKS[args.task].encoder if args.task in TASKS else "muq")
    run_name = results.check_name(
        args.output_dir, args.name, default_name(args, encoder_name), args.overwrite
    )

    with accelerator.main_process_first():
        task = load_task(
            args.task, args.data_dir, cache_dir=args.cache_dir or cache_folder() / "demo",
            kind=args.kind, progress=accelerator.is_main_process,
        )  # fmt: skip
        encoder = load_encoder(encoder_name, precision=precision, device=device)
    layers = resolve_layers(args.layer, encoder.n_layers)
    check_fits(rule, encoder)
    frame_rate = None
    if args.tokens == "frame":
        frame_rate = args.frame_rate
        encoder.pool_width(frame_rate)  # raises when it's out of range

    store = Store(args.store or default_root())
    collection = store.collection(encoder, layers, frame_rate)
    config = describe_config(args, encoder, layers, accelerator)
    tracker = Tracker(accelerator, args.report_to)
    tracker.start(
        args.project, config, name=run_name, group=args.group or f"{task.name}-{encoder.name}",
        tags=[task.name, encoder.name, f"seg {rule.name}", args.agg, *args.tags],
        folder=args.output_dir,
    )  # fmt: skip
    try:
        report = encode(accelerator, task, encoder, rule, store, collection, frame_rate, args)
        task = task.without({item["path"] for item in report.skipped})
        data, truncated = read_data(task, collection, report, args.agg, device)
        started = time.perf_counter()
        bank, selection, history = train(accelerator, tracker, task, data, layers, args)
        outcome = evaluate(accelerator, bank, selection, task, data, layers, args.seeds)
        probe_seconds = time.perf_counter() - started
        if accelerator.is_main_process:
            result = assemble_result(args, task, encoder, rule, report, collection, outcome,
                                     truncated, probe_seconds, config, device)  # fmt: skip
            folder = results.write_run(
                args.output_dir, run_name, result=result, config=config, outcome=outcome,
                history=history, split_made=task.split_made,
                overwrite=args.overwrite, rename=args.name is None,
            )  # fmt: skip
            results.print_result(result, folder)
            finish_tracking(tracker, result, outcome, folder)
    except BaseException:
        tracker.fail()
        raise
    accelerator.end_training()


def default_name(args, encoder_name: str) -> str:
    """A run's name when none is given: what was compared, readable in a list of runs."""
    task = Path(args.task).stem.removesuffix(".train") or "task"
    parts = [task, Path(encoder_name).name, f"layer-{args.layer}", f"seg-{args.seg}"]
    parts += [f"hop-{args.hop:g}"] if args.hop else []
    parts += [args.agg] + ([f"frame-{args.frame_rate:g}hz"] if args.tokens == "frame" else [])
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(parts))


def check_fits(rule, encoder) -> None:
    """Raise when the rule could make pieces that are too short for the encoder."""
    if rule.min_tail_s < encoder.min_seconds:
        raise ValueError(
            f"--min_tail {rule.min_tail_s:g}: {encoder.name} needs at least "
            f"{encoder.min_seconds:g} s"
        )
    if rule.length_s is not None and rule.length_s < encoder.min_seconds:
        raise ValueError(
            f"--seg {rule.length_s:g}: {encoder.name} needs at least {encoder.min_seconds:g} s"
        )


def describe_config(args, encoder, layers, accelerator) -> dict:
    """Everything that a result may depend on, without absolute paths of the user's home."""
    home = str(Path.home())
    given = {
        k: str(v).replace(home, "~") if isinstance(v, Path) else v for k, v in vars(args).items()
    }
    return given | {
        "encoder": encoder.name, "encoder_untrained": encoder.untrained,
        "encoder_fingerprint": encoder.fingerprint, "layers": layers,
        "precision": encoder.precision, "device": results.device_name(accelerator.device),
        "n_processes": accelerator.num_processes, "versions": results.versions(),
        "git_sha": results.git_sha(), "command": " ".join(["train_probe.py", *sys.argv[1:]]).replace(home, "~"),
    }  # fmt: skip


def encode(accelerator, task, encoder, rule, store, collection, frame_rate, args) -> EncodeReport:
    """Fill the store, each process its share of the tracks; return everybody's report."""
    paths = list(dict.fromkeys(p for split in SPLITS for p in task.splits[split]["path"]))
    mine = paths[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(total=len(mine), desc="encode", unit="track", dynamic_ncols=True,
               disable=not accelerator.is_main_process, leave=False)  # fmt: skip
    report, failure = None, None
    with bar:
        try:
            report = encode_tracks(
                mine, encoder, rule, store, collection, frame_rate=frame_rate,
                batch_seconds=args.batch_seconds, strict=args.strict,
                on_track=lambda path: bar.update(),
            )  # fmt: skip
        except ValueError as error:  # told to all processes, so that none waits for the others
            failure = error
    shares = gather_object([(report, str(failure) if failure else None)])
    if failure:
        raise failure
    for _, message in shares:
        if message:
            raise ValueError(message)
    merged = EncodeReport()
    for share, _ in shares:
        for f in dataclasses.fields(EncodeReport):
            value, more = getattr(merged, f.name), getattr(share, f.name)
            setattr(merged, f.name, {**value, **more} if isinstance(value, dict) else value + more)
    return merged


def read_data(task, collection, report, agg, device):
    """Read and aggregate every split for the probe; also count tracks with tokens cut off."""
    n_tokens = None
    if AGGREGATORS[agg].fixed_n:
        n_tokens = max(count_tokens(collection, task.splits["train"]["path"], report.rows))
    features = {
        split: load_features(collection, task.splits[split]["path"], report.rows, agg, n_tokens)
        for split in SPLITS
    }
    truncated = sum(f.truncated for f in features.values())
    if truncated:
        log.warning("%s: %d tracks have more than %d tokens and are cut", agg, truncated, n_tokens)
    return ProbeData(task, features, device), truncated


def train(accelerator, tracker, task, data, layers, args):
    """Train one probe per layer and seed side by side; return the bank with its best weights."""
    recipe, metric = task.recipe, task.recipe.main_metric
    seeds = args.seeds * len(layers)
    rows = data.layer_of(len(layers), len(args.seeds))  # (M, 1)
    bank = ProbeBank(seeds, data.n_in, data.n_out, dtype=data.dtype)
    positions = Positions(data.n_train, args.batch_size, accelerator.num_processes)
    loader = DataLoader(positions, batch_size=positions.block)
    optimizers = [Adam(probe.parameters(), lr=args.lr or recipe.lr) for probe in bank.probes]
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
        if not np.isfinite(train_loss):
            raise ValueError(f"the training loss is not finite in epoch {epoch}: try a lower --lr")

        out = predict(accelerator, model, data.inputs["val"], rows)  # (M, n, C)
        val_losses = losses(task.kind, out, data.labels_for("val", len(out))).mean(1).cpu().numpy()
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


def assemble_result(args, task, encoder, rule, report, collection, outcome, truncated, probe_seconds,
                    config, device) -> dict:  # fmt: skip
    """Put result.json together (its fields are a contract, see the design)."""
    used = {p for split in SPLITS for p in task.splits[split]["path"]}
    rows = {path: row for path, row in report.rows.items() if path in used}
    counts = [len(spans) for _, spans in rows.values()]
    contents = {s: {rows[p][0] for p in task.splits[s]["path"]} for s in SPLITS}
    leaked = contents["test"] & (contents["train"] | contents["val"])
    if leaked:
        log.warning("%d test tracks have the same audio as a train or val track", len(leaked))
    return {
        "task": task.name,
        "kind": task.kind,
        "encoder": encoder.name,
        "encoder_untrained": encoder.untrained,
        "layer": outcome["layer"],
        "layer_asked": args.layer,
        "layer_scores": outcome["layer_scores"],
        "seg": rule.name,
        "hop": rule.hop_s,
        "min_tail": rule.min_tail_s,
        "agg": args.agg,
        "tokens": collection.key["tokens"],
        "seeds": args.seeds,
        "precision": encoder.precision,
        "device": config["device"],
        "versions": config["versions"],
        "git_sha": config["git_sha"],
        "command": config["command"],
        "degenerate": "equals full" if is_degenerate(rule, counts) else None,
        "segments_per_track": describe_counts(counts),
        "n_tracks": {split: len(task.splits[split]) for split in SPLITS},
        "classes": task.classes,
        "targets": task.targets,
        "skipped": task.skipped
        + [{"where": item["path"], "reason": item["reason"]} for item in report.skipped],
        "silent": [path for path in report.silent if path in used],
        "truncated_tracks": truncated,
        "same_audio_in_test_and_training": len(leaked),
        "best_epochs": outcome["best_epochs"],
        "metrics": outcome["metrics"],
        "chance": outcome["chance"],
        "cost": {
            "encode_seconds": report.encode_seconds,
            "encode_seconds_stored": report.stored_seconds,
            "audio_seconds": report.audio_seconds,
            "peak_memory_bytes": results.peak_memory_bytes(device),
            "peak_memory_kind": "allocated" if device.type == "cuda" else "resident",
            "store_bytes": sum(collection.bytes_of(*row) for row in rows.values()),
            "embedding_dim": outcome["probe"]["standardise.mean"].shape[-1],
            "probe_seconds": probe_seconds,
            "encoder_passes": report.encoder_passes,
            "encoded_tracks": report.encoded_tracks,
            "redone_in_float32": report.redone,
        },
    }


def finish_tracking(tracker, result, outcome, folder) -> None:
    """Log the end of the run and say where to look at it."""
    flat = {}
    for name, m in result["metrics"].items():
        flat |= {f"test/{name}": m["mean"], f"test/{name}_std": m["std"],
                 f"test/{name}_ci_low": m["ci_low"], f"test/{name}_ci_high": m["ci_high"]}  # fmt: skip
    flat |= {f"cost/{k}": v for k, v in result["cost"].items() if not isinstance(v, str)}
    tracker.log(flat)
    summary = {k: result[k] for k in ("layer", "degenerate", "segments_per_track", "n_tracks")}
    summary["skipped"] = len(result["skipped"])
    files = [folder / name for name in ("result.json", "probe.safetensors")]
    for line in tracker.finish(summary, outcome["predictions"], files, folder.name):
        print(line)


if __name__ == "__main__":
    run_script(lambda: main(args))
