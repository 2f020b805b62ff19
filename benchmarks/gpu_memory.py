"""Memory on a small card: full tracks are encoded with a capped allocator."""

import common
import torch
from gpu_bench import Bench, at_most, forget_encoders, music

from tune.encoders.base import SAMPLE_RATE
from tune.store.encode import encode_segments
from tune.system.memory import PeakMemory, is_out_of_memory

CAPS_GB = (11.0, 8.0)
LENGTHS_S = (45.0, 240.0, 600.0, 1200.0)


def small_card(bench: Bench, record) -> None:
    """Full tracks with the default memory budget under each cap, and the study's way beside it.

    On a CPU nothing is capped.
    """
    rows, total = [], None
    if bench.device.type == "cuda":
        total = torch.cuda.get_device_properties(bench.device).total_memory
    for p in (bench.halves[0], "no"):
        encoder = bench.encoder(bench.large, p)
        encoder.graphs = None  # these are measured in a step of their own
        for cap_gb in CAPS_GB:
            if total:
                torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 1e9 / total))
            for length_s in LENGTHS_S:
                track = music(bench.seconds(length_s, length_s / 100))

                def work(track=track, encoder=encoder):
                    spans = [(0, len(track))]
                    return encode_segments(track, spans, encoder, [encoder.n_layers])[0]

                rows.append(
                    {
                        "cap_gb": cap_gb,
                        "side": "ours",
                        "precision": p,
                        "length_s": length_s,
                        **attempt(bench, work),
                    }
                )
                record(rows=rows)
        del encoder, work
        forget_encoders()
    fits = [row["fits"] for row in rows]
    record(checks=[at_most("full tracks of ours that don't fit", fits.count(False), 0)])
    if total:
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAPS_GB[0] * 1e9 / total))
    model = common.load_original(bench.large, "random", bench.device)
    layers = [len(model.conformer.layers)]
    for length_s, seg_s in ((45.0, 10.0), (45.0, 45.0), (240.0, 240.0)):
        track = music(bench.seconds(length_s, length_s / 100))
        step = max(SAMPLE_RATE // 4, round(len(track) * seg_s / length_s))
        spans = [(i, min(i + step, len(track))) for i in range(0, len(track) - step // 4, step)]

        def work(track=track, spans=spans):
            return common.study_encode(model, track, spans, layers, bench.device)

        rows.append(
            {
                "cap_gb": CAPS_GB[0],
                "side": "study",
                "precision": "no",
                "segment_s": seg_s,
                "length_s": length_s,
                **attempt(bench, work),
            }
        )
        record(rows=rows)
    if total:
        torch.cuda.set_per_process_memory_fraction(1.0)


def attempt(bench: Bench, work) -> dict:
    """Run twice, timing the second; say whether it fitted, and the peak of the first."""
    try:
        with PeakMemory(bench.device) as memory:
            work()
        reserved = torch.cuda.max_memory_reserved() if bench.device.type == "cuda" else None
        _, seconds = common.clock(bench.device, work)
    except (RuntimeError, ValueError) as error:
        if not is_out_of_memory(error.__cause__ or error):
            raise
        return {"fits": False}
    return {
        "fits": True,
        "seconds": seconds,
        "rest_bytes": memory.rest_bytes,
        "peak_bytes": memory.peak_bytes,
        "reserved_bytes": reserved,
    }
