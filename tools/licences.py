"""Licences of what the project installs, as its packages state them: `python tools/licences.py`.

python tools/licences.py                       # prints the table
python tools/licences.py --out docs/licences.md
pip install pip-audit && pip-audit             # known vulnerabilities of what is installed
"""

import configparser
import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement

from tune.cli.parser import Parser, run_script

ROOT = Path(__file__).resolve().parent.parent
LONG = 60  # characters: a longer text is the licence itself, not its name
HEAD = """# Licences of the dependencies

Made by `python tools/licences.py --out docs/licences.md` from what the packages themselves state
in the environment it runs in. `direct` are those that `setup.cfg` asks for; the others come with
them. The models and data sets that the project can fetch have licences of their own:
`python -m tune.tasks show NAME`, `python -m tune.encoders list`.

| package | version | licence | |
|---|---|---|---|
"""


def main() -> None:
    """Print or write the table."""
    parser = Parser(prog="tools/licences.py", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    args = parser.parse_args()
    lines = [
        f"| {name} | {version} | {licence} | {'direct' if direct else ''} |"
        for name, version, licence, direct in table()
    ]
    text = HEAD + "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
        print(f"written to {args.out}: {len(lines)} packages")
    else:
        print(text)


def table() -> list[tuple[str, str, str, bool]]:
    """(name, version, licence, whether setup.cfg asks for it) of all that is needed."""
    asked = direct()
    found, todo = {}, list(asked)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in asked:
                raise ValueError(f"{name} isn't installed: pip install -e .") from None
            continue  # for another system
        found[name] = (distribution.version, licence(distribution.metadata))
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(canonical(requirement.name))
    return [(name, *found[name], name in asked) for name in sorted(found)]


def direct() -> list[str]:
    """The dependencies in setup.cfg, without the extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    return [canonical(Requirement(line).name) for line in lines if line.strip()]


def canonical(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(metadata) -> str:
    """The licence that a package states: its SPDX expression, its classifiers, or its own words."""
    if expression := metadata.get("License-Expression"):
        return expression
    classified = [
        c.split(" :: ")[-1]
        for c in metadata.get_all("Classifier") or ()
        if c.startswith("License ::") and c != "License :: OSI Approved"
    ]
    if classified:
        return ", ".join(classified)
    words = (metadata.get("License") or "").strip().splitlines()
    first = words[0].strip() if words else ""
    return first if 0 < len(first) <= LONG else "see the package"


if __name__ == "__main__":
    run_script(main)
