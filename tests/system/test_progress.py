"""Progress bars: on a terminal one line that changes, in a log few whole lines."""

import io
import time

import pytest

from tune.system import progress
from tune.system.progress import progress_bar


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self):
        return True


def test_what_is_quick_leaves_nothing_in_a_log(capsys):
    assert list(progress_bar(range(50), desc="encode")) == list(range(50))
    with progress_bar(total=50, desc="encode", leave=False) as bar:
        bar.update(50)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("leave", [True, False])
def test_in_a_log_a_bar_is_whole_lines_now_and_then(capsys, monkeypatch, leave):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.05)
    steps = []
    for i in progress_bar(range(100), desc="encode", leave=leave):
        time.sleep(0.004)
        steps.append(i)
    err = capsys.readouterr().err
    assert "\r" not in err
    lines = err.splitlines()
    assert 1 <= len(lines) < 20  # of 100 steps
    assert all(line.startswith("encode: ") for line in lines)
    assert "100/100" in lines[-1] or not leave
    assert steps == list(range(100))


def test_on_a_terminal_a_line_changes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    for _ in progress_bar(range(3), desc="encode", leave=False):
        pass
    text = screen.getvalue()
    assert text.startswith("\rencode:   0%")
    assert "\n" not in text
    assert text.endswith("\r")
    assert not progress.in_jupyter()
