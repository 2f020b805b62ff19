"""The cost of encoding by arithmetic, the machine's matrix rate, and the study's measured costs.

One multiply-add is two floating-point operations (FLOP). The arithmetic counted is that of the
matrix products and convolutions of one pass over the segment; the Fourier transform, activations
and normalisations (under one per cent of MuQ) and the halos that the front end's chunks compute
twice are left out. GB are 10^9 bytes. The cost of encoding is measured by
`tune.profiling.measure`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

RATE_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192, 16384)}
SLOW_S = 0.5  # a matrix product that takes longer than this is not followed by a larger one


def muq_flops(encoder, n_samples: int, layer: int) -> float:
    """Arithmetic of one segment's pass through MuQ, from the shapes of its modules.

    Parameters
    ----------
    encoder : MuQEncoder, or its `model`
    n_samples : samples of the segment, at the encoder's rate
    layer : the deepest layer computed; 0 is the front end alone

    Returns
    -------
    float
        FLOP; for MuQ-large and 10 s about 264e9 in the front end's convolutions, 8e9 in its
        projection and 146e9 in its 12 layers.
    """
    model = getattr(encoder, "model", encoder)
    layers = model.conformer.layers
    if not 0 <= layer <= len(layers):
        raise ValueError(f"layer must lie in 0..{len(layers)}, got {layer}")
    total, frames = frontend_flops(model.frontend, n_samples)
    return total + sum(conformer_flops(part, frames) for part in layers[:layer])


def frontend_flops(frontend, n_samples: int) -> tuple[float, int]:
    """FLOP of mel bands, convolutions and projection, and the number of frames that leave."""
    from torch import nn

    frames, (bins, bands) = n_samples // frontend.hop, frontend.bands.shape
    total = 2.0 * frames * bins * bands
    for block in frontend.blocks:
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        # Padding keeps the size but for the stride, and every convolution ends on the block's grid.
        by_band, by_time = (max(conv.stride[i] for conv in convs) for i in (0, 1))
        bands, frames = -(-bands // by_band), -(-frames // by_time)
        total += sum(2.0 * bands * frames * conv.weight.numel() for conv in convs)
    projections = [m for m in frontend.modules() if isinstance(m, nn.Linear)]
    return total + sum(2.0 * frames * m.weight.numel() for m in projections), frames


def conformer_flops(layer, frames: int) -> float:
    """FLOP of one conformer layer: its products frame by frame, and attention over all pairs."""
    from torch import nn

    parts = [m for m in layer.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    size = layer.self_attn.linear_q.out_features
    # Queries with keys, then weights with values.
    return 2.0 * frames * sum(m.weight.numel() for m in parts) + 4.0 * frames**2 * size


def matrix_rate(device, dtype, products=None) -> float:
    """Measure the rate of square matrix products, the best of a few sizes and implementations.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
    products : functions of two matrices; None for PyTorch's and this project's

    Returns
    -------
    float
        FLOP/s: an upper bound of what this machine reaches.
    """
    import torch

    if products is None:
        from tune.encoders.cpu_linear import linear

        products = (torch.matmul, lambda x, y: linear(x, y, None))

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = 0.0
    for n in RATE_SIZES.get(device.type, RATE_SIZES["cpu"]):
        a, b = torch.ones(2, n, n, device=device, dtype=dtype).div_(n)
        seconds = []
        for product in products:
            for _ in range(4):  # the first one warms up
                wait()
                started = time.perf_counter()
                product(a, b)
                wait()
                seconds.append(time.perf_counter() - started)
        best = max(best, 2 * n**3 / min(seconds))
        if min(seconds) > SLOW_S:
            break
    return best


@dataclass(frozen=True)
class StudyTask:
    """One of the study's tasks: a track's length in seconds and its number of test tracks."""

    duration_s: float
    test_tracks: int


STUDY_DEVICE = "RTX 2080 Ti"
STUDY_TASKS = {"EMO": StudyTask(45.0, 125), "GTZAN": StudyTask(30.0, 290)}
# (task, seg, agg): peak GB, seconds over the test split. The full track is one segment, so that
# its row doesn't depend on the aggregator.
STUDY = {
    ("EMO", "full", "any"): (6.816, 45.8),
    ("EMO", "10", "concat"): (9.730, 137.0),
    ("EMO", "10", "mean"): (3.552, 46.2),
    ("EMO", "10", "transformer"): (4.095, 60.9),
    ("EMO", "30", "mean"): (4.124, 62.4),
    ("EMO", "60", "transformer"): (4.132, 45.7),
    ("GTZAN", "full", "any"): (6.546, 60.7),
    ("GTZAN", "10", "concat"): (9.361, 181.4),
    ("GTZAN", "10", "mean"): (3.404, 61.3),
    ("GTZAN", "10", "transformer"): (3.932, 80.7),
    ("GTZAN", "30", "mean"): (3.928, 82.5),
    ("GTZAN", "60", "transformer"): (3.968, 56.0),
}


def study_cost(duration_s: float, seg: str, agg: str) -> dict | None:
    """The costs that the study reports for a strategy, or None.

    Parameters
    ----------
    duration_s : seconds of a track; within half a second of 45 (EMO) or 30 (GTZAN)
    seg, agg : as on the command line

    Returns
    -------
    dict
        task, device, peak_memory_bytes, seconds_per_track (its seconds over the test split divided
        by the number of test tracks)

    Examples
    --------
    >>> study_cost(45.0, "10", "mean")["peak_memory_bytes"]
    3552000000
    """
    for task, row in STUDY_TASKS.items():
        found = STUDY.get((task, seg, "any" if seg == "full" else agg))
        if abs(duration_s - row.duration_s) <= 0.5 and found is not None:
            return {
                "task": task,
                "device": STUDY_DEVICE,
                "peak_memory_bytes": round(found[0] * 1e9),
                "seconds_per_track": found[1] / row.test_tracks,
            }
    return None


def longest_within(
    budget_bytes: int, durations_s: Sequence[float], peaks_bytes: Sequence[float]
) -> dict:
    """Extrapolate the longest track that fits, from a line through measured peaks.

    Parameters
    ----------
    budget_bytes : memory to stay within
    durations_s, peaks_bytes : measured, for two or more different durations

    Returns
    -------
    dict
        bytes_at_0_s and bytes_per_second of the line, and `seconds`: 0.0 when not even the
        shortest track fits, None when the measured peaks don't grow, so that they set no limit

    Examples
    --------
    >>> round(longest_within(5_000, [10, 20], peaks_bytes=[1_000, 2_000])["seconds"], 6)
    50.0
    """
    import numpy as np

    if len(set(durations_s)) < 2:
        raise ValueError("a line needs two or more different durations")
    slope, start = (float(v) for v in np.polyfit(durations_s, peaks_bytes, 1))
    seconds = None if slope <= 0 else max(0.0, (budget_bytes - start) / slope)
    return {"bytes_at_0_s": start, "bytes_per_second": slope, "seconds": seconds}
