"""Encode a task's tracks or a folder of music into the store, all or one machine's share.

    python -m tune.store encode gtzan --seg 10 --layer all
    python -m tune.store encode MUSIC_DIR --seg 10 30 full --store /net/store
    python -m tune.store encode MUSIC_DIR --shard 0/4 --store /net/store     # machine 0 of 4

Nothing is trained and nothing is written but the store: train_probe.py and embed.py with the same
encoder, layer and segments find the rows there. The command may be killed at any time and run
again: what is stored is not encoded again. Share I of N is every N-th path from the I-th (from 0)
of the sorted list, each path once, whatever the files hold; all shares need the same list and N.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tune.cli.flags import SEVERAL, add_groups
from tune.cli.parser import Parser, one_line, read_arguments, set_up_logging, to_words
from tune.segments.pick import read_pick
from tune.segments.rules import parse_rules
from tune.tasks.label_kinds import KINDS
from tune.tasks.registry import TASKS, default_encoder, default_layer

GROUPS = {
    "": "shard strict store",
    "strategy (as in train_probe.py)": "encoder revision trust_remote_code channels layer seg hop "
    "min_tail pad_tail min_seg max_seg use_seconds pick tokens frame_rate",
    "a task's files (as in train_probe.py)": "data_dir kind label_column audio_column "
    "data_revision yes allow_outside cache_dir",
    "machine": "mixed_precision batch_seconds memory_budget compile",
}
CHANGES = {
    "shard": dict(
        help="only share I of N (from 0): every N-th path from the I-th of the sorted list, in "
        "which each path is once (default: all)"
    ),
    "strict": dict(help="end at the first bad file, instead of reporting and counting it"),
    "kind": dict(choices=["auto", *KINDS]),
    "layer": dict(
        metavar="last|all|mix|K",
        help="hidden layer: the last, number K, or all of them (all and mix), which also serve "
        "requests for any of them (default: as train_probe.py, last or, for some tasks, mix)",
    ),
    "seg": dict(
        **SEVERAL,
        type=to_words,
        default=["10"],
        help="segment length in seconds, full for the whole track, or structure: cut where the "
        "music changes; of several, each is stored",
    ),
    "tokens": dict(
        help="what is stored: one vector a segment, or pooled frames (default: segment)"
    ),
}


def make_parser(prog: str = "python -m tune.store encode", about: str = __doc__) -> Parser:
    """A parser of the tracks and the strategy, for `read`."""
    parser = Parser(prog=prog, description=about)
    parser.add_argument(
        "music",
        nargs="+",
        metavar="TASK|MUSIC",
        help="a task as train_probe.py takes it (a name, a .csv, .tsv or .jsonl, a folder in "
        "MARBLE's layout, hub:NAME, FILE.py:NAME); or music as embed.py takes it: folders with "
        "their subfolders, lists (.txt, .m3u), globs, or audio files",
    )
    add_groups(parser, GROUPS, CHANGES)
    parser.with_config()
    return parser


def read(parser: Parser, argv: Sequence[str] | None = None):
    """Read the command line; `rules` are the segment rules."""
    args = parser.parse_args(argv)
    if not args.seg:
        parser.error("--seg needs a value: seconds, full or structure")
    with parser.show_errors():
        args.rules = rules_of(args)
    return args


def rules_of(args):
    """The segment rules asked for."""
    pick = read_pick(args.use_seconds, args.pick)
    limits = (args.min_seg, args.max_seg)
    return parse_rules(args.seg, args.hop, args.min_tail, *limits, args.pad_tail, pick)


def is_task(sources: Sequence[str]) -> bool:
    """Whether a task is meant rather than files of music."""
    from tune.tasks.hub_dataset import PREFIX
    from tune.tasks.own_task import own_spec
    from tune.tasks.tables import is_table

    if len(sources) != 1:
        return False
    (source,) = sources
    path = Path(source)
    if path.is_dir():
        return any(path.glob("*.train.jsonl"))
    if source in TASKS or source.startswith(PREFIX) or own_spec(source):
        return True
    return is_table(source) or path.suffix.lower() == ".jsonl"


def task_paths(args) -> list[str]:
    """Paths of all of a task's tracks, of whatever split."""
    import logging

    from tune.system.files import cache_folder
    from tune.tasks.load import check_whole, load_task

    task = load_task(
        args.music[0],
        args.data_dir,
        cache_dir=args.cache_dir or cache_folder() / "demo",
        kind=args.kind,
        label_column=args.label_column,
        audio_column=args.audio_column,
        progress=True,
        usable=False,
        allow_outside=args.allow_outside,
        data_revision=args.data_revision,
        yes=args.yes,
    )
    check_whole(task, strict=args.strict)
    for item in task.skipped:
        if args.strict:
            raise ValueError("{where}: {reason}".format(**item))
        logging.getLogger(__name__).warning("skipped %s: %s", item["where"], item["reason"])
    return [path for split in task.splits.values() for path in split["path"]]


def find_paths(args) -> list[str]:
    """All paths that are meant, sorted, each once."""
    from tune.audio.find_files import find_music, shown
    from tune.tasks.load import check_task

    if is_task(args.music):
        return sorted(set(task_paths(args)), key=shown)
    for source in args.music:
        if not (os.path.lexists(source) or set(source) & set("*?[")):
            check_task(source)  # says that it is no task either
    return find_music(args.music)


def summary(rule: str, shard, n_tracks: int, n_all: int, report) -> str:
    """What was done, as one line."""
    share = f"shard {shard[0]}/{shard[1]}: " if shard else ""
    of = f" of {n_all}" if shard else ""
    reasons = Counter(item["reason"].partition(":")[0] for item in report.skipped)
    why = "; ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    before = len(report.rows) - report.encoded_tracks
    return (
        f"{share}{n_tracks}{of} tracks, --seg {rule}: {before} stored before, "
        f"{report.encoded_tracks} encoded in {report.encode_seconds:.1f} s, "
        f"{len(report.skipped)} skipped{f' ({why})' if why else ''}"
    )


def load_extractor(args, device):
    """The encoder with its rules, layers and store."""
    from tune.encoders.base import launched_precision
    from tune.store.extractor import Extractor

    task = args.music[0] if is_task(args.music) else ""
    return Extractor(
        args.encoder or default_encoder(task),
        args.rules,
        args.layer or default_layer(task),
        frame_rate=args.frame_rate if args.tokens == "frame" else None,
        device=device,
        precision=launched_precision(args.mixed_precision),
        memory_budget=args.memory_budget,
        batch_seconds=args.batch_seconds,
        channels=args.channels,
        store=args.store,
        compile=args.compile,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = read_arguments(lambda: read(make_parser(), argv))
    from accelerate import Accelerator

    from tune.audio.find_files import find_shard
    from tune.store.encode import PATIENCE

    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[PATIENCE])
    set_up_logging(accelerator.is_main_process)
    with accelerator.main_process_first():  # only one process downloads or composes
        paths = find_paths(args)
        extractor = load_extractor(args, accelerator.device)
    mine = find_shard(paths, args.shard)
    reports = extractor.encode(mine, accelerator, strict=args.strict)
    for rule, report in zip(args.rules, reports, strict=True):
        if accelerator.is_main_process:
            print(one_line(summary(rule.name, args.shard, len(mine), len(paths), report)))
