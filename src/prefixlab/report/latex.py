"""The report's tables as CSV and as LaTeX (booktabs), each with a caption that says n, seeds and interval."""

import csv
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.rows import BASE, ContrastRow, ResultRow
from prefixlab.report import tables
from prefixlab.report.charts.base import level, measured_with, several, stem
from prefixlab.report.findings import between, digits, read_rows
from prefixlab.report.tables import RunData, interval, p_text, percent, suite_text, who

ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
}
"""What pdflatex with T1 fonts needs escaped or written otherwise."""
MOST_ANCHORS = 8
NUMBER = re.compile(r"[-+−<– .,0-9]|to|e")


@dataclass(frozen=True)
class TextTable:
    """A table as people read it."""

    name: str
    """A safe file stem."""
    caption: str
    """With n, seeds and the type of interval."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def escape(text: str) -> str:
    r"""Text for LaTeX: specials escaped, white space as blanks; of other characters only what ASCII can say is kept.

    An accent is dropped and its letter kept; what has no ASCII letter at all becomes `[U+XXXX]`, so that nothing
    disappears unseen.
    """
    return "".join(_character(c) for c in text)


def _character(c: str) -> str:
    if c in ESCAPES:
        return ESCAPES[c]
    if c.isspace():
        return " "
    if " " <= c <= "~":
        return c
    plain = "".join(a for a in unicodedata.normalize("NFKD", c) if " " <= a <= "~")
    return "".join(ESCAPES.get(a, a) for a in plain) or f"[U+{ord(c):04X}]"


def latex(table: TextTable) -> str:
    """A table environment with caption and label; columns of numbers are right-aligned."""
    numeric = [all(_is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]
    kinds = "".join("r" if n and table.rows else "l" for n in numeric)
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}",
        "\\begin{table}[t]",
        "\\centering",
        "\\small",
        f"\\caption{{{escape(table.caption)}}}",
        f"\\label{{tab:{re.sub('[^A-Za-z0-9-]', '-', table.name)}}}",
        f"\\begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
        "\\toprule",
        _line(table.columns),
        "\\midrule",
        *(_line(row) for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    # A row must not open with "[": behind the last one's \\ it would be read as an argument.
    text = " & ".join(escape(c) for c in cells)
    return ("{}" if text.startswith("[") else "") + text + " \\\\"


def _is_number(cell: str) -> bool:
    return bool(cell) and not NUMBER.sub("", cell)


def text_tables(data: RunData) -> list[TextTable]:
    """Main results, declared contrasts, arms by conditions, diagnostics and anchors: those that have rows."""
    alpha = data.study.analysis.alpha
    main = tables.main_rows(data.cells, data.results)
    anchors = read_rows(data.root, "anchors", AnchorRow)
    found = [
        _results(main, data, alpha),
        _contrasts(data.contrasts, alpha),
        *_grids(main, data, alpha),
        _diagnostics(tables.diagnostic_rows(data.cells, data.results), alpha),
        _anchors(anchors, alpha),
    ]
    return [t for t in found if t.rows]


def _measured(rows: Sequence[ResultRow]) -> list[ResultRow]:
    return [r for r in rows if r.seed is None and r.value is not None]


def _results(rows: Sequence[ResultRow], data: RunData, alpha: float) -> TextTable:
    caption = (
        f"Results in percent: {measured_with(_measured(rows), alpha)} Differences to r000 in points, on the same "
        "prompts; p Holm over the declared comparisons."
    )
    return TextTable("results", caption, tables.HEADER, tuple(tables.text_rows(rows, tables.same_source(data.plan))))


def _contrasts(rows: Sequence[ContrastRow], alpha: float) -> TextTable:
    declared = [r for r in rows if r.primary]
    models = len({r.model for r in declared}) > 1
    measured = [r for r in declared if r.diff is not None]
    n = f"{several([r.n_prompts for r in measured], 'prompt')}, "
    n += several([r.n_seeds for r in measured], "training seed")
    tests = ", ".join(sorted({r.test for r in measured if r.test})) or "none"
    caption = (
        f"Declared comparisons, differences in points on the same prompts: n = {n}; {level(alpha)} intervals, not "
        f"adjusted; p Holm over these rows. Tests: {tests}. A trend is points per unit of ratio."
    )
    columns = (
        *("capability", "suite", "metric", "comparison", "arm", "reference", "difference", "interval"),
        *("p", "p Holm", "prompts", "seeds"),
    )
    lines = tuple(
        (
            *(who(r.model, r.capability, models), suite_text(r), r.metric, r.comparison.replace("_", " "), r.arm),
            *(r.reference, percent(r.diff, sign=True), interval(r.ci_low, r.ci_high, sign=True)),
            *(p_text(r.p), p_text(r.p_holm), str(r.n_prompts), str(r.n_seeds)),
        )
        for r in declared
    )
    return TextTable("contrasts", caption, columns, lines)


def _grids(rows: Sequence[ResultRow], data: RunData, alpha: float) -> list[TextTable]:
    found = []
    for i, grid in enumerate(tables.train_by_test(data.cells, data.results), 1):
        conditions = tuple(grid["conditions"])
        lines = tuple((arm, *(cells.get(c, "–") for c in conditions)) for arm, cells in grid["arms"].items())
        capability, suite, metric, *_ = str(grid["name"]).replace(" (proxy)", "").split(" · ")
        some = [r for r in _measured(rows) if (r.capability, r.suite, r.metric) == (capability, suite, metric)]
        caption = f"{grid['name']} in percent, trained arms by test condition: {measured_with(some, alpha)}"
        found.append(
            TextTable(stem(f"conditions-{i}", capability, suite, metric), caption, ("arm", *conditions), lines)
        )
    return found


def _diagnostics(rows: Sequence[ResultRow], alpha: float) -> TextTable:
    models = len({r.model for r in rows}) > 1
    caption = f"Diagnostics in percent, lengths in tokens: {measured_with(_measured(rows), alpha)}"
    columns = ("capability", "arm", "suite", "condition", "metric", "value", "interval", "prompts", "seeds")
    lines = tuple(
        (
            *(who(r.model, r.capability, models), r.arm, r.suite, r.condition, r.metric),
            *_diagnostic(r),
            *(str(r.n_prompts), str(r.n_seeds)),
        )
        for r in rows
    )
    return TextTable("diagnostics", caption, columns, lines)


def _diagnostic(row: ResultRow) -> tuple[str, str]:
    """Value and interval, of a length in tokens."""
    if row.metric != "length" or row.value is None:
        return percent(row.value), interval(row.ci_low, row.ci_high)
    known = row.ci_low is not None and row.ci_high is not None
    return f"{row.value:.1f}", f"{row.ci_low:.1f} to {row.ci_high:.1f}" if known else "–"


def _anchors(rows: Sequence[AnchorRow], alpha: float) -> TextTable:
    shown = [
        r
        for r in rows
        if r.unit == "word"
        and r.rank is not None
        and r.rank <= MOST_ANCHORS
        and (r.arm == BASE or r.arm.startswith(f"{r.rendering}-"))
    ]
    models = len({r.model for r in shown}) > 1
    n = f"{several([r.n_samples for r in shown], 'sample')}, {several([r.n_seeds for r in shown], 'training seed')}"
    over = " or ".join(sorted({r.interval_over for r in shown}))
    caption = (
        "Words that stand out against control words of the same place and frequency, the "
        f"{MOST_ANCHORS} highest ranks: n = {n}; {level(alpha)} intervals over {over}; q at a false-discovery rate "
        "over the words of a ranking. The excess is ln(mean / expected), for influences a difference."
    )
    columns = (
        *("capability", "arm", "quantity", "rank", "word", "mean", "expected", "excess", "interval", "q", "announced"),
        *("samples", "seeds"),
    )
    lines = tuple(
        (
            *(who(r.model, r.capability, models), r.arm, r.quantity.replace("_", " "), str(r.rank), r.word),
            *(digits(r.mean), digits(r.expected), digits(r.excess, sign=True), between(r.ci_low, r.ci_high)),
            *(p_text(r.q), "yes" if r.announced else "no", str(r.n_samples), str(r.n_seeds)),
        )
        for r in shown
    )
    return TextTable("anchors", caption, columns, lines)


def write_tables(data: RunData, folder: Path) -> list[str]:
    """Write NAME.csv and NAME.tex of every table.

    Args:
        data: From study.run.
        folder: Made if missing.

    Returns:
        The names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = text_tables(data)
    for table in found:
        (folder / f"{table.name}.tex").write_text(latex(table), encoding="ascii")
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.rows])
    return [t.name for t in found]
