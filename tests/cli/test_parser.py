"""tune.cli.parser: flags from a YAML file; those of the command line win."""

import pytest
from conftest import ROOT, run

import train_probe
from tune.cli.flags import FLAGS
from tune.sweep.command import joined

SCRIPTS = ("train_probe.py", "pretrain_aggregator.py", "embed.py", "profile.py", "compare.py")


@pytest.fixture
def config(tmp_path):
    """A file of flags."""
    path = tmp_path / "flags.yaml"
    path.write_text("seg: 30\nagg: max\nseeds: [1, 2, 3]\nstrict: true\nhop:\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("written", ["--config={}", "--config {}"])
def test_flags_are_read_from_a_file_and_the_command_line_wins(config, written):
    words = written.format(config).split(" ")
    args = train_probe.parse_args([*words, "--agg", "mean"])
    plain = train_probe.parse_args(["--seg=30", "--agg=mean", "--seeds", "1", "2", "3", "--strict"])
    assert vars(args) == vars(plain)
    assert train_probe.parse_args(["--agg=mean", *words]).agg == "mean"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segs: 10", "there is no flag --segs"),
        ("- seg", "expected flags and their values, such as seg: 10"),
        ("seg: [", "expected the node content"),
        ("agg: median", "median"),
        (None, "No such file or directory"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message, capsys):
    path = tmp_path / "flags.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        train_probe.parse_args(["--config", str(path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_a_file_of_flags(script, tmp_path):
    done = run(ROOT / script, "--config", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "--config nowhere.yaml: No such file or directory" in done.stderr


def test_a_flag_and_its_value_become_one_word():
    assert joined(["--store", "rows", "--seg=10", "--strict", "--n", "1"]) == [
        "--store=rows",
        "--seg=10",
        "--strict",
        "--n=1",
    ]
    assert joined(["seg"]) == ["seg"]


HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn", "scipy")
# What importing these takes is all that importing a script may take, but for a tenth.
LIBRARIES = "import torch, transformers, accelerate, datasets"


def loaded(code, cwd) -> set:
    """Modules that are there when a program has run."""
    done = run(
        "-c",
        f"import runpy, sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules)",
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_none_of_the_heavy_libraries(script, tmp_path):
    path = str(ROOT / script)
    code = f"sys.argv = ['x', '--help']; runpy.run_path({path!r}, run_name='__main__')"
    assert loaded(code, tmp_path).isdisjoint(HEAVY)


def test_importing_a_script_imports_little_beside_its_libraries(tmp_path):
    libraries = loaded(LIBRARIES, tmp_path)
    for script in ("train_probe", "pretrain_aggregator", "embed"):
        more = loaded(f"import {script}", tmp_path) - libraries
        there = {name.partition(".")[0] for name in more}
        assert there.isdisjoint({"scipy", "sklearn", "wandb", "matplotlib", "librosa", "evaluate"})
        assert not any(name.startswith("transformers.model") for name in more), script


def test_a_script_has_only_flags_that_are_declared():
    used = {name for names in train_probe.GROUPS.values() for name in names.split()}
    assert used <= set(FLAGS)
    assert set(train_probe.CHANGES) <= used


def test_segments_settings_are_shared_by_several_rules():
    args = train_probe.parse_args(["--seg", "10", "full", "--agg=hierarchical", "--hop=5"])
    assert [rule.hop_s for rule in train_probe.rules_of(args)] == [5.0, None]
