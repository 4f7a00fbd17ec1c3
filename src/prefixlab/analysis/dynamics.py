"""Curves along training: span losses from the trainer's log, words and spans of held-out samples from snapshots.

No torch. The log is of the batches that were trained on, which change from step to step; the snapshots read the same
held-out samples every time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import polars

from prefixlab.analysis.occurrences import LETTERS, normalised

TRAINING = ("loss", "logit_gradient")
"""What metrics.jsonl holds by span."""
HELD_OUT = ("loss", "logit_gradient", "input_gradient", "contribution", "influence", "token_gradient")
"""What a token table holds."""
COUNT = "_samples"
"""Ends the name of a column that counts the samples of a quantity."""
CURVES: dict[str, Any] = {
    "step": polars.Int64,
    "source": polars.String,
    "unit": polars.String,
    "name": polars.String,
    "quantity": polars.String,
    "value": polars.Float64,
    "n": polars.Int64,
}
"""Columns of dynamics.parquet behind those that name the cell. `source`: `training` (the batch of a step) or
`held_out`; `unit`: `span` or `word`; `n`: samples of a held-out mean, null for a batch."""


def training_curves(metrics: Iterable[Mapping[str, float]]) -> polars.DataFrame:
    """Mean token loss and logit gradient of each span, one row an optimiser step.

    Args:
        metrics: Rows of metrics.jsonl, first step first.
    """
    rows = []
    for step, row in enumerate(metrics, 1):
        for key, value in row.items():
            for quantity in TRAINING:
                if key.startswith(f"{quantity}_"):
                    span = key.removeprefix(f"{quantity}_")
                    rows.append((step, "training", "span", span, quantity, value, None))
    return polars.DataFrame(rows, schema=CURVES, orient="row")


def held_out_curves(tokens: polars.DataFrame, rendering: str, last: int) -> polars.DataFrame:
    """Means over held-out samples of every span, and of every word of the prefix, one row a snapshot.

    Args:
        tokens: One cell's token table; the column `step` is null for the finished adapter.
        rendering: The treatment's: snapshots are read with its text alone.
        last: The training's last step.

    Returns:
        Rows only for the quantities that were computed; words as anchors have them.
    """
    mine = tokens.filter(polars.col("rendering") == rendering).with_columns(polars.col("step").fill_null(last))
    lettered = (
        polars.when(polars.col("token").str.contains(LETTERS["word"]))
        .then(normalised("word"))
        .otherwise(polars.lit(""))
    )
    frames = []
    for unit, name in (("span", polars.col("span")), ("word", lettered)):
        # In order, so that sums of the same numbers are the same to the last digit whenever they are made.
        means = (
            mine.with_columns(name.alias("name"))
            .filter(polars.col("name") != "")
            .group_by("step", "name", "sample", maintain_order=True)
            .agg(polars.col(list(HELD_OUT)).mean())
            .group_by("step", "name", maintain_order=True)
            .agg(
                polars.col(list(HELD_OUT)).mean(),
                polars.col(list(HELD_OUT)).count().cast(polars.Int64).name.suffix(COUNT),
            )
        )
        for quantity in HELD_OUT:
            frames.append(
                means.with_columns(
                    polars.col(quantity).alias("value"),
                    polars.col(f"{quantity}{COUNT}").alias("n"),
                    polars.lit("held_out").alias("source"),
                    polars.lit(unit).alias("unit"),
                    polars.lit(quantity).alias("quantity"),
                )
                .filter(polars.col("n") > 0)
                .select(list(CURVES))
            )
    return polars.concat(frames).sort("unit", "quantity", "name", "step")
