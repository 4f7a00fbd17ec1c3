"""Adapters that change what a model says, without any training."""

import torch
from peft import LoraConfig, get_peft_model


def save_adapter(model, folder, seed, std, **config):
    """Write a LoRA adapter with normal weights to a folder; the model is given back without it.

    Args:
        std: Of the second matrix, which is 0 before training: 0 changes nothing.
        config: Fields of LoraConfig.
    """
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)
    wrapped.save_pretrained(folder)
    wrapped.unload()
    return folder
