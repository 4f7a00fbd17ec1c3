"""The report: a page that needs no network and opens from the file system, with what it loads by need beside it.

Model output is hostile text. It travels as JSON with "<" escaped, or through a template that escapes, and reaches the
page through text nodes; the page's own policy runs no script but those of its folder.
"""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from prefixlab.report import figures, latex
from prefixlab.report.parts import Parts, embed
from prefixlab.report.sections import context
from prefixlab.report.tables import RunData
from prefixlab.report.templating import style, templates

SECTIONS = (
    ("answer", "Answer"),
    ("curves", "Curves"),
    ("tradeoffs", "Trade-offs"),
    ("results", "Results"),
    ("contrasts", "Contrasts"),
    ("tokens", "Tokens"),
    ("anchors", "Anchors"),
    ("completions", "Completions"),
    ("data", "Data"),
    ("provenance", "Provenance"),
)
TOKEN_FIGURES = {
    "anchors": "Words of the prefix against control words",
    "training": "Along training (all quantities: dynamics.csv)",
    "positions": "By position in the response: loss, entropy, KL to the base",
}
"""Groups of the section on tokens, by the first part of a figure's name."""
SCRIPTS = ("report.js", "tokens.js", "completions.js")


def _assets(folder: Path) -> list[str]:
    """Write the page's scripts beside it; Vega, whose bundling takes seconds, once for each version of vl-convert."""
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    vega = f"vega-{version('vl-convert-python')}.js"
    source = files("prefixlab.report") / "templates"
    texts = {name: (source / name).read_text("utf-8") for name in SCRIPTS}
    if not (assets / vega).exists():
        texts[vega] = figures.javascript()
    for name, text in texts.items():
        scratch = assets / f".{name}.new"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(assets / name)
    return [f"assets/{name}" for name in (vega, *SCRIPTS)]


def build_report(data: RunData, folder: Path) -> None:
    """Write index.html, assets/, data/, figures/ and tables/.

    The page is replaced in one move, and what only an earlier page needs is deleted after that.

    Args:
        data: From study.run.
        folder: Report folder; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(folder)
    writer = figures.Writer(folder / "figures")
    charts = [writer.add(figure) for figure in figures.figures(data)]
    written = latex.write_tables(data, folder / "tables")
    by_section = {s: [f for f in charts if f.section == s] for s in ("answer", "curves", "tradeoffs", "tokens", "data")}
    scripts = _assets(folder)
    page = (
        templates()
        .get_template("report/page.html.j2")
        .render(
            **context(data, parts),
            sections=SECTIONS,
            style=style(),
            figures=by_section,
            tables=written,
            other_curves=[f for f in by_section["curves"] if not f.primary],
            token_figures=[
                (title, group)
                for kind, title in TOKEN_FIGURES.items()
                if (group := [f for f in by_section["tokens"] if f.name.split("-")[0] == kind])
            ],
            charts=embed({f.name: f.spec for f in charts}),
            embed=embed,
            scripts=scripts,
        )
    )
    writer.finish()
    scratch = folder / ".index.html.new"
    scratch.write_text(page, encoding="utf-8", errors="replace")
    scratch.replace(folder / "index.html")
    parts.sweep()
    _sweep(folder / "figures", {f.name for f in charts})
    _sweep(folder / "tables", set(written))
    _sweep(folder / "assets", {Path(s).stem for s in scripts})


def _sweep(folder: Path, stems: set[str]) -> None:
    """Delete what earlier reports left: a figure of a suite that is no longer there would be taken for a new one."""
    for path in folder.iterdir():
        if path.stem not in stems:
            path.unlink()
