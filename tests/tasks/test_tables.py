"""Tables as spreadsheets, pandas and people write them: each variant by its rows or its error."""

import logging
import unicodedata
from pathlib import Path

import pytest
from conftest import SHARED

from tune.tasks.load import SPLITS, TaskError, load_task

PLAIN = "path,label,split\n" + "".join(f"a.wav,rock,{s}\nb.wav,jazz,{s}\n" for s in SPLITS)
BODY = PLAIN.split("\n", 1)[1]
JSONL = "".join(
    f'{{"audio_path": "{path}", "label": "{label}", "split": "{split}"}}\n'
    for split in SPLITS
    for path, label in (("a.wav", "rock"), ("b.wav", "jazz"))
)


@pytest.fixture
def said(caplog, monkeypatch):
    """What is said while a task is loaded: `said()`."""
    monkeypatch.setattr(logging.getLogger("tune"), "propagate", True)
    caplog.set_level(logging.INFO, logger="tune")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def load(path: Path, **kwargs) -> tuple:
    """Load a task and spell out its labels: (task, split -> labels)."""
    task = load_task(str(path), cache_dir=path.parent, usable=False, **kwargs)
    found = {}
    for split in SPLITS:
        values = task.splits[split]["label"][:]
        if task.kind == "tags":
            values = [{t for t, yes in zip(task.classes, v, strict=True) if yes} for v in values]
        elif task.classes:
            values = [task.classes[v] for v in values]
        found[split] = values
    return task, found


def as_bytes(content: str | bytes) -> bytes:
    """A file's bytes; text is UTF-8."""
    return content if isinstance(content, bytes) else content.encode()


# Name of the file -> the same table, written otherwise, and a word of what is said of it.
SAME = {
    "plain.csv": (PLAIN, ""),
    "semicolons.csv": (PLAIN.replace(",", ";"), "separated by semicolons"),
    "tabs.csv": (PLAIN.replace(",", "\t"), "separated by tabs"),
    "bars.csv": (PLAIN.replace(",", "|"), "separated by bars"),
    "tabs.tsv": (PLAIN.replace(",", "\t"), ""),
    "commas.tsv": (PLAIN, "separated by commas"),
    "large.CSV": (PLAIN, ""),
    "large.TSV": (PLAIN.replace(",", "\t"), ""),
    "excel_sep.csv": ("sep=;\r\n" + PLAIN.replace(",", ";"), "separated by semicolons"),
    "utf8_mark.csv": ("\ufeff" + PLAIN, ""),
    "utf16.csv": (PLAIN.encode("utf-16"), ""),
    "utf16_le_no_mark.csv": (PLAIN.encode("utf-16-le"), ""),
    "utf16_be.csv": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), ""),
    "utf16_be_no_mark.csv": (PLAIN.encode("utf-16-be"), ""),
    "utf32.csv": (PLAIN.encode("utf-32"), ""),
    "utf16_tabs.csv": (PLAIN.replace(",", "\t").encode("utf-16"), "separated by tabs"),
    "windows_lines.csv": (PLAIN.replace("\n", "\r\n"), ""),
    "old_mac_lines.csv": (PLAIN.replace("\n", "\r"), ""),
    "doubled_lines.csv": (PLAIN.replace("\n", "\r\r\n"), ""),
    "no_last_line_end.csv": (PLAIN.rstrip(), ""),
    "case_of_names.csv": ("Path,LABEL,Split\n" + BODY, ""),
    "blanks_in_names.csv": (" path , label\t,\xa0split \n" + BODY, ""),
    "quoted_names.csv": ('"path","label","split"\n' + BODY, ""),
    "zero_width_name.csv": ("path,\u200blabel,split\n" + BODY, ""),
    "blanks_after_commas.csv": (PLAIN.replace(",", ", ").replace("rock", '"rock"'), ""),
    "blanks_around_labels.csv": (PLAIN.replace("rock", " rock\xa0"), ""),
    "pandas_index.csv": (
        ",path,label,split\n0," + BODY.replace("\n", "\n0,").removesuffix("0,"),
        "",
    ),
    "empty_columns.csv": (PLAIN.replace("\n", ",,\n"), ""),
    "more_empty_fields.csv": (PLAIN.replace("train\n", "train,,\n"), ""),
    "rows_of_commas.csv": (PLAIN + ",,\n,,\n", ""),
    "empty_lines.csv": ("\n \n" + PLAIN.replace("\n", "\n\n"), ""),
    "comments.csv": ("# by hand\n" + PLAIN + "#a.wav,folk,train\n# end\n", "2 lines passed over"),
    "names_in_a_comment.csv": ("# " + PLAIN, ""),
    "two_tables.csv": (PLAIN + "path,label,split\n", "1 line passed over"),
    "other_column_twice.csv": ("x,x," + PLAIN.replace("\n", "\n1,2,").removesuffix("1,2,"), ""),
    "training.csv": (PLAIN.replace(",train", ",Training ").replace(",val", ",VALID"), ""),
    "dev_eval.csv": (PLAIN.replace("val", "dev").replace("test", "eval"), "eval is read as test"),
    "eval_test.csv": (PLAIN.replace("val", "Eval").replace("test", "TESTING"), "read as val"),
    "evaluation.csv": (PLAIN.replace("val", "development").replace("test", "evaluation"), "test"),
    "plain.jsonl": (JSONL, ""),
    "large.JSONL": (JSONL, ""),
    "mark.jsonl": ("\ufeff" + JSONL, ""),
    "blank_lines.jsonl": (JSONL.replace("\n", "\r\n \r\n"), ""),
    "utf16.jsonl": (JSONL.encode("utf-16"), ""),
    "null.jsonl": (JSONL + '{"audio_path": "c.wav", "label": null}\n', "empty (1)"),
    "nan.jsonl": (JSONL + '{"audio_path": "c.wav", "label": NaN}\n', "nan (1)"),
}


@pytest.mark.parametrize("name", SAME)
def test_one_table_written_in_many_ways(tmp_path, said, name):
    content, words = SAME[name]
    (tmp_path / name).write_bytes(as_bytes(content))
    task, found = load(tmp_path / name)
    assert found == {split: ["rock", "jazz"] for split in SPLITS}
    for split in SPLITS:
        assert task.splits[split]["path"][:] == [str(tmp_path / p) for p in ("a.wav", "b.wav")]
    assert task.name == name.split(".")[0]
    assert words in said()
    assert bool(said()) == bool(words)  # what is plain needs no word
    assert len(task.skipped) == ("label" in said())


def of_labels(*labels: str) -> str:
    """A table of labels, in quotes, all of them in each split."""
    quoted = ['"' + label.replace('"', '""') + '"' for label in labels]
    rows = [f"{i}.wav,{label},{split}\n" for split in SPLITS for i, label in enumerate(quoted)]
    return "path,label,split\n" + "".join(rows)


# Labels as text, --kind -> kind, labels as they are meant, and a word of what is said.
NUMBERS_22 = [str(i) for i in range(60, 82)]
LABELS = [
    (["0.0", "1.0", ""], "auto", "classes", ["0", "1"], "read as 0, a class (--kind numbers"),
    (["0", "1.0", "nan"], "auto", "classes", ["0", "1"], "labels such as 1.0"),
    (["2.0", "-1.0", "nan"], "auto", "classes", ["2", "-1"], "left out: nan (3)"),
    (["0.0", "1.0", ""], "numbers", "numbers", [[0.0], [1.0]], "left out: empty (3)"),
    (["0.0", "1.0"], "auto", "numbers", [[0.0], [1.0]], ""),
    (["0.5", "1.0", "NaN"], "auto", "numbers", [[0.5], [1.0]], "NaN (3)"),
    (["rock", "NA", "N/A", "None"], "auto", "classes", ["rock"], "9 rows without a label"),
    (["rock", "null", " ", "<NA>"], "auto", "classes", ["rock"], "null (3)"),
    (["none", "jazz"], "auto", "classes", ["none", "jazz"], "'none' is read as a label"),
    (["['rock', 'loud']", "['jazz']"], "auto", "tags", [{"rock", "loud"}, {"jazz"}], "of tags"),
    (['["rock", "it\'s"]', "[]"], "auto", "tags", [{"rock", "it's"}, set()], "lists of tags"),
    (["['rock' 'loud']", "['jazz']"], "auto", "tags", [{"rock", "loud"}, {"jazz"}], "of tags"),
    (["[np.str_('a'), np.str_('b')]", "['a']"], "auto", "tags", [{"a", "b"}, {"a"}], "of tags"),
    (["('rock', 'loud')", "{'jazz'}"], "tags", "tags", [{"rock", "loud"}, {"jazz"}], "of tags"),
    (["{'rock', 'loud'}", "set()"], "auto", "tags", [{"rock", "loud"}, set()], "of tags"),
    (["array(['a', 'b'], dtype=object)", "['a']"], "auto", "tags", [{"a", "b"}, {"a"}], "of tags"),
    (["[rock, very loud]", "[a]"], "auto", "tags", [{"rock", "very loud"}, {"a"}], "of tags"),
    (["[unknown]", "jazz"], "auto", "classes", ["[unknown]", "jazz"], ""),
    (["(none)", "(other)"], "auto", "classes", ["(none)", "(other)"], ""),
    (["['rock']", "['jazz']"], "classes", "classes", ["['rock']", "['jazz']"], ""),
    (["rock; loud", "a"], "auto", "classes", ["rock; loud", "a"], "one class (--kind tags"),
    (["0.5; 1", "1; 2"], "auto", "numbers", [[0.5, 1.0], [1.0, 2.0]], ""),
    (["rock; loud", "jazz"], "tags", "tags", [{"rock", "loud"}, {"jazz"}], ""),
    (["rock, loud", "a"], "tags", "tags", [{"rock, loud"}, {"a"}], "is read as one tag"),
    (["[0.1, 0.14]", "[0.2, 1]"], "auto", "numbers", [[0.1, 0.14], [0.2, 1.0]], "of numbers"),
    (["[0.1  0.14]", "[-.2\n 1.e-3]"], "auto", "numbers", [[0.1, 0.14], [-0.2, 0.001]], "lists"),
    (["[np.float64(0.1)]", "[np.float64(2.0)]"], "auto", "numbers", [[0.1], [2.0]], "of numbers"),
    (["(0.1, 2)", "(1, 3.5)"], "auto", "numbers", [[0.1, 2.0], [1.0, 3.5]], "of numbers"),
    (["0,1", "-1,25"], "auto", "numbers", [[0.1], [-1.25]], "0,1 as 0.1"),
    (["1.234,5", "0,5"], "auto", "numbers", [[1234.5], [0.5]], "1.234,5 as 1234.5"),
    (["0,1 0,2", "1,5;2"], "numbers", "numbers", [[0.1, 0.2], [1.5, 2.0]], "decimal comma"),
    (["0,1", "1,2"], "classes", "classes", ["0,1", "1,2"], ""),
    (["\N{MINUS SIGN}0.5", "0.5"], "auto", "numbers", [[-0.5], [0.5]], ""),
    (["1", "2"], "auto", "classes", ["1", "2"], ""),
    (NUMBERS_22, "auto", "classes", NUMBERS_22, "22 whole numbers, read as so many classes"),
    (["Am", "F♯m", "B♮ minor"], "keys", "keys", ["A minor", "Gb minor", "B minor"], ""),
    (["C", "Bb:maj"], "keys", "keys", ["C major", "Bb major"], "3 keys without a mode"),
]


@pytest.mark.parametrize(("labels", "kind", "wanted", "expected", "words"), LABELS)
def test_labels_are_read_as_they_were_meant(tmp_path, said, labels, kind, wanted, expected, words):
    (tmp_path / "task.csv").write_text(of_labels(*labels), encoding="utf-8")
    task, found = load(tmp_path / "task.csv", kind=kind)
    assert (task.kind, found) == (wanted, dict.fromkeys(SPLITS, expected))
    assert len(task.skipped) == 3 * (len(labels) - len(expected))
    assert words in said()
    assert bool(said()) == bool(words)


@pytest.mark.parametrize(
    ("label", "encoding", "words"),
    [
        (
            "Música",
            "latin-1",
            "not UTF-8: read as Windows-1252, line 2 as '0.wav,\"Música\",train'",
        ),
        ("60\N{RIGHT SINGLE QUOTATION MARK}s", "cp1252", "read as Windows-1252"),
        ("\x81", "latin-1", "read as Latin-1"),
    ],
)
def test_another_encoding_is_tried_and_said(tmp_path, said, label, encoding, words):
    (tmp_path / "task.csv").write_bytes(of_labels(label, "jazz").encode(encoding))
    assert load(tmp_path / "task.csv")[1]["test"] == [label, "jazz"]
    assert words in said()


# Paths as they are written -> whether that is said; the file is always audio/Müsli 1.wav.
PATHS = {
    "as it is": ("audio/Müsli 1.wav", ""),
    "decomposed": (unicodedata.normalize("NFD", "audio/Müsli 1.wav"), "composed otherwise on disk"),
    "blanks around it": ("  audio/Müsli 1.wav\xa0", ""),
    "backslashes": (r"audio\Müsli 1.wav", "backslashes read with slashes"),
    "backslashes and a dot": (r".\audio\Müsli 1.wav", "backslashes"),
    "in quotes": ("'audio/Müsli 1.wav'", ""),
    "a whole path": ("{folder}/audio/Müsli 1.wav", ""),
    "a URL": ("file://{folder}/audio/M%C3%BCsli%201.wav", ""),
    "a URL of this host": ("file://localhost{folder}/audio/M%c3%bcsli%201.wav", ""),
    "a URL with one slash": ("file:{folder}/audio/Müsli 1.wav", ""),
    "a relative URL": ("file://audio/M%C3%BCsli%201.wav", ""),
    "a large URL": ("FILE://{folder}/audio/Müsli 1.wav", ""),
    "a decomposed URL": ("file://{folder}/audio/Mu%CC%88sli%201.wav", "composed otherwise on disk"),
}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("name", PATHS)
def test_a_file_is_found_however_its_path_is_written(tmp_path, said, name, ending):
    written, words = PATHS[name]
    file = tmp_path / "audio" / "Müsli 1.wav"
    file.parent.mkdir()
    file.touch()
    check_path(tmp_path, ending, written.format(folder=tmp_path), file)
    assert words in said()
    assert bool(said()) == bool(words)


def check_path(folder: Path, ending: str, written: str, file: Path) -> None:
    """Load a task with a path and look whether it leads to the file."""
    text = PLAIN if ending == "csv" else JSONL
    written = written if ending == "csv" else written.replace("\\", "\\\\")
    (folder / f"task.{ending}").write_text(text.replace("a.wav", written), encoding="utf-8")
    task, _ = load(folder / f"task.{ending}")
    assert task.splits["train"]["path"][0] == str(file)
    assert task.skipped == []


def test_a_composed_name_finds_a_decomposed_one_also_in_its_folder(tmp_path):
    nfd = unicodedata.normalize("NFD", "Müsli")
    file = tmp_path / nfd / f"{nfd}.wav"
    file.parent.mkdir()
    file.touch()
    check_path(tmp_path, "csv", "Müsli/Müsli.wav", file)
    both = tmp_path / nfd / "Müsli.wav"  # a file of exactly this name goes before
    both.touch()
    check_path(tmp_path, "csv", f"{nfd}/Müsli.wav", both)


def test_a_name_that_begins_with_a_hash_is_a_file_where_there_is_one(tmp_path):
    (tmp_path / "#1 hit.wav").touch()
    check_path(tmp_path, "csv", "#1 hit.wav", tmp_path / "#1 hit.wav")


@pytest.mark.parametrize("written", [r"C:\Music\a.wav", r"\\server\a.wav", "file:///D:/a.wav"])
def test_a_path_of_another_machine_is_said_to_be_one(tmp_path, said, written):
    (tmp_path / "task.csv").write_text(PLAIN.replace("a.wav", written))
    assert load(tmp_path / "task.csv")[0].splits["test"]["id"][0] == written
    assert "3 paths of a Windows machine (a drive or a share) not found here" in said()


def test_an_address_is_no_file(tmp_path):
    (tmp_path / "task.csv").write_text(PLAIN + "https://x.org/a.wav,rock,train\n")
    (item,) = load(tmp_path / "task.csv")[0].skipped
    assert item["where"].endswith(":8")
    assert "an address, not a file: download it" in item["reason"]


NO_SPLIT = PLAIN.replace("split", "subset")
REFUSED = {
    "a column twice.csv": ("path,label,label\na.wav,x,y\n", "'label' 2 times, as columns 2 and 3"),
    "twice but for case.csv": ("Path,PATH ,Label\na.wav,b,x\n", "'Path' 2 times"),
    "split twice.csv": ("path,label,split,split\na.wav,x,test,train\n", "'split' 2 times"),
    "no names.csv": (BODY, "no line of column names: its first line .*put path,label in front"),
    "no names.tsv": (BODY.replace(",", "\t"), "no line of column names"),
    "audio_path.csv": (PLAIN.replace("path", "audio_path"), "is it --audio_column audio_path[?]"),
    "genre.csv": (PLAIN.replace("label", "Genre"), "label missing.*is it --label_column Genre[?]"),
    "lable.csv": (PLAIN.replace("label", "lable"), "is it --label_column lable[?]"),
    "both.csv": ("file;genre\na;b\n", "is it --audio_column file --label_column genre[?]"),
    "a blank.csv": (PLAIN.replace("path", "my path"), "is it --audio_column 'my path'[?]"),
    "a line break in a name.csv": ('"pa\nth",label\n', "path missing [^\n]*'pa.nth'[^\n]*$"),
    "nothing near.csv": ("path,x\na.wav,b\n", r"label missing \(found: \['path', 'x'\]\)$"),
    "thousands.csv": (
        of_labels("1,200", "3,400"),
        r"decimal comma or a thousand[?] Write 1\.200 or",
    ),
    "excel.csv": (b"PK\x03\x04" + b"\0" * 40, "not a text file but an Excel workbook.*save it as"),
    "gzip.csv": (b"\x1f\x8b\x08" + b"\0" * 40, "packed with gzip"),
    "page.csv": ("<!DOCTYPE html><html>", "a web page: a failed download[?]"),
    "page.jsonl": ("<html>", "a web page"),
    "damaged.csv": (of_labels("Música", "é").encode() + b"\xff.wav,x,train\n", ":8: damaged UTF-8"),
    "half.csv": (b"\xff\xfe" + PLAIN.encode("utf-16-le")[:-1], "damaged UTF-16"),
    "empty.csv": ("", r"missing \(found: nothing\)"),
    "blank.csv": ("\n \n", r"missing \(found: nothing\)"),
    "no labels.csv": ("path,label\na.wav,\nb.wav,nan\n", r"no usable row \(skipped: 2.*no label"),
    "unquoted decimal commas.csv": (PLAIN.replace("rock", "0,5").replace("jazz", "0,1"), "quotes"),
    "all eval.csv": (
        PLAIN.replace("val", "eval") + "c.wav,x,val\n",
        "val split.*no training track",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_read_is_refused_with_what_to_do(tmp_path, name):
    content, words = REFUSED[name]
    (tmp_path / name).write_bytes(as_bytes(content))
    with pytest.raises(TaskError, match=words) as caught:
        load(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


def test_eval_beside_val_and_test_is_no_split(tmp_path):
    (tmp_path / "task.csv").write_text(PLAIN + "c.wav,rock,eval\n")
    (item,) = load(tmp_path / "task.csv")[0].skipped
    assert item["reason"] == "unknown split 'eval' (train, val or test)"


def test_a_column_of_splits_under_another_name_is_pointed_out(tmp_path, said):
    (tmp_path / "task.csv").write_text(NO_SPLIT)
    task, _ = load(tmp_path / "task.csv")
    assert task.split_made
    assert "the column 'subset' holds names of splits, but only one called split" in said()


def test_an_empty_split_says_why_by_reason_and_number(tmp_path):
    text = PLAIN.replace("rock,test", "NA,test").replace("jazz,test", ",test")
    text += "c.wav,x,hidden\nd.wav,x,hidden\ne.wav,x,hidden\nhttp://a/b.wav,x,test\n"
    (tmp_path / "task.csv").write_text(text)
    with pytest.raises(TaskError) as caught:
        load(tmp_path / "task.csv")
    message = str(caught.value)
    assert "the test split has no usable track (skipped: 6: 3 as " in message
    for part in (":8: unknown split 'hidden'", "; 2 as ", "no label (", "; train has 2 and val"):
        assert part in message


def test_a_label_near_a_training_class_is_named(tmp_path):
    (tmp_path / "task.csv").write_text(PLAIN + "c.wav,Rock,test\nd.wav,folk,test\n")
    near, far = load(tmp_path / "task.csv")[0].skipped
    assert near["reason"] == "unknown label 'Rock': no training track has it (is it 'rock'?)"
    assert far["reason"] == "unknown label 'folk': no training track has it"


def test_without_says_why_a_split_ran_empty(tmp_path):
    (tmp_path / "task.csv").write_text(PLAIN + "c.wav,rock,train\nd.wav,jazz,train\n")
    task, _ = load(tmp_path / "task.csv")
    gone = dict.fromkeys(task.splits["val"]["path"], "no such file")
    with pytest.raises(TaskError, match=r"val split has no usable.*a\.wav: no such file"):
        task.without(gone)


CASES = {
    "03_semicolon": ("classes", ["jazz", "rock"], 12),
    "04_header_case": ("classes", ["jazz", "rock"], 12),
    "12_int_with_nan_float": ("classes", ["0", "1"], 11),
    "20_backslash": ("classes", ["jazz", "rock"], 12),
    "36_decimal_comma": ("numbers", ["value"], 12),
    "40_two_targets_list": ("numbers", ["target_0", "target_1"], 12),
    "42_pylist_tags": ("tags", ["jazz", "loud", "rock"], 12),
}


@pytest.mark.parametrize("name", CASES)
def test_the_shared_cases(name):
    path = SHARED / "cases" / "tables" / f"{name}.csv"
    if not path.is_file():
        pytest.skip("the cases (../shared/cases) are not here")
    kind, parts, n_train = CASES[name]
    task = load_task(str(path), cache_dir=path.parent)
    assert (task.kind, task.classes or task.targets) == (kind, parts)
    assert len(task.splits["train"]) == n_train
    assert all(Path(p).is_file() for p in task.splits["train"]["path"])
