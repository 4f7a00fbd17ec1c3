"""Cost of position contributions: against a plain training pass, and against one backward pass a token.

    python benchmarks/attribution.py                    time and memory on 300-token samples, SmolLM2-135M, LoRA rank 16
    python benchmarks/attribution.py --star1            STAR-1 rows of up to 1,024 tokens: minutes and peak memory

Prints one JSON object. `contributions_vs_backward` compares analysis.contributions (norms and influence shares of all
positions, input gradients, the Gram matrix of spans, losses) with the forward and backward pass of training, fused
LoRA and frozen head, in alternating rounds. On one thread the ratios are of CPU time, which other work on the machine
disturbs less, and those of wall time stand beside them. `speedup_vs_per_token` divides the time of one forward and J
backward passes by that of contributions; the passes are timed on `--tokens` of the J tokens. Memory is the peak
resident set over what the loaded model holds, each in a process of its own. With --star1 only `--measured` of the
samples, evenly spaced by length, are run, and the minutes of all are extrapolated by the number of tokens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from prefixlab.analysis.contributions import contributions, lora_targets
from prefixlab.config import ArmsConfig, DataConfig, HardwareConfig
from prefixlab.data.arms import build_arm, specs
from prefixlab.data.chat import chat_format, prompt_ids
from prefixlab.data.check import render_arm
from prefixlab.data.sources import read_samples
from prefixlab.data.strip import strip_all
from prefixlab.model.batches import Microbatch, collate
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.lora import fused_lora
from prefixlab.model.loss import token_loss
from prefixlab.model.machine import resolve
from prefixlab.model.recipes import MODERN, lora_config
from prefixlab.model.trainer import hidden_states
from prefixlab.records import Rendered
from training import DATA, MARK, MODEL, machine, read_samples_file, spread, three, write_samples

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def star1_samples(data: Path, longest: int) -> list[Rendered]:
    """Rows of STAR-1, the reasoning prefix on half of them, cut at `longest` tokens; the longest first.

    Without the few whose prompt leaves no room for a response.
    """
    tokenizer = load_tokenizer(resolve_model(MODEL))
    arm = specs(ArmsConfig(prefixes="reasoning", ratios=[0.5], controls=[]), "benchmark")[1]
    config = DataConfig(source=str(data / "star1" / "STAR-1.json"), limit=None, held_out=0)
    stripped = strip_all(read_samples(config, "benchmark")[0])[0]
    fits = [s for s in stripped if len(prompt_ids(tokenizer, s.messages)) + 40 <= longest]
    rows, chat = build_arm(fits, arm, "benchmark", "exact"), chat_format(tokenizer)
    made = render_arm(rows, tokenizer, chat, max_length=longest, no_reasoning="refuse", over_long="cut")
    return sorted(made, key=lambda s: (-len(s.ids), s.id))


class Subject:
    """SmolLM2 with an adapter as the preset `modern` trains it, B drawn at random, and the three jobs to time."""

    def __init__(self, threads: int) -> None:
        hardware = resolve(HardwareConfig(threads=threads))
        self.dtype = hardware.dtype
        self.base = load_model(resolve_model(MODEL), hardware)
        torch.manual_seed(0)
        self.model = get_peft_model(self.base, lora_config(MODERN, self.base)).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
        self.targets = lora_targets(self.model)

    def losses(self, batch: Microbatch) -> torch.Tensor:
        """Token losses as in training; inside `fused_lora`."""
        return token_loss(hidden_states(self.base, batch), self.base.get_output_embeddings().weight, batch.labels)[0]

    def plain(self, batch: Microbatch) -> None:
        """The pass of training."""
        with fused_lora(self.model):
            self.losses(batch).sum().backward()
        self.model.zero_grad()

    def contributions(self, batch: Microbatch) -> None:
        """All of analysis.contributions."""
        contributions(self.model, batch, self.targets)

    def per_token(self, batch: Microbatch, tokens: int) -> tuple[dict[str, float], int]:
        """Seconds of one forward and a backward pass for each of J tokens, from `tokens` of them; and J."""
        with fused_lora(self.model):
            losses, forward = timed(lambda: self.losses(batch))
            chosen = torch.linspace(0, len(losses) - 1, tokens).long().tolist()

            def one_each() -> None:
                for j in chosen:
                    self.model.zero_grad()
                    losses[j].backward(retain_graph=True)
                    torch.stack([p.grad.square().sum() for p in self.targets.parameters]).sum().sqrt()

            _, backward = timed(one_each)
        self.model.zero_grad()
        return {k: forward[k] + backward[k] / tokens * len(losses) for k in forward}, len(losses)


def timed(job: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the job gives, and its seconds by the wall and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = job()
    return out, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def speed(options: argparse.Namespace, samples: Sequence[Rendered]) -> dict[str, Any]:
    """Alternating rounds of the plain pass, contributions, and a few backward passes of single tokens."""
    subject = Subject(options.threads)
    rows: dict[str, list[dict[str, float]]] = {"plain": [], "contributions": [], "per_token": []}
    counts = []
    for turn in range(options.rounds + 1):
        batch = collate([samples[turn % len(samples)]], 0)
        here = {"plain": timed(lambda b=batch: subject.plain(b))[1]}
        here["contributions"] = timed(lambda b=batch: subject.contributions(b))[1]
        here["per_token"], supervised = subject.per_token(batch, options.tokens)
        print(f"round {turn}: {here}", file=sys.stderr, flush=True)
        if turn:  # the first one warms up
            counts.append(supervised)
            for name, seconds in here.items():
                rows[name].append(seconds)
    first, second = ("cpu", "wall") if options.threads == 1 else ("wall", "cpu")

    def ratio(above: str, below: str, kind: str) -> dict[str, float]:
        return three([a[kind] / b[kind] for a, b in zip(rows[above], rows[below], strict=True)])

    figures = {f"{n}_{k}": spread([r[k] for r in rows[n]], "s") for n in rows for k in ("wall", "cpu")}
    figures["tokens_per_sample"] = spread([len(s.ids) for s in samples], "tokens")
    figures["supervised_tokens"] = spread(counts, "tokens")
    figures["per_token_backward_passes_measured"] = spread([options.tokens], "of the supervised tokens of a round")
    figures["dtype"] = {"value": subject.dtype}
    ratios = {
        "contributions_vs_backward": ratio("contributions", "plain", first),
        f"contributions_vs_backward_{second}": ratio("contributions", "plain", second),
        "speedup_vs_per_token": ratio("per_token", "contributions", first),
        f"speedup_vs_per_token_{second}": ratio("per_token", "contributions", second),
    }
    return {"figures": figures, "ratios": ratios}


def resident(kind: str) -> float:
    """GB that the process holds (VmRSS) or held at most since `forget_peak` (VmHWM)."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(kind))
    return int(line.split()[1]) * 1024 / 1e9


def forget_peak() -> None:
    """Set VmHWM back to what the process holds now (proc(5))."""
    CLEAR.write_text("5")


def memory_worker(kind: str, path: Path, threads: int) -> dict[str, float]:
    """Peak of one job over what the loaded model holds, after a short first pass that fills the libraries' caches."""
    samples = read_samples_file(path)
    subject = Subject(threads)
    job = subject.plain if kind == "plain" else subject.contributions
    job(collate([samples[0].model_copy(update=short(samples[0], 24))], 0))
    forget_peak()
    before = resident("VmRSS")
    for sample in samples:
        job(collate([sample], 0))
    return {"model": before, "peak": resident("VmHWM")}


def short(sample: Rendered, tokens: int) -> dict[str, Any]:
    """The last tokens of a sample, all of one span."""
    last = sample.spans[-1].model_copy(update={"name": "answer", "start": 0, "end": tokens})
    return {"ids": sample.ids[-tokens:], "labels": sample.labels[-tokens:], "spans": (last,)}


def star1_worker(path: Path, threads: int) -> dict[str, float]:
    """Contributions of every sample in the file, one at a time."""
    samples = read_samples_file(path)
    subject = Subject(threads)
    subject.contributions(collate([samples[-1]], 0))
    found = []
    for sample in samples:
        found.append(timed(lambda s=sample: subject.contributions(collate([s], 0)))[1])
        print(f"{len(sample.ids)} tokens: {found[-1]}", file=sys.stderr, flush=True)
    tokens = sum(len(s.ids) for s in samples)
    return {"tokens": tokens, "peak": resident("VmHWM"), **{k: sum(f[k] for f in found) for k in ("wall", "cpu")}}


def in_a_process(kind: str, samples: Sequence[Rendered], threads: int) -> dict[str, float]:
    """A worker's answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_samples(Path(folder), samples)
        command = [sys.executable, __file__, "--worker", kind, "--file", str(path), "--threads", str(threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if x.startswith(MARK))
    said: dict[str, float] = json.loads(line.removeprefix(MARK))
    return said


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory on samples cut at `--longest` tokens."""
    samples = [s for s in star1_samples(options.data, options.longest) if len(s.ids) == options.longest]
    samples = sorted(samples, key=lambda s: s.id)[:8]
    found = speed(options, samples)
    peaks = {kind: in_a_process(kind, samples[:2], options.threads) for kind in ("plain", "contributions")}
    above = {kind: p["peak"] - p["model"] for kind, p in peaks.items()}
    for kind, p in peaks.items():
        found["figures"][f"{kind}_peak_memory"] = spread([p["peak"]], "GB")
        found["figures"][f"{kind}_peak_memory_over_the_model"] = spread([above[kind]], "GB")
    found["ratios"]["memory_over_the_model"] = three([above["contributions"] / above["plain"]])
    found["ratios"]["peak_memory"] = three([peaks["contributions"]["peak"] / peaks["plain"]["peak"]])
    return found


def star1(options: argparse.Namespace) -> dict[str, Any]:
    """Minutes for STAR-1, extrapolated from a subset, and the peak memory of the process."""
    every = star1_samples(options.data, 1024)[: options.samples]
    at = torch.linspace(0, len(every) - 1, min(options.measured, len(every))).long().tolist()
    said = in_a_process("star1", [every[i] for i in at], options.threads)
    tokens = sum(len(s.ids) for s in every)
    figures = {f"star1_minutes_{k}": spread([said[k] * tokens / said["tokens"] / 60], "min") for k in ("wall", "cpu")}
    figures |= {
        "star1_samples": spread([len(every)], "samples"),
        "star1_samples_measured": spread([len(at)], "samples; the rest is extrapolated by tokens"),
        "star1_tokens_per_sample": spread([len(s.ids) for s in every], "tokens"),
        "star1_tokens_per_second": spread([said["tokens"] / said["wall"]], "tok/s"),
        "star1_peak_memory": spread([said["peak"]], "GB"),
        "threads": spread([options.threads], "threads"),
    }
    return {"figures": figures, "ratios": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with star1/STAR-1.json")
    parser.add_argument("--longest", type=int, default=300, help="tokens at which a sample is cut")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4, help="backward passes of single tokens measured in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--star1", action="store_true")
    parser.add_argument("--samples", type=int, default=1000, help="for --star1")
    parser.add_argument("--measured", type=int, default=40, help="for --star1: samples that are run")
    parser.add_argument("--quick", action="store_true", help="one round at 96 tokens; with --star1 three samples")
    parser.add_argument("--worker", choices=("plain", "contributions", "star1"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.worker:
        star = options.worker == "star1"
        job = star1_worker if star else lambda f, t: memory_worker(options.worker, f, t)
        return print(MARK + json.dumps(job(options.file, options.threads)))
    if options.quick:
        options.rounds, options.longest, options.tokens, options.measured = 1, 96, 2, 3
    job = star1 if options.star1 else cost
    print(json.dumps({"benchmark": f"attribution, {job.__name__}", **machine(), **job(options)}, indent=1))
    return None


if __name__ == "__main__":
    main()
