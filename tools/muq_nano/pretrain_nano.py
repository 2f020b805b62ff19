"""Pretrain muq-nano, the small MuQ in the package, by masked prediction of discrete tokens.

    accelerate launch tools/muq_nano/pretrain_nano.py --out nano --songs 2400 --steps 4000
    accelerate launch tools/muq_nano/pretrain_nano.py --out nano --steps 4000 --tasks MUSIC
    python tools/muq_nano/game_music.py --out game-music     # real music of free licences, 30 h
    accelerate launch tools/muq_nano/pretrain_nano.py --out nano --audio_dir game-music
    accelerate launch train_probe.py --task demo --encoder nano

MuQ's objective at a small scale: spans of 0.4 s of the spectrogram are replaced by noise, and the
model predicts the tokens of the masked frames (tools/muq_nano/mel_tokens.py). The model consists of
MuQ's own classes with the configuration in the package, so that the same code runs it.

It is trained on composed music (tools/muq_nano/composed.py: not the demo tasks' songs), and on the
train splits of --tasks and a folder of music, --audio_dir, if given. Val and test tracks of the
demo tasks and of those named, and test tracks of any other task on this machine, are refused by
content. Composed songs and their spectrograms are kept in --corpus (about a second per song and
core).

Writes --out: config.json and model.safetensors (float16), which --encoder DIR loads, history.csv
and pretrain.json; every --save_every steps and at the end. If interrupted, the same command resumes
from the last save and ends with the same weights.

Two more objectives: from --track_from on, crops come in pairs of a song, and a contrastive loss on
their time means identifies the pairs (--track_weight 0: off); from --order_from on, every
--order_every steps, pieces are played in several orders, which a contrastive loss on the time means
distinguishes (tools/muq_nano/nano_orders.py; --order_weight 0: off).

Compare `masked accuracy` with that of always predicting the most frequent token, which is printed
first. A core with AMX does about two steps a second with --mixed_precision bf16. The licence of the
weights depends on the training music: composed music is this project's own.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (2, 1)]  # tune, muq_nano

from tune.cli.parser import (
    Parser,
    positive_float,
    positive_int,
    read_arguments,
    run_script,
    set_up_logging,
    share,
    to_bool,
    to_words,
)


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="pretrain_nano.py", description=__doc__)
    data = parser.add_argument_group("music")
    data.add_argument(
        "--songs",
        type=positive_int,
        default=2400,
        metavar="N",
        help="composed songs of about a minute; one in 50 is kept for validation",
    )
    data.add_argument(
        "--corpus_seed", type=int, default=6, metavar="SEED", help="of the composed songs"
    )
    data.add_argument(
        "--tasks",
        type=to_words,
        nargs="+",
        metavar="TASK",
        help="tasks whose train splits are learnt from as well (never val or test)",
    )
    data.add_argument(
        "--tasks_share",
        type=share,
        default=0.25,
        metavar="SHARE",
        help="share of the crops that are of these tasks' tracks",
    )
    data.add_argument(
        "--audio_dir",
        type=Path,
        metavar="DIR",
        help="a folder of music to learn "
        "from as well, such as tools/muq_nano/game_music.py makes; the tracks of "
        "one of its subfolders count as an album, and one in 50 is kept aside",
    )
    data.add_argument(
        "--audio_share",
        type=share,
        default=0.25,
        metavar="SHARE",
        help="share of the crops that are of --audio_dir",
    )
    data.add_argument(
        "--data_dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder that holds (or gets) the hub's data sets",
    )
    data.add_argument(
        "--cache_dir",
        type=Path,
        metavar="DIR",
        help="where the demo tasks are "
        "kept, whose val and test tracks are refused (default: tune/demo in the "
        "user's cache folder)",
    )
    data.add_argument(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="spectrograms, 1.6 MB a song (default: tune/nano in the user's cache folder)",
    )
    data.add_argument(
        "--workers", type=positive_int, default=2, metavar="N", help="processes that compose"
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--init",
        type=Path,
        metavar="DIR",
        help="initialise from a finished model of this script (except its heads)",
    )
    recipe.add_argument("--steps", type=positive_int, default=4000, help="optimizer steps")
    recipe.add_argument(
        "--seconds",
        type=positive_float,
        nargs="+",
        metavar="SECONDS",
        default=[2, 2, 5, 2, 2, 5, 2, 15],
        help="lengths of the crops; steps "
        "take turns (short crops of many songs teach faster than long ones of few)",
    )
    recipe.add_argument(
        "--batch_seconds",
        type=positive_float,
        default=60.0,
        metavar="SECONDS",
        help="audio in a step, of each process",
    )
    recipe.add_argument(
        "--mask_prob",
        type=share,
        default=0.6,
        metavar="SHARE",
        help="share of the spans of 0.4 s that are masked",
    )
    recipe.add_argument(
        "--visible_weight",
        type=float,
        default=0.5,
        metavar="W",
        help="weight of predicting the tokens of frames that can be seen, as in "
        "HuBERT; without it (0, as in MuQ) learning takes long to begin",
    )
    recipe.add_argument(
        "--track_weight",
        type=float,
        default=0.5,
        metavar="W",
        help="weight of a second objective: a contrastive loss between "
        "pairs of crops of a song, by their time means; 0: MuQ's objective alone",
    )
    recipe.add_argument(
        "--track_from",
        type=int,
        default=800,
        metavar="STEP",
        help="step from which it counts, and crops come in pairs of a song",
    )
    recipe.add_argument(
        "--album_share",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the pairs that are of two tracks of an album, where there "
        "are albums (--audio_dir)",
    )
    recipe.add_argument(
        "--order_weight",
        type=float,
        default=1.0,
        metavar="W",
        help="weight of a third objective: a contrastive loss between the "
        "same pieces in several orders, by their time means; 0: off",
    )
    recipe.add_argument(
        "--order_from", type=int, default=800, metavar="STEP", help="step from which it is used"
    )
    recipe.add_argument(
        "--order_every",
        type=positive_int,
        default=4,
        metavar="STEPS",
        help="use it once in this many steps",
    )
    recipe.add_argument(
        "--order_seconds",
        type=positive_float,
        nargs="+",
        metavar="SECONDS",
        default=[6, 12, 6, 30, 12, 54],
        help="lengths of its examples, which take turns; up to 30 s of three pieces, beyond of six",
    )
    recipe.add_argument(
        "--lr",
        type=positive_float,
        default=1e-3,
        metavar="RATE",
        help="AdamW's rate between its rise and its fall",
    )
    recipe.add_argument(
        "--warmup",
        type=positive_int,
        default=50,
        metavar="STEPS",
        help="steps in which the rate rises",
    )
    recipe.add_argument(
        "--decay",
        type=share,
        default=0.25,
        metavar="SHARE",
        help="share of the steps, the last ones, in which it falls to zero",
    )
    recipe.add_argument(
        "--weight_decay", type=float, default=0.02, metavar="W", help="AdamW's decay of matrices"
    )
    recipe.add_argument("--seed", type=int, default=1234, help="of weights, crops and masks")
    recipe.add_argument(
        "--val_crops",
        type=positive_int,
        default=48,
        metavar="N",
        help="crops of 10 s that are validated on",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="bf16 is faster on CPUs with AMX and on GPUs from Ampere on",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model's folder")
    output.add_argument(
        "--save_every",
        type=positive_int,
        default=250,
        metavar="STEPS",
        help="validate and save this often",
    )
    output.add_argument(
        "--overwrite",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="start again in --out",
    )
    args = parser.parse_args(argv)
    args.tasks = list(dict.fromkeys(word for part in args.tasks or [] for word in part))
    if args.songs < 2:
        parser.error("--songs must be at least 2: one of them is for validation")
    if args.batch_seconds < max(args.seconds):
        parser.error(
            f"--batch_seconds {args.batch_seconds:g} is shorter than the longest crop "
            f"({max(args.seconds):g} s of --seconds)"
        )
    if args.init and not (args.init / "model.safetensors").is_file():
        parser.error(f"--init {args.init} holds no model.safetensors of this script")
    for flag in ("tasks", "audio"):
        if not getattr(args, f"{flag}_share"):
            source = "--audio_dir" if flag == "audio" else "--tasks"
            parser.error(f"--{flag}_share must be above 0: leave out {source} to learn from none")
    if args.tasks and args.audio_dir and args.tasks_share + args.audio_share > 1:
        parser.error("--tasks_share and --audio_share must not exceed 1 together")
    if args.order_weight and args.order_every < 2:
        parser.error("--order_every must be at least 2: the other steps predict masked tokens")
    for flag in ("visible_weight", "track_weight", "track_from", "order_weight", "order_from"):
        if getattr(args, flag) < 0:
            parser.error(f"--{flag} must be 0 or above, got {getattr(args, flag):g}")
    if args.seed < 0 or args.corpus_seed < 0:
        parser.error("--seed and --corpus_seed must be 0 or above")
    return args


args = read_arguments(parse_args) if __name__ == "__main__" else None

import logging
import math
import time
from collections import defaultdict

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_wsd_schedule

from muq_nano import nano, nano_music, nano_run
from muq_nano.mel_tokens import CODES, STREAMS
from tune.system.files import cache_folder

log = logging.getLogger("tune.pretrain_nano")
CURVES = {"loss", "accuracy", "track_loss", "order_loss", "order_accuracy"}  # of the training


def main(args):
    """Pretrain: music, tokens, model, steps, the weights saved."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_up_logging(accelerator.is_main_process)
    run = nano_run.open_run(accelerator, args.out, vars(args), args.overwrite)
    cache = cache_folder()
    with accelerator.main_process_first():
        corpus = nano_music.gather(
            args.corpus or cache / "nano",
            args.corpus_seed,
            args.songs,
            args.tasks,
            data_dir=args.data_dir,
            cache_dir=args.cache_dir or cache / "demo",
            audio_dir=args.audio_dir,
            workers=args.workers,
            progress=accelerator.is_main_process,
        )
        tokens = nano_music.tokenise(corpus, args.seed, accelerator.is_main_process)
    crops = nano_music.Crops(
        corpus,
        tokens,
        args.seconds,
        args.batch_seconds,
        args.mask_prob,
        args.seed,
        pairs_from=args.track_from if args.track_weight else None,
        orders_from=args.order_from if args.order_weight else None,
        orders_every=args.order_every,
        order_seconds=args.order_seconds,
        tasks_share=args.tasks_share,
        audio_share=args.audio_share,
        album_share=args.album_share,
        part=accelerator.process_index,
    )
    model = nano.build_model(args.seed)
    if args.init:
        corpus.facts["init_sha256"] = nano.take_weights(model, args.init)
    run["corpus"] = corpus.facts
    learning = [
        p for p in model.parameters() if p.requires_grad and p is not model.projection.weight
    ]
    decayed = [p for p in learning if p.ndim > 1]
    others = [p for p in learning if p.ndim <= 1] + [model.projection.weight]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": args.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    falling = math.ceil(args.decay * args.steps)
    warmup = min(args.warmup, args.steps - falling)
    scheduler = get_wsd_schedule(
        optimizer,
        warmup,
        falling,
        num_stable_steps=args.steps - falling - warmup,
        decay_type="linear",
    )
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    if run["step"]:
        accelerator.load_state(str(args.out / nano_run.STATE))
    if accelerator.is_main_process:
        introduce(plain, corpus, run, args)
    train(accelerator, model, plain, optimizer, scheduler, crops, run, args)
    if accelerator.is_main_process:
        nano_run.finish(args.out, run, sys.argv[1:], accelerator, args.init)
        print(f"  result     {args.out}  (use: train_probe.py --encoder {args.out})")
    accelerator.end_training()


def train(accelerator, model, plain, optimizer, scheduler, crops, run, args):
    """Take the steps that are left, validating and saving every --save_every."""
    loader = DataLoader(crops, sampler=range(run["step"], args.steps), batch_size=None)
    bar = tqdm(
        loader,
        initial=run["step"],
        total=args.steps,
        desc="pretraining",
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        disable=not accelerator.is_main_process,
    )
    seen, started = defaultdict(list), time.perf_counter()
    model.train()
    for step, batch in enumerate(bar, start=run["step"] + 1):
        if "orders" in batch:
            loss, found = order(accelerator, model, batch)
            loss = args.order_weight * loss
        else:
            loss, found = predict(accelerator, model, batch, args.visible_weight, args.track_weight)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is not finite in step {step}: try a lower --lr or --mixed_precision no"
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        for name in CURVES & found.keys():
            seen[name].append(found[name].mean().item())
        if step % args.save_every == 0 or step == args.steps:
            means = {
                f"train/{k}": sum(seen[k]) / len(seen[k]) if seen[k] else 0.0
                for k in sorted(CURVES)
            }
            row = {
                "step": step,
                **means,
                **validate(accelerator, plain, crops, args),
                "lr": scheduler.get_last_lr()[0],
                "seconds": time.perf_counter() - started,
            }
            run["step"] = step
            run["history"].append(row)
            nano_run.save(accelerator, plain, args.out, run)
            seen, started = defaultdict(list), time.perf_counter()
            if accelerator.is_main_process:
                bar.write(
                    f"step {step:6d}/{args.steps}  train loss {row['train/loss']:.4f}  "
                    f"track loss {row['train/track_loss']:.3f}  "
                    f"order accuracy {row['train/order_accuracy']:.3f}  "
                    f"val loss {row['val/loss']:.4f}  "
                    f"masked accuracy {row['val/accuracy']:.3f}  "
                    f"{row['seconds']:.0f} s",
                    file=sys.stdout,
                )
                sys.stdout.flush()
            model.train()


def predict(accelerator, model, batch, visible_weight, track_weight=0) -> tuple[torch.Tensor, dict]:
    """Loss and its parts: cross-entropy and accuracy by stream, of masked and visible frames."""
    mel, tokens, masked, visible = (
        batch[k].to(accelerator.device) for k in ("mel", "tokens", "masked", "visible")
    )
    frames = torch.cat([masked, visible], 1) if visible_weight else masked  # (B, K)
    with accelerator.autocast():
        logits, projections, orders = model(mel, frames)  # (B, K, S * CODES), (B, 64) twice
    logits = logits.float().unflatten(-1, (len(STREAMS), CODES))
    truth = tokens.gather(1, frames[..., None].expand(-1, -1, len(STREAMS))).long()  # (B, K, S)
    each = F.cross_entropy(logits.movedim(-1, 1), truth, reduction="none")  # (B, K, S)
    right = (logits.detach().argmax(-1) == truth).float()
    n = masked.shape[1]
    found = {"loss": each[:, :n].mean(), "accuracy": right[:, :n].mean((0, 1))}
    loss = found["loss"]
    if visible_weight:
        found |= {"visible_loss": each[:, n:].mean(), "visible_accuracy": right[:, n:].mean((0, 1))}
        loss = loss + visible_weight * found["visible_loss"]
    if batch.get("pairs"):
        found["track_loss"] = nano.nt_xent_loss(projections, batch["albums"].to(projections.device))
    else:
        found["track_loss"] = projections.sum() * 0
    loss = loss + track_weight * found["track_loss"] + orders.sum() * 0
    return loss, {k: v.detach().cpu() for k, v in found.items()}


def order(accelerator, model, batch) -> tuple[torch.Tensor, dict]:
    """Loss and accuracy of distinguishing the orders of the same pieces."""
    mel = batch["mel"].to(accelerator.device)
    with accelerator.autocast():
        # All heads take part: processes have to agree on what has a gradient.
        frames = torch.zeros(len(mel), 1, dtype=torch.long, device=mel.device)
        logits, projections, orders = model(mel, frames)
    loss, accuracy = nano.order_contrastive_loss(orders, batch["orders"])
    found = {"order_loss": loss.detach().cpu(), "order_accuracy": accuracy.cpu()}
    return loss + (logits.sum() + projections.sum()) * 0, found


@torch.no_grad()
def validate(accelerator, plain, crops, args) -> dict:
    """Losses and accuracies on the validation songs, always the same crops and masks."""
    plain.eval()  # with the running statistics that feature extraction uses
    batches = crops.validation(args.val_crops)
    found = [predict(accelerator, plain, b, args.visible_weight)[1] for b in batches]
    row = {
        f"val/{k}": torch.stack([f[k] for f in found]).mean().item()
        for k in found[0]
        if k != "track_loss"
    }
    by_stream = torch.stack([f["accuracy"] for f in found]).mean(0).tolist()
    return row | {f"val/accuracy/{s}": v for s, v in zip(STREAMS, by_stream, strict=True)}


def introduce(model, corpus, run, args) -> None:
    """Print the sizes of model and corpus, and chance."""
    facts = corpus.facts
    print(
        f"muq-nano: {nano.count(model):,} parameters; {facts['tracks']} tracks, "
        f"{facts['hours']:.1f} h to learn from, {facts['val_tracks']} to validate on; "
        f"{len(facts['refused'])} refused, {len(facts['skipped'])} skipped"
    )
    print(
        f"chance: accuracy {facts['guess_accuracy']:.3f} (always the most frequent token), "
        f"loss {facts['guess_loss']:.3f} (by token frequencies)",
        flush=True,
    )
    if run["step"]:
        print(f"going on from step {run['step']} of {args.steps}", flush=True)


if __name__ == "__main__":
    run_script(lambda: main(args))
