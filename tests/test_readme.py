"""The README's commands are the ones that CI runs, and every flag it names exists."""

import re

from conftest import ROOT, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_those_of_ci():
    commands = re.findall(r"```bash\n(.+?)\n```", README, re.S)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in commands:
        assert command in script


def test_every_flag_named_exists():
    scripts = ("train_probe.py", "pretrain_aggregator.py", "embed.py", "profile.py", "compare.py",
               "benchmarks/study_loop.py")  # fmt: skip
    modules = ("tune.sweep", "tune.embeddings.similar", "tune.tasks", "tune.runs.model_card")
    calls = [[ROOT / name] for name in scripts] + [["-m", name] for name in modules]
    known = "".join(run(*call, "--help", cwd=ROOT).stdout for call in calls)
    others = {"--nproc_per_node", "--multi_gpu", "--quiet", "--style", "--flag"}
    named = set(re.findall(r"--[a-z][a-z0-9_]*", README)) - others
    assert "--seg" in named
    for flag in named:
        assert re.search(rf"{flag}\b", known), flag


def test_the_first_table_names_its_command_and_machine():
    head = README.split("```bash")[0]
    assert "accelerate launch train_probe.py" in head
    assert "untrained" in head
    assert "cores" in head


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG"), picture
