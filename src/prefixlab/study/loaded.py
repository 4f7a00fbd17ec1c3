"""A loaded base model with its adapters, and the proof that an adapter is what answers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from prefixlab.data.chat import ChatFormat, padding_id, prompt_ids
from prefixlab.errors import StepError
from prefixlab.model.attention import NAME as FAST_ATTENTION
from prefixlab.model.generate import first_logits, with_adapter
from prefixlab.model.load import sha256
from prefixlab.records import Message, ModelRef, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def fitting(adapter: Path | None, model: str) -> Iterator[None]:
    """Turn what PEFT says of weights that do not fit into one line.

    Raises:
        StepError: The adapter does not fit the model.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise StepError(
            f"adapter {str(adapter)!r} cannot be applied to {model!r}; was it made for another base? ({reason})"
        ) from error


@dataclass
class Loaded:
    """A base model with its tokenizer, shared by all steps that use it."""

    ref: ModelRef
    model: PreTrainedModel
    tokenizer: "PreTrainedTokenizerBase"
    chat: ChatFormat
    merge: bool
    _open: ExitStack = field(default_factory=ExitStack)
    _adapter: Path | None = None

    @property
    def pad(self) -> int:
        """Padding id; hidden by masks everywhere."""
        return padding_id(self.tokenizer, self.chat)

    def identity(self, adapter: Path | None) -> str:
        """Which model answers: base, adapter content, and whether it is merged."""
        weights = sorted(adapter.glob("adapter_model.*")) if adapter is not None else []
        return " ".join([self.ref.fingerprint, str(self.merge), *(sha256(w) for w in weights)])

    def use(self, adapter: Path | None) -> PreTrainedModel:
        """The model with an adapter; kept applied until another one, or none, is asked for.

        Raises:
            StepError: The adapter does not fit the model.
        """
        if adapter != self._adapter:
            self._open.close()
            self._open = ExitStack()
            self._adapter = None
            with fitting(adapter, self.ref.name):
                self._open.enter_context(with_adapter(self.model, adapter, merge=self.merge))
            self._adapter = adapter
        return self.model


class Proof(Record):
    """Evidence that the adapter was in use: logits of one prompt by three routes."""

    engine_to_peft: float
    """Largest absolute difference between the engine's logits and a separate, unmerged PEFT forward pass."""
    engine_to_base: float
    """Largest absolute difference between the engine's logits and the base model's."""


PROBE = (Message(role="user", content="What is the capital of France, and what is 12 + 7?"),)


def prove_adapter(loaded: Loaded, adapter: Path) -> Proof:
    """Compare the engine's next-token logits with those of the base and of a separate PEFT forward pass.

    Raises:
        StepError: The engine's logits are the base's, or are not PEFT's.
    """
    prompt = tuple(prompt_ids(loaded.tokenizer, PROBE))
    base = first_logits(loaded.use(None), [prompt], loaded.pad)[0].float()
    noise = float((base - _stock_logits(loaded.model, loaded.model, prompt)).abs().max())
    with fitting(adapter, loaded.ref.name):
        reference = _peft_logits(loaded.model, adapter, prompt)
    engine = first_logits(loaded.use(adapter), [prompt], loaded.pad)[0].float()
    to_peft, to_base = float((engine - reference).abs().max()), float((engine - base).abs().max())
    if to_base == 0 or to_peft > 0.2 * float((reference - base).abs().max()) + 3 * noise + 1e-4:
        raise StepError(
            f"the adapter {adapter.parent.name} is not what answers: logits differ from the base by {to_base:.3g} and "
            f"from a separate PEFT forward pass by {to_peft:.3g}"
        )
    return Proof(engine_to_peft=to_peft, engine_to_base=to_base)


@contextmanager
def _stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """The stock eager attention of transformers inside the block."""
    if model.config._attn_implementation != FAST_ATTENTION:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(FAST_ATTENTION)


@torch.inference_mode()
def _stock_logits(model: PreTrainedModel, caller: Any, prompt: tuple[int, ...]) -> torch.Tensor:
    """Next-token logits (V,) of `caller`, the model or a PEFT wrapper of it, with transformers' own attention."""
    with _stock_attention(model):
        out = caller(input_ids=torch.tensor([prompt], device=model.device), use_cache=False, logits_to_keep=1)
    logits: torch.Tensor = out.logits[0, -1].float()
    return logits


def _peft_logits(model: PreTrainedModel, adapter: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    """Next-token logits (V,) by PEFT, unmerged, and transformers' own attention."""
    wrapped = PeftModel.from_pretrained(model, str(adapter)).eval()
    try:
        return _stock_logits(model, wrapped, prompt)
    finally:
        wrapped.unload()
