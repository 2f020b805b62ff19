"""Progress bars: a bar on a terminal and in Jupyter, a line a minute in a log."""

import sys
import warnings
from collections.abc import Iterable

from tqdm import TqdmWarning, tqdm

LOG_EVERY_S = 60.0  # and nothing before: what is quick leaves no line in a log


def progress_bar(iterable: Iterable | None = None, **settings) -> tqdm:
    """A progress bar on stderr.

    On a terminal it is tqdm's; in Jupyter its widget, or text where ipywidgets isn't installed;
    in a file or a pipe it is a whole line each `LOG_EVERY_S`.

    Parameters
    ----------
    iterable, settings : as `tqdm.tqdm` takes them; a `delay` is that of a terminal
    """
    settings = {"dynamic_ncols": True, **settings}
    if in_jupyter():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # that ipywidgets isn't installed
            from tqdm.autonotebook import tqdm as bar
        return bar(iterable, **settings)
    if sys.stderr.isatty():
        return tqdm(iterable, mininterval=0.2, **settings)
    lines = {"file": Lines(sys.stderr), "delay": LOG_EVERY_S, "mininterval": LOG_EVERY_S}
    # Looked at after each step: how many fit into a minute may change from one to the next.
    return tqdm(iterable, **settings | lines | {"miniters": 1, "dynamic_ncols": False})


def in_jupyter() -> bool:
    """Whether this process is the kernel of a notebook."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


class Lines:
    """A stream that writes each state of a bar as a line of its own.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a state; what only clears the line is left out."""
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()
