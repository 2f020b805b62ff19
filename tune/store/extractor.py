"""From tracks to their rows, for every script: precision, memory, encoder, layers, collection."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from tune.encoders.base import Encoder, precision_on, resolve_layers
from tune.encoders.registry import load_encoder
from tune.segments.rules import Rule
from tune.store.collection import Collection, Row
from tune.store.encode import EncodeReport, check_rules_fit, encode_shared, encode_tracks, read_row
from tune.store.store import Store, default_root
from tune.system.memory import device_memory, parse_budget


class Extractor:
    """A frozen encoder with the segment rules, layers and stored rows that were asked for.

    Parameters
    ----------
    encoder : as `tune.encoders.load_encoder` takes it
    rules : how tracks are cut; each has its own rows
    layer : "last", "all", "mix" or a number
    frame_rate : float, optional
        Pooled frames a second instead of one vector a segment.
    device : what the encoder runs on
    precision : "auto", "no", "fp16" or "bf16"
    memory_budget : str or int, optional
        "2GB", a fraction of the device's memory, or bytes; None is the encoder's default.
    batch_seconds : audio seconds of one encoder batch; None is 60, on a GPU what its memory holds
    channels : what becomes of a file's channels: see `tune.audio.read_audio`
    store : the store's folder; None is the default one. It is opened when it is first used.
    check : called with the encoder when it is loaded, to refuse it before anything else is asked
    settings : weights, compile, trust_remote_code, revision: see `load_encoder`

    Attributes
    ----------
    encoder : tune.encoders.Encoder
    layers : list of int
    store : tune.store.Store
    collection : tune.store.Collection

    Raises
    ------
    ValueError
        When the encoder can't be loaded, or can't take these layers, segments or frames.

    Examples
    --------
    >>> import tempfile
    >>> from tune.segments import parse_rule
    >>> mel = Extractor("mel", [parse_rule("10")], store=tempfile.mkdtemp())
    >>> mel.layers, mel.collection.key["precision"], mel.encode([])[0].encoder_passes
    ([0], 'no', 0)
    """

    def __init__(
        self,
        encoder: str,
        rules: Sequence[Rule],
        layer: str = "last",
        *,
        frame_rate: float | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        memory_budget: str | int | None = None,
        batch_seconds: float | None = None,
        channels: str = "mix",
        store: str | Path | None = None,
        check: Callable[[Encoder], None] | None = None,
        _share_batches: bool | None = None,
        **settings,
    ):
        device = torch.device(device)
        settings["precision"] = precision_on(device, precision)
        if isinstance(memory_budget, str):
            memory_budget = parse_budget(memory_budget, device_memory(device))
        if memory_budget is not None:
            settings["memory_budget"] = memory_budget
        self.rules, self.frame_rate, self.batch_seconds = list(rules), frame_rate, batch_seconds
        self.encoder = self.load(encoder, device=device, **settings)
        if check:
            check(self.encoder)
        self.layers = resolve_layers(layer, self.encoder.n_layers, self.encoder.first_layer)
        self.encoder.keep_layers(max(self.layers))
        check_rules_fit(self.rules, frame_rate, self.encoder, self.layers)
        self._root, self.channels = store, channels
        self._share_batches = _share_batches  # of several tracks; None: on a GPU

    def load(self, name: str, **settings) -> Encoder:
        """Load the encoder; a sweep keeps it for the next run."""
        return load_encoder(name, **settings)

    @cached_property
    def store(self) -> Store:
        """The store that the rows are in."""
        return Store(self._root or default_root())

    @cached_property
    def collection(self) -> Collection:
        """The rows of this encoder, precision, set of layers and kind of token."""
        return self.store.collection(self.encoder, self.layers, self.frame_rate, self.channels)

    def encode(
        self, paths: Sequence[str], accelerator=None, *, strict: bool = False
    ) -> list[EncodeReport]:
        """Make sure that every usable track has its rows; with an accelerator, on all processes.

        Parameters
        ----------
        paths : audio files
        strict : raise at the first unusable file

        Returns
        -------
        list of EncodeReport, one a segment rule
        """

        def encode(rule, paths, **progress):
            return encode_tracks(
                paths,
                self.encoder,
                rule,
                self.store,
                self.collection,
                strict=strict,
                frame_rate=self.frame_rate,
                batch_seconds=self.batch_seconds,
                share_batches=self._share_batches,
                **progress,
            )

        if accelerator is None:
            reports = [encode(rule, paths) for rule in self.rules]
        else:
            reports = [encode_shared(accelerator, paths, encode, rule) for rule in self.rules]
        for rule, report in zip(self.rules, reports, strict=True):
            if rule.pick is not None and rule.pick.how == "central":
                self._pick_central(rule, report)
        return reports

    def _pick_central(self, rule: Rule, report: EncodeReport) -> None:
        """Leave each track its central segments, now that all are stored."""
        for path, found in report.rows.items():
            row = read_row(self.collection, path, *found)
            spans = rule.pick.choose_central(
                row, self.encoder.sample_rate, even=not rule.needs_audio
            )
            report.rows[path] = (found[0], spans)

    def rows(self, path: str, found: Sequence[tuple]) -> list[Row]:
        """A track's rows, one a rule; `found` holds what each rule's report says of it."""
        return [read_row(self.collection, path, *where) for where in found]
