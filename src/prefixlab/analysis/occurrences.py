"""The words and the tokens of prefixes, from token rows: what each is, where it stands, how common it is. No torch.

A word is normalised: lower case, nothing but letters and digits at its ends, so that "Sure!" and "sure" are one. Its
value in a sample is the mean over its tokens, not their sum, so that a word cut into many tokens is not large for
that reason alone. Tokens without a letter or a digit (punctuation, the separator) are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import polars

from prefixlab.analysis.rows import REFERENCE

Unit = Literal["word", "token"]
CELL = ["model", "capability", "arm"]
READING = [*CELL, "seed", "sample", "rendering", "control"]
"""One sample, read with one rendering by one model."""
_ENDS = r"^[^\p{L}\p{M}\p{N}]+|[^\p{L}\p{M}\p{N}]+$"
LETTERS = {"word": r"[\p{L}\p{N}\x{FFFD}]", "token": r"[\p{L}\p{N}]"}
"""U+FFFD is a token that holds part of a letter: it counts for its word, and is no token one can name."""


def normalised(column: str) -> polars.Expr:
    """Lower case, without what is no letter or digit at the ends; empty for pure punctuation."""
    return polars.col(column).str.to_lowercase().str.replace_all(_ENDS, "")


def occurrences(
    rows: polars.DataFrame, quantities: Sequence[str], unit: Unit, frequency: Mapping[int, int]
) -> polars.DataFrame:
    """One row a reading and word (or token): what it holds there. `of_quantity` picks one quantity of it.

    Args:
        rows: Token rows.
        quantities: Columns of `rows`; null and non-finite values are not measured.
        unit: Words, or single tokens.
        frequency: Count of a token id in the training data; 0 where it is not in there.

    Returns:
        The columns of `READING`, and `key` (normalised text), `position` (mean index in the prefix, from 0), `first`
        (share of occurrences that open the prefix), `log_count` (mean of ln(1 + count) over the tokens); `code` and
        `sample_code` number keys and samples; for each quantity `total_...` and `count_...` (sum and number of the
        measured occurrences).
    """
    counts = polars.DataFrame(
        {"token_id": list(frequency), "n": list(frequency.values())},
        schema={"token_id": rows.schema["token_id"], "n": polars.Int64},
    )
    numbers = {q: polars.col(q).cast(polars.Float64) for q in quantities}
    tokens = (
        rows.select(*READING, "span", "token", "token_id", "position", "word", "word_index", *quantities)
        .filter(
            polars.col("span") == "prefix",
            polars.col("rendering") != REFERENCE,
            polars.col("token").str.contains(LETTERS[unit]),
        )
        .join(counts, on="token_id", how="left", maintain_order="left")
        .with_columns(
            *(polars.when(value.is_finite()).then(value).alias(f"of_{q}") for q, value in numbers.items()),
            log_count=polars.col("n").fill_null(0).log1p(),
            at=(polars.col("word_index") if unit == "word" else polars.col("position")).cast(polars.Float64),
        )
    )
    single = tokens.group_by([*READING, "at", unit], maintain_order=True).agg(
        *(polars.col(f"of_{q}").mean() for q in quantities), polars.col("log_count").mean()
    )
    start = polars.col("at").min().over(READING)
    return (
        single.with_columns(key=normalised(unit), at=polars.col("at") - start)
        .filter(polars.col("key") != "")
        .group_by([*READING, "key"], maintain_order=True)
        .agg(
            *(polars.col(f"of_{q}").sum().alias(f"total_{q}") for q in quantities),
            *(polars.col(f"of_{q}").count().alias(f"count_{q}") for q in quantities),
            position=polars.col("at").mean(),
            first=(polars.col("at") == 0).mean(),
            log_count=polars.col("log_count").mean(),
        )
        .with_columns(
            code=polars.col("key").rank("dense").cast(polars.Int64),
            sample_code=polars.col("sample").rank("dense").cast(polars.Int64),
        )
    )


def of_quantity(table: polars.DataFrame, quantity: str) -> polars.DataFrame:
    """`occurrences` with the sum and number of one quantity as `total` and `count`, and no other's."""
    others = [c for c in table.columns if c.startswith(("total_", "count_"))]
    return table.with_columns(total=f"total_{quantity}", count=f"count_{quantity}").drop(others)


def behind_prefix(rows: polars.DataFrame) -> polars.DataFrame:
    """The rest of the response, with `position` counted from its start.

    Without a prefix the rest starts where the same sample's prefix stands in other renderings: at the answer for
    prefixes at the answer, so that the same tokens are compared.
    """
    prefix = polars.col("position").filter(polars.col("span") == "prefix")
    end = prefix.max().over(["model", "capability", "arm", "seed", "sample", "rendering"]) + 1
    before = prefix.min().over(["model", "capability", "sample"])
    start = polars.coalesce(end, before, polars.lit(0))
    return rows.with_columns(position=polars.col("position") - start).filter(
        polars.col("position") >= 0, polars.col("span") != "prefix"
    )
