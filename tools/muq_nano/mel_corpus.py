"""Spectrograms of a pretraining corpus on disk: composed songs and training tracks of tasks.

Made once, in shards that appear whole or not at all, so that a run that was cut off goes on. For
each track two float16 arrays, one after the other in the shard's file:

    mel     (frames, 128)      MuQ's own input, log-mel in dB at 100 Hz
    pitch   (frames / 4, 72)   the semitones from C2 to B7 in dB at 25 Hz, for the harmony's tokens
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from muq_nano.composed import VERSION, compose
from tune.encoders.muq_frontend import SAMPLE_RATE
from tune.system.signals import block_signals, unblock_signals

SHARD = 40  # tracks
N_MELS, N_PITCHES, STRIDE = 128, 72, 4
LOWEST_HZ = 65.406  # C2

log = logging.getLogger(__name__)


def spectrograms(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel (frames, 128) at 100 Hz and pitches (frames / 4, 72) at 25 Hz of samples, in dB."""
    wave = torch.from_numpy(np.ascontiguousarray(audio, np.float32))
    # As muq's MelSTFT has it; the last, incomplete frame is dropped, as MuQ does.
    mel = _mel()(wave)
    mel = mel[:, : len(wave) // 240 // STRIDE * STRIDE]  # (128, T), whole frames of 25 Hz
    spectrum = torch.stft(
        wave, 8192, 240 * STRIDE, 8192, torch.hann_window(8192), return_complex=True
    )
    power = spectrum.abs().square()[:, : mel.shape[1] // STRIDE]  # (bins, T / 4)
    pitch = _semitones() @ power
    return tuple(
        x.clamp(min=1e-10).log10().mul(10).T.numpy().astype(np.float16) for x in (mel, pitch)
    )


@cache
def _mel() -> torch.nn.Module:
    """MuQ's mel spectrogram, without the decibels."""
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(SAMPLE_RATE, n_fft=2048, hop_length=240, n_mels=N_MELS)


@cache
def _semitones() -> torch.Tensor:
    """Triangles a semitone wide to each side in a spectrum of 8192 samples: (72, bins)."""
    hertz = torch.arange(4097) * SAMPLE_RATE / 8192
    number = 12 * torch.log2(hertz.clamp(min=1) / LOWEST_HZ)
    return (1 - (number - torch.arange(N_PITCHES)[:, None]).abs()).clamp(min=0)


class MelCorpus:
    """Read access to a corpus on disk.

    Attributes
    ----------
    lengths : frames (at 25 Hz) of every track
    content_hashes : SHA-256 of every track
    """

    def __init__(self, files: Sequence[Path]):
        self.lengths, self.content_hashes, self._places, self._maps = [], [], [], []
        for number, file in enumerate(files):
            meta = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            self._maps.append(np.memmap(file, np.float16, "r"))
            start = 0
            for row in meta["tracks"]:
                self.lengths.append(row["frames"])
                self.content_hashes.append(row["known_by"])
                self._places.append((number, start))
                start += row["frames"] * (STRIDE * N_MELS + N_PITCHES)

    def __len__(self) -> int:
        return len(self.lengths)

    def mel(self, track: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Log-mel (4 (last - first), 128) from frame to frame (at 25 Hz)."""
        number, start = self._places[track]
        last = self.lengths[track] if last is None else last
        width = STRIDE * N_MELS
        part = self._maps[number][start + first * width : start + last * width]
        return part.reshape(-1, N_MELS)

    def pitch(self, track: int) -> np.ndarray:
        """Pitches (frames, 72)."""
        number, start = self._places[track]
        frames = self.lengths[track]
        start += frames * STRIDE * N_MELS
        return self._maps[number][start : start + frames * N_PITCHES].reshape(-1, N_PITCHES)


def build_composed(
    folder: Path, seed: int, count: int, refused: dict[str, str], workers: int = 1
) -> list[Path]:
    """Compose `count` songs, or those of them that aren't there yet.

    Parameters
    ----------
    folder : of the shards; a name of theirs holds the seed and the composer's version
    refused : hashes of held-out tracks -> the task's name

    Raises
    ------
    ValueError
        When a song is one of the held-out tracks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (
            folder / f"composed-v{VERSION}-{seed}-{first:06d}-{min(SHARD, count - first)}.f16",
            seed,
            range(first, min(first + SHARD, count)),
        )
        for first in range(0, count, SHARD)
    ]
    missing = [job for job in jobs if not job[0].with_suffix(".json").exists()]
    for _ in _run(_compose_shard, missing, workers, "composing", SHARD):
        pass
    files = [job[0] for job in jobs]
    for song_hash in MelCorpus(files).content_hashes:
        if song_hash in refused:
            raise ValueError(
                f"a composed song is in the val or test split of {refused[song_hash]}: "
                f"choose another --corpus_seed"
            )
    return files


def build_tracks(
    folder: Path, paths: Sequence[str], workers: int = 1
) -> tuple[dict[str, Path], list[dict]]:
    """Spectrograms of audio files, one shard each; returns shards by path and the files skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    files, skipped = {}, []
    jobs = [(folder, path) for path in paths]
    for path, found in zip(paths, _run(_read_track, jobs, workers, "reading", 1), strict=True):
        if isinstance(found, Path):
            files[path] = found
        else:
            skipped.append({"path": path, "reason": found})
    return files, skipped


def _read_track(folder: Path, path: str) -> Path | str:
    """The shard of an audio file, written unless it's there, or the reason why there is none."""
    from tune.audio.decode import AudioError, read_audio
    from tune.audio.hashing import content_hash

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        digest = content_hash(path)
        file = folder / f"track-v{VERSION}-{digest[:32]}.f16"
        if not file.with_suffix(".json").exists():
            audio = read_audio(path, SAMPLE_RATE)
            _write(file, [(*spectrograms(audio), digest)])
    except AudioError as error:
        return str(error)
    finally:
        torch.set_num_threads(threads)
    return file


def _compose_shard(file: Path, seed: int, indices: Sequence[int]) -> None:
    """Write one shard, with one thread. Runs in a worker, or in the process that trains."""
    threads, tracks = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for index in indices:
            audio, song_hash = compose(seed, index)
            tracks.append((*spectrograms(audio), song_hash))
    finally:
        torch.set_num_threads(threads)
    _write(file, tracks)


def _write(file: Path, tracks: list[tuple]) -> None:
    """Write a shard, its index last: without the index it isn't there."""
    part = file.with_suffix(f".{os.getpid()}.partial")
    with open(part, "wb") as out:
        for mel, pitch, _ in tracks:
            out.write(np.ascontiguousarray(mel).tobytes())
            out.write(np.ascontiguousarray(pitch).tobytes())
    part.replace(file)
    rows = [{"frames": len(pitch), "known_by": name} for _, pitch, name in tracks]
    part.write_text(json.dumps({"tracks": rows}), encoding="utf-8")
    part.replace(file.with_suffix(".json"))


def _run(work, jobs: list[tuple], workers: int, what: str, size: int) -> Iterator:
    """Do jobs in this process or in several, with a bar."""
    bar = tqdm(
        total=len(jobs) * size,
        desc=what,
        unit="track",
        disable=not jobs,
        delay=5 if size == 1 else 0,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )
    with bar:
        if workers <= 1 or len(jobs) <= 1:
            for job in jobs:
                yield work(*job)
                bar.update(size)
            return
        spawn = multiprocessing.get_context("spawn")  # a fork of threads (torch's) can hang
        pool = ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=unblock_signals, initargs=(signal.SIG_DFL,)
        )
        try:
            with block_signals():
                futures = [pool.submit(work, *job) for job in jobs]
            for future in futures:
                yield future.result()
                bar.update(size)
        finally:
            pool.shutdown(cancel_futures=True)
