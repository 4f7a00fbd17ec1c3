"""vLLM's side of generation.py: a worker for a Python that has vllm, which may be another one than prefixlab's.

    PYTHON benchmarks/generation_vllm.py JOB.json      (started by generation.py; see `vllm_job` there)

The engine is vLLM's own, in its process, without a server's HTTP, with the settings it chooses for this machine: it
compiles the model where it can, and it shares the prefix of prompts within one call. What earlier rounds have left in
its prefix cache is dropped before each run. The first run of a case is not timed, since compilation is part of it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MARK = "@@"


def cpu_seconds() -> float:
    """CPU time of this process and of the ones vLLM has started."""
    import psutil  # noqa: PLC0415  (vllm brings it)

    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        used = process.cpu_times()
        total += used.user + used.system
    return total


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    os.environ |= {
        "OMP_NUM_THREADS": str(job["threads"]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams  # noqa: PLC0415  (reads the environment when it is imported)
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    adapters = job["adapters"]
    lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": 8} if adapters else {}
    engine = LLM(
        model=job["model"],
        dtype=job["dtype"],
        max_model_len=job["length"] + job["new"],
        max_num_seqs=job["rows"],
        skip_tokenizer_init=True,
        generation_config="vllm",
        seed=0,
        **lora,
    )
    chosen = [LoRARequest(f"adapter{i}", i + 1, folder) for i, folder in enumerate(adapters)]

    def run(case: str) -> None:
        prompts = job["prompts"][case.split("_")[0]]
        how = job["sampled"] if case.endswith("_sampled") else {"temperature": 0.0}
        settings = [
            SamplingParams(max_tokens=job["new"], ignore_eos=True, detokenize=False, seed=i, **how)
            for i in range(len(prompts))
        ]
        rows = [chosen[i % len(chosen)] for i in range(len(prompts))] if chosen else None
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        done = engine.generate(asked, settings, lora_request=rows, use_tqdm=False)
        assert all(len(one.outputs[0].token_ids) == job["new"] for one in done)

    for case in job["cases"]:
        run(case)
    print(MARK + json.dumps(job["cases"]), flush=True)
    for line in sys.stdin:
        engine.reset_prefix_cache()
        begun, cpu = time.perf_counter(), cpu_seconds()
        run(line.strip())
        print(
            MARK + json.dumps({"seconds": time.perf_counter() - begun, "cpu": cpu_seconds() - cpu}),
            flush=True,
        )


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
