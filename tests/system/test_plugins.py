"""Objects named FILE.py:NAME or PACKAGE.MODULE:NAME."""

import hashlib
import json
import re

import pytest

from tune.system.plugins import load_object, source_digest


def test_an_object_comes_from_a_file_or_a_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def two():\n    return 2\n\n\nclass Two:\n    pass\n")
    assert load_object(f"{file}:two")() == 2
    assert load_object("json:dumps") is json.dumps
    for obj in (
        load_object(f"{file}:two"),
        load_object(f"{file}:Two"),
        load_object(f"{file}:Two")(),
    ):
        assert source_digest(obj) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(source_digest(json.dumps)) == 64


def test_a_changed_file_is_read_anew_and_each_object_keeps_its_own_digest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def number():\n    return 1\n")
    old = load_object(f"{file}:number")
    assert load_object(f"{file}:number") is old
    file.write_text("def number():\n    return 2\n")
    new = load_object(f"{file}:number")
    assert (old(), new()) == (1, 2)
    assert source_digest(old) != source_digest(new)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py:f", "none.py can't be read: No such file"),
        ("mine.py:g", "mine.py has no 'g'"),
        ("broken.py:f", "broken.py can't be loaded: SyntaxError"),
        (
            "raises.py:f",
            "raises.py can't be loaded: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("nowhere.at_all:f", "the module nowhere.at_all can't be loaded"),
        ("mine.py", "expected FILE.py:NAME or PACKAGE.MODULE:NAME, got 'mine.py'"),
        ("mine.py:", "expected FILE.py:NAME"),
        ("mine.py:f()", "expected FILE.py:NAME"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, spec, message):
    (tmp_path / "mine.py").write_text("f = 1\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("import nowhere\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_object(spec)
    assert "\n" not in str(error.value)


def test_a_built_in_function_has_no_source():
    with pytest.raises(ValueError, match="has no source file"):
        source_digest(len)
