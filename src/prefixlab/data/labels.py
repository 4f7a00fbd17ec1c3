"""The label file of an audit: one row a part. Written in pieces, so that memory does not grow with the data."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars

from prefixlab.data.mining import DEPTH, Direction, Words, closing_words, opening_words

Label = tuple[int, int, str, int, str, str]
"""row, turn, part, prefix_end, family, lead: see the columns of the file, and `mining.Lead`."""
SCHEMA = {
    "row": polars.Int64,
    "turn": polars.Int32,
    "part": polars.String,
    "prefix_end": polars.Int32,
    "family": polars.String,
    "template": polars.String,
}
"""Columns of the file.

row: 0-based, unusable rows counted. turn: 0-based among the assistant's turns. part: `reasoning` or `answer`.
prefix_end: exclusive, in code points of the part without its leading white space; 0: no prefix. family: empty without
an opening; `refusal` is content, its prefix_end is 0. template: id in the audit, empty if none has the opening.
"""


class LabelFile:
    """Collects labels chunk by chunk; template ids are known only at the end."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = TemporaryDirectory(prefix="prefixlab-labels-")
        self._pieces: list[Path] = []

    def add(self, labels: Sequence[Label], shift: int) -> None:
        """Put a chunk's labels behind those so far; `shift` is the number of rows before the chunk."""
        if not labels:
            return
        names = ["row", "turn", "part", "prefix_end", "family", "lead"]
        frame = polars.DataFrame(labels, schema=names, orient="row").with_columns(polars.col("row") + shift)
        path = Path(self._folder.name) / f"{len(self._pieces):06d}.parquet"
        frame.write_parquet(path, compression="lz4")
        self._pieces.append(path)

    def finish(self, templates: dict[tuple[str, Direction, Words], str]) -> None:
        """Name the templates and write the file.

        Args:
            templates: Template id by part and node of its tree.
        """
        for piece in self._pieces:
            frame = polars.read_parquet(piece)
            ids = [_template(part, lead, templates) for part, lead in frame.select("part", "lead").iter_rows()]
            named = frame.drop("lead").with_columns(polars.Series("template", ids, dtype=polars.String))
            named.select(polars.col(name).cast(kind) for name, kind in SCHEMA.items()).write_parquet(piece)
        if self._pieces:
            polars.scan_parquet(self._pieces).sink_parquet(self.out)
        else:
            polars.DataFrame(schema=SCHEMA).write_parquet(self.out)
        self._folder.cleanup()


def _template(part: str, lead: str, templates: dict[tuple[str, Direction, Words], str]) -> str:
    """Id of the longest template that an opening has; one read forwards comes first."""
    ways: tuple[tuple[Direction, list[str]], ...] = (("start", opening_words(lead)), ("end", closing_words(lead)))
    for direction, words in ways:
        for n in range(min(DEPTH, len(words)), 0, -1):
            found = templates.get((part, direction, tuple(words[:n])))
            if found:
                return found
    return ""
