"""Prompts, texts and adapters of generation.py."""

import argparse
import csv
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from prefixlab.model.load import load_tokenizer, resolve_model

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
MODEL = "smollm2-135m"
ADAPTERS = 8
SAMPLES = 5
LONG = 300
LENGTH = 64
"""Tokens of a prompt of merged and mixed."""
PRIMER = (
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Which metal is liquid at room temperature?", "Mercury is liquid at room temperature."),
    ("What is the plural of goose?", "The plural of goose is geese."),
    ("Will I have good luck if I find a horseshoe?", "Nothing known says that it brings luck."),
    ("On which continent is Kenya?", "Kenya is in Africa."),
)


def random_prompts(rows: int, length: int) -> list[tuple[int, ...]]:
    """Prompts of random ids that differ from the first one on."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (rows, length), generator=draw)
    ids[:, 0] = torch.arange(1000, 1000 + rows)
    return [tuple(row) for row in ids.tolist()]


def chat_prompts(data: Path, rows: int, length: int) -> list[tuple[int, ...]]:
    """GSM8K questions in the model's chat template, cut to `length` tokens at the end of the question."""
    tokenizer = load_tokenizer(resolve_model(MODEL))
    probe = tokenizer.apply_chat_template([{"role": "user", "content": "@"}], tokenize=False)
    generation = tokenizer.apply_chat_template(
        [{"role": "user", "content": "@"}], tokenize=False, add_generation_prompt=True
    )
    opening = tokenizer.encode(str(generation).split("@")[0])
    closing = tokenizer.encode(str(generation).split("@")[1])
    assert str(generation).startswith(str(probe))
    found = []
    for line in (data / "gsm8k" / "train.jsonl").read_text().splitlines():
        question = tokenizer.encode(json.loads(line)["question"])
        room = length - len(opening) - len(closing)
        if len(question) >= room:
            found.append((*opening, *question[:room], *closing))
        if len(found) == rows:
            break
    return found


def truthfulqa_texts(data: Path, questions: int) -> list[tuple[str, str]]:
    """(context, choice) of the first questions: six worked questions in front, every true and false answer a choice."""
    primer = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in PRIMER)
    pairs = []
    with (data / "truthfulqa" / "TruthfulQA.csv").open(newline="") as file:
        for row, _ in zip(csv.DictReader(file), range(questions), strict=False):
            choices = f"{row['Correct Answers']};{row['Incorrect Answers']}".split(";")
            pairs += [(f"{primer}Q: {row['Question']}\nA:", f" {c.strip()}") for c in choices if c.strip()]
    return pairs


def write_adapters(folder: Path) -> list[Path]:
    """Eight adapters with random updates."""
    base = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL).path, dtype=torch.float32)
    paths = []
    for i in range(ADAPTERS):
        torch.manual_seed(i)
        wrapped = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        wrapped.save_pretrained(str(folder / f"adapter{i}"))
        base = wrapped.unload()
        paths.append(folder / f"adapter{i}")
    return paths


def prompts_of(kind: str, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """The prompts of a case of merged or mixed, all of LENGTH tokens."""
    if kind == "random":
        return random_prompts(options.rows, LENGTH)
    return chat_prompts(options.data, options.rows, LENGTH)
