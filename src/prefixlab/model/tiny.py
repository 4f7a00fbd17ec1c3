"""A throwaway model and tokenizer for tests: random weights, real formats, built in a second without a network."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "Sure! Here is the answer, step by step. State the final answer to the following problem. I am sorry, but I can't "
    "help with that. The answer is 12 + 34 - 5 = 41. Please find a short reply below. Let us think with care.\n\n"
)


def tokenizer(
    template: str = CHATML, *, special: list[str] | None = None, split: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred entries trained on a few sentences.

    Args:
        template: Jinja chat template.
        special: Special tokens; the last one is EOS and padding.
        split: Pre-tokenisation regex, e.g. that of Qwen2 or Llama-3; GPT-2's where None.
    """
    names = special or SPECIAL
    raw = Tokenizer(models.BPE())
    if split is None:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(split, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(names), special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=names[-1], pad_token=names[-1])
    fast.chat_template = template
    return fast


def build(folder: Path) -> None:
    """Write the tiny model and its tokenizer as a normal model folder."""
    fast = tokenizer()
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
