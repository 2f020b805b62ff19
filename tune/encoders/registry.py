"""The table of encoders, and loading one by its name, a folder, a hub id or FILE.py:NAME.

    python -m tune.encoders list
    python -m tune.encoders check muq-nano

A folder or hub model is told by its config.json: MuQ, MuQ-MuLan, or a transformers model type.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tune.encoders import hub, muq, muq_mulan, musicnn, plugin
from tune.encoders.base import SAMPLE_RATE, Encoder, EncoderError
from tune.encoders.muq import MEMORY_BUDGET, load_nano, load_nano_untrained, load_random
from tune.system.plugins import is_plugin

MEL_VERSION = 1  # raised when a change here changes the baseline's numbers


class MelEncoder(Encoder):
    """Log-mel baseline: mean and deviation of each of MuQ's 128 mel bands (in dB) over time.

    Any learned encoder must beat it. It has one layer, number 0.
    """

    def __init__(self, *, device):
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

        key = f"mel {MEL_VERSION} 24000 2048 240 128 db"
        super().__init__(
            "mel",
            frame_rate=100.0,
            n_layers=0,
            embedding_dim=256,
            precision="no",
            device=device,
            fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        )
        self.mel = MelSpectrogram(SAMPLE_RATE, n_fft=2048, hop_length=240, n_mels=128).to(device)
        self.decibel = AmplitudeToDB().to(device)

    def states(self, audio, layers, dtype):
        """Yield the log-mel spectrogram (B, T, 128) at 100 Hz, in dB."""
        if set(layers) != {0}:
            raise ValueError(f"the mel encoder has layer 0 only, got {layers}")
        yield self.decibel(self.mel(audio.float()))[..., :-1].transpose(1, 2)

    def pool(self, states):
        """Mean and population deviation of each band, (..., 256)."""
        return torch.cat([states.mean(-2), states.std(-2, correction=0)], -1)


def _load_mel(name, *, precision, device, **kwargs):
    """The log-mel baseline; always float32."""
    return MelEncoder(device=device)


def _refused(reason: str) -> Callable[..., Encoder]:
    """Loader of a row that can't be had, which says why."""

    def load(name, **kwargs):
        raise EncoderError(f"{name}: {reason}")

    return load


@dataclass(frozen=True)
class EncoderRow:
    """A row of the table of encoders.

    Attributes
    ----------
    load : its loader; None for a model of the hub
    about : a line about it
    repo : where it is on the hub
    revision : branch, tag or commit that is taken when none is asked for; None: the main branch
    commit : beginning of the commit that `revision` has to be; another one is refused
    licence, size : of the weights, as shown
    code : it executes Python code of its own
    pickled : the hub has a pickle only, which has to be converted
    package, install : the Python package that has to be installed, and the command for it
    min_seconds, max_seconds : the lengths that it was made for, where the model doesn't state them
    """

    load: Callable[..., Encoder] | None
    about: str
    repo: str | None = None
    revision: str | None = None
    commit: str = ""
    licence: str | None = None
    size: str = ""
    code: bool = False
    pickled: bool = False
    package: str = ""
    install: str = ""
    min_seconds: float | None = None
    max_seconds: float | None = None


NC = "CC-BY-NC 4.0"
_MUSICNN = dict(licence="ISC", size="29 MB", package="musicnn", install=musicnn.INSTALL)
ENCODERS = {
    "muq": EncoderRow(None, "MuQ, 300 M parameters", repo=muq.HUB_ID, licence=NC, size="1.33 GB"),
    "muq-mulan": EncoderRow(
        None,
        "MuQ-MuLan's audio tower; the last layer is the space it shares with text",
        repo=muq_mulan.HUB_ID,
        licence=NC,
        size="about 2.8 GB",
        pickled=True,
    ),
    "mert-95m": EncoderRow(
        None,
        "MERT, 95 M parameters",
        repo="m-a-p/MERT-v1-95M",
        revision="refs/pr/3",  # the hub's converter made safetensors there; main has a pickle only
        commit="72e21e1",
        licence=NC,
        size="0.38 GB",
        code=True,
    ),
    "mert-330m": EncoderRow(
        None,
        "MERT, 330 M parameters",
        repo="m-a-p/MERT-v1-330M",
        licence=NC,
        size="about 1.3 GB",
        code=True,
        pickled=True,
    ),
    "mert-v2-30s": EncoderRow(
        None,
        "MERT-v2, 632 M parameters, trained on 30 s: layers 1 to 24, 25 Hz",
        repo="m-a-p/MERT-v2-30s",
        revision="12130d22fd947c24b0299c9368900fb06a608512",
        commit="12130d22fd947c24b0299c9368900fb06a608512",
        licence=NC,
        size="about 2.5 GB",
        code=True,
    ),
    "mert-v2-fullsong": EncoderRow(
        None,
        "MERT-v2 for songs of 30 to 360 s at once: layers 1 to 24, 25 Hz",
        repo="m-a-p/MERT-v2-FullSong",
        licence=NC,
        size="about 2.5 GB",
        code=True,
        min_seconds=29.5,  # clips of 30 s are often some hundredths shorter
        max_seconds=360.0,
    ),
    "musicfm": EncoderRow(
        _refused(
            "MusicFM has no package, its code would have to be copied into this one, and its "
            "weights are a pickle (.pt), which is never loaded: use muq"
        ),
        "MusicFM: refused (no package, pickled weights)",
    ),
    "musicnn": EncoderRow(
        musicnn.load_musicnn,
        "musicnn, 0.8 M parameters, trained on tags of the Million Song Dataset",
        **_MUSICNN,
    ),
    "musicnn-mtt": EncoderRow(musicnn.load_musicnn, "musicnn trained on MagnaTagATune", **_MUSICNN),
    "muq-nano": EncoderRow(
        load_nano,
        "MuQ in small, 2.4 M parameters, pretrained here on composed and game music",
        licence="MIT, see its card",
    ),
    "muq-nano-untrained": EncoderRow(
        load_nano_untrained, "muq-nano with random weights: the control"
    ),
    "mel": EncoderRow(_load_mel, "log-mel mean and deviation per band: the baseline to beat"),
}


def load_encoder(
    name: str,
    *,
    precision: str = "no",
    device: str | torch.device = "cpu",
    weights: str = "pretrained",
    memory_budget: int = MEMORY_BUDGET,
    compile: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Encoder:
    """Load a frozen encoder.

    Parameters
    ----------
    name : str
        A name of `ENCODERS`, a folder with config.json and model.safetensors (and, for a
        transformers model, preprocessor_config.json), a hub id, or an encoder of one's own:
        FILE.py:NAME, PACKAGE.MODULE:NAME (`tune.encoders.plugin`), or a name that an installed
        package gives in the entry points `tune.encoders`.
    precision : "no", "fp16" or "bf16"
    device : what it runs on
    weights : "pretrained", or "random" for MuQ's size with weights from a fixed seed: no download,
        for measuring what it costs (which does not depend on the weights)
    memory_budget : bytes that weights and activations should stay within; sets the size of the
        front end's chunks, which changes no result
    compile : pass the parts through `torch.compile` (MuQ)
    trust_remote_code : let a model that needs Python code of its own (MERT) execute it
    revision : branch, tag or commit of a hub model; by default its main branch

    Raises
    ------
    EncoderError
        When it is unknown, can't be downloaded, is incomplete or holds other weights than its
        configuration says. Weights are read from safetensors only, never from a pickle.
    """
    kwargs = {
        "precision": precision,
        "device": device,
        "memory_budget": memory_budget,
        "compile": compile,
    }
    is_folder = name not in ENCODERS and Path(name).is_dir()
    spec = _plugin_spec(name, is_folder)
    if spec is not None:
        if revision is not None:
            raise EncoderError(f"--revision belongs to a model on the hub, {name!r} is none")
        return plugin.load_plugin(spec, None if spec == name else name, **kwargs)
    if weights == "random" and name not in ("muq-nano", "muq-nano-untrained", "mel"):
        if name != "muq":
            raise EncoderError(
                f"random weights are made for muq only, not for {name!r}: take --weights pretrained"
            )
        return load_random(name, **kwargs)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    row = ENCODERS.get(name) or EncoderRow(None, "", repo=name if is_hub_id else None)
    if revision is not None and (is_folder or row.repo is None):
        raise EncoderError(f"--revision belongs to a model on the hub, {name!r} is none")
    code = {"trust_remote_code": trust_remote_code}
    if row.load is not None:
        encoder = row.load(name, **kwargs)
        encoder.licence = row.licence
        return encoder
    if is_folder:
        return _load_folder(Path(name), Path(name).resolve().name, **code, **kwargs)
    if row.repo is not None:
        return _load_hub(row, name, revision=revision, **code, **kwargs)
    raise EncoderError(
        f"unknown encoder {name!r}: it is none of {', '.join(ENCODERS)}, no folder and no hub id"
    )


def _plugin_spec(name: str, is_folder: bool) -> str | None:
    """FILE.py:NAME or PACKAGE.MODULE:NAME, as given or as an installed package says; else None."""
    if is_plugin(name):
        return name
    if name in ENCODERS or is_folder or "/" in name:
        return None
    return plugin.installed().get(name)


def _load_hub(row, name, *, revision, trust_remote_code, **kwargs) -> Encoder:
    """Load a model of the hub: its configuration first, so that nothing is fetched in vain."""
    from tune.encoders import convert
    from tune.encoders import transformers as ours

    repo, asked = row.repo, revision or row.revision
    folder = convert.converted(repo, revision)
    if folder is None:
        folder = hub.fetch(repo, asked, hub.CONFIGS)
        _check_commit(row, name, revision, hub.commit_of(folder))
    config = hub.read_json(folder / "config.json")
    patterns = hub.CONFIGS + hub.WEIGHTS
    if not (muq.is_muq(config) or muq_mulan.is_mulan(config)):
        ours.check_code(config, name, trust_remote_code)
        patterns += ["*.py"] if ours.needs_code(config) else []
    commit = convert.commit_of(folder)
    if commit is None:
        if row.pickled and revision is None:
            raise EncoderError(
                f"{name}: {repo} holds a pickle only, which can execute code and is never loaded. "
                f"Convert it once, if you trust its authors: python -m tune.encoders convert {name}"
            )
        licence = row.licence or hub.licence_of(folder)
        about = ", ".join(filter(None, (row.size, licence and f"weights {licence}")))
        folder = hub.fetch(repo, asked, patterns, about)
        commit = hub.commit_of(folder)
    if ours.needs_code(config):
        kwargs |= {"min_seconds": row.min_seconds, "max_seconds": row.max_seconds}
    encoder = _load_folder(folder, name, trust_remote_code=trust_remote_code, **kwargs)
    encoder.revision, encoder.licence = commit, row.licence or encoder.licence
    return encoder


def _check_commit(row, name, revision, commit) -> None:
    """Raise when a row's own revision is no longer the commit that it was written for."""
    if revision is None and commit is not None and not commit.startswith(row.commit):
        raise EncoderError(
            f"{name}: {row.revision} of {row.repo} is now commit {commit}, not {row.commit}, which "
            f"this row was written for: look at it, and pass --revision={commit}"
        )


def _load_folder(folder, name, *, trust_remote_code, **kwargs) -> Encoder:
    """Load a model from a folder, by the kind that its config.json says."""
    config = hub.read_json(folder / "config.json")
    for module, belongs in ((muq, muq.is_muq), (muq_mulan, muq_mulan.is_mulan)):
        if belongs(config):
            return _licensed(module.load_folder(folder, name, **kwargs), folder)
    if "model_type" not in config:
        raise EncoderError(
            f"{folder / 'config.json'} is neither MuQ's (no encoder_dim), nor MuQ-MuLan's, nor a "
            f"transformers model's (no model_type)"
        )
    from tune.encoders import transformers as ours

    found = ours.load_folder(folder, name, trust_remote_code=trust_remote_code, **kwargs)
    return _licensed(found, folder)


def _licensed(encoder: Encoder, folder: Path) -> Encoder:
    """An encoder that knows the licence that its folder's card names."""
    encoder.licence = hub.licence_of(folder)
    return encoder
