"""Find the modules that a Python file imports from its own folder.

They are read off the import statements, also those inside functions; nothing is executed.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


def local_sources(path: Path) -> list[Path]:
    """A file, then the modules beside or below it (or in its package) that it imports, sorted.

    Of an installed package only those in the file's own folder count; TUNE's own never do.
    """
    path = path.resolve()
    top = path.parent  # the folder that imports are looked up in
    if top.name in INSTALLED:
        return [path]
    while (top / "__init__.py").is_file():
        top = top.parent
    limit = (
        path.parent
        if set(INSTALLED) & set(path.parts) or top == path.parent
        else (top / path.relative_to(top).parts[0])
    )
    found, todo = set(), [path]
    while todo:
        file = todo.pop()
        found.add(file)
        for base, parts in _imports(file, (path.parent, top)):
            for n in range(1, len(parts) + 1):
                stem = base.joinpath(*parts[:n])
                for candidate in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
                    if candidate.is_file() and candidate.is_relative_to(limit):
                        todo += {candidate.resolve()} - found
    return [path, *sorted(found - {path})]


def _imports(file: Path, folders) -> Iterator[tuple[Path, list[str]]]:
    """The names that a file imports, as (folder to look in, parts of the name)."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # executing it says why; a compiled module has no imports
        return
    for node in ast.walk(tree):
        names, level = [], 0
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            level, start = node.level, f"{node.module}." if node.module else ""
            names = [start + alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if level:
                yield file.parents[level - 1], parts
            elif parts[0] != "tune":
                yield from ((folder, parts) for folder in dict.fromkeys(folders))
