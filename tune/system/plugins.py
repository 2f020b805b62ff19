"""Objects named on the command line: FILE.py:NAME and PACKAGE.MODULE:NAME.

A name like this is the user's word for that file: loading it executes it.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from tune.system.local_modules import local_sources

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_beside: set[str] = set()  # files of modules that files imported from their own folder


class PluginError(ValueError):
    """A spec that names no file, module or object."""


def is_plugin(text: str) -> bool:
    """Say whether a text has the form FILE.py:NAME or PACKAGE.MODULE:NAME.

    Examples
    --------
    >>> is_plugin("~/mine.py:Mine"), is_plugin("package.module:NAME"), is_plugin("owner/name")
    (True, True, False)
    """
    source, _, name = text.rpartition(":")
    return name.isidentifier() and (source.endswith(".py") or bool(MODULE.fullmatch(source)))


def load_object(spec: str) -> object:
    """Load what FILE.py:NAME or PACKAGE.MODULE:NAME names.

    Raises
    ------
    PluginError
        When there is no such file, module or name; errors of the file's own code pass through.
    """
    name = spec.rpartition(":")[2]
    module = load_module(spec)
    if not hasattr(module, name):
        raise PluginError(f"{spec}: there is no {name} in {Path(module.__file__).name}")
    return getattr(module, name)


def load_module(spec: str) -> ModuleType:
    """Load the module that holds what a spec names; a file is loaded anew when it has changed."""
    source = spec.rpartition(":")[0]
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if f"{source}.".startswith(f"{error.name}."):  # not one that the module imports
                raise PluginError(f"{spec}: there is no module {error.name}") from None
            raise
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{spec}: there is no file {source}")
    name = f"tune_plugin_{path.stem}_{_digest(path, str(path))[:12]}"
    if name not in sys.modules:
        _import_file(path, name)
    return sys.modules[name]


def _import_file(path: Path, name: str) -> None:
    """Import a file under a name, with its folder on the path for its own imports."""
    for key, module in list(sys.modules.items()):  # old ones, and other folders' of the same name
        if getattr(module, "__file__", None) in _beside:
            del sys.modules[key]
    _beside.update(map(str, local_sources(path)[1:]))
    folder = str(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)
    # Bytecode is known by size and second only: what has just been changed would be the old.
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:  # imports inside functions still find it, behind the libraries
        sys.dont_write_bytecode = kept
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def source_digest(obj: object) -> str:
    """SHA-256 over the source file of a module, class, function or instance.

    Modules that it imports from its own folder count as well, and those that they import.
    """
    module = obj if isinstance(obj, ModuleType) else sys.modules[obj.__module__]
    return _digest(Path(module.__file__).resolve())


def _digest(path: Path, start: str = "") -> str:
    """SHA-256 over a file and the modules that it imports from beside it."""
    digest = hashlib.sha256(start.encode())
    for file in local_sources(path):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
