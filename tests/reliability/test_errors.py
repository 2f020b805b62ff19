"""Errors worth reading: each is one line that says what, where and how to mend it, with code 2.

The messages are kept as approved text in approved/errors.txt. After a wanted change
`TUNE_APPROVE=1 python -m pytest -n 0 tests/test_errors.py` writes it anew: read the difference.
"""

import os
import re
from types import SimpleNamespace

import error_cases
import pytest
from conftest import ROOT, run
from in_process import call

APPROVED = ROOT / "tests" / "approved" / "errors.txt"
# What may stand before the error.
BESIDE = r"(INFO|WARNING): |encode: |check: |listen: |sweep: |\[\d+/\d+\] "
# What says something to programmers alone.
UNREADABLE = r"no None\b|found: None|object at 0x|Errno|KeyError"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of broken things."""
    root = tmp_path_factory.mktemp("broken")
    error_cases.plant(root)
    return root


@pytest.fixture(scope="module")
def answers(place):
    """What every wrong command line is answered by: command -> (code, lines on stderr, stdout)."""
    env = {
        "TUNE_STORE": str(place / "store"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "NETRC": str(place / "netrc"),
        "WANDB_DIR": str(place),
        "COLUMNS": "200",
    }
    found = {}
    for name, *argv in error_cases.CASES:
        done = call(name, *argv, cwd=place, env=env)
        lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
        found[shown(name, argv)] = (done.returncode, lines, done.stdout)
    return found


def shown(name, argv) -> str:
    """A command as it is written."""
    given = [arg for arg in argv if arg not in error_cases.GOOD or "--task=tones" not in argv]
    head = f"python -m {name}" if name.startswith("tune.") else f"python {name}"
    return " ".join([head, *given])


def steady(text: str, place) -> str:
    """A message without what differs between machines and versions of libraries."""
    text = text.replace(str(place), "TMP").replace(str(ROOT), "REPO")
    text = re.sub(r"\((ArrowInvalid|ConnectionError): .*\)", r"(\1: ...)", text)
    # Python 3.12 leaves out the quotes.
    return re.sub(r"\(choose from [^)]*\)", lambda m: m[0].replace("'", ""), text)


def test_there_are_many_cases_and_every_script_has_some(answers):
    assert len(answers) >= 90
    names = {name for name, *_ in error_cases.CASES}
    assert names >= {p.name for p in ROOT.glob("*.py")}
    assert names >= {f"tune.{p.parent.name}" for p in (ROOT / "tune").glob("*/__main__.py")}


def test_every_mistake_is_one_line_and_code_2_and_leaves_nothing(answers, place):
    for command, (code, lines, out) in answers.items():
        assert code == 2, (command, lines, out)
        before, error = lines[:-1], lines[-1]
        assert all(re.match(BESIDE, line) for line in before), (command, lines)
        assert "Traceback" not in error
        assert len(error) < 700, command
        assert not re.search(UNREADABLE, error), error
    made = {p.name for p in (place / "runs").iterdir()}
    assert made == {"half", "torn"}


def test_the_messages_are_the_approved_ones(answers, place):
    parts = [
        f"$ {steady(command, place)}\n{steady(lines[-1], place)}\n"
        for command, (_, lines, _) in answers.items()
    ]
    text = "\n".join(parts)
    if os.environ.get("TUNE_APPROVE"):
        APPROVED.parent.mkdir(exist_ok=True)
        APPROVED.write_text(text, encoding="utf-8")
    approved = APPROVED.read_text(encoding="utf-8")
    for ours, theirs in zip(text.split("\n\n"), approved.split("\n\n"), strict=True):
        assert ours.strip() == theirs.strip()


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_debug_shows_where_and_ends_in_the_same_line(place, how):
    argv = ("check", "nothing")
    plain = call("tune.tasks", *argv, cwd=place)
    given = SimpleNamespace(
        flag=((*argv, "--debug"), {}), variable=(argv, {"TUNE_DEBUG": "1"})
    ).__dict__[how]
    done = call("tune.tasks", *given[0], cwd=place, env=given[1])
    assert done.returncode == plain.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert "tune/tasks/readers.py" in done.stderr
    assert done.stderr.splitlines()[-1] == plain.stderr.strip()
    off = call("tune.tasks", *argv, "--debug=false", cwd=place, env={"TUNE_DEBUG": "1"})
    assert off.stderr == plain.stderr


@pytest.mark.slow
def test_processes_answer_as_the_approved_text_says(answers, place):
    wanted = {
        "python train_probe.py --agg=transformer:nowhere",
        "python embed.py",
        "python compare.py runs",
        "python -m tune.tasks check nowhere",
        "python -m tune.sweep bad.yaml",
        "python profile.py --seg=long",
    }
    cases = [case for case in error_cases.CASES if shown(case[0], case[1:]) in wanted]
    assert len(cases) == len(wanted)
    for name, *argv in cases:
        program = [ROOT / name] if name.endswith(".py") else ["-m", name]
        done = run(*program, *argv, cwd=place, env={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == answers[shown(name, argv)][1][-1]
