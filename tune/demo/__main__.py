"""Listen to the demo tracks: ``python -m tune.demo list | export | play``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

from tune.cli.parser import Parser
from tune.demo import DEMO_TASKS
from tune.demo.synth import SAMPLE_RATE
from tune.demo.tasks import SPLITS, TASKS, Track, make_track, n_tracks, style_indices

_EXAMPLES = """\
examples:
  python -m tune.demo list                                  the tasks
  python -m tune.demo play                                  hear the first track
  python -m tune.demo play --style metal --index 3          hear the fourth track in one style
  python -m tune.demo export --n 10 --out music             one WAV of each style
  python -m tune.demo export --task demo-form --n 4 --out music
                                                            one song in its four orders

The same index always gives the same music. To build a whole data set, with its splits:
  python -c "from tune.demo import build; print(build('demo', 'data'))"
"""
_PLAYERS = (  # tried in this order; the file's path is appended
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
    ("aplay", "-q"),
    ("afplay",),
    ("paplay",),
)


def _write(track: Track, folder: Path) -> Path:
    """Write a track as a 16-bit WAV."""
    name, _, audio = track
    path = folder / f"{name}.wav"
    soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")
    return path


def _line(track: Track, path: Path) -> str:
    """A track in one line."""
    _, row, audio = track
    label = row["label"]
    if not isinstance(label, str):
        label = " ".join(v if isinstance(v, str) else f"{v:+.2f}" for v in label)
    named = "  ".join(dict.fromkeys((label, row.get("style", "mood"), row["key"])))
    return (
        f"{path}  {named}  {row['tempo']:g} bpm {row['meter']}  "
        f"{row['form']}  {len(audio) / SAMPLE_RATE:.1f} s"
    )


def list_tasks() -> None:
    """Describe the tasks."""
    for name, task in TASKS.items():
        counts = ", ".join(
            f"{u * task.tracks_per_unit} {s}" for u, s in zip(task.units, SPLITS, strict=True)
        )
        print(f"{name}: {task.summary}")
        print(f"  labels: {task.labels}")
        print(
            f"  tracks: {n_tracks(name)} ({counts}), mono, {SAMPLE_RATE} Hz, version {task.version}"
        )


def export(task: str, n: int, out: Path, style: str | None) -> None:
    """Write the first `n` tracks (of a style) and say where."""
    indices = style_indices(task, style)
    if not 1 <= n <= len(indices):
        raise ValueError(f"expected --n from 1 to {len(indices)}, got {n}")
    out.mkdir(parents=True, exist_ok=True)
    for index in indices[:n]:
        track = make_track(task, index)
        print(_line(track, _write(track, out)), flush=True)


def _player_commands(path: Path) -> list[list[str]]:
    """Command lines of the players installed here."""
    found = [[*p, str(path)] for p in _PLAYERS if shutil.which(p[0])]
    if sys.platform == "win32" and shutil.which("powershell"):
        quoted = str(path).replace("'", "''")
        script = f"(New-Object Media.SoundPlayer '{quoted}').PlaySync()"
        found.append(["powershell", "-NoProfile", "-Command", script])
    return found


def play(task: str, index: int, style: str | None) -> None:
    """Play a track, or write it to the current folder if there is no player."""
    indices = style_indices(task, style)
    if not 0 <= index < len(indices):
        raise ValueError(f"expected --index from 0 to {len(indices) - 1}, got {index}")
    track = make_track(task, indices[index])
    with tempfile.TemporaryDirectory() as folder:
        path = _write(track, Path(folder))
        for command in _player_commands(path):
            print(f"{_line(track, Path(path.name))}  (with {command[0]}, Ctrl+C stops)", flush=True)
            if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return
    print(f"no audio player found; wrote {_line(track, _write(track, Path.cwd()))}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m tune.demo",
        description="Synthetic music, composed in NumPy: listen to the tracks of the demo tasks.",
        epilog=_EXAMPLES,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{list,export,play}")
    verbs.add_parser("list", help="describe the tasks, their labels and sizes")
    exporter = verbs.add_parser("export", help="write tracks as WAV files")
    player = verbs.add_parser("play", help="play one track (writes a WAV if there is no player)")
    for verb in (exporter, player):
        verb.add_argument(
            "--task",
            default="demo",
            metavar="TASK",
            help=f"{', '.join(DEMO_TASKS)} (default: demo)",
        )
        verb.add_argument(
            "--style", metavar="NAME", help="only this style of the task demo; see list"
        )
    exporter.add_argument("--n", type=int, default=5, metavar="N", help="tracks (default: 5)")
    exporter.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder, made if missing"
    )
    player.add_argument(
        "--index", type=int, default=0, metavar="I", help="which track (default: 0)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; user errors are one line on stderr and exit code 2."""
    args = parse_args(argv)
    try:
        if args.verb == "list":
            list_tasks()
        elif args.verb == "export":
            export(args.task, args.n, args.out, args.style)
        else:
            play(args.task, args.index, args.style)
    except (ValueError, OSError, soundfile.SoundFileError) as error:
        print(f"python -m tune.demo {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
