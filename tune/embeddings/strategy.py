"""A strategy: everything that a file's embedding depends on, as one record.

It comes from the command line or a call, from a run of train_probe.py (with what that run learned),
or from the metadata of a file of embeddings, to embed other tracks in the same way.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tune.aggregators.flag_rules import check_flags
from tune.aggregators.registry import find_row
from tune.segments.pick import read_pick
from tune.segments.rules import MIN_TAIL_S, Rule, parse_rules
from tune.system.files import hide_home

# Written only if they differ from this, so that the metadata of other files doesn't change.
OPTIONAL = {"agg_sha256": None, "channels": "mix", "use_seconds": None, "pick": None}


@dataclass(frozen=True)
class Strategy:
    """How a file is embedded; the fields are embed.py's flags.

    Attributes
    ----------
    encoder, layer : as train_probe.py takes them; "mix" only from a run that learned its weights
    seg : segment rules' names, several for hierarchical
    hop, min_tail, min_seg, max_seg : float or None, seconds
    agg : an aggregator (`tune.aggregators.registry.find_row`)
    frame_rate : pooled frames a second to join instead of segments
    aggregator_checkpoint, readout : of the Transformer
    n_tokens : how many tokens concat lays end to end; None is the longest track's number
    precision : "auto", "no", "fp16" or "bf16"
    revision : branch, tag or commit of an encoder from the hub
    channels : what becomes of a file's channels: see `tune.audio.read_audio`
    agg_sha256 : of the source file of an aggregator of one's own
    use_seconds, pick : how many seconds of each track, and which (`tune.segments.pick`)
    """

    encoder: str = "muq"
    layer: str = "last"
    seg: tuple[str, ...] = ("10",)
    hop: float | None = None
    min_tail: float = MIN_TAIL_S
    min_seg: float | None = None
    max_seg: float | None = None
    agg: str = "mean"
    frame_rate: float | None = None
    aggregator_checkpoint: str | None = None
    readout: str | None = None
    n_tokens: int | None = None
    precision: str = "auto"
    revision: str | None = None
    channels: str = "mix"
    agg_sha256: str | None = None
    use_seconds: float | None = None
    pick: str | None = None

    def identified(self) -> "Strategy":
        """The same, with the full path and the source's digest of an aggregator of one's own.

        Raises
        ------
        ValueError
            When the source isn't the one that the strategy was made with.
        """
        own = find_row(self.agg).own
        if own is None:
            return self
        if self.agg_sha256 not in (None, own.sha256):
            raise ValueError(
                f"the aggregator {own.spec} has changed since ({self.agg_sha256[:8]}, now "
                f"{own.sha256[:8]}): restore its file, or make a new run and new embeddings"
            )
        return dataclasses.replace(self, agg=own.spec, agg_sha256=own.sha256)

    def rules(self) -> list[Rule]:
        """The segment rules; among several, each takes the settings that it knows."""
        limits = (self.min_seg, self.max_seg)
        pick = read_pick(self.use_seconds, self.pick)
        return parse_rules(self.seg, self.hop, self.min_tail, *limits, pick=pick)

    def check(self, learned: Mapping | None = None) -> None:
        """Raise ValueError when the settings don't belong together.

        Parameters
        ----------
        learned : what a run learned (see `from_run`), or None
        """
        row = find_row(self.agg)
        if row.needs_run and learned is None:
            raise ValueError(
                f"--agg {self.agg} is learned with a probe: train one with train_probe.py and give "
                f"its run, --from_run runs/NAME (whitened needs no labels)"
            )
        if self.layer in ("all", "mix", "reduce") and learned is None:
            raise ValueError(
                f"an embedding is made of one layer, --layer last or K, not {self.layer}: which "
                f"one, or in which mix, a probe says (--from_run runs/NAME)"
            )
        check_flags(
            self.agg,
            self.seg,
            self.layer,
            aggregator_checkpoint=self.aggregator_checkpoint,
            readout=self.readout,
            n_tokens=self.n_tokens,
        )
        self.rules()

    def as_json(self) -> dict:
        """The record for a file's metadata; paths below the user's home begin with ~."""
        return {
            k: hide_home(v) if isinstance(v, str) else v
            for k, v in dataclasses.asdict(self).items()
            if not (k in OPTIONAL and v == OPTIONAL[k])
        } | {"seg": list(self.seg)}

    @classmethod
    def from_json(cls, record: Mapping) -> "Strategy":
        """The strategy that a file's metadata names."""
        known = {field.name for field in dataclasses.fields(cls)} - {*OPTIONAL}
        if record.keys() - {*OPTIONAL} != known:
            raise ValueError(
                "the file's metadata was written by another version of this project: "
                f"{sorted(record.keys() ^ known)[0]} differs; run embed.py again"
            )
        paths = ("encoder", "aggregator_checkpoint", "agg")
        opened = {
            k: str(Path(record[k]).expanduser())
            for k in paths
            if (record[k] or "").startswith("~/")
        }
        return cls(**{**record, **opened, "seg": tuple(record["seg"])})


@dataclass(frozen=True)
class Learned:
    """The tensors that a run learned before its probe.

    Attributes
    ----------
    constants : tensors by name: standardise.*, joiner.*, whitening.*; empty where nothing learns
    encoder_fingerprint : of the encoder that the run used
    name : the run's name and the seed whose probe it is
    n_in : size of the run's track embeddings
    precision : of the encoder in that run
    """

    constants: dict[str, torch.Tensor]
    encoder_fingerprint: str
    name: str
    n_in: int
    precision: str


def from_run(
    run: str | Path,
    seed: int | None = None,
    *,
    encoder: str | None = None,
    precision: str = "auto",
    revision: str | None = None,
) -> tuple[Strategy, Learned]:
    """Read a run's strategy, and the tensors that it learned before its probe.

    Parameters
    ----------
    run : a folder that train_probe.py wrote
    seed : whose probe's; None is the first
    encoder : where the encoder's weights are, when its name alone doesn't say
    precision : the encoder's here
    revision : of the encoder; None is the run's

    Raises
    ------
    ValueError
        When it is no run, lacks its learned tensors, or its folds joined tracks differently.
    """
    run = Path(run)
    try:
        result, config = (
            json.loads((run / f"{stem}.json").read_text(encoding="utf-8"))
            for stem in ("result", "config")
        )
        saved = load_file(run / "probe.safetensors")
        seed = result["seeds"][0] if seed is None else seed
        strategy = dataclasses.replace(
            _strategy_of(result, config),
            encoder=encoder or config["encoder"],
            precision=precision,
            revision=revision or config.get("encoder_revision"),
            channels=config.get("channels", "mix"),
        )
        tuned, fingerprint = result["aggregator"]["tuned"], config["encoder_fingerprint"]
    except FileNotFoundError as error:
        raise ValueError(f"{run} is no run of train_probe.py: no {error.filename}") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the run {run} can't be read ({error!r}): run it again") from error
    if seed not in result["seeds"]:
        raise ValueError(f"{run} has the seeds {result['seeds']}, not {seed}")
    if result.get("fusion") == "late":
        raise ValueError(
            f"{run} is of --fusion late, which averages a probe's outputs and has no embedding of "
            f"a track: name the strategy by flags, such as --seg {result['seg']} --agg mean"
        )
    if tuned:
        raise ValueError(
            f"{run} fine-tuned its Transformer with the probe, which isn't saved as an "
            f"aggregator: use one of pretrain_aggregator.py (--aggregator_checkpoint)"
        )
    strategy = strategy.identified()
    constants = _constants_of(saved, f"seed{seed}.")
    if find_row(strategy.agg).whitening and "whitening.matrix" not in constants:
        instead = f"give --agg {strategy.agg} without --from_run, which fits it on the tracks given"
        if find_row(strategy.agg).needs_run:
            instead = "train it with --layer last or K"
        raise ValueError(
            f"{run} doesn't hold its whitening (older runs and those of --layer mix don't): "
            f"{instead}"
        )
    if result.get("folds"):
        _check_folds_alike(run, result, learned=bool(constants))
    n_in = saved["standardise.mean"].shape[-1]
    folds = result.get("folds")
    fold = f", fold 1 of {folds['n']}" if folds else ""
    return strategy, Learned(
        constants, fingerprint, f"{run.name}{fold}, seed {seed}", n_in, result["precision"]
    )


def _check_folds_alike(run: Path, result: Mapping, learned: bool) -> None:
    """Raise ValueError when the folds of a cross-validation joined tracks in different ways."""
    layers = list(dict.fromkeys(fold["layer"] for fold in result["folds"]["each"]))
    if learned:
        why = f"each of which learned its own {result['agg']}"
    elif len(layers) > 1:
        why = f"which chose different layers ({', '.join(map(str, layers))})"
    else:
        return
    raise ValueError(
        f"{run} was cross-validated in {result['folds']['n']} folds, {why}: there is no one "
        f"embedding to make; train on a single split (train_probe.py --folds 1) and give that run"
    )


def _strategy_of(result: Mapping, config: Mapping) -> Strategy:
    """A run's strategy, but for its encoder."""
    return Strategy(
        layer=str(result["layer"]),
        seg=tuple(result["seg"].split("+")),
        hop=result["hop"],
        min_tail=MIN_TAIL_S if result["min_tail"] is None else result["min_tail"],
        min_seg=result["min_seg"],
        max_seg=result["max_seg"],
        agg=_agg_of(result, config),
        frame_rate=config["frame_rate"] if config["tokens"] == "frame" else None,
        aggregator_checkpoint=_opened(config["aggregator_checkpoint"]),
        readout=result["aggregator"]["readout"],
        agg_sha256=result["aggregator"].get("plugin", {}).get("sha256"),
        use_seconds=result.get("use_seconds"),
        pick=result.get("pick"),
    )


def _constants_of(saved: Mapping, prefix: str) -> dict:
    """What was learned in front of a seed's probe, with what its input is standardised by."""
    kept = (f"{prefix}joiner.", "whitening.")
    constants = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(kept)}
    if constants:
        constants |= {k: v for k, v in saved.items() if k.startswith("standardise.")}
    return constants


def _agg_of(result: Mapping, config: Mapping) -> str:
    """A run's aggregator; the file of a custom one."""
    return _opened(config["agg"]) if "plugin" in result["aggregator"] else result["agg"]


def _opened(path: str | None) -> str | None:
    """A path whose home was written ~."""
    return None if path is None else str(Path(path).expanduser())
