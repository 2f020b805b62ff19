"""CUDA graphs: a pass whose shape comes again is recorded once and then replayed by one launch.

A pass of MuQ is about 490 small kernels, and Python takes longer to launch them than a large GPU to
run them. A graph is recorded of the third batch of a shape, checked against that batch's ordinary
pass, and dropped when memory runs out. Where recording fails, encoding goes on without, which is
said once.
"""

import gc
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

RECORD_AT = 3  # the batch of a shape that is recorded; rarer shapes aren't worth it
KEPT = 4  # graphs, each with its buffers
MIN_COSINE = 0.99999  # of a graph's states to those of the ordinary pass


class CudaGraphs:
    """Runs a function of a batch, from its third run on as a graph.

    Parameters
    ----------
    record : `record(function, batch)` returns a function of batches of this shape, which gives the
        same tensors each time, overwritten
    """

    def __init__(self, record: Callable | None = None):
        self.record = record or record_graph
        self.works = True
        self._seen: Counter = Counter()
        self._kept: OrderedDict[tuple, Callable] = OrderedDict()

    def __call__(self, function: Callable, batch: torch.Tensor, key: tuple) -> tuple:
        """Outputs of `function(batch)`; those of a graph are overwritten by its next run.

        Parameters
        ----------
        function : a batch on the device to a tuple of tensors, states (B, ...) the first; what it
            does on the host depends on the batch's shape only
        key : what besides the batch's numbers the outputs depend on, its shape included
        """
        if replay := self._kept.get(key):
            self._kept.move_to_end(key)
            return replay(batch)
        out = function(batch)
        self._seen[key] += 1
        if self.works and self._seen[key] == RECORD_AT:
            self._add(function, batch, key, out[0])
        return out

    def clear(self) -> bool:
        """Drop all graphs and their buffers, and record no more; say whether there were any."""
        any_kept, self.works = bool(self._kept), False
        self._kept.clear()
        return any_kept

    def _add(self, function, batch, key, expected) -> None:
        """Record a graph and keep it if it gives what the ordinary pass gave."""
        try:
            replay = self.record(function, batch)
            found = replay(batch)[0].flatten(1).double()
            lowest = torch.cosine_similarity(found, expected.flatten(1).double()).min()
            if torch.isfinite(expected).all() and not lowest >= MIN_COSINE:
                raise RuntimeError(f"its states differ: cosine {float(lowest):.6f}")
        except (RuntimeError, MemoryError) as error:
            self.clear()
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("a CUDA graph can't be used (%s): encoding goes on without", reason)
            gc.collect()
            return
        self._kept[key] = replay
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def record_graph(function: Callable, batch: torch.Tensor) -> Callable:
    """Record a function's kernels on a GPU; returns a function that replays them."""
    with torch.cuda.device(batch.device):
        given, stream = batch.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(given)  # libraries allocate their work space outside the graph
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: they don't use the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = function(given)

    def replay(batch):
        given.copy_(batch, non_blocking=True)
        graph.replay()
        return out

    return replay
