"""Columns of the tables that reading held-out samples gives (tokens.py). No torch."""

from typing import Any

import polars

TOKENS: dict[str, Any] = {
    "sample": polars.String,
    "rendering": polars.String,
    "control": polars.String,
    "template": polars.Int64,
    "step": polars.Int64,
    "position": polars.Int64,
    "token": polars.String,
    "token_id": polars.Int64,
    "span": polars.String,
    "word": polars.String,
    "word_index": polars.Int64,
    "loss": polars.Float64,
    "entropy": polars.Float64,
    "rank": polars.Int64,
    "kl": polars.Float64,
    "logit_gradient": polars.Float64,
    "input_gradient": polars.Float64,
    "contribution": polars.Float64,
    "influence": polars.Float64,
    "token_gradient": polars.Float64,
    "token_influence": polars.Float64,
}
"""Columns of token_loss.parquet, one row a supervised token of a sample as rendered.

`position` counts response tokens from 0, `word` is the word of the prefix that the token belongs to. `loss` (nats) to
`logit_gradient`, `token_gradient` and `token_influence` are of predicting the token; `input_gradient`, `contribution`
and `influence` are of the position where it is read. Null: not asked for, or it does not exist (kl of the base).
"""
SPANS: dict[str, Any] = {
    "sample": polars.String,
    "rendering": polars.String,
    "control": polars.String,
    "step": polars.Int64,
    "span": polars.String,
    "tokens": polars.Int64,
    "norm": polars.Float64,
    "cosine_rest": polars.Float64,
    "influence": polars.Float64,
}
"""Columns of spans.parquet: the norm of a span's summed contribution, its cosine with that of the response's other
spans, and its share of the squared gradient norm. Null where a norm is 0."""
MODULES: dict[str, Any] = {
    "sample": polars.String,
    "rendering": polars.String,
    "control": polars.String,
    "step": polars.Int64,
    "module": polars.String,
    "span": polars.String,
    "norm": polars.Float64,
}
"""Columns of modules.parquet: root mean square over a span's positions of ||C_t||, module by module."""
