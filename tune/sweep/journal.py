"""The runs of a sweep, their states, and the journal on disk.

The journal (OUTPUT_DIR/.sweeps/NAME-DIGEST-SEED.jsonl) has a line for each change of a run; the
last one counts. A run is finished when its folder holds its result, unless the journal says that
it was still going on: then its W&B run was cut off, and it runs once more.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tune.aggregators.degenerate import full_track
from tune.sweep.config import SweepRun, digest, make_run, propose
from tune.sweep.summary import is_done, write_duplicate

SEARCH_SIZE = 20  # runs of a random or Bayesian search when --count doesn't say


class Sweep:
    """The runs of a sweep, their states, and the journal on disk.

    Parameters
    ----------
    config : as `read_sweep` returns
    output_dir : where the runs go
    extra : flags for every run
    count : at most this many runs, None for the method's default
    seed : of random and Bayesian searches
    """

    def __init__(
        self, config: Mapping, output_dir: Path, extra: Sequence[str], count: int | None, seed: int
    ):
        self.config, self.output_dir, self.extra, self.seed = config, output_dir, list(extra), seed
        self.program = config["program"]
        places = output_dir / ".sweeps"
        (places / "logs").mkdir(parents=True, exist_ok=True)
        self.logs = places / "logs"
        # A changed file or other flags are another sweep, apart from how long it may go on.
        mark = digest(json.dumps(config, sort_keys=True, default=str), extra)
        stem = "".join(c if c.isalnum() else "-" for c in config.get("name") or "sweep")
        self.journal = places / f"{stem}-{mark}-{seed}.jsonl"
        self.runs: dict[str, SweepRun] = {}
        self.repeats = 0  # proposals that were there already
        if config["method"] == "grid":
            self._add(propose(config, [], count or 1_000_000, self.extra, seed))
            self.size = len(self.runs)
        else:
            self.size = count or SEARCH_SIZE
        self._remember()
        self.pending = deque(c for c in self.runs.values() if c.state == "pending")
        self.owners: dict[str, str] = {}  # a full track's run -> the run that runs in its place

    def folder(self, name: str) -> Path:
        """The folder of a run's result."""
        return (self.output_dir if self.program == "train_probe.py" else Path("aggregators")) / name

    def argv(self, run: SweepRun) -> list[str]:
        """A run's arguments with where it goes."""
        if self.program == "train_probe.py":
            places = [f"--output_dir={self.output_dir}", f"--name={run.name}"]
            return [*run.argv, *places, "--overwrite=true"]
        return [*run.argv, f"--out={self.folder(run.name)}"]

    def next(self) -> SweepRun | None:
        """Take the next run, or None when there is nothing left to start."""
        while not self.pending and not self.is_whole:
            known = list(self.runs.values())
            (run,) = propose(self.config, known, 1, self.extra, self.seed + self.repeats)
            if run.name in self.runs:  # drawn before: its result is there already
                self.size, self.repeats = self.size - 1, self.repeats + 1
            else:
                self._add([run])
        return self.pending.popleft() if self.pending else None

    @property
    def is_whole(self) -> bool:
        """Whether no more runs will be proposed."""
        return self.config["method"] == "grid" or len(self.runs) >= self.size

    def note(self, run: SweepRun, state: str, error: str | None = None) -> None:
        """Change a run's state, and write it to the journal."""
        run.state, run.error = state, error
        kept = {k: v for k, v in asdict(run).items() if k != "argv"}
        with open(self.journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")

    def find_same(self, run: SweepRun, tokens: str) -> str | None:
        """Name the run that a run without any cut duplicates; None when it is the first such run.

        Parameters
        ----------
        tokens : "segment" or "frame"
        """
        wanted = full_track(run.config, tokens)
        key = json.dumps(wanted, sort_keys=True)
        if key not in self.owners:
            # What the file itself calls the full track goes before who comes first.
            alike = [
                c
                for c in self.runs.values()
                if full_track(c.config, tokens) == wanted
                and all(c.config.get(k) == wanted.get(k) for k in ("seg", "agg"))
            ]
            usable = [c for c in alike if c.state != "failed"]
            self.owners[key] = (usable or [run])[0].name
        owner = self.owners[key]
        return None if owner == run.name else owner

    def settle_same(self) -> None:
        """Write the folders of runs that duplicate others, or mark them failed as those are."""
        for run in [c for c in self.runs.values() if c.state == "same"]:
            original = self.folder(run.same_as)
            if is_done(self.folder(run.name), self.program):
                continue
            if is_done(original, self.program):
                write_duplicate(self.folder(run.name), original, run.config)
            elif run.same_as in self.runs and self.runs[run.same_as].state == "failed":
                self.note(run, "failed", f"it equals {run.same_as}, which failed")

    def _add(self, runs: Sequence[SweepRun]) -> None:
        """Add new runs, in order."""
        for run in runs:
            self.runs[run.name] = run
            if hasattr(self, "pending"):
                self.pending.append(run)

    def _remember(self) -> None:
        """Read the journal: finished runs stay so, unfinished and failed ones run again."""
        lines = []
        if self.journal.exists():
            lines = self.journal.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                kept = json.loads(line)
            except ValueError:  # the last line of a sweep that was killed
                continue
            run = self.runs.get(kept["name"])
            if run is None and self.config["method"] == "grid":
                continue  # --count was larger then
            if run is None:
                run = make_run(kept["config"], self.config, self.extra)
                self.runs[run.name] = run
            run.state, run.history = kept["state"], kept["history"]
            run.same_as = kept["same_as"] if "same_as" in kept else kept["twin"]  # its old name
            run.error = kept["error"]
        for run in self.runs.values():
            cut_off = run.state == "running" and self.program == "train_probe.py"
            if is_done(self.folder(run.name), self.program) and not cut_off:
                run.state = "same" if run.state == "same" else "finished"
            elif run.state not in ("stopped", "undefined"):
                run.state, run.same_as, run.history = "pending", None, []
