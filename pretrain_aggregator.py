"""Pretrain the Transformer aggregator by masked modelling of a track's tokens.

    accelerate launch pretrain_aggregator.py --seg 10 --epochs 20
    accelerate launch pretrain_aggregator.py --tasks gtzan emo --encoder muq --recipe study
    accelerate launch pretrain_aggregator.py --audio_dir ~/Music --encoder muq --tokens frame
    accelerate launch train_probe.py --agg transformer --aggregator_checkpoint aggregators/NAME

Tokens are a track's segments, or frames pooled to a set rate, read from the same store as
train_probe.py's (encoded once, if they aren't there). Some are masked and predicted from the rest.
Tracks that are in a known task's test split are refused. Writes --out: config.json and
model.safetensors (the best epoch by validation loss), a model card and history.csv; interrupted,
the same command goes on from the last epoch.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
from pathlib import Path

from tune.aggregators.flag_rules import check_one_layer
from tune.cli.flags import add_groups
from tune.cli.parser import Parser, read_arguments, run_script, set_up_logging
from tune.segments.rules import parse_rule

GROUPS = {
    "data": "tasks audio_dir val_share data_dir yes allow_outside strict",
    "tokens": "encoder trust_remote_code revision channels layer seg hop min_tail min_seg max_seg",
    "recipe\nWhat isn't given is the recipe's. study: frames at 25 Hz, zeros for masked ones, "
    "squared error, no [CLS], one epoch, as the original study did it. tune: ours.": "recipe "
    "tokens frame_rate hidden_size num_layers num_heads intermediate_size dropout standardise "
    "positions readout mask_prob span objective track_weight lr weight_decay schedule warmup "
    "epochs batch_size patience seed",
    "machine": "mixed_precision micro_tokens gradient_checkpointing batch_seconds store cache_dir",
    "output": "out overwrite report_to project entity group tags notes log_code",
}
CHANGES = {
    "encoder": dict(
        help="as in train_probe.py (default: muq, or muq-nano when all tasks are demo tasks)"
    ),
    "layer": dict(default="last", metavar="last|K"),
    "seg": dict(default="10", help="segment length in seconds"),
    "frame_rate": dict(default=None),
    "readout": dict(help="how the embedding is taken when train_probe.py doesn't say"),
    "lr": dict(help="AdamW's rate"),
    "patience": dict(default=10, help="stop after this many without a better validation loss"),
    "mixed_precision": dict(
        help="precision of the encoder and of the training; auto: fp16 on a GPU below compute "
        "capability 8.0, bf16 from there, float32 on a CPU"
    ),
    "batch_seconds": dict(help="audio seconds per encoder batch"),
    "out": dict(
        type=Path, metavar="DIR", help="the aggregator's folder (default: aggregators/ and a name)"
    ),
    "overwrite": dict(help="begin anew in --out"),
    "group": dict(help="W&B group (default: pretraining)"),
}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="pretrain_aggregator.py", description=__doc__)
    add_groups(parser, GROUPS, CHANGES)
    parser.with_config()
    args = parser.parse_args(argv)
    if not args.tasks and args.audio_dir is None:
        args.tasks = ["demo", "demo-mood", "demo-form"]
    if args.seed < 0:
        parser.error(f"--seed must be 0 or above, got {args.seed}")
    with parser.show_errors():
        check_one_layer(args.layer)
        rule_of(args)
    return args


def rule_of(args):
    """The segment rule asked for."""
    return parse_rule(args.seg, args.hop, args.min_tail, args.min_seg, args.max_seg)


args = read_arguments(parse_args) if __name__ == "__main__" else None

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

from tune.aggregators.transformer import pretraining_state, trained_on
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
from tune.encoders.base import launched_precision, precision_on
from tune.runs import result
from tune.runs.tracking import Tracker, check_tracker
from tune.store.encode import PATIENCE
from tune.store.extractor import Extractor
from tune.system.files import cache_folder
from tune.system.progress import progress_bar
from tune.tasks.load import DEMO_TASKS, check_task, load_task, short_name

log = logging.getLogger("tune.pretrain_aggregator")
FOLDER = Path("aggregators")


def main(args):
    """Pretrain: tracks, tokens, model, epochs, the best one saved."""
    trackers = check_tracker(args.report_to)
    args.mixed_precision = launched_precision(args.mixed_precision)
    recipe = recipe_of(args)
    kind = "cuda" if torch.cuda.is_available() else "cpu"  # Accelerate's device isn't known yet
    precision = precision_on(kind, args.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=str(args.out.parent if args.out else FOLDER),
        kwargs_handlers=[PATIENCE],
    )
    set_up_logging(accelerator.is_main_process)
    for name in args.tasks:
        check_task(name)
    demo_only = args.audio_dir is None and set(args.tasks) <= set(DEMO_TASKS)
    encoder_name = args.encoder or ("muq-nano" if demo_only else "muq")
    frame_rate = recipe.frame_rate if recipe.tokens == "frame" else None
    out = args.out or FOLDER / default_name(args, encoder_name, frame_rate)
    wanted = pretraining_state.asked_for(vars(args), dataclasses.asdict(recipe), encoder_name)
    progress = pretraining_state.open_folder(accelerator, out, wanted, args.overwrite)

    extractor, corpus = load(args, accelerator, encoder_name, frame_rate, precision)
    tracks, skipped = encode(extractor, corpus, accelerator, recipe, args.seed, args.strict)
    corpus.skipped += skipped
    pretraining_state.check_same_data(progress, extractor.encoder.fingerprint, tracks, out)
    check_micro_batches(tracks["train"], recipe, args.micro_tokens)
    model, token_statistics = build(extractor, recipe, tracks["train"], precision, args.seed)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    described = describe(args, extractor, accelerator, recipe, corpus)
    tracker = Tracker(accelerator, args.report_to)
    usual = {"name": out.name, "group": "pretraining", "job_type": "pretraining"}
    tracker.start(
        described,
        given=vars(args),
        default={"project": "tune", **usual},
        tags=["pretraining", extractor.encoder.name, args.recipe, *args.tags],
        log_code=args.log_code,
    )
    try:
        progress = train(
            accelerator, tracker, model, tracks, token_statistics, recipe, out, progress, args
        )
        if accelerator.is_main_process:
            paths = [path for split in tracks.values() for path in split.paths]
            trained_on.write(out, paths, extractor.store)
            pretraining_state.finish(out, progress, described, corpus, tracks)
            print(*tracker.finish_aggregator(progress, out), sep="\n")
            use = f"train_probe.py --agg transformer --aggregator_checkpoint {out}"
            print(f"  result     {out}  (use: {use})")
    except BaseException as error:
        tracker.fail(error)
        raise
    accelerator.end_training()


def describe(args, extractor, accelerator, recipe, corpus) -> dict:
    """Everything that the weights may depend on."""
    described = result.describe_run(
        "pretrain_aggregator.py", vars(args), sys.argv[1:], extractor, accelerator
    )
    settings = dataclasses.asdict(recipe)
    described |= settings | {"recipe": settings, "recipe_name": args.recipe}
    described["tokens"] = extractor.collection.key["tokens"]
    return described | ({"task_sha256": corpus.sources} if corpus.sources else {})


def recipe_of(args):
    """The recipe, with what is given in its place."""
    fields = [field.name for field in dataclasses.fields(RECIPES["tune"])]
    given = {name: getattr(args, name, None) for name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(RECIPES[args.recipe], **given)
    if recipe.track_weight and not recipe.cls_token:
        raise ValueError(
            f"--track_weight {recipe.track_weight:g} needs a [CLS] token, which "
            f"--recipe {args.recipe} doesn't have"
        )
    return recipe


def default_name(args, encoder_name, frame_rate) -> str:
    """The folder's name when none is given."""
    source = [short_name(name) for name in args.tasks]
    source += [args.audio_dir.resolve().name] if args.audio_dir else []
    name = result.default_name(
        "+".join(source),
        encoder_name,
        args.layer,
        [rule_of(args)],
        args.recipe,
        frame_rate,
        args.channels,
    )
    if os.environ.get("WANDB_SWEEP_ID"):  # an agent's cells differ in what the name doesn't say
        name += f"-{os.environ.get('WANDB_RUN_ID', 'sweep')}"
    return name


def load(args, accelerator, encoder_name, frame_rate, precision):
    """The encoder with its store, and the tracks to learn from."""
    with accelerator.main_process_first():  # only one process downloads or composes
        extractor = Extractor(
            encoder_name,
            [rule_of(args)],
            args.layer,
            frame_rate=frame_rate,
            device=accelerator.device,
            precision=precision,
            batch_seconds=args.batch_seconds,
            channels=args.channels,
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
        corpus.sources = {task.own.spec: task.own.sha256 for task in tasks if task.own}
    for item in corpus.refused + corpus.skipped:
        if args.strict:
            raise ValueError("{path}: {reason}".format(**item))
        log.warning("left out %s: %s", item["path"], item["reason"])
    return extractor, corpus


def encode(extractor, corpus, accelerator, recipe, seed, strict):
    """The tokens of each split's tracks, and the files that couldn't be used."""
    (report,) = extractor.encode(corpus.train + corpus.val, accelerator, strict=strict)
    tracks = {
        split: TokenTracks(
            extractor.collection,
            [p for p in paths if p in report.rows],
            report.rows,
            mask_prob=recipe.mask_prob,
            span=recipe.span,
            seed=seed,
        )
        for split, paths in (("train", corpus.train), ("val", corpus.val))
    }
    pretraining_state.check_tracks(tracks)
    return tracks, report.skipped


def check_micro_batches(tracks, recipe, micro_tokens) -> None:
    """Warn when most tracks are alone in their micro-batch."""
    if recipe.track_weight and 2 * statistics.median(tracks.lengths) > micro_tokens:
        log.warning(
            "most tracks are too long to share a micro-batch of %d tokens, so that the [CLS] token "
            "has no other track to tell its own from: raise --micro_tokens or lower --frame_rate",
            micro_tokens,
        )


def build(extractor, recipe, tracks, precision, seed):
    """The model, and the training tokens' mean and scale."""
    encoder, (rule,) = extractor.encoder, extractor.rules
    config = make_config(
        recipe,
        encoder.embedding_dim,
        encoder=encoder.name,
        layer=extractor.layers[0],
        seg=rule.name,
        encoder_fingerprint=encoder.fingerprint,
        tokens=extractor.collection.key["tokens"],
        hop=rule.hop_s,
        min_tail=rule.min_tail_s,
        precision=precision,
    )
    token_statistics = standardisation(map(tracks.tokens, range(len(tracks))), recipe.standardise)
    model = make_model(config, seed, token_statistics)
    if recipe.track_weight == 0 and model.summarise is not None:
        model.summarise.requires_grad_(False)
    return model, token_statistics


def train(accelerator, tracker, model, tracks, token_statistics, recipe, out, progress, args):
    """Train from where `progress` stands; return it with the history and the best epoch."""
    lengths = tracks["train"].lengths
    optimizer, scheduler = make_optimizer(model, recipe, len(lengths))
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
        steps = plan_epoch(lengths, recipe.batch_size, args.micro_tokens, args.seed, epoch)
        total = train_epoch(
            accelerator, model, optimizer, scheduler, tracks["train"], steps, recipe, epoch
        )
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


def make_optimizer(model, recipe, n_tracks):
    """AdamW, with decay for matrices only, and its schedule."""
    from transformers import get_scheduler  # which imports most of the library

    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    n_steps = recipe.epochs * math.ceil(n_tracks / recipe.batch_size)
    schedule = "cosine" if recipe.schedule == "cosine" else "constant_with_warmup"
    return optimizer, get_scheduler(schedule, optimizer, round(recipe.warmup * n_steps), n_steps)


def train_epoch(accelerator, model, optimizer, scheduler, tracks, steps, recipe, epoch):
    """Train for an epoch; the sums (2,) over tracks of the tokens' and the [CLS]'s losses."""
    model.train()
    total = torch.zeros(2, device=accelerator.device)
    for batch in progress_bar(
        make_loader(accelerator, tracks, steps, epoch),
        desc=f"epoch {epoch}",
        leave=False,
        delay=5,
        disable=not accelerator.is_main_process,
    ):
        held = contextlib.nullcontext() if batch["last"] else accelerator.no_sync(model)
        with held:
            each, of_tokens, of_track = step_losses(model, batch, recipe, accelerator.device)
            # The mean over the step's tracks: gradients are averaged over the processes.
            loss = each.sum() / batch["step_tracks"] * accelerator.num_processes
            if not torch.isfinite(loss):
                names = [tracks.paths[i] for i in batch["tracks"]]
                raise ValueError(
                    f"the loss is not finite in epoch {epoch}, at {names}: try a lower --lr or "
                    f"--mixed_precision no"
                )
            accelerator.backward(loss)
        total += torch.stack([of_tokens.sum(), of_track.sum()]).detach()
        if batch["last"]:
            if recipe.clip:
                accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return total


def step_losses(model, batch, recipe, device):
    """Losses of a micro-batch's tracks, zero for stand-ins: weighted sum, tokens', [CLS]'s (B,)."""
    tokens, mask, masked = (batch[k].to(device) for k in ("tokens", "attention_mask", "masked"))
    out = model(tokens, mask, masked)
    of_tokens = losses(recipe.objective, out.predicted.float(), out.tokens, masked, mask)
    of_track = torch.zeros_like(of_tokens)
    if recipe.track_weight:  # of a track alone it is 0, but all processes use the same weights
        of_track = track_losses(out.summary.float(), out.tokens, masked)[0]
    real = batch["weight"]
    each = (of_tokens + recipe.track_weight * of_track) * real
    return each, of_tokens * real, of_track * real


@torch.no_grad()
def validate(accelerator, model, tracks, recipe, micro_tokens, predictor=None) -> dict:
    """Mean losses over the validation tracks, always with the same tokens masked.

    Parameters
    ----------
    predictor : (tokens, masked, mask) -> predictions, instead of the model's
    """
    plain = accelerator.unwrap_model(model).eval()
    parts = micro_batches(range(len(tracks)), tracks.lengths, micro_tokens)
    total = torch.zeros(3, dtype=torch.float64)
    for batch in make_loader(accelerator, tracks, [[part] for part in parts], VALIDATION):
        names = ("tokens", "attention_mask", "masked")
        x, mask, masked = (batch[name].to(accelerator.device) for name in names)
        of_track = right = torch.zeros(len(x))
        if predictor is not None:
            x = plain.standardised(x, mask)
            predicted = predictor(x, masked, mask)
        else:
            with accelerator.autocast():
                out = plain(x, mask, masked)
            x, predicted = out.tokens, out.predicted.float()
            if recipe.track_weight and len(x) > 1:
                of_track, right = track_losses(out.summary.float(), x, masked)
        each = losses(recipe.objective, predicted, x, masked, mask)
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
