"""Embed changed copies of test tracks: what `tune.comparison.stability` reports of a strategy."""

import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from tune.audio.decode import read_audio, read_header
from tune.comparison.configurations import Configuration
from tune.comparison.stability import CHANGES, Stability
from tune.embeddings.embedder import Embedder
from tune.embeddings.strategy import from_run
from tune.system.files import cache_folder
from tune.system.plugins import is_plugin
from tune.tasks.label_kinds import label_kind
from tune.tasks.load import load_task

MP3_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000)
SEED = 0


def stabilities(
    configurations: Sequence[Configuration], n: int
) -> tuple[dict[Configuration, Stability], list[str]]:
    """Change a sample of each configuration's test tracks and look at what becomes of them.

    Parameters
    ----------
    configurations : of whose newest run the strategy and the probes are taken
    n : test tracks, 2 or more; the same ones of all configurations with the same test tracks

    Returns
    -------
    configuration -> Stability, and why the others have none, a line each
    """
    found, reasons = {}, []
    with tempfile.TemporaryDirectory(prefix="tune-stability-") as folder:
        made: dict[tuple, dict[str, str]] = {}
        for configuration in configurations:
            try:
                found[configuration] = _stability(configuration, n, Path(folder), made)
            except (ValueError, OSError) as error:
                name = f"{configuration.result['encoder']} {configuration.label}"
                reasons.append(f"no stability of {name}: {error}")
    return found, reasons


def _stability(configuration, n: int, folder: Path, made: dict) -> Stability:
    """One configuration's; `made` holds the changed files."""
    run = configuration.runs[0]
    if run.folder is None:
        raise ValueError("it was read from W&B, without its probe")
    for name in (run.config["task"], run.config["agg"], run.config["encoder"]):
        if is_plugin(str(name)):
            raise ValueError(f"{name} is code of one's own, which isn't run for this")
    paths = _sample(run, n)
    strategy, learned = from_run(run.folder)
    embedder = Embedder(strategy, learned, store=folder / "store", memory_budget="2GB")
    files = {path: _changed(path, strategy.channels, folder, made) for path in paths}
    every = [*paths, *(file for changed in files.values() for file in changed.values())]
    tracks, bad, _ = embedder.encode(every)
    if bad:
        raise ValueError("{}: {}".format(*next(iter(bad.items()))))
    aggregator = embedder.aggregator({path: tracks[path] for path in paths})
    joined = {path: aggregator(embedder.rows(path, at))[0] for path, at in tracks.items()}
    saved = load_file(run.folder / "probe.safetensors")
    decisions = {}
    if not aggregator.row.fixed_n:  # the probe has its holes as zeros, which aren't known here
        vectors = torch.from_numpy(np.stack(list(joined.values()))).double()
        decided = _decide(vectors, saved, run.result, own=bool(learned.constants))
        decisions = {} if decided is None else dict(zip(joined, decided, strict=True))
    spread = _spread(np.stack([joined[path] for path in paths]))
    moved, flips = {}, {}
    for change in CHANGES:
        pairs = [(path, files[path][change]) for path in paths]
        way = [_distance(joined[a], joined[b]) for a, b in pairs]
        moved[change] = float(np.mean(way) / spread)
        each = [np.mean(decisions[a] != decisions[b]) for a, b in pairs if decisions]
        flips[change] = float(np.mean(each)) if each else float("nan")
    return Stability(moved, flips, len(paths))


def _sample(run, n: int) -> list[str]:
    """Paths of some test tracks; of folds, tracks that the first one's probe wasn't trained on."""
    config, name = run.config, run.config["task"]
    task = load_task(
        str(Path(name).expanduser()) if name.startswith("~") else name,
        Path(config["data_dir"]).expanduser(),
        cache_dir=Path(config["cache_dir"] or cache_folder() / "demo").expanduser(),
        kind=config["kind"],
        label_column=config["label_column"],
        audio_column=config["audio_column"],
        progress=False,
        download=False,
        folds=config["folds"],
        group_column=config["group_column"] or "none",
    )
    known = set(run.predictions.ids)
    split = (task.folds or [task])[0].splits["test"]
    ids = split["track" if "track" in split.column_names else "id"]
    paths = sorted(path for path, each in zip(split["path"], ids, strict=True) if each in known)
    if len(paths) < 2:
        raise ValueError("its test tracks aren't where they were")
    chosen = np.random.default_rng(SEED).permutation(len(paths))[:n]
    return [paths[i] for i in sorted(chosen)]


def _changed(path: str, channels: str, folder: Path, made: dict) -> dict[str, str]:
    """Files of a track's changes: change -> path."""
    if (path, channels) not in made:
        rate = read_header(path).sample_rate
        rate = rate if rate in MP3_RATES else 44_100
        samples = read_audio(path, rate, channels=channels)
        files = {}
        for i, (change, (apply, ending)) in enumerate(CHANGES.items()):
            rng = np.random.default_rng([SEED, zlib.crc32(Path(path).name.encode()), i])
            files[change] = str(folder / f"{len(made)}-{i}{ending}")
            write = _write_mp3 if ending == ".mp3" else soundfile.write
            write(files[change], np.clip(apply(samples, rate, rng), -1, 1), rate)
        made[path, channels] = files
    return made[path, channels]


def _write_mp3(path: str, samples: np.ndarray, rate: int) -> None:
    """Write mono samples as an mp3 of 128 kbit/s, by LAME."""
    import av

    with av.open(path, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="mono")
        stream.bit_rate = 128_000
        for start in range(0, len(samples), 4096):
            part = np.ascontiguousarray(samples[start : start + 4096], np.float32)
            frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", "mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _decide(x: torch.Tensor, saved: Mapping, result: Mapping, own: bool) -> np.ndarray | None:
    """Decisions of the saved probes on embeddings (n, D): (n, S) or (n, S, C); None of numbers.

    Parameters
    ----------
    own : whether something was learned in front of each probe: then only the first seed's is judged
    """
    kind = label_kind(result["kind"])
    if kind.of_targets or f"seed{result['seeds'][0]}.w2" not in saved:
        return None
    joins = any(".joiner." in name for name in saved)
    if not joins:  # what learned in front of a probe has standardised them already
        x = (x - saved["standardise.mean"]) * saved["standardise.scale"]
    outputs = []
    for seed in result["seeds"][: 1 if own and joins else None]:
        weights = {k: saved.get(f"seed{seed}.{k}") for k in ("w1", "b1", "w2", "b2")}
        weights = {k: v if v is None else v.double() for k, v in weights.items()}
        hidden = x
        if weights["w1"] is not None:
            hidden = torch.relu(x @ weights["w1"] + weights["b1"])
        outputs.append(hidden @ weights["w2"] + weights["b2"])
    out = torch.stack(outputs, 1)  # (n, S, C)
    if not kind.several:
        return out.argmax(-1).numpy()
    return (out > 0).numpy()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """1 - cosine."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def _spread(vectors: np.ndarray) -> float:
    """Mean distance of two different tracks."""
    n = len(vectors)
    each = [_distance(vectors[i], vectors[j]) for i in range(n) for j in range(i)]
    spread = float(np.mean(each))
    if not spread > 0:
        raise ValueError("the embeddings of all sampled tracks are the same")
    return spread
