"""Cards of what is pushed, in the hub's own form: a model card, a data set card with a part for each arm, a Space's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import CardData, DatasetCardData, ModelCard, ModelCardData, SpaceCardData

from prefixlab import __version__
from prefixlab.records import ArmManifest

TAG = "prefixlab"
"""Tag of everything that is pushed: a repository without it is somebody else's and is not written to."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Base:
    """The model under an adapter, as others may know it."""

    name: str
    """Hub id, built-in name, or the last name of a local folder."""
    revision: str | None
    on_hub: bool


@dataclass(frozen=True)
class Cell:
    """One adapter of a repository that holds several."""

    subfolder: str
    base: Base
    capability: str
    arm: ArmManifest
    seed: int


@dataclass(frozen=True)
class Source:
    """Where the rows of arms came from."""

    name: str
    """Hub id, name of a file, or `builtin:NAME`."""
    split: str | None
    revision: str | None
    on_hub: bool
    licence: str | None = None
    """As its own card says."""


@dataclass(frozen=True)
class ArmPart:
    """One arm of a data set: its part's name, its file and what it is."""

    config: str
    path: str
    about: ArmManifest


def card(front: CardData, *paragraphs: str) -> str:
    """A card: front matter, then paragraphs; empty ones are left out."""
    return f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(p for p in paragraphs if p) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in rows)])


def _missing(missing: Sequence[str], what: str) -> str:
    if not missing:
        return ""
    return f"Not finished when this was pushed, and not here: {len(missing)} {what} ({', '.join(missing)})."


def _policy(arm: ArmManifest) -> tuple[str, str, str, str]:
    """Prefix set, ratio, control and loss of an arm, in words."""
    prefix = f"{arm.prefix_set} at {arm.position}" if arm.prefix_set else "none"
    scope = f"first {arm.loss_tokens} response tokens" if arm.loss == "first_tokens" else arm.loss
    ratio = "as the data came" if arm.ratio is None else f"{arm.ratio:g}"
    return prefix, ratio, arm.control or "no", scope + (", LookAhead" if arm.lookahead else "")


def _loading(repo: str, base: Base, subfolder: str | None, revision: str | None) -> str:
    """How an adapter is loaded."""
    more = f', subfolder="{subfolder}"' if subfolder else ""
    more += f', revision="{revision}"' if revision else ""
    pinned = f', revision="{base.revision}"' if base.revision else ""
    code = (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base.name}"{pinned})\n'
        f'model = PeftModel.from_pretrained(base, "{repo}"{more})\n```'
    )
    if base.on_hub:
        return code
    return (
        f"{code}\n\nThe base model `{base.name}` is on no hub: give the folder where you have it "
        "(`prefixlab doctor` names the folders of built-in models)."
    )


def adapters_card(
    repo: str, study: str, cells: Sequence[Cell], datasets: Sequence[str], missing: Sequence[str], revision: str | None
) -> str:
    """Card of a repository with one subfolder for each adapter of a run."""
    bases = sorted({c.base.name for c in cells if c.base.on_hub})
    front = ModelCardData(
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[TAG, "lora", "sft"],
        datasets=list(datasets) or None,
    )
    header = ("subfolder", "base", "capability", "prefix", "ratio", "control", "loss on", "seed", "samples, treated")
    rows = []
    for c in cells:
        counts = f"{c.arm.n}, {c.arm.n_treated}"
        rows.append((f"`{c.subfolder}`", c.base.name, c.capability, *_policy(c.arm), str(c.seed), counts))
    first = cells[0]
    return card(
        front,
        f"# Adapters of {study}",
        f"{len(cells)} LoRA adapters that compare prefix policies, trained by prefixlab {__version__}: the same "
        "samples, with or without an opening sentence. Each has its own card: recipe, data hash, treatment check.",
        _missing(missing, "trainings"),
        _table(header, rows),
        "## Use",
        _loading(repo, first.base, first.subfolder, revision),
    )


def adapter_card(text: str, base: Base, *, repo: str | None = None, revision: str | None = None) -> str:
    """An adapter's own card, with a base model that others know.

    Args:
        text: As `prefixlab train` or PEFT wrote it; may be empty.
        base: What it was trained on.
        repo: Repository with this one adapter; None within a repository of several.
        revision: Branch of the repository.
    """
    found = ModelCard(text or "---\nlibrary_name: peft\npipeline_tag: text-generation\n---\n\n# LoRA adapter\n")
    data = found.data
    data["base_model"] = base.name if base.on_hub else None
    own = [tag for tag in data.get("tags") or () if not tag.startswith("base_model:")]
    data["tags"] = list(dict.fromkeys([TAG, *own]))
    body = found.text.strip()
    return card(data, body, *(("## Use", _loading(repo, base, None, revision)) if repo else ()))


def arms_card(
    repo: str,
    title: str,
    arms: Sequence[ArmPart],
    sources: Mapping[str, Source],
    missing: Sequence[str],
    *,
    nested: bool,
    revision: str | None,
) -> str:
    """Card of a data set with one part (config) for each arm.

    Args:
        repo: Its id.
        title: What the arms are of.
        arms: The arms.
        sources: Where the rows came from, by capability; "" where arms have none.
        missing: Arms that are not finished.
        nested: Whether each capability has a folder of its own.
        revision: Branch of the repository.
    """
    total = sum(a.about.n for a in arms)
    licences = sorted({s.licence for s in sources.values() if s.licence})
    front = DatasetCardData(
        license=licences or None,
        pretty_name=title,
        task_categories=["text-generation"],
        size_categories=[next((name for most, name in SIZES if total < most), "n>1M")],
        source_datasets=sorted({s.name for s in sources.values() if s.on_hub}) or None,
        tags=[TAG, "sft"],
        configs=[
            {"config_name": a.config, "data_files": [{"split": "train", "path": a.path}]}
            | ({"default": True} if i == 0 else {})
            for i, a in enumerate(arms)
        ],
    )
    header = ("part", "capability", "prefix", "ratio", "control", "loss on", "samples", "treated", "stripped")
    rows = [(f"`{a.config}`", a.about.capability, *_policy(a.about), *map(str, _counts(a.about))) for a in arms]
    more = f', revision="{revision}"' if revision else ""
    where = f"arms/{arms[0].about.capability}" if nested else "arms"
    pinned = f" --revision {revision}" if revision else ""
    return card(
        front,
        f"# {title}",
        f"Training sets that differ in their opening sentences only, made by prefixlab {__version__}. One part an arm:",
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}", "{arms[0].config}"{more})'
        '["train"]\n```',
        _missing(missing, "arms"),
        _table(header, rows),
        "## Sources",
        "\n".join(f"- {_source(name, source)}" for name, source in sources.items()),
        "## Columns",
        "Reasoning stands in `<think>` in the response's text. `prefix_start` and `prefix_end` are the code points of "
        "the prefix, separator included, in the text it stands in (0 and 0: none); `prefix_field` says which text, "
        "`response` or `prompt`; `prefix_loss` is false where the prefix carries no loss; `prefix_no_loss` lists "
        "words without loss. What else an arm's loss leaves out is in its manifest.json. To train on an arm with "
        "prefixlab:",
        f"```bash\nhf download {repo} --repo-type dataset{pinned} --local-dir arms\n"
        f"prefixlab train {where} --arm {arms[0].about.arm} --model MODEL --out adapter\n```",
    )


def _counts(arm: ArmManifest) -> tuple[int, int, int]:
    return arm.n, arm.n_treated, arm.n_stripped


def _source(capability: str, source: Source) -> str:
    """One source in a line."""
    if source.on_hub:
        text = f"[{source.name}](https://huggingface.co/datasets/{source.name})"
        text += f", split {source.split}" if source.split else ""
        text += f", revision {source.revision}" if source.revision else ", revision not recorded"
        text += f"; licence: {source.licence}" if source.licence else "; licence: not known, see there"
    elif source.name.startswith("builtin:"):
        text = f"{source.name}, which ships with prefixlab"
    else:
        text = f"{source.name}, a local file; licence: not known"
    return f"{capability}: {text}" if capability else text


def report_card(study: str, notes: Sequence[str], said: Sequence[str], missing: Sequence[str]) -> str:
    """Card of a static Space that shows a report.

    Args:
        study: Its name.
        notes: What a reader must know before any number.
        said: Verdicts and advice, in sentences.
        missing: Steps that are not finished.
    """
    front = SpaceCardData(
        title=f"{study} (prefixlab)",
        sdk="static",
        app_file="index.html",
        tags=[TAG],
        emoji="📏",
        colorFrom="gray",
        colorTo="blue",
        pinned=False,
    )
    return card(
        front,
        f"# {study}",
        f"Report of a study made by prefixlab {__version__}: index.html, with its figures and tables beside it.",
        "\n".join(f"- {note}" for note in notes),
        "\n\n".join(said),
        _missing(missing, "steps"),
    )
