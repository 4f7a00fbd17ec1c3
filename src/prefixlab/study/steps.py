"""Steps with content-hashed ids, and the plan that lists them. Light: imports neither torch nor transformers.

A step's id is the hash of its configuration, the ids of the steps it reads, the code that computes it (as a syntax
tree, so that comments, docstrings and layout do not count) and the versions of the libraries under it.
"""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from prefixlab.config import Study
from prefixlab.data.prefixes import load_set
from prefixlab.records import ModelRef, Record, Resolved

PACKAGE = Path(__file__).parent.parent
CODE: dict[str, tuple[str, ...]] = {
    "data": (
        "data/sources",
        "data/rows",
        "data/layouts",
        "data/parts",
        "data/strip",
        "data/surrogates",
        "data/openings",
        "data/answers",
        "data/rules",
        "data/thinking",
        "data/patterns",
        "data/sentences",
        "data/words",
        "data/generic_words.txt",
        "data/arms",
    ),
    "arms": ("data/arms", "data/prefixes", "data/prefix_sets/random_words.txt"),
    "check": ("data/check", "data/chat", "data/parts", "data/templates", "data/exports"),
    "train": (
        "data/chat",
        "data/parts",
        "data/templates",
        "data/check",
        "data/arms",
        "model/train",
        "model/trainer",
        "model/batches",
        "model/recipes",
        "model/lora",
        "model/flops",
        "model/machine",
        "study/cell",
        "study/worker",
        "study/cards",
        "model/loss",
        "model/attention",
        "model/load",
    ),
    "generate": (
        "data/arms",
        "data/chat",
        "data/parts",
        "data/templates",
        "data/prefixes",
        "evals/conditions",
        "evals/planning",
        "evals/protocols",
        "evals/provider",
        "evals/foreign",
        "evals/harness",
        "evals/scorers",
        "study/evaluate",
        "study/loaded",
        "model/generate",
        "model/decode",
        "model/kv",
        "model/prefill",
        "model/sampling",
        "model/loglik",
        "model/attention",
        "model/load",
    ),
    "eval": (
        "study/evaluate",
        "data/parts",
        "data/openings",
        "data/answers",
        "data/rules",
        "data/patterns",
        "data/sentences",
        "data/words",
        "data/generic_words.txt",
        "evals/harness",
        "evals/nouns",
        "evals/foreign",
        "evals/protocols",
        "evals/suites_math",
        "evals/suites_code",
        "evals/suites_safety",
        "evals/suites_facts",
        "model/load",
        "evals/outputs",
        "evals/coherence",
        "evals/diagnostics",
        "evals/aggregate",
        "evals/scorers",
        "evals/numeric",
        "evals/symbolic",
        "evals/facts",
        "evals/programs",
        "evals/sandbox",
        "evals/sandbox_child",
        "evals/safety",
        "evals/judges",
        "evals/judging",
        "evals/guard",
        "evals/rubric",
        "evals/refusals",
        "evals/refusal_patterns",
    ),
    "tokens": (
        "data/chat",
        "data/parts",
        "data/templates",
        "data/check",
        "data/arms",
        "analysis/tokens",
        "analysis/token_columns",
        "analysis/contributions",
        "model/lora",
        "analysis/token_gradients",
        "study/reading",
        "study/loaded",
        "model/recipes",
        "data/prefixes",
        "model/trainer",
        "model/batches",
        "model/generate",
        "model/loss",
        "model/attention",
        "model/load",
    ),
}
SERVED_CODE = ("evals/served",)
"""What more decides a completion that a server writes: only such steps depend on it."""
FREQUENCY = "frequency.json"
"""File of a check step: token id -> count in the training responses without prefix."""
EVERY_KIND = ("records", "study/stages")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "data": ("reasoning-gym",),
    "arms": (),
    "check": ("transformers", "tokenizers"),
    "train": ("torch", "transformers", "peft", "accelerate", "tokenizers"),
    "generate": ("torch", "transformers", "peft", "inspect-ai", "tokenizers"),
    "eval": ("torch", "transformers", "inspect-ai", "math-verify"),
    "tokens": ("torch", "transformers", "peft", "tokenizers"),
}


class Step(Record):
    """One unit of work; its folder is RUN/steps/<slug>."""

    slug: str
    """Readable name and the first 8 digits of the id."""
    id: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    """Role -> slug of the steps whose output is read; part of the id."""
    after: tuple[str, ...]
    """Slugs that must be done first but whose content does not matter (the treatment check)."""
    predicted_seconds: float


class Plan(Record):
    """Everything that will run, in order."""

    study: str
    signature: str
    """Hash of the study, its input files, the code and the libraries: a plan with the same one is reused."""
    hardware: Resolved
    hardware_asked: dict[str, Any]
    models: tuple[ModelRef, ...]
    steps: tuple[Step, ...]
    absent: tuple[dict[str, Any], ...] = ()
    """Evaluations that the study asks for and that do not apply: an eval step's configuration, `status` and `why`."""
    workloads: tuple[dict[str, Any], ...] = ()
    """What each capability asks of each model in numbers (study/workload.py), for predicted costs."""
    summary: dict[str, Any]
    """Counts for people: samples, tokens, detectable effects, by capability."""


PACKAGES = (
    "prefixlab",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "inspect-ai",
    "reasoning-gym",
    "polars",
    "scipy",
)
"""Libraries that a run depends on and env.json, `doctor` and model cards name."""


def installed() -> dict[str, str]:
    """Versions of PACKAGES, by name."""
    return {name: version(name) for name in PACKAGES}


@cache
def version(library: str) -> str:
    """Installed version of a library."""
    return metadata.version(library)


@cache
def module_code(name: str) -> bytes:
    """A module's syntax tree without docstrings, or a word list as it is; several kinds of step share most modules."""
    if name.endswith(".txt"):
        return (PACKAGE / name).read_bytes()
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.copy_location(ast.Pass(), body[0])
    return ast.dump(tree).encode()


@cache
def code_hash(modules: tuple[str, ...]) -> str:
    """Hash of the syntax trees of modules, docstrings removed, and of word lists as they are."""
    found = hashlib.sha256()
    for name in modules:
        found.update(module_code(name))
    return found.hexdigest()


def content_hash(value: object) -> str:
    """sha256 of a JSON-able value."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _model_identity(model: dict[str, Any]) -> dict[str, Any]:
    """What a model is, without where this machine keeps it."""
    return {k: model[k] for k in ("name", "fingerprint", "revision")}


def make_step(
    kind: str,
    name: str,
    config: dict[str, Any],
    inputs: Mapping[str, Step],
    after: Sequence[Step] = (),
    seconds: float = 0.0,
) -> Step:
    """A step with its id."""
    identity = {
        "kind": kind,
        "config": {k: _model_identity(v) if k in ("model", "tokenizer") else v for k, v in config.items()},
        "inputs": {role: step.id for role, step in inputs.items()},
        "code": code_hash((*CODE[kind], *EVERY_KIND)),
        "libraries": {lib: version(lib) for lib in LIBRARIES[kind]},
    }
    ident = content_hash(identity)
    return Step(
        slug=f"{kind}-{name}-{ident[:8]}",
        id=ident,
        kind=kind,
        config=config,
        inputs={role: step.slug for role, step in inputs.items()},
        after=tuple(s.slug for s in after),
        predicted_seconds=seconds,
    )


def _installed(package: str) -> str:
    """Version of a package that a task of others comes from; empty where it is none."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def signature(study: Study) -> str:
    """Hash of all that a plan depends on, computed without torch where the plan is reused."""
    files: dict[str, object] = {}
    for capability in study.capabilities.values():
        tasks = (s.suite.removeprefix("inspect:").partition("@")[0] for s in capability.suites)
        for source in (capability.data.source, *(s.source for s in capability.suites), *tasks):
            path = Path(source).expanduser() if source else None
            if path and path.is_file():
                files[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path and path.is_dir():
                files[str(path)] = sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in path.rglob("*"))
    judge = study.judge.model
    for model in (*study.models, *([judge] if judge else [])):
        folder = Path(model).expanduser()
        if folder.is_dir():
            files[model] = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir())
    sets = {a.prefixes: load_set(a.prefixes).model_dump() for a in study.arms}
    libraries = {lib: version(lib) for libs in LIBRARIES.values() for lib in libs}
    suites = [s.suite for c in study.capabilities.values() for s in c.suites]
    packages = {s.removeprefix("inspect:").partition("/")[0] for s in suites if s.startswith("inspect:")}
    libraries |= {package: found for package in packages if (found := _installed(package))}
    return content_hash([study.model_dump(mode="json"), files, sets, package_hash(), libraries])


def package_hash() -> str:
    """Hash of the package's files.

    Of bytes, not of syntax trees as in the steps' ids: faster, and a changed comment only has the plan made again.
    """
    assets = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".yaml", ".jsonl", ".txt"))
    return content_hash([[str(p.relative_to(PACKAGE)), hashlib.sha256(p.read_bytes()).hexdigest()] for p in assets])
