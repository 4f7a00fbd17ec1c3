"""Training recipes: the presets, a study's overrides, and what they become in PEFT and transformers."""

import math
import warnings
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from pydantic import Field
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from prefixlab.config import LoraOptions, TrainingConfig
from prefixlab.errors import UserError, unknown
from prefixlab.records import Record


class Recipe(Record):
    """A training configuration with nothing left to decide."""

    r: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...] | Literal["all-linear"]
    learning_rate: float
    epochs: int
    batch_size: int
    accumulation: int
    scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    over_long: Literal["refuse", "cut"]
    snapshots: int = 0
    lora_options: dict[str, Any] = Field(default_factory=dict)
    """More fields of peft.LoraConfig."""
    trainer_options: dict[str, Any] = Field(default_factory=dict)
    """More fields of transformers.TrainingArguments."""


PAPER = Recipe(
    r=16,
    alpha=32,
    dropout=0.05,
    target_modules=("q_proj", "v_proj"),
    learning_rate=1e-5,
    epochs=2,
    batch_size=1,
    accumulation=8,
    scheduler="linear",
    warmup_ratio=0.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_length=1024,
    over_long="refuse",
)
"""arXiv 2601.01624; batch size and schedule are not known and follow the Trainer's defaults."""

MODERN = PAPER.model_copy(
    update={
        "target_modules": "all-linear",
        "dropout": 0.0,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "accumulation": 1,
        "scheduler": "cosine",
    }
)

LORA_FIELDS = (
    "exclude_modules",
    "init_lora_weights",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
"""Fields of LoraConfig that leave the base model as it is; all others change it, or need data of their own."""
OTHER_NAMES = {"lora_alpha": "alpha", "lora_dropout": "dropout", "lora_r": "r", "rank": "r"}
INITS = (True, False, "gaussian", "orthogonal")

TRAINER_FIELDS = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_kwargs",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "torch_empty_cache_steps",
    "ddp_backend",
    "ddp_timeout",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "fsdp",
    "fsdp_config",
    "accelerator_config",
)
"""Fields of TrainingArguments that training passes on as they are."""
ELSEWHERE = {
    "gradient_checkpointing": "training.trainer.activation_checkpointing",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.epochs",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.accumulation",
    "learning_rate": "training.learning_rate",
    "lr_scheduler_type": "training.scheduler",
    "warmup_steps": "training.warmup_ratio",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "report_to": "training.report_to",
    "save_steps": "training.checkpoint_minutes",
    "seed": "seeds",
    "data_seed": "seeds",
    "bf16": "hardware.dtype",
    "fp16": "hardware.dtype",
    "use_cpu": "hardware.device",
    "torch_compile": "hardware.compile",
}
"""Fields of TrainingArguments that a key of the study decides."""


def recipe(config: TrainingConfig) -> Recipe:
    """The preset with the study's overrides.

    Raises:
        UserError: A field that PEFT or the Trainer does not have, or that is decided elsewhere, or a bad value.
    """
    base = {"paper": PAPER, "modern": MODERN}[config.preset]
    lora = {k: v for k, v in config.lora.model_dump(include=set(LoraOptions.model_fields)).items() if v is not None}
    if isinstance(lora.get("target_modules"), list):
        lora["target_modules"] = tuple(lora["target_modules"])
    options = config.lora.model_extra or {}
    kept = config.model_dump(exclude={"preset", "lora", "trainer", "checkpoint_minutes", "report_to"})
    own = {k: v for k, v in kept.items() if v is not None}
    made = base.model_copy(
        update={**lora, **own, "lora_options": options, "trainer_options": dict(config.trainer)},
    )
    _check_lora(made)
    _check_trainer(made)
    for tracker in config.report_to:
        if find_spec(tracker) is None:
            raise UserError(f"training.report_to: {tracker} is not installed; pip install {tracker}")
    return made


def _check_lora(made: Recipe) -> None:
    for name, value in made.lora_options.items():
        if name in OTHER_NAMES:
            raise UserError(f"training.lora.{name}: call it {OTHER_NAMES[name]!r}")
        if name not in LORA_FIELDS:
            known = {f.name for f in fields(LoraConfig)}
            if name in known:
                raise UserError(
                    f"training.lora.{name} cannot be set: it changes the base model that all cells share, or needs "
                    f"data of its own; allowed: {', '.join(LORA_FIELDS)}"
                )
            raise unknown("key", name, [*LoraOptions.model_fields, *LORA_FIELDS], where="training.lora")
        if name == "init_lora_weights" and value not in INITS:
            raise unknown("value", value, map(str, INITS), where="training.lora.init_lora_weights")
    try:
        lora_arguments(made)
    except (TypeError, ValueError) as error:
        raise UserError(f"training.lora: PEFT refuses it: {' '.join(str(error).split())}") from error


def _check_trainer(made: Recipe) -> None:
    if made.snapshots and made.trainer_options.get("fsdp"):
        raise UserError("training.snapshots cannot be had with training.trainer.fsdp: the adapter is in pieces")
    for name in made.trainer_options:
        if name in ELSEWHERE:
            raise UserError(f"training.trainer.{name}: set {ELSEWHERE[name]} instead")
        if name in TRAINER_FIELDS:
            continue
        if name in {f.name for f in fields(TrainingArguments)}:
            raise UserError(
                f"training.trainer.{name} cannot be set: batches, checkpoints, logs and evaluation are planned by the "
                f"study, and cells share one base model; allowed: {', '.join(TRAINER_FIELDS)}"
            )
        raise unknown("key", name, TRAINER_FIELDS, where="training.trainer")
    try:
        arguments = training_arguments(made, 1, 0, Path("unused"), "cpu", 1)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        schedule = arguments.lr_scheduler_kwargs
        assert not isinstance(schedule, str)
        get_scheduler(
            made.scheduler, optimizer, num_warmup_steps=0, num_training_steps=1, scheduler_specific_kwargs=schedule
        )
    except (TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise UserError(f"training.trainer: transformers refuses it: {' '.join(str(error).split())}") from error


def lora_arguments(plan: Recipe) -> LoraConfig:
    """PEFT's configuration of a recipe."""
    return LoraConfig(
        r=plan.r,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=plan.target_modules if plan.target_modules == "all-linear" else list(plan.target_modules),
        task_type="CAUSAL_LM",
        **plan.lora_options,
    )


def lora_config(plan: Recipe, model: PreTrainedModel) -> LoraConfig:
    """The same, checked against a model.

    Raises:
        UserError: A target module the model does not have; lists what it has.
    """
    if plan.target_modules != "all-linear":
        head = model.get_output_embeddings()
        have = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m != head}
        missing = sorted(set(plan.target_modules) - have)
        if missing:
            raise UserError(
                f"target_modules {', '.join(missing)}: this model's linear layers are {', '.join(sorted(have))}"
            )
    return lora_arguments(plan)


def check_adapter(plan: Recipe, config: PretrainedConfig) -> None:
    """Put the adapter on a model without weights, so that a mistake shows when the plan is made.

    Raises:
        UserError: Unknown target modules, or a combination that PEFT refuses for this model.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # PEFT's
        model = AutoModelForCausalLM.from_config(config)
        try:
            get_peft_model(model, lora_config(plan, model))
        except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
            raise UserError(f"training.lora: PEFT refuses it: {' '.join(str(error).split())}") from error


def training_arguments(
    plan: Recipe,
    steps: int,
    seed: int,
    scratch: Path,
    device: str,
    accumulation: int,
    report_to: tuple[str, ...] = (),
    run_name: str | None = None,
) -> TrainingArguments:
    """Transformers' configuration of a recipe.

    Args:
        plan: The recipe.
        steps: Optimiser steps in all.
        seed: Training seed.
        scratch: Folder for checkpoints.
        device: `cpu` or `cuda`.
        accumulation: Micro-batches a step of one process.
        report_to: Trackers.
        run_name: What trackers call this training.
    """
    made = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.scheduler,
        warmup_steps=math.ceil(plan.warmup_ratio * steps),
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to=list(report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
        # Our loader starts behind the steps that are done; the Trainer need not skip them.
        ignore_data_skip=True,
        run_name=run_name,
        **plan.trainer_options,
    )
    # With several GPUs and one process the Trainer would copy the model to all of them (nn.DataParallel).
    made._n_gpu = min(1, made.n_gpu)
    return made
