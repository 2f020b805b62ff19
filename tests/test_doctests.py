"""The examples in docstrings give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import tune

MODULES = [
    m.name for m in pkgutil.walk_packages(tune.__path__, "tune.") if not m.name.endswith("__main__")
]


def test_some_modules_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples
    ]
    assert len(found) >= 8


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
