"""Single stages that need a model's tokenizer, without a run folder: check, doctor."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import NoReasoning, OverLong, chat_format
from prefixlab.data.check import TemplateRendering, TreatmentCheck, check_arms, template_rendering
from prefixlab.data.prefixes import builtin_sets
from prefixlab.data.sources import BUILTIN_DATA
from prefixlab.evals.suites import SUITES
from prefixlab.model.load import BUILTIN, cache_dir, is_cached, load_tokenizer, resolve_model
from prefixlab.model.machine import describe, peak_flops, resolve
from prefixlab.study.datafiles import read_arms
from prefixlab.study.steps import installed


def check_folder(
    folder: Path, model: str, *, max_length: int, no_reasoning: NoReasoning, over_long: OverLong
) -> TreatmentCheck:
    """Treatment check of a folder written by `make_arms`.

    Raises:
        UserError: No arms there, or samples that cannot be rendered.
    """
    about, arms = read_arms(folder)
    tokenizer = load_tokenizer(resolve_model(model))
    return check_arms(
        arms,
        tokenizer,
        chat_format(tokenizer),
        model=model,
        capability=about.arms[0].capability,
        max_length=max_length,
        no_reasoning=no_reasoning,
        over_long=over_long,
    )


def render_folder(folder: Path, model: str) -> TemplateRendering:
    """The same arms through the model's own template, as a trainer would that hands messages to it."""
    _, arms = read_arms(folder)
    return template_rendering(arms, load_tokenizer(resolve_model(model)), model=model)


def diagnose() -> dict[str, dict[str, str]]:
    """What `prefixlab doctor` prints, by section."""
    chosen = resolve(HardwareConfig())
    try:
        datasets = version("datasets")
    except PackageNotFoundError:
        datasets = "missing: pip install datasets, for hub data"
    cached = {n: is_cached(n) for n in BUILTIN}
    return {
        "versions": {**installed(), "datasets": datasets},
        "machine": describe(),
        "choices": {
            "device": chosen.device,
            "dtype": f"{chosen.dtype}: {chosen.why}",
            "attention": chosen.attention,
            "threads": str(chosen.threads),
            "adapters at evaluation": "merged" if chosen.merge_adapters else "not merged",
            "training": "frozen-head loss at supervised positions, fused LoRA layers, float32 adapter weights",
            "compiled layers": "where the planned operations repay the warm-up, shown by plan"
            if chosen.device == "cpu"
            else "never, unless hardware.compile asks for it",
            "peak": f"{peak / 1e9:,.0f} GFLOP/s" if (peak := peak_flops(chosen)) else "not known of this device",
        },
        "caches": {
            "prefixlab": str(cache_dir()),
            "hugging face": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
            **{f"model {n}": "ready" if ok else "made on first use" for n, ok in cached.items()},
        },
        "built in": {
            "models": ", ".join(f"{n} ({b.note})" for n, b in BUILTIN.items()),
            "data": ", ".join(f"builtin:{n}" for n in BUILTIN_DATA),
            "suites": ", ".join(f"{s.name} ({s.about})" for s in SUITES.values()),
            "prefix sets": ", ".join(builtin_sets()),
        },
    }
