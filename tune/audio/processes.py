"""Decoding in processes beside this one: for many files, where a GPU waits for them.

A codec's frames pass through Python one by one, and threads take turns at that: sixteen of them
decode no faster than one. A process imports no torch (a third of a second, 60 MB), takes one file
at a time through its pipes, and gives the samples that `decode` gives. One that a damaged file
crashes costs that file alone.
"""

import json
import logging
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from tune.audio.decode import AudioError, Sound, decode

log = logging.getLogger(__name__)

SERVE = "import sys; sys.path.append(sys.argv[1]); from tune.audio.processes import serve; serve()"
PACKAGES = str(Path(__file__).parents[2])  # where `tune` lies, installed or not
PIPE_BYTES = 1 << 20  # a track in a few reads
TRIES = 2  # a process may have been killed for another reason than its file


class DecodeProcesses:
    """A decoding process for each thread that asks; a context that ends them all.

    Examples
    --------
    >>> with DecodeProcesses() as processes:
    ...     processes.decode("no_such.wav", 24_000)
    Traceback (most recent call last):
    ...
    tune.audio.base.AudioError: no such file
    """

    def __init__(self):
        self._mine = threading.local()
        self._all: list[subprocess.Popen] = []

    def decode(self, path: str | Path, sample_rate: int, channels: str = "mix") -> Sound:
        """Decode a whole file, as `tune.audio.decode.decode` does.

        Raises
        ------
        AudioError
            With the reason, when the file is not usable, or ended its process twice.
        """
        request = {"path": str(path), "sample_rate": sample_rate, "channels": channels}
        for _ in range(TRIES):
            process = self._process()
            try:
                answer = _ask(process, request)
                break
            except (OSError, EOFError):
                process.kill()
                code = process.wait()
                log.info("the process that decoded %s ended with code %d", path, code)
        else:
            raise AudioError(f"can't be decoded: it ended the decoding process (code {code})")
        if isinstance(answer, Sound):
            return answer
        if "reason" in answer:
            raise AudioError(answer["reason"])
        return decode(path, sample_rate, channels=channels)  # raises what it raised there

    def _process(self) -> subprocess.Popen:
        """The process of this thread."""
        process = getattr(self._mine, "process", None)
        if process is None or process.poll() is not None:
            process = self._mine.process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, PACKAGES],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            _widen(process.stdout)
            self._all.append(process)
        return process

    def __enter__(self) -> "DecodeProcesses":
        return self

    def __exit__(self, *error) -> None:
        for process in self._all:
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(OSError):  # a request that nobody reads any more
                process.stdin.close()


def _ask(process: subprocess.Popen, request: dict) -> Sound | dict:
    """Send a request, and read its samples, or what went wrong."""
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer = json.loads(line)
    if "n_samples" not in answer:
        return answer
    samples = np.empty(answer["n_samples"], np.float32)
    if process.stdout.readinto(memoryview(samples).cast("B")) != samples.nbytes:
        raise EOFError
    return Sound(samples, tuple(answer["notes"]))


def _widen(pipe) -> None:
    """Let a pipe hold more, where the system lets it."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # slower, no more
        pass


def serve() -> None:
    """Answer requests until there are no more: the main loop of a decoding process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # whatever prints doesn't print into the answer
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            sound = decode(request["path"], request["sample_rate"], channels=request["channels"])
        except AudioError as error:
            answer, data = {"reason": str(error)}, b""
        except Exception as error:  # whatever it is, it is raised where it was asked for
            answer, data = {"error": type(error).__name__}, b""
        else:
            answer = {"n_samples": len(sound.samples), "notes": sound.notes}
            data = memoryview(sound.samples).cast("B")
        out.write(json.dumps(answer).encode() + b"\n")
        out.write(data)
        out.flush()
