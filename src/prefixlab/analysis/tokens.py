"""What held-out samples look like to a model, token by token: loss, entropy, rank, KL to the base, gradients.

One streaming pass over batches of similar length; nothing of the size of the vocabulary outlives a chunk of rows.
Formulas: docs/methods.md, section 7. The gradient quantities come from contributions.py and token_gradients.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefixlab.analysis.contributions import Contributions, Targets, contributions, span_cosine, span_norm
from prefixlab.analysis.token_columns import MODULES, SPANS, TOKENS
from prefixlab.analysis.token_gradients import token_gradient_norms, token_influence
from prefixlab.model.batches import SPAN_ORDER, Microbatch, batches_of, collate
from prefixlab.model.loss import IGNORE
from prefixlab.model.trainer import hidden_states
from prefixlab.records import Rendered, SpanName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 128
"""Tokens whose logits are held at once."""
CHUNK = 1
"""Token losses whose parameter gradients are held at once; more are slower on CPUs (docs/lab-notes.md)."""
RESPONSE: tuple[SpanName, ...] = ("prefix", "reasoning", "answer", "end")


@dataclass(frozen=True)
class Rendering:
    """Samples under one prefix policy."""

    name: str
    """r000, the treatment's set, or a control's."""
    control: str | None
    samples: Sequence[Rendered]
    templates: Mapping[str, int | None]
    """Sample id -> index of its template."""


@dataclass(frozen=True)
class Reader:
    """How samples are read."""

    model: PreTrainedModel
    """The causal LM in evaluation mode, adapter layers injected or not."""
    tokenizer: "PreTrainedTokenizerBase"
    pad: int
    base: Callable[[], AbstractContextManager[Any]] | None = None
    """Makes a context inside which the model is the base; None if it always is."""
    targets: Targets | None = None
    """Parameters whose gradient is attributed; None for no gradients."""
    token_losses: bool = False
    """Whether to compute each token loss' own parameter gradient, which costs one backward pass a token."""
    modules: bool = False
    """Whether to keep contributions by module."""
    batch_size: int = 8
    step: int | None = None
    """Training step the adapter is of; null at the end of training."""


@dataclass(frozen=True)
class Tables:
    """What reading gives."""

    tokens: polars.DataFrame
    spans: polars.DataFrame
    modules: polars.DataFrame


def read_tokens(
    reader: Reader, renderings: Sequence[Rendering], tick: Callable[[float], None] = lambda share: None
) -> Tables:
    """Read every sample of every rendering.

    Args:
        reader: Model, tokenizer, what to compute.
        renderings: Names and samples.
        tick: Called with the finished share after every batch.

    Returns:
        Tables with the columns of TOKENS, SPANS (empty without gradients) and MODULES (empty unless asked for), in
        order of rendering, sample and position.
    """
    tokens: list[polars.DataFrame] = []
    spans: list[dict[str, Any]] = []
    modules: list[dict[str, Any]] = []
    texts: dict[int, str] = {}
    done, total = 0, sum(len(r.samples) for r in renderings)
    for rendering in renderings:
        found: dict[str, polars.DataFrame] = {}
        for indices in batches_of(rendering.samples, reader.batch_size):
            group = [rendering.samples[i] for i in indices]
            batch = collate(group, reader.pad).to(reader.model.device)
            columns = _head_columns(reader, batch)
            if reader.targets is not None:
                made = contributions(reader.model, batch, reader.targets, by_module=reader.modules)
                columns |= _contribution_columns(made, batch)
                spans += _span_rows(made, batch, group, rendering, reader.step)
                modules += _module_rows(made, batch, group, rendering, reader.step)
            start = 0
            for sample in group:
                end = start + sample.n_supervised
                mine: dict[str, Any] = {name: values[start:end] for name, values in columns.items()}
                if reader.targets is not None and reader.token_losses:
                    mine |= _token_loss_columns(reader, sample)
                found[sample.id] = _token_table(mine, sample, rendering, reader, texts)
                start = end
            done += len(group)
            tick(done / total)
        tokens += [found[name] for name in sorted(found)]
    return Tables(
        polars.concat(tokens) if tokens else polars.DataFrame(schema=TOKENS),
        polars.DataFrame(spans, schema=SPANS).sort("rendering", "sample", maintain_order=True),
        polars.DataFrame(modules, schema=MODULES).sort("rendering", "sample", maintain_order=True),
    )


@torch.inference_mode()
def _head_columns(reader: Reader, batch: Microbatch) -> dict[str, np.ndarray[Any, Any]]:
    """Loss, entropy, rank, ||p - y|| and KL of every supervised token of a batch, row by row."""
    keep = batch.labels[:, 1:] != IGNORE
    target_N = batch.labels[:, 1:][keep]
    hidden_N_D = hidden_states(reader.model, batch)[:, :-1][keep]
    other_N_D = None
    if reader.base is not None:
        with reader.base():
            other_N_D = hidden_states(reader.model, batch)[:, :-1][keep]
    weight_V_D = reader.model.get_output_embeddings().weight
    parts: dict[str, list[Tensor]] = {n: [] for n in ("loss", "entropy", "rank", "logit_gradient", "kl")}
    for i in range(0, len(target_N), ROWS):
        y = target_N[i : i + ROWS, None]
        log_p = torch.log_softmax((hidden_N_D[i : i + ROWS] @ weight_V_D.T).float(), dim=-1)
        of_target = log_p.gather(1, y)
        parts["loss"].append(-of_target[:, 0])
        parts["rank"].append((log_p > of_target).sum(1) + 1)
        p = log_p.exp()
        parts["entropy"].append(-(p * log_p).sum(1))
        if other_N_D is not None:
            log_q = torch.log_softmax((other_N_D[i : i + ROWS] @ weight_V_D.T).float(), dim=-1)
            parts["kl"].append((p * (log_p - log_q)).sum(1).clamp(min=0))
        parts["logit_gradient"].append(p.scatter_add_(1, y, torch.full_like(of_target, -1.0)).norm(dim=1))
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items() if values}


def _contribution_columns(made: Contributions, batch: Microbatch) -> dict[str, np.ndarray[Any, Any]]:
    """What one backward pass says of the positions where the supervised tokens are read."""
    keep = torch.zeros_like(batch.valid)
    keep[:, 1:] = batch.labels[:, 1:] != IGNORE
    return {
        "contribution": made.contribution_B_T[keep].float().cpu().numpy(),
        "influence": made.influence_B_T.masked_fill(~made.defined_B[:, None], torch.nan)[keep].float().cpu().numpy(),
        "input_gradient": made.input_gradient_B_T[keep].float().cpu().numpy(),
    }


def _token_loss_columns(reader: Reader, sample: Rendered) -> dict[str, np.ndarray[Any, Any]]:
    """||grad l_j|| and <grad l_j, G> of one sample's tokens."""
    assert reader.targets is not None
    batch = collate([sample], reader.pad).to(reader.model.device)
    norms = token_gradient_norms(reader.model, batch, reader.targets, chunk=CHUNK)
    inner = token_influence(reader.model, batch, reader.targets)
    return {
        "token_gradient": norms.float().cpu().numpy(),
        "token_influence": inner.float().cpu().numpy(),
    }


def _span_rows(
    made: Contributions, batch: Microbatch, group: Sequence[Rendered], rendering: Rendering, step: int | None
) -> Iterator[dict[str, Any]]:
    for row, sample in enumerate(group):
        gram_S_S = made.gram_B_S_S[row]
        total = float(gram_S_S.sum())
        for index, name in enumerate(SPAN_ORDER):
            count = int((batch.spans[row] == index).sum())
            if not count:
                continue
            rest = [n for n in RESPONSE if n != name]
            yield {
                "sample": sample.id,
                "rendering": rendering.name,
                "control": rendering.control,
                "step": step,
                "span": name,
                "tokens": count,
                "norm": span_norm(gram_S_S, [name]),
                "cosine_rest": span_cosine(gram_S_S, [name], rest),
                "influence": float(gram_S_S[index].sum()) / total if made.defined_B[row] else None,
            }


def _module_rows(
    made: Contributions, batch: Microbatch, group: Sequence[Rendered], rendering: Rendering, step: int | None
) -> Iterator[dict[str, Any]]:
    for module, of in made.modules.items():
        for row, sample in enumerate(group):
            for index, name in enumerate(SPAN_ORDER):
                mine = of.contribution_B_T[row][batch.spans[row] == index].float()
                if len(mine):
                    yield {
                        "sample": sample.id,
                        "rendering": rendering.name,
                        "control": rendering.control,
                        "step": step,
                        "module": module,
                        "span": name,
                        "norm": float(mine.square().mean().sqrt()),
                    }


def _token_table(
    values: Mapping[str, Any], sample: Rendered, rendering: Rendering, reader: Reader, texts: dict[int, str]
) -> polars.DataFrame:
    """One sample's rows, with every column of TOKENS."""
    at = [i for i, label in enumerate(sample.labels) if label != IGNORE]
    first = next(s.start for s in sample.spans if s.start >= _prompt_end(sample))
    words = prefix_words(sample, reader.tokenizer)
    span_of = {i: s.name for s in sample.spans for i in range(s.start, s.end)}
    for i in at:
        texts.setdefault(sample.ids[i], str(reader.tokenizer.decode([sample.ids[i]])))
    n = len(at)
    table: dict[str, Any] = {
        "sample": [sample.id] * n,
        "rendering": [rendering.name] * n,
        "control": [rendering.control] * n,
        "template": [rendering.templates.get(sample.id)] * n,
        "step": [reader.step] * n,
        "position": [i - first for i in at],
        "token": [texts[sample.ids[i]] for i in at],
        "token_id": [sample.ids[i] for i in at],
        "span": [span_of[i] for i in at],
        "word": [words[i][1] if i in words else "" for i in at],
        "word_index": [words[i][0] if i in words else None for i in at],
        **values,
    }
    made = polars.DataFrame({name: table.get(name, [None] * n) for name in TOKENS}, schema=TOKENS, strict=False)
    return made.with_columns(polars.col("influence").fill_nan(None))


def prefix_words(sample: Rendered, tokenizer: "PreTrainedTokenizerBase") -> dict[int, tuple[int, str]]:
    """Which word of the prefix each of its tokens belongs to: token index -> (word index, word as written).

    A token that holds white space alone, as the separator does, belongs to none; one that holds the end of a word
    and the start of the next counts to the later one.
    """
    span = sample.span("prefix")
    if span is None:
        return {}
    ids = list(sample.ids[span.start : span.end])
    words = str(tokenizer.decode(ids)).split()
    found: dict[int, tuple[int, str]] = {}
    for i in range(len(ids)):
        begun = len(str(tokenizer.decode(ids[: i + 1])).split())
        if begun and str(tokenizer.decode([ids[i]])).strip():
            found[span.start + i] = (begun - 1, words[begun - 1])
    return found


def _prompt_end(sample: Rendered) -> int:
    """Where the last prompt span ends."""
    return max(s.end for s in sample.spans if s.name == "prompt")
