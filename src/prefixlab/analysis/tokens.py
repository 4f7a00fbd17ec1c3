"""Per-token loss and logit-gradient norm on held-out samples, by span and position, in one streaming pass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from prefixlab.model.batches import SPAN_ORDER, batches_of, collate
from prefixlab.model.loss import IGNORE, token_loss
from prefixlab.model.trainer import hidden_states
from prefixlab.records import Record, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenRow(Record):
    """One supervised token of one held-out sample under one model."""

    sample: str
    rendering: str
    """Prefix policy of the text that is read: r000, or an arm at ratio 1."""
    position: int
    """Index in the response, from 0."""
    token: str
    span: str
    loss: float
    """Negative log-likelihood, nats."""
    logit_gradient: float
    """||p - y||, between 0 and sqrt(2)."""


@torch.inference_mode()
def token_rows(
    model: PreTrainedModel,
    samples: Sequence[Rendered],
    rendering: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    pad: int,
    batch_size: int = 8,
) -> list[TokenRow]:
    """Token losses of every sample, in order of sample id and position.

    Args:
        model: Causal LM in evaluation mode, adapter applied or not.
        samples: Rendered held-out samples.
        rendering: Name of their prefix policy.
        tokenizer: For the text of tokens.
        pad: Padding id.
        batch_size: Samples a forward pass.
    """
    rows: list[TokenRow] = []
    weight = model.get_output_embeddings().weight
    for indices in batches_of(samples, batch_size):
        group = [samples[i] for i in indices]
        batch = collate(group, pad).to(model.device)
        loss, norm = token_loss(hidden_states(model, batch), weight, batch.labels)
        where = (batch.labels[:, 1:] != IGNORE).nonzero().tolist()
        for (row, column), value, gradient in zip(where, loss.tolist(), norm.tolist(), strict=True):
            sample, at = group[row], column + 1
            first = next(s.start for s in sample.spans if s.end > _prompt_end(sample))
            rows.append(
                TokenRow(
                    sample=sample.id,
                    rendering=rendering,
                    position=at - first,
                    token=str(tokenizer.decode([sample.ids[at]])),
                    span=SPAN_ORDER[int(batch.spans[row, at])],
                    loss=value,
                    logit_gradient=gradient,
                )
            )
    return sorted(rows, key=lambda r: (r.sample, r.position))


def _prompt_end(sample: Rendered) -> int:
    """Where the last prompt span ends."""
    return max(s.end for s in sample.spans if s.name == "prompt")
