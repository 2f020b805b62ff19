"""Objects named FILE.py:NAME or PACKAGE.MODULE:NAME, and what they were read from.

A name like this is the user's word for that file: loading it executes it. A file is loaded anew
when it, or a module that it imports from its own folder, has changed, so that a long-lived process
never uses what the file no longer says. `source_digest` is of the bytes that were read.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tune.system.local_modules import local_sources

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_beside: set[str] = set()  # files of modules that files imported from their own folder


class PluginError(ValueError):
    """A spec that names no file, module or object, or one that can't be loaded."""


@dataclass(frozen=True)
class Own:
    """Where an aggregator or a task of one's own comes from.

    Attributes
    ----------
    spec : FILE.py:NAME with the file's full path, or PACKAGE.MODULE:NAME
    slug : its short name in results, runs' names and tables, such as mine-median_range
    sha256 : of its source file
    """

    spec: str
    slug: str
    sha256: str

    @classmethod
    def of(cls, spec: str, obj: object) -> "Own":
        """What a spec names, already loaded."""
        where, _, name = spec.rpartition(":")
        full = f"{Path(where).expanduser().resolve()}:{name}" if is_file(spec) else spec
        return cls(full, slug_of(spec), source_digest(obj))

    def as_json(self) -> dict[str, str]:
        """The record for results; a file without its folder."""
        where, _, name = self.spec.rpartition(":")
        return {"name": f"{Path(where).name}:{name}", "sha256": self.sha256}


def slug_of(spec: str) -> str:
    """A plug-in's short name.

    Examples
    --------
    >>> slug_of("~/a folder/my pool.py:f"), slug_of("package.module:f")
    ('my-pool-f', 'module-f')
    """
    where, _, name = spec.rpartition(":")
    stem = Path(where).stem if is_file(spec) else where.rpartition(".")[2]
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in f"{stem}-{name}")


def is_plugin(text: str) -> bool:
    """Say whether a text has the form FILE.py:NAME or PACKAGE.MODULE:NAME.

    Examples
    --------
    >>> is_plugin("~/mine.py:Mine"), is_plugin("package.module:NAME"), is_plugin("owner/name")
    (True, True, False)
    """
    source, _, name = text.rpartition(":")
    return name.isidentifier() and (source.endswith(".py") or bool(MODULE.fullmatch(source)))


def is_file(spec: str) -> bool:
    """Say whether FILE.py:NAME is meant, not PACKAGE.MODULE:NAME."""
    return spec.rpartition(":")[0].endswith(".py")


def registered(group: str) -> dict[str, str]:
    """What installed packages register by an entry-point group: name -> PACKAGE.MODULE:NAME."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def load_object(spec: str) -> object:
    """Load what FILE.py:NAME or PACKAGE.MODULE:NAME names.

    Raises
    ------
    PluginError
        When there is no such file, module or name, or the file can't be executed.

    Examples
    --------
    >>> load_object("json:dumps")([1])
    '[1]'
    """
    where, _, name = spec.rpartition(":")
    module = load_module(spec)
    if not hasattr(module, name):
        raise PluginError(f"{where} has no {name!r}")
    return getattr(module, name)


def load_module(spec: str) -> ModuleType:
    """Load the module that holds what a spec names; a file is loaded anew when it has changed."""
    if not is_plugin(spec):
        raise PluginError(f"expected FILE.py:NAME or PACKAGE.MODULE:NAME, got {spec!r}")
    source = spec.rpartition(":")[0]
    if not is_file(spec):
        try:
            return importlib.import_module(source)
        except Exception as error:
            raise PluginError(
                f"the module {source} can't be loaded: {_in_one_line(error)}"
            ) from error
    path = Path(source).expanduser().resolve()
    try:
        digest = _digest(path)
    except OSError as error:
        raise PluginError(f"{source} can't be read: {error.strerror}") from None
    place = hashlib.sha256(str(path).encode()).hexdigest()
    name = f"tune_plugin_{path.stem}_{place[:8]}{digest[:8]}"
    if name not in sys.modules:
        try:
            _import_file(path, name, digest)
        except Exception as error:
            raise PluginError(f"{source} can't be loaded: {_in_one_line(error)}") from error
    return sys.modules[name]


def _import_file(path: Path, name: str, digest: str) -> None:
    """Import a file under a name, with its folder on the path for its own imports."""
    for key, module in list(sys.modules.items()):  # old ones, and other folders' of the same name
        if getattr(module, "__file__", None) in _beside:
            del sys.modules[key]
    _beside.update(map(str, local_sources(path)[1:]))
    folder = str(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    module.__source_digest__ = digest
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

    Raises
    ------
    ValueError
        When it wasn't made by a source file (a built-in function).
    """
    module = obj if isinstance(obj, ModuleType) else None
    if module is None:
        module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
    digest = getattr(module, "__source_digest__", None)
    if digest is not None:
        return digest
    file = getattr(module, "__file__", None)
    if file is None or Path(file).suffix != ".py":
        raise ValueError(f"{obj!r} has no source file")
    return _digest(Path(file).resolve())


def _digest(path: Path) -> str:
    """SHA-256 of a file; of it and the modules that it imports from beside it, if there are any."""
    digests = [hashlib.sha256(file.read_bytes()) for file in local_sources(path)]
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _in_one_line(error: Exception) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
