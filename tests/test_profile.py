"""profile.py bears a standard-library name; these keep both that module and ours usable."""

import os
import subprocess
import sys

from conftest import ROOT, run


def test_the_standard_librarys_profile_is_handed_on():
    code = (
        "import profile, cProfile, sysconfig\n"
        "from pathlib import Path\n"
        "assert Path(profile.__file__) == Path(sysconfig.get_path('stdlib'), 'profile.py')\n"
        "assert callable(profile.run) and callable(profile.runctx) and profile.Profile\n"
        "cProfile.run('sum(range(10))')\n"
        "profile.run('sum(range(10))')\n"
    )
    done = run("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("function calls") == 2


def test_an_optimizer_works_from_the_repository_root():
    code = (
        "import cProfile, torch\n"
        "p = torch.nn.Parameter(torch.ones(1))\n"
        "o = torch.optim.AdamW([p], lr=0.1)\n"
        "(p * 2).sum().backward()\n"
        "o.step()\n"
        "print(p.item() < 1)\n"
    )
    done = run("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_cprofile_runs_as_a_module_from_the_repository_root(tmp_path):
    script = tmp_path / "work.py"
    script.write_text("print(sum(range(1000)))\n")
    done = run("-m", "cProfile", script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "499500" in done.stdout
    assert "function calls" in done.stdout


def test_the_script_shows_its_help():
    done = run("profile.py", "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout


def test_installing_puts_no_profile_on_the_path(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import profile, tune; print(profile.__file__); print(tune.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    profile_file, tune_file = done.stdout.split()
    assert not profile_file.startswith(str(ROOT))
    assert tune_file.startswith(str(ROOT))
