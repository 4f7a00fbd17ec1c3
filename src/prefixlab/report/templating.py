"""How the pages are rendered: everything escaped, nothing undefined, one style sheet."""

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def templates() -> Environment:
    """The pages' templates; what they are given is escaped."""
    return Environment(
        loader=PackageLoader("prefixlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style() -> Markup:
    """The style sheet that all pages of a run share."""
    return Markup((files("prefixlab.report") / "templates" / "style.css").read_text("utf-8"))
