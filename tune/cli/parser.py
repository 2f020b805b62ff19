"""What the scripts share at the command line: argument types and how errors are shown.

Flags have underscores and accept `--flag=value`, which is how a W&B sweep passes them; booleans
accept `--flag`, `--flag=true` and `--flag=false`.
"""

import argparse
import contextlib
import errno
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path

from tune.system.openmp_waiting import wait_without_spinning
from tune.system.signals import Terminated, end_interrupted, exit_on_signal, noted_signals

# What the machine refuses: a message to the user, not a bug.
ENVIRONMENT = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
}
ROOT = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line (exit code 2)."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **kwargs)
        self.add_argument(
            "--debug",
            action=_Debug,
            nargs="?",
            const=True,
            type=to_bool,
            default=argparse.SUPPRESS,
            metavar="BOOL",
            help="show where in the code an error was found, as TUNE_DEBUG=1 does",
        )

    def with_config(self) -> None:
        """Add --config: a YAML file of this parser's flags; flags of the command line win."""
        self.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="a YAML file of flags, such as {seg: 10, agg: [mean, max]}; those "
            "given beside it win",
        )

    def parse_known_args(self, args=None, namespace=None):
        """Read the flags of a --config file first, then the command line's."""
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            name, equals, file = word.partition("=")
            if name == "--config" and "--config" in self._option_string_actions:
                rest = words[i + 1 :] if equals else words[i + 2 :]
                file = file if equals else (words[i + 1 : i + 2] or [""])[0]
                words = [*self._flags_of(file), *words[:i], *rest]
                break
        return super().parse_known_args(words, namespace)

    def _flags_of(self, file: str) -> list[str]:
        """The flags that a YAML file holds, as words of a command line."""
        import yaml

        try:
            found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = getattr(error, "strerror", None) or str(error)
            self.error(f"--config {file}: {why}")
        if not isinstance(found, dict):
            self.error(f"--config {file}: expected flags and their values, such as seg: 10")
        words = []
        for name, value in found.items():
            if f"--{name}" not in self._option_string_actions or name == "config":
                self.error(f"--config {file}: there is no flag --{name}")
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
            words += [f"--{name}={texts[0]}"] if len(texts) == 1 else [f"--{name}", *texts]
        return words

    @contextlib.contextmanager
    def show_errors(self):
        """Show a ValueError raised within as an error of the command line."""
        try:
            yield
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str):
        """Print one line and leave with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (--help lists the flags)\n")


class Flattened(argparse.Action):
    """Lists of values as one list, each value once: what `--flag 1 2` and `--flag=1,2` give."""

    def __call__(self, parser, namespace, values, option=None):
        """Keep the values in order."""
        setattr(namespace, self.dest, list(dict.fromkeys(v for part in values for v in part)))


class Joined(argparse.Action):
    """Words as one text, joined by commas: what `--flag a b` and `--flag=a,b` give."""

    def __call__(self, parser, namespace, values, option=None):
        """Keep the text."""
        setattr(namespace, self.dest, ",".join(values))


class _Debug(argparse.Action):
    """Set TUNE_DEBUG, also for what is started from here; no part of what a run is made of."""

    def __call__(self, parser, namespace, value, option=None):
        """Keep the value."""
        os.environ["TUNE_DEBUG"] = str(int(value))


def debugging() -> bool:
    """Say whether errors are shown with their tracebacks: --debug, or TUNE_DEBUG=1."""
    return os.environ.get("TUNE_DEBUG", "").lower() in ("1", "true", "yes")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines, show defaults that say something."""

    def _get_help_string(self, action):
        if action.default in (None, "", [], argparse.SUPPRESS) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def to_bool(text: str) -> bool:
    """Read a boolean."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def to_ints(text: str) -> list[int]:
    """Read integers separated by spaces or commas, in brackets or not (as a sweep writes them)."""
    try:
        return [int(part) for part in re.split(r"[\s,\[\]]+", text) if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text!r}") from None


def to_words(text: str) -> list[str]:
    """Read words separated by spaces or commas, in brackets and quotes or not."""
    return [part for part in re.split(r"[\s,\[\]'\"]+", text) if part]


def positive_int(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def share(text: str) -> float:
    """Read a number from 0 to 1, without 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return value


def set_up_logging(is_main: bool) -> None:
    """Let the library's messages through on the main process, warnings on the others."""
    handler = logging.StreamHandler(_BesideProgress())
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logger = logging.getLogger("tune")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False


def one_line(text: str) -> str:
    """Text that may hold any name of a file, as one line that changes no terminal.

    Line breaks, escape sequences, what turns the writing direction and bytes that aren't UTF-8 are
    written as Python writes them (\\n, \\x1b, \\u202e, \\xe9).
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    """One character that can't be shown, as text."""
    if "\udc80" <= c <= "\udcff":  # how Python keeps a byte that isn't UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()


class _OneLine(logging.Formatter):
    """Log lines stay one line each, whatever a file is called; tracebacks keep theirs."""

    def formatMessage(self, record):  # noqa: N802 - logging's own name
        """The level and the message."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _BesideProgress:
    """A stream that writes above a running progress bar instead of through it."""

    def write(self, text: str) -> None:
        """Write a line to stderr."""
        from tqdm import tqdm

        if text.strip():
            tqdm.write(text.rstrip("\n"), file=sys.stderr)

    def flush(self) -> None:
        """Nothing is kept back."""


def raised_by_us(error: BaseException) -> bool:
    """Say whether an error was raised by this project's code (a message to the user).

    A ValueError out of a library is a bug of ours, and its traceback is wanted.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    file = Path(frames[-1].filename).resolve()  # a virtual environment may lie below ROOT
    return file.parent == ROOT or any(file.is_relative_to(ROOT / d) for d in ("tune", "tools"))


def show_traceback(error: BaseException) -> None:
    """Print an error's traceback where --debug asks for it; its line comes after."""
    if debugging():
        traceback.print_exception(error)


def end_with_launcher() -> None:
    """Get SIGTERM when the launcher dies, on Linux.

    An agent that stops a run kills what it has started, which is the launcher; without this the
    experiment would go on alone.
    """
    launched = any(name in os.environ for name in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"))
    if launched and sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1  # noqa: N806 - as prctl(2) calls it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def read_arguments(parse_args):
    """Read a script's arguments before the heavy imports, and let Ctrl-C end those in one line."""
    exit_on_signal()
    wait_without_spinning()
    return parse_args()


def run_script(main) -> None:
    """Run a script's main; user errors end in one line and code 2, Ctrl-C in 130, SIGTERM in 143.

    After Ctrl-C and SIGTERM the tracker's run is closed and what was computed is kept; neither can
    be lost on the way (`tune.system.signals`), and a second Ctrl-C ends at once.
    """
    is_main = os.environ.get("RANK", "0") == "0"  # all processes raise the same
    end_with_launcher()
    with noted_signals() as stop:
        try:
            main()
        except SystemExit:
            raise
        except BaseException as error:
            stop.arrived()
            # Whatever an error made of the interruption on its way, it was asked for.
            code = _ended_by(stop.error or error, is_main)
            if code is None:
                raise
            if stop.error is not None:
                end_interrupted(code)
            sys.exit(code)


def _ended_by(error: BaseException, is_main: bool) -> int | None:
    """Say in one line why a script ends; return its exit code, None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        text = "\nstopped: what was encoded is in the store; the same command goes on from there"
        if is_main:
            print(text, file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    if isinstance(error, ValueError) and raised_by_us(error):
        if is_main:
            show_traceback(error)
            print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        show_traceback(error)
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        return 2
    return None
