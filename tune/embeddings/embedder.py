"""One embedding for each music file: `Embedder` for embed.py, `embed` as a library function.

Everything is encoded once, into the store that train_probe.py uses, so an interrupted run continues
where it stopped, and another aggregator only reads from the store.
"""

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tune import __version__
from tune.aggregators.registry import find_row, split_name
from tune.aggregators.track_aggregator import TrackAggregator
from tune.aggregators.transformer import checkpoint as transformer
from tune.embeddings.strategy import Learned, Strategy, from_run
from tune.encoders.base import Encoder
from tune.segments.pick import read_pick
from tune.segments.rules import MIN_TAIL_S
from tune.store.collection import Row
from tune.store.encode import EncodeReport
from tune.store.extractor import Extractor
from tune.store.store import default_root
from tune.system.plugins import is_plugin, load_module, source_digest

log = logging.getLogger(__name__)


class Embedder:
    """A strategy with its encoder loaded and its store open.

    Parameters
    ----------
    strategy : tune.embeddings.strategy.Strategy
    learned : tensors of a run (`tune.embeddings.strategy.from_run`), or None
    device : of the encoder and the Transformer; None is a GPU if there is one
    store : folder of the store; None is the default one
    trust_remote_code : let an encoder run Python code of its own
    memory_budget, compile, batch_seconds : see train_probe.py; they change no result

    Attributes
    ----------
    strategy : the same, with layer and precision as they were resolved

    Raises
    ------
    ValueError
        When the settings don't belong together, or an encoder, aggregator or run doesn't fit.
    """

    def __init__(
        self,
        strategy: Strategy,
        learned: Learned | None = None,
        *,
        device: str | torch.device | None = None,
        store: str | Path | None = None,
        trust_remote_code: bool = False,
        memory_budget: str = "2GB",
        compile: bool = False,
        batch_seconds: float | None = None,
    ):
        strategy = strategy.identified()
        strategy.check(learned)
        self.aggregator_row = find_row(strategy.agg)
        self.learned, self.strategy = learned, strategy
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.extractor = Extractor(
            strategy.encoder,
            strategy.rules(),
            strategy.layer,
            frame_rate=strategy.frame_rate,
            device=device,
            precision=strategy.precision,
            memory_budget=memory_budget,
            batch_seconds=batch_seconds,
            channels=strategy.channels,
            store=store,
            compile=compile,
            revision=strategy.revision,
            trust_remote_code=trust_remote_code,
            check=self._check_learned,
        )
        self.encoder, self.rules = self.extractor.encoder, self.extractor.rules
        self.collection, layers = self.extractor.collection, self.extractor.layers
        self.model = None
        if strategy.aggregator_checkpoint:
            self.model = transformer.load_for(
                strategy.aggregator_checkpoint, self.encoder, layers, self.collection, self.rules
            ).to(device)
        changes = {
            "layer": strategy.layer if strategy.layer in ("mix", "reduce") else str(layers[0]),
            "precision": self.encoder.precision,
            "revision": self.encoder.revision or strategy.revision,
        }
        if self.aggregator_row.fixed_n and learned and not strategy.n_tokens:
            changes["n_tokens"] = learned.n_in // (self.encoder.embedding_dim + 1)  # N D + N
        self.strategy = dataclasses.replace(strategy, **changes)

    def _check_learned(self, encoder: Encoder) -> None:
        """Raise ValueError when a run learned with other weights; warn of another precision."""
        learned = self.learned
        if learned and learned.encoder_fingerprint != encoder.fingerprint:
            raise ValueError(
                f"the run {learned.name} was made with other weights than "
                f"{self.strategy.encoder} has here: name its encoder by --encoder"
            )
        if learned and learned.precision != encoder.precision:
            log.warning(
                "the run %s encoded with --mixed_precision %s, here it is %s",
                learned.name,
                learned.precision,
                encoder.precision,
            )

    def encode(self, paths: Sequence[str], accelerator=None, *, strict: bool = False):
        """Make sure that every track is in the store; with an accelerator, on all processes.

        Returns
        -------
        tracks : {path: [(content, spans) a segment rule]} of the usable files
        bad : {path: reason}
        report : EncodeReport, of all rules together
        """
        reports = self.extractor.encode(paths, accelerator, strict=strict)
        bad = {item["path"]: item["reason"] for report in reports for item in report.skipped}
        tracks = {
            path: [report.rows[path] for report in reports] for path in paths if path not in bad
        }
        return tracks, bad, EncodeReport.merged(reports)

    def rows(self, path: str, found: Sequence[tuple]) -> list[Row]:
        """A track's rows, one a segment rule; `found` is what `encode` says of it."""
        return self.extractor.rows(path, found)

    def aggregator(
        self,
        tracks: Mapping[str, Sequence[tuple]],
        constants: Mapping | None = None,
        n_tokens: int | None = None,
    ) -> TrackAggregator:
        """What joins each track's rows, fitted on these tracks where the aggregator asks for it.

        Parameters
        ----------
        tracks : as `encode` returns them
        constants, n_tokens : of embeddings made before, that others are to be joined like
        """
        given = constants or (self.learned.constants if self.learned else None)
        aggregator = TrackAggregator(
            self.strategy.agg,
            self.strategy.seg,
            sample_rate=self.encoder.sample_rate,
            window_s=self.collection.window_s,
            model=self.model,
            readout=self.strategy.readout,
            n_tokens=n_tokens or self.strategy.n_tokens,
            constants=given,
        )
        if tracks:
            aggregator.fit(self.rows(path, found) for path, found in sorted(tracks.items()))
        return aggregator

    def describe(self, aggregator: TrackAggregator) -> dict:
        """Everything that the embeddings depend on: the metadata of their file."""
        encoder, key = self.encoder, self.collection.key
        fitted = self.aggregator_row.whitening and self.learned is None
        strategy = dataclasses.replace(self.strategy, n_tokens=aggregator.n_tokens)
        return {
            "tune": __version__,
            "strategy": strategy.as_json(),
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "encoder_untrained": encoder.untrained,
            "encoder_licence": encoder.licence,
            "layers": self.collection.layers,
            "precision": encoder.precision,
            "sample_rate": encoder.sample_rate,
            "resampler": key["resampler"],
            "tokens": key["tokens"],
            "collection": str(self.collection.folder.relative_to(self.collection.root)),
            "aggregator_fingerprint": None if self.model is None else fingerprint(self.model),
            "from_run": self.learned.name if self.learned else None,
            "whitening": "fitted on these tracks, without labels" if fitted else None,
        }


def embedder_like(meta: Mapping, constants: Mapping, **settings) -> Embedder:
    """Load the Embedder that made a file of embeddings, to embed other tracks in the same way.

    Parameters
    ----------
    meta, constants : of `tune.embeddings.file_formats.Embeddings`
    settings : device, store, ...: see `Embedder`

    Raises
    ------
    ValueError
        When the encoder or the aggregator has other weights here than it had there.
    """
    learned = None
    if meta["from_run"]:
        learned = Learned(
            dict(constants), meta["encoder_fingerprint"], meta["from_run"], 0, meta["precision"]
        )
    loaded = Embedder(Strategy.from_json(meta["strategy"]), learned, **settings)
    here = None if loaded.model is None else fingerprint(loaded.model)
    for what, old, new in (
        ("encoder", meta["encoder_fingerprint"], loaded.encoder.fingerprint),
        ("aggregator", meta["aggregator_fingerprint"], here),
    ):
        if old != new:
            raise ValueError(
                f"the {what} has other weights than when these embeddings were made "
                f"({old[:8]}, here {new[:8]}): run embed.py again"
            )
    return loaded


def fingerprint(model) -> str:
    """SHA-256 over an aggregator's weights and read-out."""
    digest = hashlib.sha256(json.dumps(model.config.readout).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed(
    music: str | Path | tuple | Sequence[str | Path | tuple],
    *,
    seg: float | str | Sequence[float | str] = 10,
    agg: str = "mean",
    encoder: str | None = None,
    layer: int | str = "last",
    hop: float | None = None,
    min_tail: float = MIN_TAIL_S,
    min_seg: float | None = None,
    max_seg: float | None = None,
    use_seconds: float | None = None,
    pick: str | None = None,
    frame_rate: float | None = None,
    aggregator_checkpoint: str | Path | None = None,
    readout: str | None = None,
    n_tokens: int | None = None,
    from_run: str | Path | None = None,
    run_seed: int | None = None,
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    channels: str = "mix",
    device: str | None = None,
    store: str | Path | None = None,
) -> np.ndarray:
    """Embed one piece of music, or several.

    Parameters
    ----------
    music : a path, samples as a tuple (array, rate), or a list of either; an array is (n,) or
        (n, channels), of floats in [-1, 1]
    seg : segment length in seconds, "full" or "structure"
    agg : "mean", "max", "stats", ...: see docs/aggregators.md; "whitened" is fitted
        on the tracks given, "transformer:DIR" names its checkpoint, "FILE.py:NAME" is your own
    encoder : "muq" (the default), "muq-nano", "mel", a folder, a hub id or FILE.py:NAME; loaded
        once and kept
    revision, trust_remote_code : of an encoder from the hub; MERT needs code of its own
    layer : "last" or a number
    hop, min_tail, min_seg, max_seg : seconds, as embed.py's flags
    use_seconds, pick : join segments of so many seconds of each track only, and which: see
        `tune.segments.pick`
    frame_rate : join this many pooled frames a second instead of segments (a Transformer: as it
        was trained)
    aggregator_checkpoint, readout : of the Transformer
    n_tokens : for "concat"; None is the longest track's number
    from_run : a run of train_probe.py whose strategy (and attention, mix or whitening) is taken
        instead of the settings above, of its first seed or of `run_seed`
    precision : "auto", "no", "fp16" or "bf16"
    channels : "mix", "first", "left", "right" or "mid", of a file's channels
    device : None is a GPU if there is one
    store : folder where encoded segments are kept; None is the store of all scripts

    Returns
    -------
    ndarray of float32, (D,) for one piece or (n, D) for a list, in its order

    Raises
    ------
    ValueError
        When a file can't be used, with its path and the reason, or settings don't fit.

    Examples
    --------
    >>> import tempfile
    >>> noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    >>> embed((noise, 24_000), seg=1, encoder="mel", store=tempfile.mkdtemp()).shape
    (256,)
    """
    single = isinstance(music, str | Path) or _is_samples(music)
    sources = [music] if single else list(music)
    if not sources:
        raise ValueError("embed() needs a path or a sequence of paths, got an empty sequence")
    agg, checkpoint = split_name(agg, aggregator_checkpoint and str(aggregator_checkpoint))
    if frame_rate is None and checkpoint:
        tokens, rate = transformer.tokens_of(checkpoint, 1.0)
        frame_rate = rate if tokens == "frame" else None
    picked = read_pick(use_seconds, pick)
    segs = [seg] if isinstance(seg, int | float | str) else seg
    strategy = Strategy(
        encoder=encoder or "muq",
        layer=str(layer),
        seg=tuple(f"{s:g}" if isinstance(s, int | float) else s for s in segs),
        hop=hop,
        min_tail=min_tail,
        min_seg=min_seg,
        max_seg=max_seg,
        agg=agg,
        frame_rate=frame_rate,
        aggregator_checkpoint=checkpoint,
        readout=readout,
        n_tokens=n_tokens,
        precision=precision,
        revision=revision,
        channels=channels,
        use_seconds=picked and picked.seconds,
        pick=picked and picked.how,
    ).identified()
    run = None if from_run is None else str(from_run)
    settings = (trust_remote_code, device, str(store or default_root()))
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        paths = [_as_path(source, folder, i) for i, source in enumerate(sources)]
        loaded = _load_kept(strategy, run, run_seed, encoder, settings, len(set(paths)))
        tracks, _, _ = loaded.encode(paths, strict=True)
        aggregator = loaded.aggregator(tracks)
        vectors = {path: aggregator(loaded.rows(path, found))[0] for path, found in tracks.items()}
    out = np.stack([vectors[path] for path in paths])  # (n, D)
    return out[0] if single else out


def _is_samples(source) -> bool:
    """Whether a source is (array, rate) instead of paths."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray)


def _as_path(source, folder: str, i: int) -> str:
    """A source as a path; samples are written to a float wav, the same bytes each time."""
    if not _is_samples(source):
        return str(source)
    from scipy.io import wavfile  # slow to import, and seldom needed

    samples, rate = np.asarray(source[0]), source[1]
    if samples.ndim not in (1, 2) or samples.dtype.kind != "f":
        raise ValueError(
            f"samples {i}: an array of floats in [-1, 1] of shape (n,) or (n, channels) is "
            f"expected, got {samples.dtype} of shape {samples.shape}"
        )
    path = f"{folder}/samples {i}.wav"
    wavfile.write(path, int(rate), np.ascontiguousarray(samples, np.float32))
    return path


def _load_kept(strategy, run, run_seed, encoder, settings, n_tracks) -> Embedder:
    """The embedder of a call, loaded or kept from an earlier one; refuses what doesn't fit."""
    plain = Strategy(precision=strategy.precision, revision=strategy.revision)
    if run and dataclasses.replace(strategy, encoder="muq") != plain:
        raise ValueError("from_run brings the whole strategy: leave the other settings out")
    if find_row(strategy.agg).whitening and not run and n_tracks < 2:
        raise ValueError("whitening is fitted on the tracks given: give several, or from_run")
    own = encoder is not None and is_plugin(encoder)
    code = source_digest(load_module(encoder)) if own else None  # changed meanwhile: loaded anew
    return _loaded(strategy, run, run_seed, encoder, code, *settings)


@lru_cache(maxsize=2)
def _loaded(strategy, run, run_seed, encoder, code, trust_remote_code, device, store) -> Embedder:
    """An embedder, kept for the next call with the same settings."""
    learned = None
    if run is not None:
        strategy, learned = from_run(
            run, run_seed, encoder=encoder, precision=strategy.precision, revision=strategy.revision
        )
    return Embedder(
        strategy, learned, device=device, store=store, trust_remote_code=trust_remote_code
    )
