"""Embeddings of your own music: folders, lists or files to Parquet, .npy or a datasets folder.

    accelerate launch embed.py MUSIC_DIR --seg 10 --agg mean --out embeddings.parquet
    accelerate launch embed.py a.m3u "more/**/*.flac" --agg whitened --out vectors.npy
    accelerate launch embed.py MUSIC_DIR --out e.parquet --segments segments.parquet
    accelerate launch embed.py MUSIC_DIR --from_run runs/NAME --out e.parquet
    python embed.py --like SONG.ogg -k 10 --out embeddings.parquet
    python embed.py MUSIC_DIR --shard 0/4 --out e.parquet     # machine 0 of 4, then, once:
    python embed.py --merge e.shard-*.parquet --out e.parquet

Every segment is encoded once, into the store that train_probe.py uses: if interrupted, the same
command resumes where it stopped, and switching to another aggregator re-encodes nothing. The output
is written atomically, with the same bytes from any number of processes. A file that can't be used
is a row with a reason. --like shows the tracks most like a song.
"""

# ruff: noqa: E402 - the arguments are read before the heavy imports, so that mistakes answer fast
import shlex
from pathlib import Path

from tune.aggregators.registry import CHOICES, find_row, readable_name, split_name
from tune.cli.flags import add_groups
from tune.cli.parser import Parser, one_line, read_arguments, run_script, set_up_logging
from tune.segments.pick import read_pick
from tune.segments.rules import parse_rule

STRATEGY = ("encoder", "revision", "layer", "seg", "hop", "min_tail", "min_seg", "max_seg", "agg")
STRATEGY += ("tokens", "frame_rate", "aggregator_checkpoint", "readout", "n_tokens", "from_run")
STRATEGY += ("run_seed", "mixed_precision", "channels", "use_seconds", "pick")
GROUPS = {
    "": "out space good_only segments overwrite strict shard merge",
    "strategy (as in train_probe.py)": "encoder revision trust_remote_code channels layer seg hop "
    "min_tail min_seg max_seg use_seconds pick agg n_tokens tokens frame_rate "
    "aggregator_checkpoint readout from_run run_seed",
    "machine": "mixed_precision batch_seconds memory_budget compile store",
    "listening": "like k whiten mutual_proximity m3u",
}
CHANGES = {
    "overwrite": dict(help="replace what embed.py didn't make"),
    "encoder": dict(
        help="muq (the default), muq-nano, mel, a folder, a hub id, or your own: FILE.py:NAME"
    ),
    "layer": dict(default="last", metavar="last|K"),
    "seg": dict(
        default="10",
        help="segment length in seconds, full for the whole track, or structure: cut where the "
        "music changes",
    ),
    "agg": dict(
        help=f"how the segments' embeddings are joined: {CHOICES}; whitened is fitted on the music "
        "given; attention and hierarchical need --from_run; transformer:DIR names its checkpoint "
        "as well"
    ),
    "memory_budget": dict(help="what the encoder's weights and activations should stay within"),
}


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(prog="embed.py", description=__doc__)
    parser.add_argument(
        "music",
        nargs="*",
        metavar="MUSIC",
        help="folders (with subfolders), lists (.txt, .m3u: one file a line), globs, or audio "
        "files",
    )
    add_groups(parser, GROUPS, CHANGES)
    parser.with_config()
    args = parser.parse_args(argv)
    changed = [name for name in STRATEGY if getattr(args, name) != parser.get_default(name)]
    args.command = describe_command(args, changed)
    with parser.show_errors():
        args.agg, args.aggregator_checkpoint = split_name(args.agg, args.aggregator_checkpoint)
        find_row(args.agg)
        pick = read_pick(args.use_seconds, args.pick)
        limits = (args.min_seg, args.max_seg)
        parse_rule(args.seg, args.hop, args.min_tail, *limits, pick=pick)
        args.use_seconds, args.pick = (pick.seconds, pick.how) if pick else (None, None)
        check_sources(args, changed)
        check_table(args)
    return args


def check_sources(args, changed) -> None:
    """Raise ValueError when MUSIC, --out, --shard, --merge, --like and --from_run don't agree."""
    if not args.music and not args.merge and not (args.like and args.out):
        raise ValueError("nothing to embed: name MUSIC, a folder, list or files")
    if not args.out and (not args.like or args.merge or args.shard):
        raise ValueError("--out says where the embeddings go: x.parquet, x.npy or a folder")
    if args.shard and (args.merge or args.like or Path(args.out).suffix != ".parquet"):
        raise ValueError(
            "--shard writes a part, .parquet: --merge and --like come after all are there"
        )
    if args.merge and (args.music or args.segments or args.like):
        raise ValueError(
            "--merge puts shards together and no more: those of --segments by another --merge, and "
            "--like comes after"
        )
    if changed and not args.music:
        raise ValueError(
            f"--{changed[0]}: without MUSIC nothing is embedded, --out says how it was made"
        )
    both = {*changed} - {"encoder", "revision", "from_run", "run_seed", "mixed_precision"}
    if args.from_run and both:
        raise ValueError(f"--from_run brings the whole strategy: leave out --{min(both)}")
    if args.run_seed is not None and not args.from_run:
        raise ValueError("--run_seed belongs to --from_run")
    aggregator = find_row(args.agg)
    if args.shard and aggregator.whitening:
        raise ValueError(
            f"--agg {args.agg} is fitted on all tracks, which a shard isn't: run the shards with "
            f"--agg mean on one --store, then --agg {args.agg} without --shard"
        )
    if args.shard and aggregator.fixed_n and not args.n_tokens:
        raise ValueError(f"--agg {args.agg} needs the same --n_tokens for all shards")


def check_table(args) -> None:
    """Raise ValueError when --space and --good_only have no table that they change."""
    for name in ("space", "good_only"):
        if getattr(args, name) and not ((args.music or args.merge) and args.out):
            raise ValueError(f"--{name} changes what is written: it goes with MUSIC and --out")
        if getattr(args, name) and args.shard:
            raise ValueError(f"--{name} goes with --merge, once all shards are there")
    if args.space:
        from tune.embeddings.space import parse_space

        parse_space(args.space)
        if Path(args.out).suffix == ".npy":
            raise ValueError("--space adds a column to a table: choose .parquet or a folder")


def describe_command(args, changed) -> str:
    """The command as far as it changes the numbers: where the music lies is left out."""
    words = ["embed.py", "MUSIC"]
    shown = changed if args.from_run else [n for n in STRATEGY if n in {*changed, "seg", "agg"}]
    for name in shown:
        words += [f"--{name}", str(getattr(args, name))]
    return shlex.join(words)


args = read_arguments(parse_args) if __name__ == "__main__" else None

import dataclasses
import glob
import logging
from functools import partial

from accelerate import Accelerator

from tune.aggregators.transformer import checkpoint as transformer
from tune.audio.find_files import find_music, find_shard
from tune.embeddings import file_formats as files
from tune.embeddings import similar
from tune.embeddings.embedder import Embedder
from tune.embeddings.file_formats import Embeddings
from tune.embeddings.strategy import Strategy, from_run
from tune.embeddings.track_table import Kept, segment_rows, track_rows
from tune.runs import result
from tune.store.encode import PATIENCE
from tune.system.files import hide_home

log = logging.getLogger("tune.embed")


def main(args):
    """Embed: files, encoder, store, rows, output, and what is like a song."""
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[PATIENCE])
    is_main = accelerator.is_main_process
    set_up_logging(is_main)
    reading = not (args.music or args.merge)
    out = args.out and files.check_out(args.out, args.overwrite or reading)
    segments = args.segments and files.check_out(args.segments, args.overwrite, "--segments")
    if args.merge:
        if is_main:
            merge(args.merge, out, args.space, args.good_only)
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
        kept = Kept.of(out, embedder, paths) if out and not (segments or args.overwrite) else Kept()
        new = [path for path in paths if path not in kept.rows]
        tracks, bad, report = embedder.encode(new, accelerator, strict=args.strict)
        if not is_main:
            return
        aggregator = embedder.aggregator(tracks)
        if aggregator.row.whitening and not args.from_run:
            log.info("the whitening is fitted on these %d tracks, without labels", len(tracks))
        table, truncated = track_rows(embedder, aggregator, tracks, bad, kept)
        if truncated:
            log.warning(
                "%d tracks have more than %d tokens and are cut", truncated, aggregator.n_tokens
            )
        meta = describe(embedder, aggregator, args, accelerator.device, bad, table, truncated)
        made = Embeddings(table, meta, aggregator.constants)
        if not args.shard:
            made = made.in_space(args.space)
        segment_table = partial(segment_rows, embedder, tracks)
        there = write(made, out, segments, args.shard, segment_table, args.good_only)
        report_on(made, bad, report, there, accelerator.num_processes, kept)
    if args.like and is_main:
        made = made or files.read(out)
        folders = [Path(), out.parent] if out else [Path()]
        similar.show(
            made,
            args.like,
            args.k,
            whiten=args.whiten or None,  # as the stored space
            mutual_proximity=args.mutual_proximity,
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


def describe(embedder, aggregator, args, device, bad, table, truncated) -> dict:
    """The metadata: how the embeddings were made, and nothing that differs from run to run."""
    return embedder.describe(aggregator) | {
        "command": hide_home(args.command),
        "embedding_dim": table["embedding"].type.list_size,
        "n_tracks": len(table),
        "n_failed": len(bad),
        "n_truncated": truncated,
        "device": result.device_name(device),
        "versions": result.versions(),
        "git_sha": result.git_sha(),
    }


def write(made: Embeddings, out, segments, shard, segment_table, good_only=False) -> list[Path]:
    """Write the tracks, and the segments where they are wanted; say where they are."""
    if shard:
        made.meta["shard"] = list(shard)
        out, segments = (p and files.shard_name(Path(p), shard) for p in (out, segments))
    if segments:
        table = segment_table()
        meta = made.meta | {"embedding_dim": table["embedding"].type.list_size}
        files.write(segments, Embeddings(table, meta, {}))
    failed = None
    if out:
        failed = write_tracks(out, made, good_only)
    return [path for path in (out, failed, segments) if path]


def write_tracks(out: Path, made: Embeddings, good_only: bool) -> Path | None:
    """Write the tracks; with `good_only` failures go to a table beside, whose path is returned."""
    if not good_only:
        files.write(out, made)
        return None
    good, failed = made.split()
    files.write(out, good)
    beside = out.with_name(f"{out.stem}.failed.csv")
    files.write_failed(beside, failed)
    return beside


def merge(sources, out: Path, space: str | None, good_only: bool) -> None:
    """Put shards together and write the whole."""
    paths = sorted({path for source in sources for path in glob.glob(source) or [source]})
    made = files.merge(paths)
    if not made.of_segments:
        made = made.in_space(space)
        write_tracks(out, made, good_only)
    elif space or good_only:
        raise ValueError("--space and --good_only are for tracks, and these are segments")
    else:
        files.write(out, made)
    print(f"  merged     {len(paths)} shards, {made.table.num_rows} rows: {out}")


def report_on(made: Embeddings, bad, report, there, n_processes, kept) -> None:
    """Say what was done, and how many files couldn't be used: each was named when it was read."""
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
    if kept.rows:
        gone = f", {kept.gone} that are gone left out" if kept.gone else ""
        lines.insert(1, ("", f"{len(kept.rows)} of them as they were{gone}"))
    if n_processes > 1:
        lines.append(("processes", f"{n_processes}"))
    if bad:
        lines.append(("bad files", "named above; the column `reason` has them"))
    lines += [("result", str(path)) for path in there]
    for label, text in lines:
        print(f"  {label:<10} {one_line(text)}")


if __name__ == "__main__":
    run_script(lambda: main(args))
