"""What a push sends, laid out as a repository in a scratch folder.

That is the adapters, the arms or the report of a run, a folder of arms, or one adapter. Large files are links. What is
not finished is left out and named.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefixlab.config import Study
from prefixlab.data.arms import read_arm
from prefixlab.data.exports import Format, export_rows
from prefixlab.data.rows import is_hub_id
from prefixlab.data.writing import write_rows
from prefixlab.errors import UserError
from prefixlab.records import ArmManifest, ModelRef
from prefixlab.report.sections import banners
from prefixlab.study.datafiles import ArmsManifest, peft_folder, read_arms
from prefixlab.study.hub_cards import (
    ArmPart,
    Base,
    Cell,
    Source,
    adapter_card,
    adapters_card,
    arms_card,
    report_card,
)
from prefixlab.study.hub_scrub import Scrubber, own_path
from prefixlab.study.run import are_current, gather, read_study
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import Store, digest

What = Literal["adapters", "arms", "report"]
CARD = "README.md"
LAYOUT: Format = "messages"
"""Of the rows of a run's arms."""
TEXTS = (".html", ".js", ".css", ".csv", ".tex", ".svg", ".json")
PARTS = ("index.html", "assets", "data", "figures", "tables")
"""Of a report's folder; comparisons with other runs, which lie beside them, are not of this run."""
TABLES = ("results.csv", "contrasts.csv")
"""Of a run folder; they go with its report."""


@dataclass
class Packed:
    """A repository's content in a scratch folder, its card included."""

    what: What
    subject: str
    """What it is of, for the commit's message."""
    card: str
    missing: list[str] = field(default_factory=list)
    """What is not finished and was left out."""


@dataclass(frozen=True)
class Ask:
    """Where a push is from and where it goes."""

    folder: Path
    repo: str
    what: What | None
    branch: str | None
    licence: Callable[[str, str | None], str | None]
    """Licence of a data set on the hub at a revision; None where it is not known."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "plan.json").exists() and (folder / "study.yaml").exists()


def kind_of(ask: Ask) -> What:
    """What would be pushed.

    Raises:
        UserError: The folder holds nothing of that, or a run folder without --what.
    """
    folder = ask.folder
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give a run folder, one of prefixlab arms or of prefixlab train")
    if is_run(folder):
        if ask.what is None:
            raise UserError(f"{str(folder)!r} is a run folder: add --what adapters, --what arms or --what report")
        return ask.what
    if (folder / "arm").is_dir() and not (folder / "train.json").exists():
        raise UserError(f"the training of {str(folder)!r} is not finished; run the same prefixlab train again")
    found: What | None = "adapters" if peft_folder(folder) else None
    if found is None and (folder / "manifest.json").is_file():
        found = "arms"
    if found is None:
        raise UserError(
            f"{str(folder)!r} holds no adapters, arms or report; allowed: a run folder (prefixlab run), a folder of "
            "arms (prefixlab arms), an adapter (prefixlab train)"
        )
    if ask.what not in (None, found):
        raise UserError(f"--what {ask.what}: {str(folder)!r} holds {found} only; leave --what out")
    return found


def pack(ask: Ask, stage: Path) -> Packed:
    """Lay out what is asked for in an empty folder.

    Raises:
        UserError: There is nothing finished to push.
    """
    what = kind_of(ask)
    if is_run(ask.folder):
        packed = {"adapters": _run_adapters, "arms": _run_arms, "report": _report}[what](ask, stage)
    else:
        packed = _arms_folder(ask, stage) if what == "arms" else _one_adapter(ask, stage)
    (stage / CARD).write_text(packed.card, encoding="utf-8")
    return packed


@dataclass(frozen=True)
class _Run:
    """A run folder as it stands."""

    study: Study
    plan: Plan
    store: Store
    data: Mapping[str, dict[str, Any]]
    """The study's data, by capability."""
    scrub: Scrubber

    def steps(self, kind: str) -> tuple[list[Step], list[str]]:
        """Finished and intact steps of a kind; names of the others."""
        done = [s for s in self.plan.steps if s.kind == kind and self.store.state(s.slug) == "done"]
        known = {s.slug for s in done}
        return done, [self.name(s) for s in self.plan.steps if s.kind == kind and s.slug not in known]

    def name(self, step: Step) -> str:
        """A step's readable name: neither its kind nor the hash."""
        return self.scrub.text(step.slug.removeprefix(f"{step.kind}-")[:-9])

    def base(self, ref: ModelRef) -> Base:
        """A model as others may know it."""
        if ref.revision is not None:
            return Base(ref.path, ref.revision, True)
        return Base(Path(self.scrub.text(ref.name)).name, None, False)


def _open(root: Path) -> _Run:
    study, plan = read_study(root)
    file = root / "env.json"
    known = [study.model_dump(mode="json"), plan.model_dump(mode="json")]
    known += [json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    data = {n: c.data.model_dump(mode="json") for n, c in study.capabilities.items()}
    return _Run(study, plan, Store(root), data, Scrubber(known, [root], _named(study)))


def _named(study: Study) -> list[str]:
    """Models and suites by the names that steps and figures are called after."""
    return [*study.models, *(s.suite for c in study.capabilities.values() for s in c.suites)]


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(source.resolve())


def _put_adapter(source: Path, place: Path, base: Base) -> None:
    """The files of a PEFT folder but its card; the configuration names a base that others know."""
    weights = sorted(source.glob("adapter_model*.safetensors"))
    if not weights:
        raise UserError(f"{str(source)!r} holds no adapter_model.safetensors (other formats are not pushed)")
    for file in weights:
        _link(file, place / file.name)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _run_adapters(ask: Ask, stage: Path) -> Packed:
    """One subfolder for each finished training."""
    run = _open(ask.folder)
    done, missing = run.steps("train")
    if not done:
        raise UserError(f"{str(ask.folder)!r} has no finished adapter yet; run the study on")
    cells = []
    for step in done:
        base, name = run.base(ModelRef.model_validate(step.config["model"])), run.name(step)
        source = run.store.folder(step.slug) / "adapter"
        (stage / name).mkdir()
        _put_adapter(source, stage / name, base)
        own = run.scrub.text((source / CARD).read_text(encoding="utf-8")) if (source / CARD).exists() else ""
        (stage / name / CARD).write_text(adapter_card(own, base), encoding="utf-8")
        arm = run.store.folder(step.inputs["arm"]) / "manifest.json"
        about = ArmManifest.model_validate_json(arm.read_text(encoding="utf-8"))
        cells.append(Cell(name, base, step.config["capability"], about, step.config["seed"]))
    used = {run.data[c.capability]["source"] for c in cells}
    hub = sorted(s for s in used if is_hub_id(s))
    made = adapters_card(ask.repo, run.study.name, cells, hub, missing, ask.branch)
    return Packed("adapters", f"run {run.study.name}", made, missing)


def _one_adapter(ask: Ask, stage: Path) -> Packed:
    """The folder of `prefixlab train`, or any PEFT folder."""
    source = peft_folder(ask.folder)
    assert source is not None
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    named = str(config.get("base_model_name_or_path") or "unknown")
    local = Path(named).is_absolute() or not is_hub_id(named)
    text = (source / CARD).read_text(encoding="utf-8") if (source / CARD).exists() else ""
    base = Base(Path(named).name, None, False) if local else Base(named, config.get("revision"), True)
    _put_adapter(source, stage, base)
    scrub = Scrubber([config, *[line.split(" | ") for line in text.splitlines()]], [ask.folder])
    made = adapter_card(scrub.text(text), base, repo=ask.repo, revision=ask.branch)
    return Packed("adapters", f"adapter {ask.folder.resolve().name}", made)


def _source_of(ask: Ask, name: str, split: str | None, revision: str | None, scrub: Scrubber) -> Source:
    if is_hub_id(name):
        return Source(name, split, revision, True, ask.licence(name, revision))
    return Source(scrub.text(name), None, None, False)


def _arms_folder(ask: Ask, stage: Path) -> Packed:
    """The folder of `prefixlab arms`: files as they are, manifests without paths."""
    about, _ = read_arms(ask.folder)
    scrub = Scrubber([about.source], [ask.folder])
    for arm in about.arms:
        _link(ask.folder / arm.arm / "data.jsonl", stage / arm.arm / "data.jsonl")
        shutil.copyfile(ask.folder / arm.arm / "manifest.json", stage / arm.arm / "manifest.json")
    _write(stage / "manifest.json", about.model_copy(update={"source": scrub.text(about.source)}))
    parts = [ArmPart(a.arm, f"{a.arm}/data.jsonl", a) for a in about.arms]
    sources = {"": _source_of(ask, about.source, about.split, about.revision, scrub)}
    title = f"Prefix arms of {sources[''].name}"
    made = arms_card(ask.repo, title, parts, sources, (), nested=False, revision=ask.branch)
    return Packed("arms", f"arms {ask.folder.resolve().name}", made)


def _run_arms(ask: Ask, stage: Path) -> Packed:
    """One folder for each capability, each as `prefixlab arms` would have written it."""
    run = _open(ask.folder)
    done, missing = run.steps("arms")
    if not done:
        raise UserError(f"{str(ask.folder)!r} has no finished arm yet; run the study on")
    parts: list[ArmPart] = []
    for step in done:
        rows, about = read_arm(run.store.folder(step.slug))
        place = stage / about.capability / about.arm
        place.mkdir(parents=True)
        write_rows(place / "data.jsonl", export_rows(rows, LAYOUT, control=about.control))
        about = about.model_copy(update={"format": LAYOUT, "data_sha256": digest(place / "data.jsonl")})
        _write(place / "manifest.json", about)
        name = f"{about.capability}-{about.arm}"
        parts.append(ArmPart(name, f"{about.capability}/{about.arm}/data.jsonl", about))
    sources = {}
    for name in dict.fromkeys(p.about.capability for p in parts):
        data = run.data[name]
        sources[name] = _source_of(ask, data["source"], data["split"], data["revision"], run.scrub)
        own = tuple(p.about for p in parts if p.about.capability == name)
        about = run.plan.summary[name]
        whole = ArmsManifest(
            source=sources[name].name,
            split=sources[name].split,
            revision=sources[name].revision,
            n_skipped=about["skipped_rows"],
            skipped=tuple(map(run.scrub.text, about["first_skipped"])),
            arms=own,
        )
        _write(stage / name / "manifest.json", whole)
    title = f"Prefix arms of {run.study.name}"
    made = arms_card(ask.repo, title, parts, sources, missing, nested=True, revision=ask.branch)
    return Packed("arms", f"run {run.study.name}", made, missing)


def _write(path: Path, record: ArmManifest | ArmsManifest) -> None:
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _report(ask: Ask, stage: Path) -> Packed:
    """The report as it stands, with the tables of results."""
    run, folder = _open(ask.folder), ask.folder / "report"
    if not (folder / "index.html").is_file():
        raise UserError(f"{str(ask.folder)!r} has no report; write it with prefixlab report {ask.folder}")
    data = gather(run.study, run.plan, run.store)
    if not are_current(run.plan, data):
        raise UserError(
            f"report and tables of {str(ask.folder)!r} are not those of its finished steps; the prefixlab run command "
            "that made them brings them up to date"
        )
    own = [f for name in PARTS for f in (folder / name, *sorted((folder / name).rglob("*")))]
    files = {str(f.relative_to(folder)): f for f in own if f.is_file() and f.suffix in (*TEXTS, ".pdf")}
    files |= {name: ask.folder / name for name in TABLES if (ask.folder / name).is_file()}
    renamed = any(own_path(name) for name in _named(run.study))
    for name, file in files.items():
        place = stage / run.scrub.text(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in TEXTS:
            place.write_text(run.scrub.text(file.read_text(encoding="utf-8")), encoding="utf-8")
        elif not (renamed and file.suffix == ".pdf"):  # a path in it could not be replaced
            _link(file, place)
    said = [v.sentence for v in data.verdicts] + [s for a in data.advice for s in a.sentences]
    notes = [*banners(data), *(["PDFs of figures are left out: they show a path of this machine."] if renamed else [])]
    missing = [f"{s.kind} {run.name(s)}" for s in run.plan.steps if s.slug not in data.folders]
    made = report_card(run.study.name, [*map(run.scrub.text, notes)], [*map(run.scrub.text, said)], missing)
    return Packed("report", f"run {run.study.name}", made, missing)
