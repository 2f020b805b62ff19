"""The cells of a sweep: which there are, what is known of them, and the journal that remembers.

The journal (OUTPUT_DIR/.sweeps/NAME-DIGEST-SEED.jsonl) has a line for each change of a cell; the
last one counts. A cell is finished when its folder holds its result, unless the journal says that
it was still under way: then its W&B run was cut off, and it runs once more.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tune.aggregators.degenerate import full_track
from tune.sweep.config import Cell, digest, make_cell, propose
from tune.sweep.summary import is_done, write_twin

SEARCH_SIZE = 20  # cells of a random or Bayesian search when --count doesn't say


class Sweep:
    """The cells of a sweep, what is known of them, and the file that remembers it.

    Parameters
    ----------
    config : as `read_sweep` returns
    output_dir : where the runs go
    extra : flags for every cell
    count : at most this many cells, None for the method's default
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
        self.cells: dict[str, Cell] = {}
        self.repeats = 0  # proposals that were there already
        if config["method"] == "grid":
            self._add(propose(config, [], count or 1_000_000, self.extra, seed))
            self.size = len(self.cells)
        else:
            self.size = count or SEARCH_SIZE
        self._remember()
        self.pending = deque(c for c in self.cells.values() if c.state == "pending")
        self.owners: dict[str, str] = {}  # a full track's cell -> the cell that runs in its place

    def folder(self, name: str) -> Path:
        """Where a cell's result goes."""
        return (self.output_dir if self.program == "train_probe.py" else Path("aggregators")) / name

    def argv(self, cell: Cell) -> list[str]:
        """A cell's arguments with where it goes."""
        if self.program == "train_probe.py":
            places = [f"--output_dir={self.output_dir}", f"--name={cell.name}"]
            return [*cell.argv, *places, "--overwrite=true"]
        return [*cell.argv, f"--out={self.folder(cell.name)}"]

    def next(self) -> Cell | None:
        """Take the next cell to run, or None when there is nothing left to start."""
        while not self.pending and not self.is_whole:
            known = list(self.cells.values())
            (cell,) = propose(self.config, known, 1, self.extra, self.seed + self.repeats)
            if cell.name in self.cells:  # drawn before: its result is there already
                self.size, self.repeats = self.size - 1, self.repeats + 1
            else:
                self._add([cell])
        return self.pending.popleft() if self.pending else None

    @property
    def is_whole(self) -> bool:
        """Whether no more cells will be proposed."""
        return self.config["method"] == "grid" or len(self.cells) >= self.size

    def note(self, cell: Cell, state: str, error: str | None = None) -> None:
        """Change a cell's state, and remember it."""
        cell.state, cell.error = state, error
        kept = {k: v for k, v in asdict(cell).items() if k != "argv"}
        with open(self.journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")

    def twin_of(self, cell: Cell, tokens: str) -> str | None:
        """Name the cell that an uncut cell is by definition; None when that's itself.

        Parameters
        ----------
        tokens : "segment" or "frame"
        """
        wanted = full_track(cell.config, tokens)
        key = json.dumps(wanted, sort_keys=True)
        if key not in self.owners:
            # What the file itself calls the full track goes before who comes first.
            alike = [
                c
                for c in self.cells.values()
                if full_track(c.config, tokens) == wanted
                and all(c.config.get(k) == wanted.get(k) for k in ("seg", "agg"))
            ]
            usable = [c for c in alike if c.state != "failed"]
            self.owners[key] = (usable or [cell])[0].name
        owner = self.owners[key]
        return None if owner == cell.name else owner

    def settle_twins(self) -> None:
        """Give the cells that are others by definition their folders, or their failure."""
        for cell in [c for c in self.cells.values() if c.state == "same"]:
            original = self.folder(cell.twin)
            if is_done(self.folder(cell.name), self.program):
                continue
            if is_done(original, self.program):
                write_twin(self.folder(cell.name), original, cell.config)
            elif cell.twin in self.cells and self.cells[cell.twin].state == "failed":
                self.note(cell, "failed", f"it equals {cell.twin}, which failed")

    def _add(self, cells: Sequence[Cell]) -> None:
        """Add new cells, in order."""
        for cell in cells:
            self.cells[cell.name] = cell
            if hasattr(self, "pending"):
                self.pending.append(cell)

    def _remember(self) -> None:
        """Read the journal: what is finished stays so, what was under way or failed comes again."""
        lines = []
        if self.journal.exists():
            lines = self.journal.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                kept = json.loads(line)
            except ValueError:  # the last line of a sweep that was killed
                continue
            cell = self.cells.get(kept["name"])
            if cell is None and self.config["method"] == "grid":
                continue  # --count was larger then
            if cell is None:
                cell = make_cell(kept["config"], self.config, self.extra)
                self.cells[cell.name] = cell
            cell.state, cell.twin, cell.history = kept["state"], kept["twin"], kept["history"]
            cell.error = kept["error"]
        for cell in self.cells.values():
            cut_off = cell.state == "running" and self.program == "train_probe.py"
            if is_done(self.folder(cell.name), self.program) and not cut_off:
                cell.state = "same" if cell.state == "same" else "finished"
            elif cell.state not in ("stopped", "undefined"):
                cell.state, cell.twin, cell.history = "pending", None, []
