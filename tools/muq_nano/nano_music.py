"""The training data of muq-nano: spectrograms of tracks, tokens, and crops with masked spans.

A crop is a piece of a track's spectrogram. Of its spans of 0.4 s a fixed share, drawn anew at every
step, is replaced by the spectrogram of white noise, as MuQ replaces samples by noise of deviation
0.1; the model predicts the tokens of the frames there. A step's crops depend on (seed, step,
process) alone, so that a run that goes on draws what it would have drawn.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from muq_nano import mel_corpus, nano_orders
from muq_nano.composed import held_out
from muq_nano.mel_corpus import STRIDE, MelCorpus
from muq_nano.mel_tokens import CODES, STREAMS, Quantiser
from tune.aggregators.transformer import corpus
from tune.demo import DEMO_TASKS
from tune.store.store import Store
from tune.tasks.load import load_task

SPAN = 10  # frames at 25 Hz: 0.4 s, as MuQ's
VALIDATE_EVERY = 50  # one song in so many
VALIDATION_S = 10
FIT_TRACKS = 1000  # that the quantiser is fitted to


@dataclass
class Music:
    """A corpus, which of its tracks are learnt from and validated on, and facts about it.

    The tracks from number `composed` on are those of tasks, those from `of_folder` on (None: none)
    those of a folder of audio, whose subfolders are albums.

    Attributes
    ----------
    albums : number of every track's album; a track that is in none has a number of its own
    """

    tracks: MelCorpus
    train: list[int]
    val: list[int]
    folder: Path
    composed: int
    of_folder: int | None = None
    albums: list[int] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    def __post_init__(self):
        self.albums = self.albums or list(range(len(self.tracks.lengths)))

    def chances(self, tasks_share: float, audio_share: float = 0) -> np.ndarray | None:
        """Chance (N,) of each training track to be drawn, those of tasks' tracks together
        `tasks_share`, of the folder's `audio_share`; None: all the same."""
        train = np.array(self.train)
        last = len(self.tracks.lengths) if self.of_folder is None else self.of_folder
        kinds = [train < self.composed, (train >= self.composed) & (train < last), train >= last]
        shares = [
            1 - tasks_share * kinds[1].any() - audio_share * kinds[2].any(),
            tasks_share,
            audio_share,
        ]
        there = [(kind, share) for kind, share in zip(kinds, shares, strict=True) if kind.any()]
        if len(there) == 1:
            return None
        chances = sum(kind * share / kind.sum() for kind, share in there)
        return chances / chances.sum()


def gather(
    folder: Path,
    seed: int,
    songs: int,
    tasks: Sequence[str],
    *,
    data_dir: Path,
    cache_dir: Path,
    audio_dir: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Music:
    """Compose the songs, read the tasks' train splits and the folder, refuse what is held out.

    Parameters
    ----------
    folder : of the spectrograms
    seed, songs : of the composed corpus
    tasks : as in train_probe.py; of their splits only train is read
    audio_dir : a folder of audio; the tracks of one of its subfolders are an album
    """
    # Whatever can be wrong with what was asked for is found before hours of composing.
    named = [load_task(n, data_dir, cache_dir=cache_dir, progress=progress) for n in tasks]
    if audio_dir:
        corpus.audio_files(audio_dir)
    demos = [load_task(n, data_dir, cache_dir=cache_dir, progress=progress) for n in DEMO_TASKS]
    refused = held_out(demos)
    files = mel_corpus.build_composed(folder, seed, songs, refused, workers)
    composed = len(files)
    facts: dict = {
        "composed": songs,
        "corpus_seed": seed,
        "tasks": list(tasks),
        "refused": [],
        "skipped": [],
    }
    albums = list(range(songs))
    of_folder = None
    if tasks or audio_dir:
        others = corpus.local_tasks(data_dir, cache_dir, tasks)
        found = corpus.gather(
            named, audio_dir, others, Store(folder / "hashes"), val_share=1 / VALIDATE_EVERY
        )
        more, skipped = mel_corpus.build_tracks(folder, found.train, workers)  # tasks' tracks first
        of_tasks = more.keys() & {p for t in named for p in t.splits["train"]["path"]}
        if audio_dir:
            of_folder = songs + len(of_tasks)
            folders = Counter(
                str(Path(p).parent.relative_to(audio_dir)) for p in more if p not in of_tasks
            )
            facts["audio_dir"] = dict(sorted(folders.items()))
        names = [p if p in of_tasks else str(Path(p).parent) for p in more]
        albums += [songs + names.index(name) for name in names]
        files += more.values()
        facts |= {"refused": found.refused, "skipped": found.skipped + skipped}
    tracks = MelCorpus(files)
    val = list(range(0, songs, VALIDATE_EVERY))
    train = sorted(set(range(len(tracks))) - set(val))
    assert len(tracks) == songs + len(files) - composed
    facts |= {
        "tracks": len(train),
        "val_tracks": len(val),
        "held_out_checked": len(refused),
        "hours": sum(tracks.lengths[i] for i in train) / 25 / 3600,
    }
    return Music(tracks, train, val, folder, songs, of_folder, albums, facts)


def tokenise(music: Music, seed: int, progress: bool = True) -> list[np.ndarray]:
    """Tokens (T, 9) of every track, by a quantiser fitted to the training tracks; kept on disk."""
    tracks = music.tracks
    text = json.dumps([seed, music.train, tracks.content_hashes, FIT_TRACKS, STREAMS, CODES])
    file = music.folder / f"tokens-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        chosen = np.random.default_rng(seed).permutation(music.train)[:FIT_TRACKS]
        bar = {
            "unit": "track",
            "delay": 5,
            "disable": not progress,
            "mininterval": 0.2 if sys.stderr.isatty() else 30.0,
        }
        chosen = tqdm(chosen, desc="fitting codebooks", **bar)
        quantiser = Quantiser.fit(((tracks.mel(i), tracks.pitch(i)) for i in chosen), seed)
        every = tqdm(range(len(tracks)), desc="tokens", **bar)
        found = [quantiser(tracks.mel(i), tracks.pitch(i)) for i in every]
        part = file.with_suffix(".partial.npy")
        np.save(part, np.concatenate(found))
        part.replace(file)
    ends = np.cumsum(tracks.lengths)
    tokens = np.split(np.load(file), ends[:-1])
    of_train = np.concatenate([tokens[i] for i in music.train])
    shares = np.stack([np.bincount(of_train[:, s], minlength=CODES) for s in range(len(STREAMS))])
    shares = shares / len(of_train)  # (S, CODES)
    of_val = np.concatenate([tokens[i] for i in music.val])
    likely = np.stack([shares[s, of_val[:, s]] for s in range(len(STREAMS))])
    music.facts["guess_loss"] = float(-np.log(np.maximum(likely, 1e-6)).mean())
    music.facts["guess_accuracy"] = float((of_val == shares.argmax(1)).mean())
    return tokens


class Crops(Dataset):
    """A step's crops: dict of mel (B, 4 T, 128) in dB, tokens (B, T, 9) and the numbers of the
    masked frames (B, K) and of the visible ones (B, T - K).

    Parameters
    ----------
    seconds : lengths of the crops; steps take turns
    batch_seconds : audio of one step and process
    pairs_from : step from which crops come in pairs of a song, the second ones after all first
    orders_from, orders_every, order_seconds : from that step on, one step in so many is of pieces
        in several orders instead (`muq_nano.nano_orders`); their lengths take turns
    tasks_share, audio_share : shares of the crops that are of tasks' tracks and of the folder's, if
        there are any
    album_share : share of the pairs whose second crop is of another track of the album, where the
        first's is in one
    part : this process
    """

    def __init__(
        self,
        music: Music,
        tokens: Sequence[np.ndarray],
        seconds: Sequence[float],
        batch_seconds: float,
        mask_prob: float,
        seed: int,
        *,
        pairs_from: int | None = None,
        orders_from: int | None = None,
        orders_every: int = 3,
        order_seconds: Sequence[float] = (),
        tasks_share: float = 0.25,
        audio_share: float = 0.25,
        album_share: float = 0,
        part: int = 0,
    ):
        self.music, self.tokens, self.seconds = music, tokens, list(seconds)
        self.batch_seconds, self.mask_prob = batch_seconds, mask_prob
        self.seed, self.pairs_from, self.part = seed, pairs_from, part
        self.orders_from, self.orders_every = orders_from, orders_every
        self.order_seconds = list(order_seconds) if orders_from is not None else []
        noise = np.random.default_rng(seed).standard_normal(61 * 24_000) * 0.1
        self.noise = mel_corpus.spectrograms(noise)[0]  # (frames, 128)
        lengths = np.array(music.tracks.lengths)[music.train]
        asked = [("--seconds", s) for s in self.seconds]
        asked += [("--order_seconds", s) for s in self.order_seconds]
        for flag, s in asked:
            if s * 25 < SPAN or (lengths < s * 25).all():
                raise ValueError(
                    f"{flag} {s:g}: crops must be at least 0.4 s, and no longer than the "
                    f"longest track ({lengths.max() / 25:.1f} s)"
                )
        self._lengths, self._chances = lengths, music.chances(tasks_share, audio_share)
        self.album_share, self._albums = album_share, np.array(music.albums)[music.train]

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, 1, step, self.part))
        if self.order_seconds and step >= self.orders_from:
            turn, rest = divmod(step, self.orders_every)
            if rest == 0:
                seconds = self.order_seconds[turn % len(self.order_seconds)]
                return nano_orders.draw(
                    self.music.tracks, self.music.train, seconds, rng, self._chances
                )
        seconds = self.seconds[step % len(self.seconds)]
        frames = int(seconds * 25)
        long_enough = np.flatnonzero(self._lengths >= frames)
        size = max(1, int(self.batch_seconds // seconds))
        pairs = self.pairs_from is not None and step >= self.pairs_from and size > 3
        chances = nano_orders.among(self._chances, long_enough)
        if pairs:
            again = len(long_enough) < size // 2
            firsts = rng.choice(long_enough, size // 2, again, chances)
            partners = [self._of_album(i, long_enough, rng) for i in firsts]
            tracks = np.concatenate([firsts, partners])
        else:
            tracks = rng.choice(long_enough, size, p=chances)
        batch = self._batch([self.music.train[i] for i in tracks], frames, rng)
        return batch | {"pairs": pairs, "albums": torch.from_numpy(self._albums[tracks])}

    def _of_album(self, track: int, long_enough: np.ndarray, rng) -> int:
        """The track itself, or with a chance of `album_share` another one of its album."""
        if not self.album_share or rng.random() >= self.album_share:
            return track
        there = long_enough[self._albums[long_enough] == self._albums[track]]
        there = there[there != track]
        return int(rng.choice(there)) if len(there) else track

    def validation(self, crops: int) -> Iterator[dict[str, torch.Tensor]]:
        """The same crops of the validation songs every time, in batches."""
        rng = np.random.default_rng((self.seed, 2))
        frames = min(VALIDATION_S * 25, min(self.music.tracks.lengths[i] for i in self.music.val))
        tracks = [self.music.val[i % len(self.music.val)] for i in range(crops)]
        for first in range(0, len(tracks), 8):
            yield self._batch(tracks[first : first + 8], frames, rng)

    def _batch(self, tracks: Sequence[int], frames: int, rng) -> dict[str, torch.Tensor]:
        """Cut a crop of every track and hide spans of it."""
        mels, tokens, masked, visible = [], [], [], []
        spans = frames // SPAN
        n_masked = max(1, round(self.mask_prob * spans))
        for track in tracks:
            first = int(rng.integers(self.music.tracks.lengths[track] - frames + 1))
            mel = self.music.tracks.mel(track, first, first + frames).astype(np.float32)
            at = np.sort(rng.choice(spans, n_masked, replace=False))[:, None] * SPAN
            at = (at + np.arange(SPAN)).ravel()  # (K,)
            covered = (at[:, None] * STRIDE + np.arange(STRIDE)).ravel()
            start = int(rng.integers(len(self.noise) - len(covered)))
            mel[covered] = self.noise[start : start + len(covered)]
            mels.append(mel)
            tokens.append(self.tokens[track][first : first + frames])
            masked.append(at)
            visible.append(np.setdiff1d(np.arange(frames), at))
        return {
            "mel": torch.from_numpy(np.stack(mels)),
            "tokens": torch.from_numpy(np.stack(tokens)),
            "masked": torch.from_numpy(np.stack(masked)),
            "visible": torch.from_numpy(np.stack(visible)),
        }
