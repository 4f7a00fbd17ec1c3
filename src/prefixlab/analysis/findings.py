"""The nouns of a run's token-level analysis, as study/findings.py gathers it. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars

from prefixlab.analysis.anchors import AnchorRow
from prefixlab.analysis.keywords import KeywordRow
from prefixlab.analysis.narrowing import NarrowingRow


@dataclass(frozen=True)
class Findings:
    """Tables of a run's token-level analysis; empty where nothing was read."""

    spans: polars.DataFrame
    """Span rows of all finished cells, with the columns model, capability, arm, seed; snapshots left out."""
    anchors: Sequence[AnchorRow]
    keywords: Sequence[KeywordRow]
    narrowing: Sequence[NarrowingRow]
    curves: polars.DataFrame
    """Along training."""
