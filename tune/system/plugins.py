"""Objects of one's own, named FILE.py:NAME or PACKAGE.MODULE:NAME, and what they were read from.

A file is read anew when its bytes have changed, so that a long-lived process never uses what the
file no longer says. `source_digest` is of the bytes that were read.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_object(spec: str) -> object:
    """Load what FILE.py:NAME, or PACKAGE.MODULE:NAME, names.

    Raises
    ------
    ValueError
        When there is no such file, module or name, or the file can't be executed.

    Examples
    --------
    >>> load_object("json:dumps")([1])
    '[1]'
    """
    where, colon, name = spec.rpartition(":")
    if not (where and colon and name.isidentifier()):
        raise ValueError(f"expected FILE.py:NAME or PACKAGE.MODULE:NAME, got {spec!r}")
    module = _load_file(Path(where).expanduser()) if is_file(spec) else _load_module(where)
    if not hasattr(module, name):
        raise ValueError(f"{where} has no {name!r}")
    return getattr(module, name)


def source_digest(obj: object) -> str:
    """SHA-256 over the source file's bytes of a function, a class, or an object's class.

    Raises
    ------
    ValueError
        When it wasn't made by a source file (a built-in function).
    """
    module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
    digest = getattr(module, "__source_digest__", None)
    if digest is not None:
        return digest
    file = getattr(module, "__file__", None)
    if file is None or Path(file).suffix != ".py":
        raise ValueError(f"{obj!r} has no source file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def is_file(spec: str) -> bool:
    """Say whether FILE.py:NAME is meant, not PACKAGE.MODULE:NAME."""
    where = spec.rpartition(":")[0]
    return where.endswith(".py") or "/" in where or "\\" in where


def registered(group: str) -> dict[str, str]:
    """What installed packages register by an entry-point group: name -> PACKAGE.MODULE:NAME."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def _load_file(path: Path) -> ModuleType:
    """The module that a file makes, under a name that its path and bytes decide."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"tune_plugin_{path.stem}_{place[:8]}{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__, module.__source_digest__ = str(path.resolve()), digest
    sys.modules[name] = module
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} can't be loaded: {_in_one_line(error)}") from error
    return module


def _load_module(name: str) -> ModuleType:
    """An installed module; the working folder isn't searched."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"the module {name} can't be loaded: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
