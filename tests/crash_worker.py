"""Encoders to be killed: a process that forks one for every line it reads, so that it starts fast.

A line is JSON: store, paths, log (what the run did goes there, line by line), and what is to go
wrong: die_at (killed before its k-th change of a file), torn (killed within its k-th row, which
then is half written), file_size (the largest file it may write). The answer is the run's process
id; after {"wait": pid} it is the exit code, minus the signal's number for one that was killed.
"""

import contextlib
import hashlib
import json
import os
import resource
import signal
import sys

import torch

from tune.cli.parser import run_script, set_up_logging
from tune.encoders.base import Encoder
from tune.segments.rules import SegmentRule
from tune.store import collection
from tune.store.encode import encode_tracks
from tune.store.store import Store

RULE = SegmentRule(0.5, min_tail_s=0.2)
LAYERS = [0, 1]
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.utime"}


class TinyEncoder(Encoder):
    """Two layers of random products over 10 ms of sound: costs next to nothing."""

    def __init__(self):
        super().__init__(
            "tiny",
            frame_rate=100.0,
            n_layers=1,
            embedding_dim=64,
            precision="no",
            device="cpu",
            fingerprint=hashlib.sha256(b"tiny 1").hexdigest(),
        )
        generator = torch.Generator().manual_seed(5)
        self.weights = torch.randn(2, 240, 64, generator=generator)

    def states(self, audio, layers, dtype):
        """Yield (B, T, 64) for each layer."""
        frames = audio.unfold(1, 240, 240)
        for layer in layers:
            yield (frames @ self.weights[layer]).tanh()


def encode(order: dict, log: int) -> None:
    """Encode tracks; log each one as soon as the library says that it's done."""
    encoder = TinyEncoder()
    store = Store(order["store"])
    collection = store.collection(encoder, LAYERS, None)

    def note(**what):
        os.write(log, json.dumps(what).encode() + b"\n")

    report = encode_tracks(
        order["paths"],
        encoder,
        RULE,
        store,
        collection,
        on_track=lambda path: note(done=path),
        batch_seconds=order.get("batch_seconds", 60.0),
        share_batches=order.get("share_batches"),
    )
    note(encoded=report.encoded_tracks, damaged=report.damaged, skipped=report.skipped)


def die() -> None:
    """End as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(k: int, root: str) -> None:
    """Be killed before the k-th time that a file of the store is made, changed or flushed."""
    seen = [0]

    def count():
        seen[0] += 1
        if seen[0] == k:
            die()

    def hook(event, args):
        if event in CHANGES and args and str(args[0]).startswith(root):
            count()

    def fsync(file, real=os.fsync):
        count()
        real(file)

    sys.addaudithook(hook)
    os.fsync = fsync


def tear(k: int) -> None:
    """Be killed when the k-th row is half on disk."""
    real, seen = collection.save_tensors, [0]

    def save(tensors, path, metadata):
        real(tensors, path, metadata)
        seen[0] += 1
        if seen[0] == k:
            os.truncate(path, path.stat().st_size // 2)
            die()

    collection.save_tensors = save


def run(order: dict) -> None:
    """What a forked process does."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    set_up_logging(True)
    if "die_at" in order:
        die_at(order["die_at"], order["store"])
    if "torn" in order:
        tear(order["torn"])
    if "file_size" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"],) * 2)
    run_script(lambda: encode(order, log))


def main() -> None:
    """Read orders until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 70  # no end that a run should have
            with contextlib.suppress(Exception):
                try:
                    run(order)
                    code = 0
                except SystemExit as end:
                    code = end.code
            os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
