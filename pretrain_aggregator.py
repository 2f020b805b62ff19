"""Pretrain the Transformer aggregator by masked modelling of a track's tokens.

    accelerate launch pretrain_aggregator.py --seg 10 --epochs 20
    accelerate launch pretrain_aggregator.py --tasks gtzan emo --encoder muq --recipe study
    accelerate launch pretrain_aggregator.py --audio_dir ~/Music --encoder muq --tokens frame
    accelerate launch train_probe.py --agg transformer --aggregator_checkpoint aggregators/NAME

Tokens are a track's segments, or frames pooled to a set rate, read from the same store as
train_probe.py's (encoded once, if they aren't there). Some are hidden and predicted from the rest.
Tracks that are in a known task's test split are refused. Writes --out: config.json and
model.safetensors (the best epoch by validation loss), a model card and history.csv; interrupted,
the same command goes on from the last epoch.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.cli.flags import BOOL, add
from tune.cli.parser import Parser, begin, positive_int, run_script, set_up_logging, share, to_words
from tune.segments.rules import parse_rule


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="pretrain_aggregator.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--tasks",
        type=to_words,
        nargs="+",
        metavar="TASK",
        help="tasks as in train_probe.py; their train splits are learnt from, their "
        "val splits validated on (default: demo demo-mood demo-form, unless "
        "--audio_dir is given)",
    )
    data.add_argument("--audio_dir", type=Path, metavar="DIR", help="audio files, with subfolders")
    data.add_argument(
        "--val_share",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="share of --audio_dir that is kept for validation",
    )
    add(data, "data_dir", "yes", "allow_outside", "strict")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--encoder",
        help="as in train_probe.py (default: muq, or muq-nano when all tasks are demo tasks)",
    )
    add(tokens, "trust_remote_code", "revision")
    add(tokens, "layer", default="last", metavar="last|K")
    add(tokens, "seg", default="10", help="segment length in seconds")
    add(tokens, "hop", "min_tail", "min_seg", "max_seg")
    recipe = parser.add_argument_group(
        "recipe",
        "What isn't given is the recipe's. study: frames at 25 Hz, zeros for masked "
        "ones, squared error, no [CLS], one epoch, as the original study did it. tune: ours.",
    )
    recipe.add_argument("--recipe", choices=["tune", "study"], default="tune", help="the preset")
    add(recipe, "tokens", "frame_rate")
    recipe.add_argument(
        "--hidden_size",
        type=positive_int,
        metavar="H",
        help="width (tune and study: the token's size)",
    )
    recipe.add_argument("--num_layers", type=positive_int, metavar="N", help="Transformer layers")
    recipe.add_argument("--num_heads", type=positive_int, metavar="N", help="attention heads")
    recipe.add_argument(
        "--intermediate_size",
        type=positive_int,
        metavar="F",
        help="width of the feed-forward blocks",
    )
    recipe.add_argument("--dropout", type=share, metavar="P", help="dropout")
    recipe.add_argument(
        "--standardise",
        choices=["none", "dimension", "within"],
        help="tokens as they are, each dimension to unit variance, or whitened by "
        "what varies within tracks",
    )
    recipe.add_argument(
        "--positions",
        choices=["rotary", "learned"],
        help="ModernBERT's relative ones, or learned ones as in BERT",
    )
    add(recipe, "readout", help="how the embedding is taken when train_probe.py doesn't say")
    recipe.add_argument("--mask_prob", type=share, metavar="P", help="share of hidden tokens")
    recipe.add_argument("--span", type=positive_int, metavar="TOKENS", help="hidden in a row")
    recipe.add_argument(
        "--objective",
        choices=["mse", "cosine", "infonce"],
        help="squared error, cosine, or telling the hidden token from the others "
        "of its track and batch",
    )
    recipe.add_argument(
        "--track_weight",
        type=float,
        metavar="W",
        help="weight of the [CLS] "
        "token's own objective: recognise the hidden part of its own track",
    )
    add(recipe, "lr", help="AdamW's rate")
    recipe.add_argument("--weight_decay", type=float, metavar="W", help="AdamW's decay")
    recipe.add_argument("--schedule", choices=["cosine", "constant"], help="after the warm-up")
    recipe.add_argument(
        "--warmup", type=float, metavar="SHARE", help="share of the steps in which the rate rises"
    )
    add(recipe, "epochs", "batch_size")
    add(
        recipe, "patience", default=10, help="stop after this many without a better validation loss"
    )
    recipe.add_argument("--seed", type=int, default=1234, help="of weights, masks and order")
    machine = parser.add_argument_group("machine")
    add(
        machine,
        "mixed_precision",
        default="auto",
        help="precision of the encoder and of the training; auto: "
        "fp16 on a GPU below compute capability 8.0, bf16 from there, float32 on "
        "a CPU",
    )
    machine.add_argument(
        "--micro_tokens",
        type=positive_int,
        default=8192,
        metavar="TOKENS",
        help="tokens that pass through the model at once; a step's tracks are "
        "divided accordingly and their gradients added up",
    )
    machine.add_argument("--gradient_checkpointing", **BOOL, help="less memory, a third more time")
    add(machine, "batch_seconds", default=60.0, help="audio seconds per encoder batch")
    add(machine, "store", "cache_dir")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the aggregator's folder (default: aggregators/ and a name)",
    )
    add(output, "overwrite", help="begin anew in --out")
    add(output, "report_to", default="wandb", metavar="TRACKER")
    add(output, "project")
    add(output, "group", help="W&B group (default: pretraining)")
    add(output, "tags")
    parser.with_config()
    args = parser.parse_args(argv)
    args.tasks = list(dict.fromkeys(word for part in args.tasks or [] for word in part))
    if not args.tasks and args.audio_dir is None:
        args.tasks = ["demo", "demo-mood", "demo-form"]
    if args.layer in ("all", "mix"):
        parser.error(f"a Transformer joins one layer's tokens: --layer last or K, not {args.layer}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or above, got {args.seed}")
    try:
        parse_rule(args.seg, args.hop, args.min_tail, args.min_seg, args.max_seg)
    except ValueError as error:
        parser.error(str(error))
    return args


args = begin(parse_args) if __name__ == "__main__" else None

import contextlib
import dataclasses
import logging
import math
import os
import statistics
import sys
import time

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from tune.aggregators.transformer import pretraining_state
from tune.aggregators.transformer.batches import (
    VALIDATION,
    EpochData,
    TokenTracks,
    distribute,
    micro_batches,
    plan_epoch,
)
from tune.aggregators.transformer.corpus import gather, local_tasks
from tune.aggregators.transformer.masking import copy_nearest, losses, track_losses
from tune.aggregators.transformer.recipes import RECIPES, make_config, make_model, standardisation
from tune.encoders.base import precision_on
from tune.runs import result
from tune.runs.tracking import Tracker, check_tracker
from tune.store.extractor import Extractor
from tune.system.files import cache_folder
from tune.tasks.load import DEMO_TASKS, check_task, load_task, short_name

log = logging.getLogger("tune.pretrain_aggregator")
FOLDER = Path("aggregators")


def main(args):
    """Pretrain: tracks, tokens, model, epochs, the best one saved."""
    check_tracker(args.report_to)
    given = {
        f.name: getattr(args, f.name)
        for f in dataclasses.fields(RECIPES["tune"])
        if getattr(args, f.name, None) is not None
    }
    recipe = dataclasses.replace(RECIPES[args.recipe], **given)
    if recipe.track_weight and not recipe.cls_token:
        raise ValueError(
            f"--track_weight {recipe.track_weight:g} needs a [CLS] token, which "
            f"--recipe {args.recipe} doesn't have"
        )
    rule = parse_rule(args.seg, args.hop, args.min_tail, args.min_seg, args.max_seg)
    kind = "cuda" if torch.cuda.is_available() else "cpu"  # Accelerate's device isn't known yet
    precision = precision_on(kind, args.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(args.out.parent if args.out else FOLDER),
    )
    set_up_logging(accelerator.is_main_process)
    for name in args.tasks:
        check_task(name)
    demo_only = args.audio_dir is None and set(args.tasks) <= set(DEMO_TASKS)
    encoder_name = args.encoder or ("muq-nano" if demo_only else "muq")
    frame_rate = recipe.frame_rate if recipe.tokens == "frame" else None
    source = [short_name(name) for name in args.tasks]
    source += [args.audio_dir.resolve().name] if args.audio_dir else []
    name = result.default_name(
        "+".join(source), encoder_name, args.layer, [rule], args.recipe, frame_rate
    )
    if os.environ.get("WANDB_SWEEP_ID"):  # an agent's cells differ in what the name doesn't say
        name += f"-{os.environ.get('WANDB_RUN_ID', 'sweep')}"
    out = args.out or FOLDER / name
    wanted = pretraining_state.asked_for(vars(args), dataclasses.asdict(recipe), encoder_name)
    progress = pretraining_state.begin(accelerator, out, wanted, args.overwrite)

    with accelerator.main_process_first():  # only one process downloads or composes
        extractor = Extractor(
            encoder_name,
            [rule],
            args.layer,
            frame_rate=frame_rate,
            device=accelerator.device,
            precision=precision,
            batch_seconds=args.batch_seconds,
            store=args.store,
            trust_remote_code=args.trust_remote_code,
            revision=args.revision,
        )
        cache_dir = args.cache_dir or cache_folder() / "demo"
        tasks = [
            load_task(
                n,
                args.data_dir,
                cache_dir=cache_dir,
                allow_outside=args.allow_outside,
                yes=args.yes,
            )
            for n in args.tasks
        ]
        others = local_tasks(args.data_dir, cache_dir, args.tasks)
        corpus = gather(tasks, args.audio_dir, others, extractor.store, val_share=args.val_share)
    for item in corpus.refused + corpus.skipped:
        if args.strict:
            raise ValueError("{path}: {reason}".format(**item))
        log.warning("left out %s: %s", item["path"], item["reason"])
    encoder, layers, collection = extractor.encoder, extractor.layers, extractor.collection
    (report,) = extractor.encode(corpus.train + corpus.val, accelerator, strict=args.strict)
    tracks = {
        split: TokenTracks(
            collection,
            [p for p in paths if p in report.rows],
            report.rows,
            mask_prob=recipe.mask_prob,
            span=recipe.span,
            seed=args.seed,
        )
        for split, paths in (("train", corpus.train), ("val", corpus.val))
    }
    pretraining_state.check_tracks(tracks)
    pretraining_state.check_same_data(progress, encoder.fingerprint, tracks, out)
    corpus.skipped += report.skipped
    config = make_config(
        recipe,
        encoder.embedding_dim,
        encoder=encoder.name,
        layer=layers[0],
        seg=rule.name,
        encoder_fingerprint=encoder.fingerprint,
        tokens=collection.key["tokens"],
        hop=rule.hop_s,
        min_tail=rule.min_tail_s,
        precision=precision,
    )
    longest = 2 * statistics.median(tracks["train"].lengths)
    if recipe.track_weight and longest > args.micro_tokens:
        log.warning(
            "most tracks are too long to share a micro-batch of %d tokens, so that the [CLS] token "
            "has no other track to tell its own from: raise --micro_tokens or lower --frame_rate",
            args.micro_tokens,
        )
    learnt_from = (tracks["train"].tokens(i) for i in range(len(tracks["train"])))
    token_statistics = standardisation(learnt_from, recipe.standardise)
    model = make_model(config, args.seed, token_statistics)
    if recipe.track_weight == 0 and model.summarise is not None:
        model.summarise.requires_grad_(False)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    described = result.describe_run(vars(args), sys.argv[1:], encoder, layers, accelerator)
    command = described["command"].replace("train_probe", "pretrain_aggregator", 1)
    described |= dataclasses.asdict(recipe)
    described |= {
        "recipe": dataclasses.asdict(recipe),
        "recipe_name": args.recipe,
        "tokens": collection.key["tokens"],
        "command": command,
    }
    tracker = Tracker(accelerator, args.report_to)
    tracker.start(
        args.project,
        described,
        name=out.name,
        group=args.group or "pretraining",
        tags=["pretraining", encoder.name, args.recipe, *args.tags],
        job_type="pretraining",
    )
    try:
        progress = train(
            accelerator, tracker, model, tracks, token_statistics, recipe, out, progress, args
        )
        if accelerator.is_main_process:
            pretraining_state.finish(out, progress, described, corpus, tracks)
            for line in tracker.finish_aggregator(progress, out):
                print(line)
            print(
                f"  result     {out}  (use: train_probe.py --agg transformer "
                f"--aggregator_checkpoint {out})"
            )
    except BaseException as error:
        tracker.fail(error)
        raise
    accelerator.end_training()


def train(accelerator, tracker, model, tracks, token_statistics, recipe, out, progress, args):
    """Train from where `progress` stands; return it with the history and the best epoch."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    lengths = tracks["train"].lengths
    n_steps = recipe.epochs * math.ceil(len(lengths) / recipe.batch_size)
    schedule = "cosine" if recipe.schedule == "cosine" else "constant_with_warmup"
    scheduler = get_scheduler(schedule, optimizer, round(recipe.warmup * n_steps), n_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)

    def measure(predictor=None):
        return validate(accelerator, model, tracks["val"], recipe, args.micro_tokens, predictor)

    if progress["epoch"]:
        accelerator.load_state(str(out / pretraining_state.STATE))
    else:
        mean = accelerator.unwrap_model(model).mean_token(token_statistics[0])
        progress["baselines"] = {
            "predicting the mean": measure(lambda x, *_: mean.expand_as(x))["loss"],
            "copying the nearest visible token": measure(copy_nearest)["loss"],
            "untrained": measure()["loss"],
        }
        torch.manual_seed(args.seed + accelerator.process_index)  # dropout
    if accelerator.is_main_process:
        introduce(accelerator.unwrap_model(model), tracks, recipe, progress)

    for epoch in range(progress["epoch"] + 1, recipe.epochs + 1):
        if progress["epoch"] - progress["best_epoch"] >= args.patience:
            break
        started = time.perf_counter()
        model.train()
        steps = plan_epoch(lengths, recipe.batch_size, args.micro_tokens, args.seed, epoch)
        loader = make_loader(accelerator, tracks["train"], steps, epoch)
        total = torch.zeros(2, device=accelerator.device)
        for batch in tqdm(
            loader,
            desc=f"epoch {epoch}",
            leave=False,
            delay=5,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            disable=not accelerator.is_main_process,
        ):
            held = contextlib.nullcontext() if batch["last"] else accelerator.no_sync(model)
            with held:
                each, tokens, marks = step_losses(model, batch, recipe, accelerator.device)
                # The mean over the step's tracks: gradients are averaged over the processes.
                loss = each.sum() / batch["step_tracks"] * accelerator.num_processes
                if not torch.isfinite(loss):
                    names = [tracks["train"].paths[i] for i in batch["tracks"]]
                    raise ValueError(
                        f"the loss is not finite in epoch {epoch}, at {names}: try "
                        f"a lower --lr or --mixed_precision no"
                    )
                accelerator.backward(loss)
            total += torch.stack([tokens.sum(), marks.sum()]).detach()
            if batch["last"]:
                if recipe.clip:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        train_loss, track_loss = (accelerator.reduce(total) / len(lengths)).tolist()
        val = measure()
        if not math.isfinite(val["loss"]):
            raise ValueError(
                f"the validation loss is not finite in epoch {epoch}: try a lower "
                f"--lr or --mixed_precision no"
            )
        row = {
            "epoch": epoch,
            "train/loss": train_loss,
            "val/loss": val["loss"],
            "train/track_loss": track_loss,
            "val/track_loss": val["track_loss"],
            "val/track_accuracy": val["track_accuracy"],
            "lr": scheduler.get_last_lr()[0],
        }
        better = pretraining_state.note(progress, row, recipe.track_weight)
        pretraining_state.save(accelerator, model, out, progress, better)
        tracker.log(row, step=epoch)
        if accelerator.is_main_process:
            print_epoch(row, recipe, better, time.perf_counter() - started)
    return progress


def step_losses(model, batch, recipe, device):
    """Losses of a micro-batch's tracks, zero for stand-ins: weighted sum, tokens', [CLS]'s (B,)."""
    tokens, mask, hidden = (batch[k].to(device) for k in ("tokens", "mask", "hidden"))
    out = model(tokens, mask, hidden)
    of_tokens = losses(recipe.objective, out.predicted.float(), out.tokens, hidden, mask)
    of_track = torch.zeros_like(of_tokens)
    if recipe.track_weight:  # of a track alone it is 0, but all processes use the same weights
        of_track = track_losses(out.summary.float(), out.tokens, hidden)[0]
    real = batch["weight"]
    each = (of_tokens + recipe.track_weight * of_track) * real
    return each, of_tokens * real, of_track * real


@torch.no_grad()
def validate(accelerator, model, tracks, recipe, micro_tokens, predictor=None) -> dict:
    """Mean losses over the validation tracks, always with the same tokens hidden.

    Parameters
    ----------
    predictor : (tokens, hidden, mask) -> predictions, instead of the model's
    """
    plain = accelerator.unwrap_model(model).eval()
    parts = micro_batches(range(len(tracks)), tracks.lengths, micro_tokens)
    total = torch.zeros(3, dtype=torch.float64)
    for batch in make_loader(accelerator, tracks, [[part] for part in parts], VALIDATION):
        x, mask, hidden = (batch[k].to(accelerator.device) for k in ("tokens", "mask", "hidden"))
        of_track = right = torch.zeros(len(x))
        if predictor is not None:
            x = plain.standardised(x, mask)
            predicted = predictor(x, hidden, mask)
        else:
            with accelerator.autocast():
                out = plain(x, mask, hidden)
            x, predicted = out.tokens, out.predicted.float()
            if recipe.track_weight and len(x) > 1:
                of_track, right = track_losses(out.summary.float(), x, hidden)
        each = losses(recipe.objective, predicted, x, hidden, mask)
        sums = [part.double().sum().cpu() for part in (each, of_track, right)]
        total += torch.stack(sums) * batch["weight"]
    total = accelerator.reduce(total.to(accelerator.device, torch.float32)) / len(tracks)
    return dict(zip(("loss", "track_loss", "track_accuracy"), total.tolist(), strict=True))


def make_loader(accelerator, tracks, steps, epoch) -> DataLoader:
    """Micro-batches of this process: each step's are dealt out in turn."""
    micros = distribute(steps, accelerator.process_index, accelerator.num_processes)
    return DataLoader(EpochData(tracks, micros, epoch), batch_size=None)


def introduce(model, tracks, recipe, progress) -> None:
    """Say what is trained, on what, and what the validation loss has to beat."""
    size = sum(p.numel() for p in model.parameters())
    n_tokens = {split: sum(data.lengths) for split, data in tracks.items()}
    single = sum(len(data.single) for data in tracks.values())
    print(
        f"{size / 1e6:.1f} M parameters; {len(tracks['train'])} train tracks "
        f"({n_tokens['train']} tokens), {len(tracks['val'])} val tracks ({n_tokens['val']})"
        + (f"; {single} left out: they have one token" if single else "")
    )
    to_beat = ", ".join(f"{name} {loss:.4f}" for name, loss in progress["baselines"].items())
    print(f"validation loss ({recipe.objective}) to beat: {to_beat}")
    if progress["epoch"]:
        print(f"going on after epoch {progress['epoch']}")


def print_epoch(row, recipe, better, seconds) -> None:
    """One line an epoch."""
    track = ""
    if recipe.track_weight:
        track = (
            f"  [CLS] {row['val/track_loss']:.4f} "
            f"(finds its track: {row['val/track_accuracy']:.0%})"
        )
    print(
        f"epoch {row['epoch']:3d}/{recipe.epochs}  train loss {row['train/loss']:.4f}  "
        f"val loss {row['val/loss']:.4f}{track}  lr {row['lr']:.1e}  {seconds:.1f} s"
        + ("  *" if better else ""),
        flush=True,
    )


if __name__ == "__main__":
    run_script(lambda: main(args))
