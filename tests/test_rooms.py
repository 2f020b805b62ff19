"""The rooms: imports lead to an earlier room or stay in their own, and none goes in a circle."""

import ast
from collections import defaultdict

import pytest
from conftest import ROOT

# Each room imports only from those above it (and itself).
ROOMS = (
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
    "embeddings",
    "profiling",
    "comparison",
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


def test_every_module_is_in_a_room():
    folders = {p.name for p in (ROOT / "tune").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ROOMS)
    loose = {p.name for p in (ROOT / "tune").glob("*.py")}
    assert loose <= {"__init__.py", "__main__.py", "version.py"}


def test_no_import_leads_back_to_a_later_room():
    wrong = []
    for name, imported in modules().items():
        room = name.split(".")[1] if "." in name else None
        if room not in ROOMS:
            continue  # the package itself opens its doors when they are used
        wrong += [
            f"{name} -> {other}"
            for other in imported
            if ROOMS.index(other.split(".")[1]) > ROOMS.index(room)
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


def test_every_room_says_what_happens_there_and_opens_its_door():
    import importlib

    for room in ROOMS:
        module = importlib.import_module(f"tune.{room}")
        assert module.__doc__
        for name in getattr(module, "__all__", []):
            assert getattr(module, name) is not None
