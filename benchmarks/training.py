"""Speed, memory and equality of our training against stock TRL, on SmolLM2-135M with GSM8K and STAR-1 rows.

    python benchmarks/training.py                       speed: every configuration in a process of its own, alternating
    python benchmarks/training.py --equality            losses, gradient norms and updates, step by step, in float32
    python benchmarks/training.py --parts               what each optimisation gives
    python benchmarks/training.py --held-out            bf16: final held-out loss, against the range of five TRL seeds

Prints one JSON object. `trl_default` is SFTTrainer as it comes, `trl_tuned` loads in bf16 without checkpointing and
autocast, `trl_float32` is the same in float32: the fair one where the CPU has no bf16 instructions. All of them train
on the same ids, labels and length-sorted batches. Tokens are non-padding tokens.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefixlab.config import ArmsConfig, DataConfig, HardwareConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format, prompt_ids
from prefixlab.data.check import render_arm
from prefixlab.data.sources import read_samples
from prefixlab.data.strip import strip_all
from prefixlab.model.batches import collate, plan_batches
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.lora import fused_lora
from prefixlab.model.loss import token_loss
from prefixlab.model.machine import describe, resolve
from prefixlab.model.recipes import MODERN, PAPER, Recipe, lora_arguments, lora_config
from prefixlab.model.train import compiled_layers, train_adapter
from prefixlab.model.trainer import hidden_states
from prefixlab.records import Rendered

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
MODEL = "smollm2-135m"
KINDS = ("ours", "trl_default", "trl_tuned", "trl_float32")
MARK = "@@"


def machine() -> dict[str, Any]:
    """Machine and versions, as every benchmark prints them."""
    names = ("prefixlab", "torch", "transformers", "peft", "trl", "accelerate")
    return {"machine": describe(), "versions": {n: version(n) for n in names} | {"python": platform.python_version()}}


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "unit": unit}


def real_samples(data: Path, count: int, longest: int) -> list[Rendered]:
    """Rendered samples, half GSM8K and half STAR-1, the reasoning prefix on half of them, cut at `longest` tokens."""
    tokenizer = load_tokenizer(resolve_model(MODEL))
    arm = specs(ArmsConfig(prefixes="reasoning", ratios=[0.5], controls=[]), "benchmark")[1]
    rendered = []
    for file in ("gsm8k/train.jsonl", "star1/STAR-1.json"):
        config = DataConfig(source=str(data / file), limit=None, held_out=0)
        samples = strip_all(read_samples(config, "benchmark")[0])[0]
        # Room for prefix and response behind the prompt.
        room = [len(prompt_ids(tokenizer, s.messages)) + 40 <= longest for s in samples]
        fits = [s for s, ok in zip(samples, room, strict=True) if ok][: count // 2]
        if len(fits) < count // 2:
            raise SystemExit(
                f"{file}: only {len(fits)} of {count // 2} samples have prompts short enough for {longest} tokens"
            )
        rows = build_arm(fits, arm, "benchmark", "exact")
        rendered += render_arm(
            rows, tokenizer, chat_format(tokenizer), max_length=longest, no_reasoning="refuse", over_long="cut"
        )
    return rendered


def write_samples(folder: Path, samples: Sequence[Rendered]) -> Path:
    """Hand rendered samples to the workers."""
    path = folder / "samples.jsonl"
    path.write_text("".join(s.model_dump_json() + "\n" for s in samples))
    return path


def read_samples_file(path: Path) -> list[Any]:
    """What `write_samples` wrote."""
    return [Rendered.model_validate_json(line) for line in path.read_text().splitlines()]


def worker(kind: str, path: Path, batch: int, spawned: float) -> None:
    """Train one step whenever a line comes in; the first one at once, which is the cold start."""
    samples = read_samples_file(path)
    plan = MODERN.model_copy(update={"epochs": 1, "batch_size": batch})
    steps = plan_batches(samples, plan, "benchmark", 0)
    hardware = resolve(HardwareConfig())
    torch.set_num_threads(hardware.threads)
    ref = resolve_model(MODEL)
    tokenizer = load_tokenizer(ref)
    base = load_model(ref, hardware) if kind == "ours" else None
    turn = 0
    while True:
        chosen = steps[turn % len(steps)][0]
        some = [samples[i] for i in chosen]
        with tempfile.TemporaryDirectory() as scratch:
            if kind == "ours":
                folder = Path(scratch)
                train_adapter(base, some, plan, key="benchmark", seed=0, pad=0, folder=folder)
                row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
                seconds, loss = row["seconds"], row["loss"]
            else:
                seconds, loss = trl_step(kind, ref.path, tokenizer, some, plan, Path(scratch))
        said = {
            "tokens": sum(len(s.ids) for s in some),
            "seconds": seconds,
            "loss": loss,
            "since_spawn": time.time() - spawned,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
        }
        print(MARK + json.dumps(said), flush=True)
        turn += 1
        if not sys.stdin.readline():
            return


def trl_step(
    kind: str, path: str, tokenizer: Any, some: Sequence[Rendered], plan: Recipe, scratch: Path
) -> tuple[float, float]:
    """One optimiser step of a fresh SFTTrainer; its loading is not timed."""
    from trl_reference import TUNED, run  # noqa: PLC0415  (importing TRL is not part of our cold start)

    steps = [[list(range(len(some)))]]
    if kind == "trl_default":
        done = run(path, tokenizer, some, steps, plan, 0, scratch)
    else:
        dtype = torch.bfloat16 if kind == "trl_tuned" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        done = run(model, tokenizer, some, steps, plan, 0, scratch, **TUNED)
    return done.seconds[0], done.losses[0]


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Alternate all configurations; medians of `rounds` warm steps each, and the cost of a cold start."""
    with tempfile.TemporaryDirectory() as temporary:
        count = 8 * options.batch
        samples = real_samples(options.data, count, options.longest)
        path = write_samples(Path(temporary), samples)
        workers: dict[str, subprocess.Popen[str]] = {}
        first: dict[str, dict[str, float]] = {}
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
        for kind in options.kinds:  # one after another: a cold start is not timed beside another one
            command = [
                sys.executable,
                __file__,
                "--worker",
                kind,
                "--samples",
                str(path),
                "--batch",
                str(options.batch),
            ]
            command += ["--spawned", str(time.time())]
            workers[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            first[kind] = answer(workers[kind], kind)
        for turn in range(options.rounds):
            for kind, process in workers.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                rows[kind].append(answer(process, kind))
                print(f"round {turn + 1}: {kind} {rows[kind][-1]}", file=sys.stderr, flush=True)
        for process in workers.values():
            process.kill()
    rates = {k: [r["tokens"] / r["seconds"] for r in v] for k, v in rows.items()}
    figures = {f"{k}_tokens_per_second": spread(v, "tok/s") for k, v in rates.items()}
    figures |= {f"{k}_cold_first_step": spread([v["since_spawn"]], "s") for k, v in first.items()}
    hundred = {k: first[k]["since_spawn"] + 99 * statistics.median(r["seconds"] for r in v) for k, v in rows.items()}
    figures |= {f"{k}_100_steps_cold": spread([v], "s") for k, v in hundred.items()}
    memory = "peak_gpu_gb" if rows["ours"][-1]["peak_gpu_gb"] else "peak_gb"
    figures |= {f"{k}_peak_memory": spread([v[-1][memory]], "GB") for k, v in rows.items()}
    supervised = sum(s.n_supervised for s in samples) / sum(len(s.ids) for s in samples)
    figures["supervised_share"] = spread([supervised], "of all tokens")
    figures["samples_per_step"] = spread([options.batch], "samples")
    figures["tokens_per_step"] = spread([r["tokens"] for r in rows["ours"]], "tokens")
    others = [k for k in options.kinds if k != "ours"]
    ratios = {f"vs_{k}": three([a / b for a, b in zip(rates["ours"], rates[k], strict=True)]) for k in others}
    ratios |= {f"vs_{k}_100_steps_cold": three([hundred[k] / hundred["ours"]]) for k in others}
    ratios |= {f"memory_vs_{k}": three([rows["ours"][-1][memory] / rows[k][-1][memory]]) for k in others}
    return {"figures": figures, "ratios": ratios}


def three(values: Sequence[float]) -> dict[str, float]:
    """Median and range of a ratio."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def answer(process: "subprocess.Popen[str]", kind: str) -> dict[str, float]:
    """The next line that a worker means for us."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            found: dict[str, float] = json.loads(line.removeprefix(MARK))
            return found
    raise SystemExit(f"the worker {kind} ended early")


def train_ours(
    samples: Sequence[Rendered], plan: Recipe, dtype: str, folder: Path
) -> tuple[list[dict[str, float]], Any]:
    """Our training: rows of metrics.jsonl and the adapter's tensors."""
    base = load_model(resolve_model(MODEL), resolve(HardwareConfig(dtype=dtype)))
    train_adapter(base, samples, plan, key="benchmark", seed=0, pad=0, folder=folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, load_file(folder / "adapter" / "adapter_model.safetensors")


def equality(options: argparse.Namespace) -> dict[str, Any]:
    """Both presets in float32, every step: the largest relative difference of loss and gradient norm."""
    from trl_reference import TUNED, run, update_cosine  # noqa: PLC0415  (importing TRL is not part of our cold start)

    ref = resolve_model(MODEL)
    tokenizer = load_tokenizer(ref)
    figures: dict[str, Any] = {}
    for name, plan, wanted in (("paper", PAPER, 50), ("modern", MODERN, 100)):
        wanted = 2 if options.quick else wanted
        plan = plan.model_copy(update={"epochs": 1})
        samples = real_samples(options.data, wanted * 8, options.longest)
        with tempfile.TemporaryDirectory() as scratch:
            rows, ours = train_ours(samples, plan, "float32", Path(scratch))
            steps = plan_batches(samples, plan, "benchmark", 0)
            stock = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)
            theirs = run(stock, tokenizer, samples, steps, plan, 0, Path(scratch) / "trl", **TUNED)
        apart = {
            "loss": [abs(r["loss"] / x - 1) for r, x in zip(rows, theirs.losses, strict=True)],
            "grad_norm": [abs(r["grad_norm"] / x - 1) for r, x in zip(rows, theirs.grad_norms, strict=True)],
        }
        for what, values in apart.items():
            figures[f"{name}_{what}_step_1"] = spread(values[:1], "relative difference")
            figures[f"{name}_{what}_all_steps"] = spread(values, "relative difference")
        figures[f"{name}_update_cosine"] = spread([update_cosine(theirs.initial, ours, theirs.final)], "cosine")
        untrained = update_cosine(theirs.initial, theirs.initial, theirs.final)
        figures[f"{name}_update_cosine_of_an_untrained_adapter"] = spread([untrained], "cosine")
        figures[f"{name}_loss_first_and_last"] = {"ours": [rows[0]["loss"], rows[-1]["loss"]], "unit": "nats"}
        figures[f"{name}_seconds"] = {"ours": sum(r["seconds"] for r in rows), "trl": sum(theirs.seconds), "unit": "s"}
        supervised = sum(s.n_supervised for s in samples) / sum(len(s.ids) for s in samples)
        figures[f"{name}_supervised_share"] = spread([supervised], "of all tokens")
        print(json.dumps(figures, indent=1), file=sys.stderr, flush=True)
    return {"figures": figures, "ratios": {}}


def held_out(options: argparse.Namespace) -> dict[str, Any]:
    """bf16: our final held-out loss against TRL's with the same seed, and the range of five TRL seeds."""
    from trl_reference import TUNED, run  # noqa: PLC0415  (importing TRL is not part of our cold start)

    ref = resolve_model(MODEL)
    tokenizer = load_tokenizer(ref)
    plan = MODERN.model_copy(update={"epochs": 1, "batch_size": options.batch})
    samples = real_samples(options.data, options.batch * options.steps + 16, options.longest)
    kept, train = samples[::2][:8] + samples[1::2][-8:], []
    names = {s.id for s in kept}
    train = [s for s in samples if s.id not in names][: options.batch * options.steps]

    def loss_of(state: dict[str, torch.Tensor]) -> float:
        """Mean loss of the kept samples, in float32, so that only the training differs."""
        config = lora_arguments(plan)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32), config).eval()
        set_peft_model_state_dict(model, state)
        batch = collate(kept, 0)
        with torch.inference_mode():
            out = model(input_ids=batch.ids, attention_mask=batch.valid.long(), labels=batch.labels)
        return float(out.loss)

    losses = []
    with tempfile.TemporaryDirectory() as scratch:
        _, state = train_ours(train, plan, "bfloat16", Path(scratch))
        ours = loss_of(state)
        for seed in range(options.seeds):
            steps = plan_batches(train, plan, "benchmark", 0)
            stock = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.bfloat16)
            done = run(stock, tokenizer, train, steps, plan, seed, Path(scratch) / f"trl{seed}", **TUNED)
            losses.append(loss_of(done.final))
            print(f"seed {seed}: ours {ours:.5f}, TRL {losses[-1]:.5f}", file=sys.stderr, flush=True)
    figures = {
        "ours_held_out_loss": spread([ours], "nats"),
        "trl_held_out_loss": spread(losses, "nats"),
        "relative_difference_same_seed": spread([abs(ours / losses[0] - 1)], ""),
        "range_of_trl_seeds": spread([(max(losses) - min(losses)) / statistics.median(losses)], "relative"),
        "steps": spread([options.steps], "steps"),
    }
    return {"figures": figures, "ratios": {}}


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """What each optimisation gives: a step with all of them against a step without one, alternating in one process."""
    hardware = resolve(HardwareConfig())
    started = time.perf_counter()
    base = load_model(resolve_model(MODEL), hardware)
    loading = time.perf_counter() - started
    plan = MODERN.model_copy(update={"batch_size": options.batch, "epochs": 1})
    samples = real_samples(options.data, 16 * options.batch, options.longest)
    sorted_steps = [step[0] for step in plan_batches(samples, plan, "benchmark", 0)]
    order = sorted(range(len(samples)), key=lambda i: samples[i].id)  # ids are hashes: any order that is not by length
    random_steps = [order[i : i + options.batch] for i in range(0, len(order), options.batch)]
    torch.manual_seed(0)
    started = time.perf_counter()
    wrapped = get_peft_model(base, lora_config(plan, base)).train()
    swapping = time.perf_counter() - started
    head = base.get_output_embeddings().weight

    def step(without: str, indices: Sequence[int]) -> tuple[float, float]:
        batch = collate([samples[i] for i in indices], 0)
        base.set_attn_implementation("sdpa" if without == "attention" else hardware.attention)
        with ExitStack() as stack:
            if without != "fused_lora":
                stack.enter_context(fused_lora(wrapped))
            if without == "nothing_compiled":
                stack.enter_context(compiled_layers(base))
            begun = time.perf_counter()
            if without == "frozen_head":
                out = wrapped(input_ids=batch.ids, attention_mask=batch.valid.long(), labels=batch.labels)
                loss = out.loss
            else:
                loss = token_loss(hidden_states(base, batch), head, batch.labels)[0].mean()
            loss.backward()
            seconds = time.perf_counter() - begun
        wrapped.zero_grad()
        return int(batch.valid.sum()) / seconds, seconds

    names = ["nothing", "frozen_head", "fused_lora", "attention", "length_grouping"]
    names += ["nothing_compiled"] if options.compiled else []
    warm_up = {name: step(name, sorted_steps[0])[1] for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            if name == "length_grouping":  # a whole run of random batches against a whole run of sorted ones
                chosen = random_steps[turn % len(random_steps)]
            else:
                chosen = sorted_steps[turn % len(sorted_steps)]
            rates[name].append(step(name, chosen)[0])
        print(
            f"round {turn + 1}: " + ", ".join(f"{k} {v[-1]:.0f}" for k, v in rates.items()), file=sys.stderr, flush=True
        )

    def padded(steps: Sequence[Sequence[int]]) -> float:
        width = sum(len(s) * max(len(samples[i].ids) for i in s) for s in steps)
        return 1 - sum(len(s.ids) for s in samples) / width

    figures = {f"without_{k}_tokens_per_second": spread(v, "tok/s") for k, v in rates.items()}
    figures |= {f"without_{k}_first_step": spread([v], "s") for k, v in warm_up.items()}
    figures["padding_sorted"] = spread([padded(sorted_steps)], "of all positions")
    figures["padding_unsorted"] = spread([padded(random_steps)], "of all positions")
    figures["loading_the_base"] = spread([loading], "s")
    figures["putting_an_adapter_on_it"] = spread([swapping], "s")
    ratios = {
        f"gain_of_{k}": three([a / b for a, b in zip(rates["nothing"], v, strict=True)])
        for k, v in rates.items()
        if k not in ("nothing", "nothing_compiled")
    }
    if options.compiled:
        pairs = zip(rates["nothing_compiled"], rates["nothing"], strict=True)
        ratios["gain_of_compiling"] = three([a / b for a, b in pairs])
    return {"figures": figures, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with gsm8k/train.jsonl and star1/STAR-1.json")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--longest", type=int, default=256, help="tokens at which a sample is cut")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--equality", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="with --parts: also compiled layers (a minute or two)")
    parser.add_argument("--steps", type=int, default=100, help="for --held-out")
    parser.add_argument("--seeds", type=int, default=5, help="for --held-out")
    parser.add_argument("--quick", action="store_true", help="one round without the slow configurations; two steps")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.worker:
        return worker(options.worker, options.samples, options.batch, options.spawned)
    if options.quick:
        options.rounds, options.kinds, options.longest = 1, ["ours", "trl_float32"], min(options.longest, 96)
        options.steps, options.seeds = 2, 1
    job = parts if options.parts else equality if options.equality else held_out if options.held_out else speed
    print(json.dumps({"benchmark": f"training, {job.__name__}", **machine(), **job(options)}, indent=1))
    return None


if __name__ == "__main__":
    main()
