"""Pretraining of muq-nano: its model, its music as crops with hidden spans, and what it leaves.

A crop is a piece of a track's spectrogram. Of its spans of 0.4 s a fixed share, drawn anew at every
step, is replaced by the spectrogram of white noise, as MuQ replaces samples by noise of deviation
0.1; the model predicts the tokens of the frames there. A step's crops depend on (seed, step,
process) alone, so that a run that goes on draws what it would have drawn.
"""

import hashlib
import json
import logging
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from tune import corpus as music
from tune import mel_corpus, results
from tune.composed import held_out
from tune.demo import DEMO_TASKS
from tune.mel_corpus import STRIDE, MelCorpus
from tune.mel_tokens import CODES, STREAMS, Quantiser
from tune.muq import nano_config, needed_weights
from tune.store import Store
from tune.tasks import load_task

SPAN = 10  # frames at 25 Hz: 0.4 s, as MuQ's
VALIDATE_EVERY = 50  # one track in so many
VALIDATION_S, VALIDATION_CROPS = 10, 48
FIT_TRACKS = 1000  # that the quantiser is fitted to
STATE = "state"
OURS = {"config.json", "model.safetensors", "history.csv", "pretrain.json", STATE,
        f"{STATE}.tmp", f"{STATE}.before"}  # fmt: skip
# Flags that change neither the music nor the training.
INDIFFERENT = {"out", "overwrite", "workers", "corpus", "cache_dir", "data_dir"}

log = logging.getLogger(__name__)


@dataclass
class Music:
    """A corpus, which of its tracks are learnt from and validated on, and facts about it."""

    tracks: MelCorpus
    train: list[int]
    val: list[int]
    folder: Path
    facts: dict = field(default_factory=dict)


def gather(folder: Path, seed: int, songs: int, tasks: Sequence[str], *, data_dir: Path,
           cache_dir: Path, workers: int = 1, progress: bool = True) -> Music:  # fmt: skip
    """Compose the songs, read the tasks' train splits, refuse what is held out.

    Parameters
    ----------
    folder : of the spectrograms
    seed, songs : of the composed corpus
    tasks : as in train_probe.py; of their splits only train is read
    """
    demos = [load_task(n, data_dir, cache_dir=cache_dir, progress=progress) for n in DEMO_TASKS]
    refused = held_out(demos)
    files = mel_corpus.build_composed(folder, seed, songs, refused, workers)
    composed = len(files)
    facts: dict = {"composed": songs, "corpus_seed": seed, "tasks": list(tasks), "refused": [],
                   "skipped": []}  # fmt: skip
    if tasks:
        named = [load_task(n, data_dir, cache_dir=cache_dir, progress=progress) for n in tasks]
        others = music.local_tasks(data_dir, cache_dir, tasks)
        found = music.gather(named, None, others, Store(folder / "hashes"))
        more, skipped = mel_corpus.build_tracks(folder, found.train)
        files += more
        facts |= {"refused": found.refused, "skipped": found.skipped + skipped}
    tracks = MelCorpus(files)
    val = list(range(0, songs, VALIDATE_EVERY))
    train = sorted(set(range(len(tracks))) - set(val))
    assert len(tracks) == songs + len(files) - composed
    facts |= {
        "tracks": len(train), "val_tracks": len(val), "held_out_checked": len(refused),
        "hours": sum(tracks.lengths[i] for i in train) / 25 / 3600,
    }  # fmt: skip
    return Music(tracks, train, val, folder, facts)


def tokenise(corpus: Music, seed: int, progress: bool = True) -> list[np.ndarray]:
    """Tokens (T, 8) of every track, by a quantiser fitted to the training tracks; kept on disk."""
    tracks = corpus.tracks
    text = json.dumps([seed, corpus.train, tracks.known_by, FIT_TRACKS, STREAMS, CODES])
    file = corpus.folder / f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        chosen = np.random.default_rng(seed).permutation(corpus.train)[:FIT_TRACKS]
        chosen = tqdm(chosen, desc="fitting codebooks", unit="track", delay=5, disable=not progress)
        quantiser = Quantiser.fit(((tracks.mel(i), tracks.pitch(i)) for i in chosen), seed)
        every = tqdm(range(len(tracks)), desc="tokens", unit="track", delay=5, disable=not progress)
        found = [quantiser(tracks.mel(i), tracks.pitch(i)) for i in every]
        part = file.with_suffix(".partial.npy")
        np.save(part, np.concatenate(found))
        part.replace(file)
    ends = np.cumsum(tracks.lengths)
    tokens = np.split(np.load(file), ends[:-1])
    of_train = np.concatenate([tokens[i] for i in corpus.train])
    shares = np.stack([np.bincount(of_train[:, s], minlength=CODES) for s in range(len(STREAMS))])
    shares = shares / len(of_train)  # (S, CODES)
    of_val = np.concatenate([tokens[i] for i in corpus.val])
    likely = np.stack([shares[s, of_val[:, s]] for s in range(len(STREAMS))])
    corpus.facts["guess_loss"] = float(-np.log(np.maximum(likely, 1e-6)).mean())
    corpus.facts["guess_accuracy"] = float((of_val == shares.argmax(1)).mean())
    return tokens


class Crops(Dataset):
    """A step's crops: dict of mel (B, 4 T, 128) in dB, tokens (B, T, 8) and hidden frames (B, K).

    Parameters
    ----------
    seconds : lengths of the crops; steps take turns
    batch_seconds : audio of one step and process
    part, parts : this process and how many there are
    """

    def __init__(self, corpus: Music, tokens: Sequence[np.ndarray], seconds: Sequence[float],
                 batch_seconds: float, mask_prob: float, seed: int, *, part=0, parts=1):  # fmt: skip
        self.corpus, self.tokens, self.seconds = corpus, tokens, list(seconds)
        self.batch_seconds, self.mask_prob = batch_seconds, mask_prob
        self.seed, self.part, self.parts = seed, part, parts
        noise = np.random.default_rng(seed).standard_normal(61 * 24_000) * 0.1
        self.noise = mel_corpus.spectrograms(noise)[0]  # (frames, 128)
        lengths = np.array(corpus.tracks.lengths)[corpus.train]
        for s in self.seconds:
            if s * 25 < SPAN or (lengths < s * 25).all():
                raise ValueError(f"--seconds {s:g}: crops must be at least 0.4 s, and no longer "
                                 f"than the longest track ({lengths.max() / 25:.1f} s)")  # fmt: skip
        self._lengths = lengths

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        seconds = self.seconds[step % len(self.seconds)]
        rng = np.random.default_rng((self.seed, 1, step, self.part))
        frames = int(seconds * 25)
        long_enough = np.flatnonzero(self._lengths >= frames)
        tracks = rng.choice(long_enough, max(1, int(self.batch_seconds // seconds)))
        return self._batch([self.corpus.train[i] for i in tracks], frames, rng)

    def validation(self) -> Iterator[dict[str, torch.Tensor]]:
        """The same crops of the validation songs every time, in batches."""
        rng = np.random.default_rng((self.seed, 2))
        frames = min(VALIDATION_S * 25, min(self.corpus.tracks.lengths[i] for i in self.corpus.val))
        tracks = [self.corpus.val[i % len(self.corpus.val)] for i in range(VALIDATION_CROPS)]
        for first in range(0, len(tracks), 8):
            yield self._batch(tracks[first : first + 8], frames, rng)

    def _batch(self, tracks: Sequence[int], frames: int, rng) -> dict[str, torch.Tensor]:
        """Cut a crop of every track and hide spans of it."""
        mels, tokens, hidden = [], [], []
        spans = frames // SPAN
        n_hidden = max(1, round(self.mask_prob * spans))
        for track in tracks:
            first = int(rng.integers(self.corpus.tracks.lengths[track] - frames + 1))
            mel = self.corpus.tracks.mel(track, first, first + frames).astype(np.float32)
            at = np.sort(rng.choice(spans, n_hidden, replace=False))[:, None] * SPAN
            at = (at + np.arange(SPAN)).ravel()  # (K,)
            covered = (at[:, None] * STRIDE + np.arange(STRIDE)).ravel()
            start = int(rng.integers(len(self.noise) - len(covered)))
            mel[covered] = self.noise[start : start + len(covered)]
            mels.append(mel)
            tokens.append(self.tokens[track][first : first + frames])
            hidden.append(at)
        return {"mel": torch.from_numpy(np.stack(mels)),
                "tokens": torch.from_numpy(np.stack(tokens)),
                "hidden": torch.from_numpy(np.stack(hidden))}  # fmt: skip


class MaskedMuQ(nn.Module):
    """MuQ's front end and conformer, and the logits of the tokens at hidden frames."""

    def __init__(self, config: dict):
        super().__init__()
        from muq.muq import MuQ, MuQConfig

        muq = MuQ(MuQConfig(**config)).model
        self.mean, self.std = (config["stat"][f"melspec_2048_{k}"] for k in ("mean", "std"))
        self.conv, self.conformer = muq.conv, muq.conformer
        self.conformer.pos_conv_embed.requires_grad_(False)  # not used with rotary positions
        self.head = nn.Linear(config["encoder_dim"], len(STREAMS) * CODES)

    def forward(self, mel: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Log-mel (B, 4 T, 128) in dB and hidden frames (B, K) to logits (B, K, 8 * 256)."""
        x = self.conv((mel.transpose(1, 2) - self.mean) / self.std)  # (B, T, D)
        positions = self.conformer.embed_positions(x)
        for layer in self.conformer.layers:
            x = layer(x, relative_position_embeddings=positions)
            x = x[0] if isinstance(x, tuple) else x  # a tuple before transformers 5
        x = self.conformer.layer_norm(x)
        return self.head(x.gather(1, hidden[..., None].expand(-1, -1, x.shape[-1])))


def build_model(seed: int) -> MaskedMuQ:
    """The model by the package's configuration, with weights from a seed and without dropout."""
    config = nano_config()
    config["rvq_ckpt_path"] = None
    w2v2 = config["w2v2_config"]
    w2v2 |= {k: 0.0 for k in w2v2 if k.endswith("dropout")}
    w2v2["_attn_implementation"] = "sdpa"
    python_random = random.getstate()  # MuQModel seeds Python's global generator
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm, inside muq's quantiser
        torch.manual_seed(seed)
        model = MaskedMuQ(config)
    random.setstate(python_random)
    return model


def count(model: MaskedMuQ) -> int:
    """Parameters of what is kept: without the head and what MuQ has but doesn't use."""
    return sum(v.numel() for k, v in model.named_parameters() if needed_weights(f"model.{k}")
               and not k.startswith("head."))  # fmt: skip


def begin(accelerator, out: Path, args: Mapping, overwrite: bool) -> dict:
    """Open --out: a new run, or the unfinished one that the same command began.

    Returns
    -------
    dict of step, history, wanted

    Raises
    ------
    ValueError
        When --out holds a finished model, a run of another command, or other files.
    """
    wanted = json.loads(json.dumps({k: v for k, v in args.items() if k not in INDIFFERENT},
                                   default=str))  # fmt: skip
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; a model needs a folder")
    foreign = sorted({p.name for p in out.iterdir()} - OURS) if out.is_dir() else []
    if foreign:
        raise ValueError(f"--out {out} holds other files ({foreign[0]}): choose another folder")
    accelerator.wait_for_everyone()
    state = out / STATE
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if overwrite and out.is_dir():
                shutil.rmtree(out)
            if (out / f"{STATE}.before").exists() and not state.exists():
                (out / f"{STATE}.before").rename(state)  # cut off between two renames
            shutil.rmtree(out / f"{STATE}.tmp", ignore_errors=True)
            out.mkdir(parents=True, exist_ok=True)
    if (out / "pretrain.json").exists():
        raise ValueError(f"{out} holds a finished model: give another --out, or --overwrite")
    if not (state / "progress.json").is_file():
        return {"step": 0, "history": [], "wanted": wanted}
    run = json.loads((state / "progress.json").read_text(encoding="utf-8"))
    differing = [f"--{k} {run['wanted'].get(k)} (now {wanted.get(k)})"
                 for k in sorted({*run["wanted"], *wanted})
                 if run["wanted"].get(k) != wanted.get(k)]  # fmt: skip
    if differing:
        raise ValueError(f"{out} holds an unfinished run with other settings: "
                         f"{', '.join(differing)}. Give the same, another --out, or --overwrite")  # fmt: skip
    return run


def save(accelerator, model: MaskedMuQ, out: Path, run: Mapping) -> None:
    """Write the model and the state to go on from; each appears whole or not at all."""
    aside, state, before = (out / f"{STATE}{end}" for end in (".tmp", "", ".before"))
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    text = json.dumps({k: run[k] for k in ("step", "history", "wanted")})
    (aside / "progress.json").write_text(text, encoding="utf-8")
    write_model(model, out)
    results.write_csv(out / "history.csv", run["history"])
    if state.exists():
        state.rename(before)
    aside.rename(state)
    shutil.rmtree(before, ignore_errors=True)


def write_model(model: MaskedMuQ, out: Path) -> None:
    """Write config.json and model.safetensors: matrices in float16, the rest in float32."""
    weights = {
        f"model.{k}": (v.half() if v.ndim > 1 else v.float() if v.is_floating_point() else v)
        .detach().cpu().contiguous()
        for k, v in model.state_dict().items()
        if needed_weights(f"model.{k}") and not k.startswith("head.")
    }  # fmt: skip
    part = out / "model.tmp"
    save_file(weights, part, metadata={"format": "pt"})
    text = json.dumps(nano_config(), indent=2) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
    part.replace(out / "model.safetensors")


def finish(out: Path, run: Mapping, arguments: Sequence[str], accelerator) -> None:
    """Write the facts; the state has done its work."""
    facts = {
        "command": " ".join(["tools/pretrain_nano.py", *arguments]),
        "corpus": run["corpus"], "history": run["history"], "wanted": run["wanted"],
        "versions": results.versions(), "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
    }  # fmt: skip
    (out / "pretrain.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out / STATE).rename(out / f"{STATE}.tmp")  # never half a state under its name
    shutil.rmtree(out / f"{STATE}.tmp", ignore_errors=True)


