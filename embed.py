"""Embeddings of your own music: folders, lists or files to Parquet, .npy or a datasets folder.

    accelerate launch embed.py MUSIC_DIR --seg 10 --agg mean --out embeddings.parquet
    accelerate launch embed.py a.m3u "more/**/*.flac" --agg whitened --out vectors.npy
    accelerate launch embed.py MUSIC_DIR --out e.parquet --segments segments.parquet
    accelerate launch embed.py MUSIC_DIR --from_run runs/NAME --out e.parquet
    python embed.py --like SONG.ogg -k 10 --out embeddings.parquet
    python embed.py MUSIC_DIR --shard 0/4 --out e.parquet     # machine 0 of 4, then, once:
    python embed.py --merge e.shard-*.parquet --out e.parquet

Every segment is encoded once, into the store that train_probe.py uses: stopped, the same command
goes on where it stood, and another aggregator encodes nothing. The output appears whole or not at
all, with the same bytes from any number of processes. A file that can't be used is a row with a
reason. --like shows the tracks most like a song.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import re
import shlex
from pathlib import Path

from tune.aggregators.registry import CHOICES, find_row, readable_name, split_name
from tune.cli.flags import BOOL, add
from tune.cli.parser import Parser, begin, one_line, positive_int, run_script, set_up_logging
from tune.segments.rules import parse_rule

STRATEGY = (
    "encoder",
    "revision",
    "layer",
    "seg",
    "hop",
    "min_tail",
    "min_seg",
    "max_seg",
    "agg",
    "tokens",
    "frame_rate",
    "aggregator_checkpoint",
    "readout",
    "n_tokens",
    "from_run",
    "run_seed",
    "mixed_precision",
)
MANY = 20  # sources that the metadata's command names one by one
NAMED = 20  # bad files that are named at the end


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="embed.py", description=__doc__)
    parser.add_argument(
        "music",
        nargs="*",
        metavar="MUSIC",
        help="folders (with subfolders), "
        "lists (.txt, .m3u: one file a line), globs, or audio files",
    )
    parser.add_argument(
        "--out",
        metavar="FILE|DIR",
        help="x.parquet, x.npy (with x.csv and x.json), or a folder for datasets.load_from_disk",
    )
    parser.add_argument(
        "--segments",
        metavar="FILE|DIR",
        help="also write one row a segment, with start_s and end_s, in any of the formats",
    )
    add(parser, "overwrite", help="replace what embed.py didn't make")
    add(parser, "strict")
    parser.add_argument(
        "--shard",
        type=to_shard,
        metavar="I/N",
        help="only the share of machine I of N (from 0): writes x.shard-I-of-N.parquet",
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        metavar="FILE",
        help="put the shards of one command together (files or globs) and write --out",
    )
    strategy = parser.add_argument_group("strategy (as in train_probe.py)")
    strategy.add_argument(
        "--encoder",
        help="muq (the default), muq-nano, mel, a folder, a hub id, or your own: FILE.py:NAME",
    )
    add(strategy, "revision", "trust_remote_code")
    add(strategy, "layer", default="last", metavar="last|K")
    add(
        strategy,
        "seg",
        default="10",
        help="segment length in seconds, full for the whole track, or structure: "
        "cut where the music changes",
    )
    add(strategy, "hop", "min_tail", "min_seg", "max_seg")
    strategy.add_argument(
        "--agg",
        default="mean",
        metavar="NAME|FILE.py:NAME",
        help="how the "
        f"segments' embeddings are joined: {CHOICES}; whitened is fitted "
        "on the music given; attention and hierarchical need --from_run; "
        "transformer:DIR names its checkpoint as well",
    )
    strategy.add_argument(
        "--n_tokens",
        type=positive_int,
        metavar="N",
        help="tokens that --agg "
        "concat lays end to end; missing ones are zeros (default: the longest "
        "track's)",
    )
    add(strategy, "tokens")
    add(strategy, "frame_rate", default=1.0)
    add(strategy, "aggregator_checkpoint", "readout")
    strategy.add_argument(
        "--from_run",
        metavar="DIR",
        help="take the strategy of a run of "
        "train_probe.py, and the attention, mix or whitening it learned",
    )
    strategy.add_argument(
        "--run_seed",
        type=int,
        metavar="SEED",
        help="of which of the run's seeds (default: its first)",
    )
    machine = parser.add_argument_group("machine")
    add(machine, "mixed_precision", default="auto")
    add(machine, "batch_seconds", default=60.0)
    add(
        machine,
        "memory_budget",
        default="2GB",
        metavar="SIZE|SHARE",
        help="what the encoder's weights and activations should stay within",
    )
    add(machine, "compile", "store")
    like = parser.add_argument_group("listening")
    like.add_argument(
        "--like",
        metavar="SONG",
        help="show the tracks most like a song: one of "
        "the tracks, or any audio file; without MUSIC, among those in --out",
    )
    like.add_argument("-k", type=positive_int, default=10, metavar="N", help="this many")
    like.add_argument(
        "--whiten",
        **BOOL,
        help="even out the directions in which the collection varies before comparing",
    )
    like.add_argument("--m3u", type=Path, metavar="FILE", help="write them as a playlist")
    parser.with_config()
    args = parser.parse_args(argv)
    changed = [name for name in STRATEGY if getattr(args, name) != parser.get_default(name)]
    args.command = describe_command(args, changed)
    try:
        args.agg, checkpoint = split_name(args.agg)
        aggregator = find_row(args.agg)
    except ValueError as error:
        parser.error(str(error))
    if checkpoint and args.aggregator_checkpoint:
        parser.error("the checkpoint is given twice: in --agg and as --aggregator_checkpoint")
    args.aggregator_checkpoint = checkpoint or args.aggregator_checkpoint
    try:
        parse_rule(args.seg, args.hop, args.min_tail, args.min_seg, args.max_seg)
    except ValueError as error:
        parser.error(str(error))
    if not args.music and not args.merge and not (args.like and args.out):
        parser.error("nothing to embed: name MUSIC, a folder, list or files")
    if not args.out and (not args.like or args.merge or args.shard):
        parser.error("--out says where the embeddings go: x.parquet, x.npy or a folder")
    if args.shard and (args.merge or args.like or Path(args.out).suffix != ".parquet"):
        parser.error("--shard writes a part, .parquet: --merge and --like come after all are there")
    if args.merge and (args.music or args.segments or args.like):
        parser.error(
            "--merge puts shards together and no more: those of --segments by another "
            "--merge, and --like comes after"
        )
    if changed and not args.music:
        parser.error(
            f"--{changed[0]}: without MUSIC nothing is embedded, --out says how it was made"
        )
    if args.from_run and (
        both := set(changed) - {"encoder", "revision", "from_run", "run_seed", "mixed_precision"}
    ):
        parser.error(f"--from_run brings the whole strategy: leave out --{min(both)}")
    if args.run_seed is not None and not args.from_run:
        parser.error("--run_seed belongs to --from_run")
    if args.shard and aggregator.whitening:
        parser.error(
            f"--agg {args.agg} is fitted on all tracks, which a shard isn't: run the "
            f"shards with --agg mean on one --store, then --agg {args.agg} without "
            "--shard"
        )
    if args.shard and aggregator.fixed_n and not args.n_tokens:
        parser.error(f"--agg {args.agg} needs the same --n_tokens for all shards")
    return args


def to_shard(text: str) -> tuple[int, int]:
    """Read I/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        import argparse

        raise argparse.ArgumentTypeError(f"expected I/N such as 0/4 (I from 0), got {text!r}")
    return int(found[1]), int(found[2])


def describe_command(args, changed) -> str:
    """The command as far as it changes the numbers: where things lie is left out."""
    sources = args.music if len(args.music) <= MANY else [*args.music[:3], "..."]
    words = ["embed.py", *sources]
    shown = changed if args.from_run else [n for n in STRATEGY if n in {*changed, "seg", "agg"}]
    for name in shown:
        words += [f"--{name}", str(getattr(args, name))]
    return shlex.join(words)


args = begin(parse_args) if __name__ == "__main__" else None

import dataclasses
import glob
import logging
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from tune.aggregators.transformer import checkpoint as transformer
from tune.audio.find_files import find_music, find_shard, shown
from tune.embeddings import file_formats as files
from tune.embeddings import similar
from tune.embeddings.embedder import Embedder
from tune.embeddings.file_formats import Embeddings
from tune.embeddings.strategy import Strategy, from_run
from tune.embeddings.track_table import segment_rows, track_rows
from tune.runs import result
from tune.system.files import hide_home

log = logging.getLogger("tune.embed")


def main(args):
    """Embed: files, encoder, store, rows, output, and what is like a song."""
    # A process that has done its share waits for the others, however long they take.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=30))
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[patient])
    is_main = accelerator.is_main_process
    set_up_logging(is_main)
    reading = not (args.music or args.merge)
    out = args.out and files.check_out(args.out, args.overwrite or reading)
    segments = args.segments and files.check_out(args.segments, args.overwrite, "--segments")
    if args.merge:
        if is_main:
            merge(args.merge, out)
        return
    made = embedder = None
    if args.music:
        paths = find_shard(find_music(args.music), args.shard)
        with accelerator.main_process_first():  # only one process downloads
            embedder = load(args, accelerator.device)
        if segments and len(embedder.collection.layers) > 1:
            raise ValueError("--segments writes one layer's states, and this run mixes all layers")
        if out and not args.overwrite:
            check_same_source(out, embedder.strategy)
        tracks, bad, report = embedder.encode(paths, accelerator, strict=args.strict)
        if not is_main:
            return
        joiner = embedder.joiner(tracks)
        if embedder.aggregator_row.whitening and not args.from_run:
            log.info("the whitening is fitted on these %d tracks, without labels", len(tracks))
        table, truncated = track_rows(embedder, joiner, tracks, bad)
        if truncated:
            log.warning(
                "%d tracks have more than %d tokens and are cut", truncated, joiner.n_tokens
            )
        meta = describe(embedder, joiner, args, accelerator.device, bad, table, truncated)
        made = Embeddings(table, meta, joiner.constants)
        there = write(made, out, segments, args.shard, lambda: segment_rows(embedder, tracks))
        report_on(made, bad, report, there, accelerator.num_processes)
    if args.like and is_main:
        made = made or files.read(out)
        folders = [Path(), out.parent] if out else [Path()]
        similar.show(
            made,
            args.like,
            args.k,
            whiten=args.whiten,
            m3u=args.m3u,
            folders=folders,
            embedder=embedder,
            store=args.store,
            device=accelerator.device,
            trust_remote_code=args.trust_remote_code,
        )


def load(args, device) -> Embedder:
    """The strategy asked for, with its encoder."""
    learned = None
    if args.from_run:
        strategy, learned = from_run(
            args.from_run,
            args.run_seed,
            encoder=args.encoder,
            precision=args.mixed_precision,
            revision=args.revision,
        )
    else:
        tokens, frame_rate = args.tokens, args.frame_rate
        if tokens is None:
            tokens, frame_rate = transformer.tokens_of(args.aggregator_checkpoint, frame_rate)
        given = {
            field.name: getattr(args, field.name)
            for field in dataclasses.fields(Strategy)
            if field.name not in ("encoder", "seg", "frame_rate", "precision", "agg_sha256")
        }
        strategy = Strategy(
            encoder=args.encoder or "muq",
            seg=(args.seg,),
            precision=args.mixed_precision,
            frame_rate=frame_rate if tokens == "frame" else None,
            **given,
        )
    return Embedder(
        strategy,
        learned,
        device=device,
        store=args.store,
        memory_budget=args.memory_budget,
        trust_remote_code=args.trust_remote_code,
        compile=args.compile,
        batch_seconds=args.batch_seconds,
    )


def check_same_source(out: Path, strategy: Strategy) -> None:
    """Refuse to go on with a file of embeddings when its aggregator's source has changed."""
    if strategy.agg_sha256 and out.exists():
        old = files.read(out).meta["strategy"]
        if old.get("agg") == strategy.as_json()["agg"] and (
            old["agg_sha256"] != strategy.agg_sha256
        ):
            raise ValueError(
                f"{out} was made with another version of {strategy.agg}: choose another --out, or "
                f"--overwrite"
            )


def describe(embedder, joiner, args, device, bad, table, truncated) -> dict:
    """The metadata: how the embeddings were made, and nothing that differs from run to run."""
    return embedder.describe(joiner) | {
        "command": shown(hide_home(args.command)),  # a name need not be valid text
        "embedding_dim": table["embedding"].type.list_size,
        "n_tracks": len(table),
        "n_failed": len(bad),
        "n_truncated": truncated,
        "device": result.device_name(device),
        "versions": result.versions(),
        "git_sha": result.git_sha(),
    }


def write(made: Embeddings, out, segments, shard, segment_table) -> list[Path]:
    """Write the tracks, and the segments where they are wanted; say where they are."""
    if shard:
        made.meta["shard"] = list(shard)
        out, segments = (p and files.shard_name(Path(p), shard) for p in (out, segments))
    if segments:
        table = segment_table()
        meta = made.meta | {"embedding_dim": table["embedding"].type.list_size}
        files.write(segments, Embeddings(table, meta, {}))
    if out:
        files.write(out, made)
    return [path for path in (out, segments) if path]


def merge(sources, out: Path) -> None:
    """Put shards together and write the whole."""
    paths = sorted({path for source in sources for path in glob.glob(source) or [source]})
    made = files.merge(paths)
    files.write(out, made)
    print(f"  merged     {len(paths)} shards, {made.table.num_rows} rows: {out}")


def report_on(made: Embeddings, bad, report, there, n_processes) -> None:
    """Say what was done, and name the files that couldn't be used."""
    meta, n_segments = made.meta, sum(filter(None, made.table["n_segments"].to_pylist()))
    encoder = meta["encoder"] + (" (untrained)" if meta["encoder_untrained"] else "")
    lines = [
        (
            "tracks",
            f"{meta['n_tracks'] - len(bad)} embedded"
            + (f", {len(bad)} can't be used" if bad else ""),
        ),
        ("segments", f"{n_segments}"),
        (
            "embedding",
            f"{meta['embedding_dim']} values: {encoder}, layer "
            f"{meta['strategy']['layer']}, "
            f"{readable_name(meta['strategy']['agg'])}",
        ),
        *result.describe_licence(meta),
        (
            "encoder",
            f"{report.encoder_passes} passes, {report.audio_seconds:.0f} s of audio in "
            f"{report.encode_seconds:.1f} s"
            if report.encoder_passes
            else "0 passes: everything was in the store",
        ),
    ]
    if n_processes > 1:
        lines.append(("processes", f"{n_processes}"))
    lines += [("bad file", f"{path}: {reason}") for path, reason in sorted(bad.items())[:NAMED]]
    if len(bad) > NAMED:
        lines.append(("", f"and {len(bad) - NAMED} more: the column `reason` has them"))
    lines += [("result", str(path)) for path in there]
    for label, text in lines:
        print(f"  {label:<10} {one_line(text)}")


if __name__ == "__main__":
    run_script(lambda: main(args))
