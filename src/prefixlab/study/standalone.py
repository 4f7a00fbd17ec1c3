"""Single stages on files, without a run folder: arms, check, doctor."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from prefixlab.config import ArmsConfig, DataConfig, HardwareConfig
from prefixlab.data.arms import arm_specs, build_arm, manifest, read_arm, write_arm
from prefixlab.data.audit import Audit, audit
from prefixlab.data.chat import NoReasoning, chat_format
from prefixlab.data.check import TreatmentCheck, check_arms
from prefixlab.data.layouts import Turns
from prefixlab.data.prefixes import builtin_sets
from prefixlab.data.sources import BUILTIN_DATA, read_samples
from prefixlab.data.strip import strip_all
from prefixlab.errors import UserError, unknown
from prefixlab.evals.suites import SUITES
from prefixlab.model.load import BUILTIN, cache_dir, is_cached, load_tokenizer, resolve_model
from prefixlab.model.machine import describe, resolve
from prefixlab.records import FAMILIES, ArmManifest, Family, Record
from prefixlab.study.progress import row_progress
from prefixlab.study.store import write_text

ROLES = ("prompt", "response", "reasoning", "id", "source")


class ArmsManifest(Record):
    """DIR/manifest.json of `prefixlab arms`."""

    source: str
    arms: tuple[ArmManifest, ...]


def make_arms(
    source: str, prefixes: str, position: str, ratios: str, controls: list[str], key: str, out: Path
) -> list[ArmManifest]:
    """Strip a data set and write every arm to `out`/<arm>/.

    Raises:
        UserError: Bad options or data, or a folder that is there already and not empty.
    """
    try:
        numbers = [float(r) for r in ratios.split(",")]
        entry = ArmsConfig.model_validate(
            {"prefixes": prefixes, "position": position, "ratios": numbers, "controls": controls}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})") from error
    except ValueError as error:
        raise UserError(f"ratios {ratios!r}: numbers between 0 and 1 with commas between them, e.g. 0,0.5,1") from error
    if out.exists() and any(out.iterdir()):
        raise UserError(f"folder {str(out)!r} is not empty; choose a new one")
    native, _ = read_samples(DataConfig(source=source, held_out=0), key)
    stripped, records = strip_all(native)
    made = []
    for spec in arm_specs([entry], key, native=True):
        rows = build_arm(stripped if spec.stripped else native, spec, key, "exact")
        about = manifest(rows, spec, key, key, "exact", len({r.id for r in records}), None)
        folder = out / spec.name
        folder.mkdir(parents=True)
        write_arm(folder, rows, about)
        made.append(about)
    write_text(out / "manifest.json", ArmsManifest(source=source, arms=tuple(made)).model_dump_json(indent=1) + "\n")
    return made


def audit_data(
    source: str,
    *,
    columns: list[str],
    turns: str,
    split: str | None,
    revision: str | None,
    min_share: float,
    model: str | None,
    labels: Path | None,
    console: Console,
    quiet: bool,
) -> Audit:
    """What `prefixlab audit` does, built-in sets included.

    Raises:
        UserError: Bad options or data.
    """
    if not 0 < min_share < 1:
        raise UserError(f"--min-share {min_share}: a share between 0 and 1")
    mapping, which = column_mapping(columns), turns_named(turns)
    count = None
    if model:
        tokenizer = load_tokenizer(resolve_model(model))

        def count(texts: Sequence[str]) -> int:
            return sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))

    with row_progress("reading", console, quiet) as progress:
        found = audit(
            source,
            columns=mapping,
            turns=which,
            split=split,
            revision=revision,
            min_share=min_share,
            labels=labels,
            count_tokens=count,
            progress=progress,
        )
    return found.model_copy(update={"model": model})


def column_mapping(pairs: list[str]) -> dict[str, str]:
    """["prompt=q", "response=a"] as a mapping.

    Raises:
        UserError: Not ROLE=NAME, or an unknown role.
    """
    found = {}
    for pair in pairs:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--column {pair!r}: write ROLE=NAME, e.g. response=answer_text")
        if role not in ROLES:
            raise unknown("role", role, ROLES, where="--column")
        found[role] = name
    return found


def turns_named(name: str) -> Turns:
    """The option --turns."""
    if name == "all":
        return "all"
    if name == "last":
        return "last"
    raise unknown("choice of turns", name, ("all", "last"), where="--turns")


def families_named(names: str) -> tuple[Family, ...]:
    """The option --families, e.g. compliance,praise.

    Raises:
        UserError: An unknown family.
    """
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    for name in wanted:
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES, where="--families")
    return tuple(f for f in FAMILIES if f in wanted)


def check_folder(folder: Path, model: str, *, max_length: int, no_reasoning: NoReasoning) -> TreatmentCheck:
    """Treatment check of a folder written by `make_arms`.

    Raises:
        UserError: No arms there, or samples that cannot be rendered.
    """
    path = folder / "manifest.json"
    try:
        about = ArmsManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is missing or damaged; make the folder with prefixlab arms") from error
    tokenizer = load_tokenizer(resolve_model(model))
    return check_arms(
        {a.arm: read_arm(folder / a.arm)[0] for a in about.arms},
        tokenizer,
        chat_format(tokenizer),
        model=model,
        capability=about.arms[0].capability,
        max_length=max_length,
        no_reasoning=no_reasoning,
    )


def diagnose() -> dict[str, dict[str, str]]:
    """What `prefixlab doctor` prints, by section."""
    chosen = resolve(HardwareConfig())
    packages = {}
    for name in ("prefixlab", "torch", "transformers", "peft", "accelerate", "inspect-ai", "reasoning-gym", "datasets"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing: pip install it"
    cached = {n: is_cached(n) for n in BUILTIN}
    return {
        "versions": packages,
        "machine": describe(),
        "choices": {
            "device": chosen.device,
            "dtype": f"{chosen.dtype}: {chosen.why}",
            "attention": chosen.attention,
            "threads": str(chosen.threads),
            "adapters at evaluation": "merged" if chosen.merge_adapters else "not merged",
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
