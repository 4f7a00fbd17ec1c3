"""prefixlab: do the opening sentences of SFT responses help or hurt, and how much of them should stay?

The pipeline is a chain of functions from records to records:

    source -> strip -> arms -> render + treatment check -> train -> generate -> score -> results -> report

`prefixlab run STUDY` composes them; each is importable on its own. See docs/architecture.md.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
