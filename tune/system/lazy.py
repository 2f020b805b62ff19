"""Public names of packages, imported from their modules when they are first used.

So importing a package costs nothing, and a command loads only what it needs.
"""

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_names(package: str, public: Mapping[str, str]) -> tuple[Callable, Callable, list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package.

    Parameters
    ----------
    package : its `__name__`
    public : name -> the module in the package that defines it; no name is that of a module

    Examples
    --------
    >>> get, _, names = lazy_names("tune.segments", {"parse_rule": "rules"})
    >>> get("parse_rule")("10").name
    '10'
    """

    def get(name: str):
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{public[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next look finds it at once
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *public}), sorted(public)
