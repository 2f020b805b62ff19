"""Packages import only from packages above them, and no modules import each other in a circle."""

import ast
import re
from collections import defaultdict

import pytest
from conftest import ROOT

# Each package imports only from those above it (and itself).
PACKAGES = (
    "system",
    "cli",
    "audio",
    "segments",
    "encoders",
    "store",
    "demo",
    "tasks",
    "aggregators",
    "probing",
    "runs",
    "profiling",
    "comparison",
    "embeddings",
    "sweep",
)


def imports_of(path) -> set[str]:
    """Modules of this package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("tune.")}


def modules() -> dict[str, set[str]]:
    """Module -> modules that it imports, names cut down to files that exist."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p
        for p in (ROOT / "tune").rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}

    def file_of(name):
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {file_of(i) for i in imports_of(path)} - {"", "tune"} for name, path in files.items()
    }


def test_every_module_is_in_a_package():
    folders = {p.name for p in (ROOT / "tune").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(PACKAGES)
    loose = {p.name for p in (ROOT / "tune").glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py", "version.py"}


def test_no_import_is_from_a_later_package():
    wrong = []
    for name, imported in modules().items():
        package = name.split(".")[1] if "." in name else None
        if package not in PACKAGES:
            continue  # tune itself imports its public names when they are used
        wrong += [
            f"{name} -> {other}"
            for other in imported
            if PACKAGES.index(other.split(".")[1]) > PACKAGES.index(package)
        ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    graph = modules()
    state = defaultdict(int)

    def visit(name, trail):
        state[name] = 1
        for other in graph[name] - {name}:
            if state[other] == 1:
                pytest.fail(" -> ".join([*trail, name, other]))
            if state[other] == 0:
                visit(other, [*trail, name])
        state[name] = 2

    for name in graph:
        if state[name] == 0 and "." in name:
            visit(name, [])


def test_every_package_has_a_docstring_and_its_public_names():
    import importlib

    for package in PACKAGES:
        module = importlib.import_module(f"tune.{package}")
        assert module.__doc__
        for name in getattr(module, "__all__", []):
            assert getattr(module, name) is not None


def test_every_module_is_named_where_a_stranger_looks():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in (ROOT / "tune").rglob("__init__.py"):
        names = {p.stem for p in path.parent.glob("*.py") if not p.stem.startswith("__")}
        if path.parent == ROOT / "tune":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert names <= set(re.findall(r"\w+", docstring)), path
        package = path.relative_to(ROOT / "tune").parts[0]
        row = next(line for line in table.splitlines() if line.startswith(f"| `{package}/`"))
        if package != "demo":  # the composer is one entry there
            assert names <= set(re.findall(r"\w+", row)), path
