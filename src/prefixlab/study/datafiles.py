"""Single stages on data files, without a run folder and without torch: audit, arms, and the options of strip."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from prefixlab.config import COLUMN_ROLES, ArmsConfig, DataConfig
from prefixlab.data.arms import arm_specs, build_arm, manifest, originals
from prefixlab.data.audit import Audit, audit
from prefixlab.data.exports import FORMATS, check_layout, export_rows, import_row
from prefixlab.data.layouts import Turns
from prefixlab.data.rows import is_hub_id
from prefixlab.data.sources import read_rows, read_samples
from prefixlab.data.strip import strip_all
from prefixlab.data.writing import write_rows
from prefixlab.errors import UserError, unknown
from prefixlab.records import FAMILIES, ArmManifest, ArmSample, Family, Record
from prefixlab.study.progress import row_progress
from prefixlab.study.store import write_text

OPTIONS = {
    "prefixes": "--prefixes",
    "position": "--position",
    "ratios": "--ratios",
    "controls": "--control",
    "anchors": "--anchor",
}


class ArmsManifest(Record):
    """DIR/manifest.json of `prefixlab arms`."""

    source: str
    n_skipped: int
    skipped: tuple[str, ...]
    """The first rows that could not be used, and why."""
    arms: tuple[ArmManifest, ...]
    split: str | None = None
    """Split of a hub data set."""
    revision: str | None = None
    """Commit of a hub data set, as it was read; None where that was not recorded."""


def peft_folder(folder: Path) -> Path | None:
    """The PEFT folder in the output of `prefixlab train`, or at a folder; None if there is none."""
    return next((f for f in (folder / "adapter", folder) if (f / "adapter_config.json").is_file()), None)


def asked_adapter(folder: Path) -> Path:
    """The PEFT folder that `--adapter` means.

    Raises:
        UserError: There is none.
    """
    found = peft_folder(folder)
    if found is None:
        raise UserError(f"--adapter {str(folder)!r} is no PEFT folder: adapter_config.json is missing")
    return found


def _arms_entry(prefixes: str, position: str, ratios: str, controls: list[str], anchors: Sequence[str]) -> ArmsConfig:
    try:
        numbers = [float(r) for r in ratios.split(",")]
        if any(n != n for n in numbers):
            raise ValueError("not a number")
        return ArmsConfig.model_validate(
            {
                "prefixes": prefixes,
                "position": position,
                "ratios": numbers,
                "controls": controls,
                "anchors": list(anchors),
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        option = OPTIONS.get(str(first["loc"][0])) if first["loc"] else None
        raise UserError(f"{option}: {said} (got {first['input']!r})" if option else said) from error
    except ValueError as error:
        raise UserError(
            f"--ratios {ratios!r}: numbers between 0 and 1 with commas between them, e.g. 0,0.5,1"
        ) from error


@dataclass(frozen=True)
class ArmsOptions:
    """Options of `prefixlab arms` beside the policy."""

    key: str = "data"
    layout: str = "messages"
    bernoulli: bool = False
    columns: Sequence[str] = ()
    split: str | None = None
    revision: str | None = None
    model: str | None = None
    """Tokenizer for matching lengths in tokens."""
    rationale: bool = False
    anchors: Sequence[str] = ()
    """Words whose loss the controls `anchors_masked` and `random_masked` are about."""


def make_arms(
    source: str, prefixes: str, position: str, ratios: str, controls: list[str], out: Path, options: ArmsOptions
) -> ArmsManifest:
    """Strip a data set and write every arm to `out`/<arm>/.

    Raises:
        UserError: Bad options or data, or a folder that is there already and not empty.
    """
    entry = _arms_entry(prefixes, position, ratios, controls, options.anchors)
    if options.layout not in FORMATS:
        raise unknown("format", options.layout, FORMATS, where="--format")
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; --out names a new folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"folder {str(out)!r} is not empty; choose a new one")
    count = _token_counter(options.model) if options.model else None
    many = (lambda text: count([text])) if count else None
    plan = arm_specs([entry], options.key, native=True, count_tokens=many)
    for spec in plan:
        check_layout(options.layout, spec.control)
    commit = _commit(source, options.revision)
    data = DataConfig(
        source=source,
        held_out=0,
        columns=column_mapping(list(options.columns)),
        revision=commit,
        **({"split": options.split} if options.split else {}),
    )
    skipped: list[tuple[int, str]] = []
    native, _ = read_samples(data, options.key, rationale=options.rationale, skipped=skipped)
    stripped, records = strip_all(native)
    own = originals(stripped, records, entry.position)
    made = []
    for spec in plan:
        rows = build_arm(
            stripped if spec.stripped else native,
            spec,
            options.key,
            "bernoulli" if options.bernoulli else "exact",
            own,
            many,
        )
        if spec.ratio and not any(row.treated for row in rows):
            raise UserError(
                f"arm {spec.name!r}: a ratio of {spec.ratio:g} treats none of {len(rows)} samples; take a larger one"
            )
        written = export_rows(rows, options.layout, control=spec.control)
        folder = out / spec.name
        folder.mkdir(parents=True)
        write_rows(folder / "data.jsonl", written)
        about = manifest(
            rows,
            spec,
            options.key,
            options.key,
            "bernoulli" if options.bernoulli else "exact",
            len({r.id for r in records}),
            many,
        )
        digest = hashlib.sha256((folder / "data.jsonl").read_bytes()).hexdigest()
        about = about.model_copy(update={"format": options.layout, "data_sha256": digest})
        write_text(folder / "manifest.json", about.model_dump_json(indent=1) + "\n")
        made.append(about)
    listed = tuple(f"row {row + 1}: {why}" for row, why in skipped[:20])
    whole = ArmsManifest(
        source=source,
        n_skipped=len(skipped),
        skipped=listed,
        arms=tuple(made),
        split=data.split if commit else None,
        revision=commit,
    )
    write_text(out / "manifest.json", whole.model_dump_json(indent=1) + "\n")
    return whole


def _commit(source: str, revision: str | None) -> str | None:
    """The commit of a hub data set that is about to be read; None for other sources."""
    if not is_hub_id(source):
        return None
    from prefixlab.data.hub import commit_of  # noqa: PLC0415  (the hub's client: a third of a second)

    return commit_of(source, "dataset", revision)


def _token_counter(model: str) -> Callable[[Sequence[str]], int]:
    from prefixlab.model.load import load_tokenizer, resolve_model  # noqa: PLC0415  (torch: seconds, needed here only)

    tokenizer = load_tokenizer(resolve_model(model))

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))

    return count


def read_arms(folder: Path) -> tuple[ArmsManifest, dict[str, list[ArmSample]]]:
    """Read what `make_arms` wrote.

    Raises:
        UserError: Missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        about = ArmsManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is missing or damaged; make the folder with prefixlab arms") from error
    arms = {}
    for arm in about.arms:
        file = folder / arm.arm / "data.jsonl"
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != arm.data_sha256:
            raise UserError(f"{str(file)!r} is missing, or is not what the manifest describes; make the arms again")
        arms[arm.arm] = [import_row(row, arm) for row in read_rows(file)]
    return about, arms


def check_outputs(source: str, *outputs: Path | None) -> None:
    """Refuse outputs that would overwrite the data or each other, or have no folder, before any work is done.

    Raises:
        UserError: Which one, and why.
    """
    named = [p for p in outputs if p is not None and str(p) != "-"]
    for i, path in enumerate(named):
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(f"{str(path)!r} is the data itself; choose another name for the output")
        if path in named[:i]:
            raise UserError(f"{str(path)!r} is named for two outputs")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"cannot write {str(path)!r}: it is a folder, or its folder does not exist")


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
    """What `prefixlab audit` does.

    Raises:
        UserError: Bad options or data.
    """
    if not 0 < min_share < 1:
        raise UserError(f"--min-share {min_share}: a share between 0 and 1")
    mapping, which = column_mapping(columns), turns_named(turns)
    count = _token_counter(model) if model else None
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
        if role not in COLUMN_ROLES:
            raise unknown("role", role, COLUMN_ROLES, where="--column")
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
