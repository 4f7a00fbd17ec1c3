"""Speed of our generation and likelihoods against the libraries they stand in for, on SmolLM2-135M.

    python benchmarks/generation.py [--rounds 3] [--only merged,mixed,shared,loglik] [--threads N] [--quick]

Prints one JSON object. Contenders of one comparison take turns on the same requests; a ratio is that of the two times
of one round, so that a busy machine slows both. On a machine that is shared, two threads wait for each other at every
matmul: take `--threads 1` and the ratios of CPU time there. Every library runs in a process of its own, the stock
model as a user loads it (sdpa, the dtype that we resolve). All completions have exactly `--new` tokens.

- merged: transformers' `generate` on merged weights. `random` prompts share nothing; `chat` prompts are GSM8K questions
  behind the model's own system turn, all cut to the same number of tokens. Greedy, and sampled (temperature 0.6, top-p
  0.95, no top-k).
- mixed: PEFT's `generate` with adapter_names, eight adapters on all linear layers, r = 8, rows in turn.
- shared: five samples of each 300-token prompt, against the same rows with prompts that differ in their first token.
- loglik: lm-eval's HFLM on TruthfulQA's questions behind six worked ones, at its best batch size of 8, 32 and 64.
- vllm: a third contender of merged and mixed, where `--vllm-python` (or $PREFIXLAB_VLLM_PYTHON) names a Python that has
  vllm, or this one has; generation_vllm.py is its side. Same prompts, dtype, threads and number of tokens.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from generation_inputs import (
    ADAPTERS,
    DATA,
    LENGTH,
    LONG,
    MODEL,
    SAMPLES,
    prompts_of,
    random_prompts,
    truthfulqa_texts,
    write_adapters,
)
from prefixlab.config import HardwareConfig
from prefixlab.model.generate import Request, generate, with_adapter
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.loglik import encode_pair, log_likelihoods
from prefixlab.model.machine import cpu_threads, describe, resolve
from prefixlab.model.mixed import generate_mixed

MARK = "@@"
NO_STOP: frozenset[int] = frozenset()
SAMPLED = {"temperature": 0.6, "top_p": 0.95}


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values), "unit": unit}


def vllm_job(name: str, options: argparse.Namespace) -> Path:
    """What vLLM's side has to do, as a file; its model is merged with the first adapter where ours is."""
    model = resolve_model(MODEL).path
    if name == "merged":
        merged = options.folder / "merged"
        wrapped: Any = PeftModel.from_pretrained(stock(options.threads), str(options.folder / "adapter0"))
        wrapped.merge_and_unload().save_pretrained(str(merged))
        model = str(merged)
    ways = ("greedy", "sampled") if name == "merged" else ("greedy",)
    job = {
        "model": model,
        "adapters": [] if name == "merged" else [str(options.folder / f"adapter{i}") for i in range(ADAPTERS)],
        "dtype": resolve(HardwareConfig()).dtype,
        "threads": options.threads,
        "rows": options.rows,
        "new": options.new,
        "length": LENGTH,
        "prompts": {kind: prompts_of(kind, options) for kind in ("random", "chat")},
        "cases": [f"{kind}_{way}" for kind in ("random", "chat") for way in ways],
        "sampled": SAMPLED,
    }
    path: Path = options.folder / f"vllm-{name}.json"
    path.write_text(json.dumps(job))
    return path


def stock(threads: int) -> Any:
    """The model as a user of transformers loads it."""
    hardware = resolve(HardwareConfig(threads=threads))
    torch.set_num_threads(hardware.threads)
    path = resolve_model(MODEL).path
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, hardware.dtype)).eval()


def their_generate(model: Any, prompts: Sequence[tuple[int, ...]], new: int, sampled: bool, **more: Any) -> None:
    ids = torch.tensor(prompts)
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, **SAMPLED} if sampled else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            **settings,
            **more,
        )
    assert out.shape[1] == ids.shape[1] + new


def our_requests(prompts: Sequence[tuple[int, ...]], new: int, sampled: bool) -> list[Request]:
    temperature, top_p = (SAMPLED["temperature"], SAMPLED["top_p"]) if sampled else (0.0, 1.0)
    return [Request(p, new, temperature, top_p, i) for i, p in enumerate(prompts)]


def contender(kind: str, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What one process can run, by case."""
    new, rows = options.new, options.rows
    name, library = kind.split(":")
    ours = library == "ours"
    hardware = resolve(HardwareConfig(threads=options.threads))
    model: Any = load_model(resolve_model(MODEL), hardware) if ours else stock(options.threads)
    cases: dict[str, Callable[[], None]] = {}
    if name == "merged":
        folder = options.folder / "adapter0"
        if not ours:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        for kept in ("random", "chat"):
            prompts = prompts_of(kept, options)
            for sampled in (False, True):

                def run(prompts: Any = prompts, sampled: bool = sampled) -> None:
                    if not ours:
                        their_generate(model, prompts, new, sampled)
                        return
                    generate(model, our_requests(prompts, new, sampled), stop_ids=NO_STOP, pad=0)

                cases[f"{kept}_{'sampled' if sampled else 'greedy'}"] = run
        if ours:
            # Merged once, outside the timing, as the other side's weights are.
            held = with_adapter(model, folder, merge=True)
            held.__enter__()
            cases = {k: (lambda f=f, _held=held: f()) for k, f in cases.items()}
    elif name == "mixed":
        folders = [options.folder / f"adapter{i % ADAPTERS}" for i in range(rows)]
        if not ours:
            model = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="adapter0").eval()
            for i in range(1, ADAPTERS):
                model.load_adapter(str(options.folder / f"adapter{i}"), adapter_name=f"adapter{i}")
        for kept in ("random", "chat"):
            prompts = prompts_of(kept, options)

            def run_mixed(prompts: Any = prompts) -> None:
                if ours:  # loading the adapters is part of the call
                    generate_mixed(model, our_requests(prompts, new, False), folders, stop_ids=NO_STOP, pad=0)
                else:
                    their_generate(model, prompts, new, False, adapter_names=[f.name for f in folders])

            cases[f"{kept}_greedy"] = run_mixed
    elif name == "shared":
        prompts = random_prompts(max(1, rows // SAMPLES), LONG)
        same = [p for p in prompts for _ in range(SAMPLES)]
        apart = [(1000 + i, *p[1:]) for i, p in enumerate(same)]
        for tokens in sorted({new, 2 * new}):
            for asked, label in ((same, "once"), (apart, "separate")):

                def run_shared(rows: Any = asked, tokens: int = tokens) -> None:
                    generate(model, our_requests(rows, tokens, True), stop_ids=NO_STOP, pad=0)

                cases[f"{tokens}_new_{label}"] = run_shared
    else:
        texts = truthfulqa_texts(options.data, options.questions)
        tokenizer: Any = load_tokenizer(resolve_model(MODEL))
        if ours:

            def run_ours() -> None:
                pairs = [encode_pair(tokenizer, *t) for t in texts]
                log_likelihoods(model, [(tuple(c), tuple(o)) for c, o in pairs], pad=0)

            cases["all"] = run_ours
        else:
            from lm_eval.api.instance import Instance  # noqa: PLC0415  (only this comparison needs it)
            from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

            for size in (8, 32, 64):
                harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu")
                asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
                cases[f"batch_{size}"] = lambda h=harness, a=asked: h.loglikelihood(a, disable_tqdm=True)
    return cases


def worker(options: argparse.Namespace) -> None:
    """Run the case named by each line that comes in, and say how long it took."""
    torch.manual_seed(0)
    cases = contender(options.worker, options)
    print(MARK + json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        begun, cpu = time.perf_counter(), time.process_time()
        cases[line.strip()]()
        took = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
        print(MARK + json.dumps(took), flush=True)


class Worker:
    """A process that runs one contender."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        name, library = kind.split(":")
        if library == "vllm":
            command = [options.vllm_python, str(Path(__file__).with_name("generation_vllm.py"))]
            command.append(str(vllm_job(name, options)))
        else:
            command = [sys.executable, __file__, "--worker", kind]
            for key in ("data", "folder", "new", "rows", "questions", "threads"):
                command += [f"--{key}", str(getattr(options, key))]
        self.kind = kind
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cases: list[str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"the worker {self.kind} ended early")

    def run(self, case: str) -> dict[str, float]:
        """Run a case once."""
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        took: dict[str, float] = self._answer()
        print(f"{self.kind} {case}: {took}", file=sys.stderr, flush=True)
        return took

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()  # the end of its loop; a worker ends the processes it has started
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


OTHERS = {"merged": ("transformers", "vllm"), "mixed": ("peft", "vllm"), "shared": (), "loglik": ("lm_eval",)}


def compare(name: str, options: argparse.Namespace) -> Iterator[tuple[str, str, list[dict[str, float]]]]:
    """Rounds of (case, contender): both contenders of a case one after the other in every round."""
    wanted = options.against.split(",")
    here = [who for who in OTHERS[name] if who in wanted and (who != "vllm" or options.vllm_python)]
    workers = {who: Worker(f"{name}:{who}", options) for who in ("ours", *here)}
    took: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for case in dict.fromkeys(c for w in workers.values() for c in w.cases):
            for who, one in workers.items():
                if case in one.cases:
                    took.setdefault((case, who), []).append(one.run(case))
    for one in workers.values():
        one.close()
    for (case, who), rows in took.items():
        yield case, who, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--only", default="merged,mixed,shared,loglik")
    parser.add_argument("--against", default="transformers,peft,vllm,lm_eval", help="whom to compare with")
    parser.add_argument(
        "--vllm-python",
        default=os.environ.get("PREFIXLAB_VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None),
        help="a Python that has vllm; no such rows without one",
    )
    parser.add_argument("--quick", action="store_true", help="one round of small batches")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    if options.quick:
        options.rounds, options.rows, options.new, options.questions = 1, 8, 2, 1
    names = ["prefixlab", "torch", "transformers", "peft"]
    installed = {}
    try:
        installed["lm_eval"] = version("lm_eval")
    except PackageNotFoundError:
        installed["lm_eval"] = "absent"
    installed["vllm"] = vllm_version(options.vllm_python) if options.vllm_python else "absent"
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = Path(temporary)
        write_adapters(options.folder)
        for name in options.only.split(","):
            if name == "loglik" and (installed["lm_eval"] == "absent" or "lm_eval" not in options.against.split(",")):
                continue
            done = {(case, who): rows for case, who, rows in compare(name, options)}
            tokens = options.rows * options.new
            for (case, who), rows in done.items():
                key = f"{name}_{case}_{who}"
                figures[key] = spread([r["seconds"] for r in rows], "s")
                figures[f"{key}_cpu"] = spread([r["cpu"] for r in rows], "CPU s")
                if name in ("merged", "mixed"):
                    figures[f"{key}_rate"] = spread([tokens / r["seconds"] for r in rows], "new tok/s")
            ratios |= ratios_of(name, done)
    figures["vllm"] = installed["vllm"]
    said = {
        "benchmark": "generation",
        "machine": describe() | {"dtype": resolve(HardwareConfig()).dtype, "threads": options.threads},
        "versions": {n: version(n) for n in names} | installed | {"python": platform.python_version()},
        "settings": {k: getattr(options, k) for k in ("rounds", "rows", "new", "questions")},
        "figures": figures,
        "ratios": ratios,
    }
    print(json.dumps(said, indent=1))


def vllm_version(python: str) -> str:
    """The version of vllm that a Python has, with that of its torch."""
    said = "import torch, vllm; print(vllm.__version__, 'torch', torch.__version__)"
    done = subprocess.run([python, "-c", said], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"--vllm-python {python}: vllm cannot be imported there: {done.stderr.strip()[-300:]}")
    return done.stdout.strip().splitlines()[-1]


def ratios_of(name: str, done: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, Any]:
    """How many times as long the other side takes, round by round; by wall time, and by CPU time."""

    def ratio(slow: tuple[str, str], fast: tuple[str, str]) -> dict[str, Any]:
        both = list(zip(done[slow], done[fast], strict=True))
        wall = spread([a["seconds"] / b["seconds"] for a, b in both], "")
        return wall | {"cpu": statistics.median(a["cpu"] / b["cpu"] for a, b in both)}

    if name == "shared":
        counts = sorted({case.split("_")[0] for case, _ in done}, key=int)
        return {
            f"shared_prefill_{n}_new": ratio((f"{n}_new_separate", "ours"), (f"{n}_new_once", "ours")) for n in counts
        }
    if name == "loglik":
        theirs = [key for key in done if key[1] == "lm_eval"]
        best = min(theirs, key=lambda key: statistics.median(r["seconds"] for r in done[key]))
        return {"loglik_vs_lm_eval": ratio(best, ("all", "ours")) | {"their_best": best[0]}}
    return {
        f"{name}_vs_{other}_{case}": ratio((case, other), (case, "ours")) for case, other in done if other != "ours"
    }


if __name__ == "__main__":
    main()
