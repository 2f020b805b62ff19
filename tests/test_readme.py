"""README.md and docs/: CI runs the commands, every flag, link and picture named exists."""

import doctest
import re

import pytest
from conftest import ROOT, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The log keeps the commands of its day.
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name != "LOG.md"
}
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def test_the_two_commands_are_those_of_ci():
    commands = re.findall(r"```bash\n(.+?)\n```", README, re.S)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in commands:
        assert command in script


def test_the_readme_is_one_page():
    assert len(README.split()) <= 1000


def test_the_embedding_shown_is_what_comes_out(tmp_path, monkeypatch):
    exported = run("-m", "tune.demo", "export", "--n", "3", "--out", tmp_path / "music", cwd=ROOT)
    assert exported.returncode == 0, exported.stderr
    assert "`python -m tune.demo export --n 3 --out music`" in README
    block = re.search(r"```python\n(.+?)```", README, re.S).group(1)
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
    assert len(test.examples) == 4
    report = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def test_every_flag_named_exists():
    scripts = (
        "benchmarks/pipeline.py",
        "train_probe.py",
        "pretrain_aggregator.py",
        "embed.py",
        "profile.py",
        "compare.py",
        "benchmarks/study_loop.py",
        "tools/licences.py",
        "examples/ray_encode.py",
    )
    commands = (
        "sweep",
        "embeddings similar",
        "embeddings agreement",
        "embeddings map",
        "tasks",
        "runs card",
        "store",
        "store encode",
        "demo",
        "comparison attention",
    )
    calls = [[ROOT / name] for name in scripts] + [
        ["-m", *f"tune.{command}".split()] for command in commands
    ]
    known = "".join(run(*call, "--help", cwd=ROOT).stdout for call in calls)
    others = {
        "--multi_gpu",
        "--array",  # sbatch
        "--quiet",
        "--no",  # pip install --no-deps
        "--forward",  # wandb agent --forward-signals
        "--cpu",
        "--num_processes",
        "--num_machines",
        "--machine_rank",
        "--main_process_ip",
        "--main_process_port",  # accelerate
        "--nproc_per_node",
        "--nnodes",
        "--node_rank",
        "--master_addr",
        "--master_port",
        "--flag",
        "--style",
    }
    for page, text in PAGES.items():
        named = set(re.findall(r"--[a-z][a-z0-9_]*", text)) - others
        assert "--seg" in named or page != "README.md"
        for flag in named:
            assert re.search(rf"{flag}\b", known), f"{page}: {flag}"


def test_the_result_table_names_its_command_and_machine():
    table = README.index("| `--agg` | mean difference |")
    section = README[README.rindex("\n## ", 0, table) : README.index("\n## ", table)]
    assert "accelerate launch train_probe.py" in section
    assert "random-weights control" in section
    assert "cores" in section


def test_the_scope_comes_before_the_first_command():
    head = README.split("```bash")[0]
    assert "We have not run MuQ on GTZAN or EMO" in " ".join(head.split())


def slugs(text):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [*PAGES, "docs/LOG.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for picture, link in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), link
        if picture:
            assert path.read_bytes().startswith(b"\x89PNG"), link
        if anchor:
            assert anchor in slugs(path.read_text(encoding="utf-8")), link


def test_every_page_is_listed_and_every_picture_shown():
    contents = PAGES["docs/README.md"]
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in contents
    links = [found for text in PAGES.values() for found in LINK.findall(text)]
    shown = {link.split("/")[-1] for picture, link in links if picture}
    assert shown == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
