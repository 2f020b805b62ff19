"""README.ko.md says what README.md says: the same headings, code, links, tables, numbers, flags.

What is compared needs no Korean: whoever changes README.md is told which heading, table cell or
paragraph of README.ko.md to change with it. Words changed without a number, a link or code
changing aren't seen: only a reader can tell.
"""

import re
from collections import Counter
from itertools import zip_longest

import pytest
from conftest import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
HANGUL = re.compile(r"[가-힣]")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?:(?<!\w)[+-])?\d+(?:[.,]\d+)*")
TO_THE_OTHER = ("[한국어](README.ko.md)", "[English](README.md)")
# Korean writes "2분" where English writes "two minutes"; larger numbers are digits in both.
LARGEST_WORD = 12


def blocks(text):
    """(kind, text) of each heading, code block, table and paragraph, without the language links."""
    found, kind, fenced = [], None, False
    for line in text.split("\n"):
        before = kind
        if fenced or line.startswith("```"):
            kind, before = "code", "code" if fenced else None
            fenced = fenced != line.startswith("```")
        elif not line.strip():
            kind = None
            continue
        elif line.startswith("    ") and before in (None, "code"):
            kind = "code"
        elif re.match("#+ ", line):
            kind, before = "heading", None
        else:
            kind = "table" if line.startswith("|") else "paragraph"
        if kind == before:
            found[-1][1].append(line)
        else:
            found.append((kind, [line]))
        if kind == "code" and line.startswith("```") and not fenced:
            kind = None
    return [(k, "\n".join(part)) for k, part in found if not part[0].startswith(TO_THE_OTHER)]


def sections(text):
    """[(heading, {kind: [text]})], in order; a heading is a block of one line, and the first."""
    found = []
    for kind, block in blocks(text):
        if kind == "heading":
            found.append((block, {"code": [], "table": [], "paragraph": []}))
        else:
            assert found, f"a README begins with its title, not with {block!r}"
            found[-1][1][kind].append(block)
    return found


def codes(text):
    return [" ".join(code.split()) for code in CODE.findall(text)]


def numbers(text):
    return NUMBER.findall(CODE.sub("", LINK.sub("]", text)))


def bold_numbers(text):
    return numbers(" ".join(re.findall(r"\*\*(.+?)\*\*", CODE.sub("", text))))


def links(text, headings):
    """Targets in any order; one inside the page by the position of the heading that it leads to."""
    slugs = [re.sub(r"[^\w -]", "", h.lstrip("# ").lower()).replace(" ", "-") for h in headings]
    targets = []
    for target in LINK.findall(text):
        if target.startswith("#"):
            slug = target[1:]
            target = f"heading {slugs.index(slug) + 1}" if slug in slugs else f"no heading {target}"
        targets.append(target)
    return Counter(targets)


def out_of_step(english, korean):
    """One line for each place in which the Korean text has to follow the English one."""
    ours, theirs = sections(english), sections(korean)
    levels = [[len(heading.split()[0]) for heading, _ in part] for part in (ours, theirs)]
    if levels[0] != levels[1]:
        for one, other in zip_longest(ours, theirs):
            if not (one and other and one[0].split()[0] == other[0].split()[0]):
                names = [part[0] if part else "nothing" for part in (one, other)]
                return [f"headings: README.md has {names[0]!r} where README.ko.md has {names[1]!r}"]
    headings = [[heading for heading, _ in part] for part in (ours, theirs)]
    found = []
    for (heading, one), (translated, other) in zip(ours, theirs, strict=True):
        place = f"under {heading!r} ({translated!r})"
        for kind, compare in (("code", _code), ("table", _table), ("paragraph", _paragraph)):
            if len(one[kind]) != len(other[kind]):
                counts = f"{len(one[kind])} in README.md, {len(other[kind])} in README.ko.md"
                found.append(f"{place}, blocks of kind {kind}: {counts}")
                continue
            for i, (a, b) in enumerate(zip(one[kind], other[kind], strict=True), 1):
                found += [f"{place}, {kind} {i}{text}" for text in compare(a, b)]
        texts = ["\n".join(part["table"] + part["paragraph"]) for part in (one, other)]
        a, b = (links(text, names) for text, names in zip(texts, headings, strict=True))
        if a != b:
            found.append(f"{place}: links or pictures missing {[*(a - b)]}, too many {[*(b - a)]}")
    a, b = (Counter(re.findall(r"--[a-z]\w*", text)) for text in (english, korean))
    if a != b:
        found.append(f"flags: missing {dict(a - b)}, too many {dict(b - a)}")
    return found


def _code(a, b):
    for one, other in zip_longest(a.split("\n"), b.split("\n"), fillvalue=""):
        if one != other:
            return [f": README.md has {one!r}, README.ko.md {other!r}"]
    return []


def _table(a, b):
    rows, translated = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n")]
        for text in (a, b)
    )
    if [len(row) for row in rows] != [len(row) for row in translated]:
        return [
            f": README.md has {len(rows)} lines of {len(rows[0])} columns, README.ko.md "
            f"{len(translated)} of {sorted({len(row) for row in translated})}"
        ]
    found = []
    for y, (row, other_row) in enumerate(zip(rows, translated, strict=True), 1):
        for x, (one, other) in enumerate(zip(row, other_row, strict=True), 1):
            wrong = [
                name
                for name, read in (
                    ("numbers", numbers),
                    ("inline code", codes),
                    ("numbers in bold", bold_numbers),
                )
                if read(one) != read(other)
            ]
            if _english(other):
                wrong.append("language")
            if wrong:
                where = f", line {y}, column {x}: {' and '.join(wrong)}"
                found.append(f"{where}: README.md has {one!r}, README.ko.md {other!r}")
    return found


def _paragraph(a, b):
    found = []
    if not HANGUL.search(b) or _english(b):
        found.append(f": not translated: {b!r}")
    one, other = (Counter(codes(text)) for text in (a, b))
    if one != other:
        found.append(f": inline code missing {[*(one - other)]}, too many {[*(other - one)]}")
    one, other = (Counter(numbers(text)) for text in (a, b))
    more = [n for n in other - one if not (n.isdecimal() and int(n) <= LARGEST_WORD)]
    if one - other or more:
        found.append(f": numbers missing {[*(one - other)]}, too many {more}")
    if "~" in CODE.sub("", b):
        found.append(": GitHub strikes out what is between two `~`; write ranges with an en dash")
    return found and [f"{found[0]}; README.md has {a[:60]!r}...", *found[1:]]


def _english(text):
    """Five English words in a row, outside of code: more than a term."""
    return re.search(r"(?:\b[A-Za-z][a-z']*[ \n]){4}[A-Za-z]", CODE.sub("", text))


def test_the_translation_is_in_step():
    found = out_of_step(ENGLISH, KOREAN)
    assert not found, "README.ko.md doesn't follow README.md:\n" + "\n".join(found)


def test_each_links_to_the_other():
    assert TO_THE_OTHER[0] in ENGLISH.split("\n")[:10]
    assert KOREAN.split("\n")[2].startswith(TO_THE_OTHER[1])


SMALL = (
    f"# T\n\n{TO_THE_OTHER[0]}\n\nOf 50 tracks, two minutes with `--seg 10`, see [it](#b-c).\n\n"
    "![A picture](p.png)\n\n    run --seg 10\n\n## B, c\n\n"
    "| `--agg` | what |\n|---|---|\n| `mean` | **+0.15**, 0.02 |\n\n```\na\n\n# b\n```\nTwo words."
)
SMALL_KO = (
    f"# T\n\n{TO_THE_OTHER[1]}\n\n`--seg 10`으로 2분, 트랙 50개, [여기](#나-다).\n\n"
    "![그림](p.png)\n\n    run --seg 10\n\n## 나 다\n\n"
    "| `--agg` | 설명 |\n|---|---|\n| `mean` | **+0.15**, 0.02 |\n\n```\na\n\n# b\n```\n두 낱말."
)


def test_a_faithful_translation_passes():
    assert [kind for kind, _ in blocks(SMALL)] == [
        *("heading", "paragraph", "paragraph", "code"),
        *("heading", "table", "code", "paragraph"),
    ]
    assert [kind for kind, _ in blocks("# T\nText\n| a |\n```\na\n```\n```\nb\n```\n    c")] == [
        *("heading", "paragraph", "table", "code", "code", "code")
    ]
    assert out_of_step(SMALL, SMALL_KO) == []


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("## 나", "### 나", "headings: README.md has '## B, c' where README.ko.md has '### 나 다'"),
        ("\n## 나 다\n", "", "headings: README.md has '## B, c' where README.ko.md has 'nothing'"),
        (
            "    run --seg 10",
            "    run --seg 30",
            "'# T'.*, code 1: README.md has '    run --seg 10'",
        ),
        ("# b\n", "# c\n", "'## B, c'.*, code 1: README.md has '# b', README.ko.md '# c'"),
        ("```\na\n\n# b\n```\n", "", "kind code: 1 in README.md, 0 in README.ko.md"),
        (
            "(#나-다)",
            "(#나다)",
            "links or pictures missing .'heading 2'., too many .'no heading #나다'",
        ),
        ("p.png", "q.png", "links or pictures missing .'p.png'"),
        ("| `mean` | **+0.15**, 0.02 |\n", "", "table 1: README.md has 3 lines of 2 columns"),
        ("**+0.15**", "**-0.15**", "table 1, line 3, column 2: numbers and numbers in bold"),
        ("**+0.15**, 0.02", "0.02, **+0.15**", "line 3, column 2: numbers:"),
        ("**+0.15**, 0.02", "+0.15, **0.02**", "line 3, column 2: numbers in bold"),
        ("`mean`", "`max`", "line 3, column 1: inline code"),
        ("| 설명 |", "| what this thing really is |", "line 1, column 2: language"),
        ("`--seg 10`으로", "`--hop 10`으로", "flags: missing {'--seg': 1}, too many {'--hop': 1}"),
        ("50개", "60개", "paragraph 1: numbers missing .'50'., too many .'60'"),
        ("두 낱말.", "Two words.", "paragraph 1: not translated"),
        ("두 낱말.", "그것은 two of the words here.", "paragraph 1: not translated"),
        ("두 낱말.", "두 낱말.\n\n셋.", "kind paragraph: 1 in README.md, 2 in"),
        ("2분", "1~2분", "strikes out"),
    ],
)
def test_what_is_out_of_step_is_named(was, becomes, told):
    assert was in SMALL_KO
    found = out_of_step(SMALL, SMALL_KO.replace(was, becomes))
    assert re.search(told, "\n".join(found)), found
