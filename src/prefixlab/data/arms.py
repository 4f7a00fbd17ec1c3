"""Arms: one data set under several prefix policies, differing in nothing but the prefix.

Assignment, template and order are keyed by (data key, sample id) with blake2b, so ratios are nested, a sample has
the same template in every arm, and the order of the file plays no role.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from prefixlab.config import ANCHOR_CONTROLS, ArmsConfig
from prefixlab.data.parts import PartName
from prefixlab.data.prefixes import (
    KEYWORD_CONTROLS,
    PrefixSet,
    Wording,
    control_set,
    controlled,
    load_set,
    plain_word,
    wordings,
    words,
)
from prefixlab.errors import UserError, unknown
from prefixlab.records import (
    ArmManifest,
    ArmSample,
    LossScope,
    Masking,
    Position,
    Record,
    Sample,
    StripRecord,
    jsonl_lines,
)

Assignment = Literal["exact", "bernoulli"]


def keyed_hash(*parts: object) -> int:
    """A 64-bit hash of its arguments, the only source of chance in building arms."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class ArmSpec(Record):
    """The policy of one arm, before it meets data."""

    name: str
    prefixes: PrefixSet | None
    treatment: PrefixSet | None
    """The set whose lengths a control matches; the set itself for a treatment."""
    position: Position | None
    ratio: float | None
    control: str | None
    loss: LossScope
    stripped: bool
    loss_tokens: int = 0
    lookahead: bool = False
    anchors: tuple[str, ...] = ()
    """For the controls that take the loss off words: those words, or those that the random ones are matched to."""


def ratio_tag(ratio: float) -> str:
    """0.5 -> "r050"; finer ratios keep their digits: 0.125 -> "r0125"."""
    percent = f"{ratio * 100:.10g}"
    whole, _, fraction = percent.partition(".")
    return f"r{int(whole):03d}{fraction}"


def _spec(
    name: str,
    prefixes: PrefixSet | None = None,
    treatment: PrefixSet | None = None,
    position: Position | None = None,
    ratio: float | None = None,
    control: str | None = None,
    loss: LossScope = "all",
    stripped: bool = True,
) -> ArmSpec:
    return ArmSpec(
        name=name,
        prefixes=prefixes,
        treatment=treatment,
        position=position,
        ratio=ratio,
        control=control,
        loss=loss,
        stripped=stripped,
    )


NATIVE = _spec("native", stripped=False)


def specs(entry: ArmsConfig, key: str, count_tokens: Callable[[str], int] | None = None) -> list[ArmSpec]:
    """All arms of one entry of a study, r000 first, controls at the largest ratio last.

    An entry with a loss scope of its own, or with LookAhead, has its prefix sets named after it ("safety_first32"), so
    that its arms are a family of their own in names and results.
    """
    treatment = _named(load_set(entry.prefixes), entry)
    arms = [_spec("r000", ratio=0.0)]
    for ratio in sorted(set(entry.ratios) - {0.0}):
        name = f"{treatment.name}-{entry.position}-{ratio_tag(ratio)}"
        arms.append(_spec(name, treatment, treatment, entry.position, ratio))
    if treatment.own and entry.position == "user":
        raise UserError("prefix set 'original' at position 'user': openings of responses have no place in a prompt")
    top = max(entry.ratios)
    for control in entry.controls:
        matched = control_set(
            treatment, control, key=lambda text: keyed_hash(key, "shuffle", text), count_tokens=count_tokens
        )
        shared = control in ("neutral", "revised", *KEYWORD_CONTROLS)
        prefix = f"{control}{_suffix(entry)}" if shared else f"{treatment.name}_{control}"
        name = f"{prefix}-{entry.position}-{ratio_tag(top)}"
        arm = _spec(name, matched, treatment, entry.position, top, control, _scope(control))
        if control in ANCHOR_CONTROLS:
            _check_anchors(entry.anchors, treatment)
            arm = arm.model_copy(update={"anchors": tuple(entry.anchors)})
        arms.append(arm)
    if not _suffix(entry):
        return arms
    first = entry.loss_tokens if entry.loss == "first_tokens" else 0
    own: dict[str, object] = {"loss_tokens": first, "lookahead": entry.lookahead}
    if entry.loss != "all":
        own["loss"] = entry.loss
    return [arms[0], *(arm.model_copy(update=own) for arm in arms[1:])]


def _scope(control: str) -> LossScope:
    """What carries loss under a control."""
    if control in ANCHOR_CONTROLS:
        return "words"
    return "masked" if control == "masked" else "all"


def _check_anchors(anchors: Iterable[str], treatment: PrefixSet) -> None:
    """Refuse anchors that no template holds; the set `original` is looked at with its data (`build_arm`)."""
    known = {plain_word(word) for text in treatment.templates for word in text.split()} - {""}
    for anchor in anchors:
        if plain_word(anchor) not in known and not treatment.own:
            raise unknown("word", anchor, known, where=f"anchors of the prefix set {treatment.name!r}")


def _suffix(entry: ArmsConfig) -> str:
    """What an entry adds to the names of its prefix sets."""
    scope = {"all": "", "prefix": "_prefixloss", "first_tokens": f"_first{entry.loss_tokens}"}[entry.loss]
    return scope + ("_lookahead" if entry.lookahead else "")


def _named(prefixes: PrefixSet, entry: ArmsConfig) -> PrefixSet:
    return prefixes.model_copy(update={"name": prefixes.name + _suffix(entry)}) if _suffix(entry) else prefixes


def _check_own_anchors(anchors: Iterable[str], openings: Iterable[str]) -> None:
    """The same for the openings of the data."""
    held = {plain_word(word) for text in openings for word in text.split()}
    for anchor in anchors:
        if plain_word(anchor) not in held:
            raise UserError(f"anchors: no opening of the data holds the word {anchor!r}; leave it out")


def arm_specs(
    entries: Iterable[ArmsConfig], key: str, *, native: bool, count_tokens: Callable[[str], int] | None = None
) -> list[ArmSpec]:
    """Arms of all entries of a capability; one r000 for all of them.

    Raises:
        UserError: Two entries give arms of one name but not of one policy.
    """
    found: dict[str, ArmSpec] = {NATIVE.name: NATIVE} if native else {}
    for entry in entries:
        for spec in specs(entry, key, count_tokens):
            if found.setdefault(spec.name, spec) != spec:
                raise UserError(
                    f"two entries of arms both define {spec.name!r} but differ; keep that control in one of them, "
                    "or put the entries into different capabilities or studies"
                )
    return list(found.values())


def eligible(sample: Sample, position: Position | None) -> bool:
    """Whether a sample can carry a prefix: at `answer` one without an answer cannot, elsewhere an empty one cannot."""
    if position == "answer":
        return bool(sample.answer)
    return position == "user" or bool(sample.answer or sample.reasoning)


def originals(samples: Iterable[Sample], records: Iterable[StripRecord], position: Position | None) -> dict[str, str]:
    """The opening every sample had at a position, by sample id, with the white space that separated it.

    Args:
        samples: Stripped or not.
        records: What was stripped.
        position: `opening` is the reasoning's where there is one, else the answer's.
    """
    removed = {(r.id, r.part): r.removed.lstrip() for r in records}
    place: dict[str, PartName] = {
        s.id: "reasoning" if position == "opening" and s.reasoning is not None else "answer" for s in samples
    }
    return {i: removed[i, part] for i, part in place.items() if (i, part) in removed}


def build_arm(
    samples: Sequence[Sample],
    spec: ArmSpec,
    key: str,
    assignment: Assignment,
    own: Mapping[str, str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> list[ArmSample]:
    """Apply one policy to stripped samples; the output keeps their order.

    Args:
        samples: Stripped, or as they came for `native`.
        spec: The policy.
        key: Data key: names the assignment, the same for all arms of a data set.
        assignment: `exact` treats round(ratio * eligible) samples, `bernoulli` tosses one keyed coin a sample.
        own: For the set `original`: `originals(...)`; samples without an opening of their own are not eligible.
        count_tokens: For the control `random` of the set `original`, and to match `random_masked` in tokens; without
            it that is matched in words.

    Raises:
        UserError: Anchors that no opening of the set `original` holds, or a prefix with too few other words.
    """
    original = spec.treatment is not None and spec.treatment.own
    if original and own is None:
        raise ValueError("the set 'original' needs the samples' own openings")
    can = [eligible(s, spec.position) and (not original or s.id in (own or {})) for s in samples]
    rank = {s.id: keyed_hash(key, s.id, "assign") for s, ok in zip(samples, can, strict=True) if ok}
    ratio = spec.ratio or 0.0
    if assignment == "exact":
        count = int(ratio * len(rank) + 0.5)
        treated = set(sorted(rank, key=lambda i: (rank[i], i))[:count])
    else:
        treated = {i for i, value in rank.items() if value < ratio * 2**64}
    if original:
        _check_own_anchors(spec.anchors, (own or {}).values())
    wording = wordings(spec.anchors, count_tokens)
    arm: list[ArmSample] = []
    for sample, ok in zip(samples, can, strict=True):
        template = keyed_hash(key, sample.id, "template")
        index = template % len(spec.prefixes.templates) if spec.prefixes and spec.prefixes.templates else None
        prefix = ""
        if sample.id in treated and original:
            shuffle = partial(keyed_hash, key, "shuffle")
            prefix = controlled((own or {})[sample.id], spec.control or "", shuffle, count_tokens)
        elif sample.id in treated and spec.prefixes and spec.position and index is not None:
            prefix = spec.prefixes.text(index, spec.position)
        arm.append(
            ArmSample(
                sample=sample,
                position=spec.position,
                prefix=prefix,
                template=index,
                eligible=ok,
                loss=spec.loss,
                loss_tokens=spec.loss_tokens,
                lookahead=spec.lookahead,
                masked_words=_masked_words(wording(prefix), spec, key, sample.id) if spec.loss == "words" else (),
            )
        )
    return arm


def _masked_words(wording: Wording, spec: ArmSpec, key: str, ident: str) -> tuple[int, ...]:
    """Words of a sample's prefix whose loss is off: the anchors, or random others of as many tokens."""
    if spec.control != "random_masked":
        return wording.anchors
    try:
        return wording.others_like_anchors(lambda i: keyed_hash(key, ident, "mask", i))
    except UserError as error:
        raise UserError(f"control 'random_masked', sample {ident!r}: {error}") from error


def _masking(arm: Iterable[ArmSample], spec: ArmSpec, count_tokens: Callable[[str], int] | None) -> Masking | None:
    """What an arm's masked words come to; None for arms that mask none."""
    if spec.loss != "words":
        return None
    wording = wordings(spec.anchors, count_tokens)
    treated = [(wording(row.prefix), row.masked_words) for row in arm if row.treated]
    return Masking(
        anchors=spec.anchors,
        n_samples=sum(bool(masked) for _, masked in treated),
        words=sum(len(masked) for _, masked in treated),
        anchor_words=sum(len(said.anchors) for said, _ in treated),
        tokens=sum(said.cost(masked) for said, masked in treated) if count_tokens else None,
        anchor_tokens=sum(said.cost(said.anchors) for said, _ in treated) if count_tokens else None,
    )


def dump_rows(rows: Iterable[ArmSample]) -> str:
    """data.jsonl: one ArmSample a line."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def manifest(
    arm: Sequence[ArmSample],
    spec: ArmSpec,
    capability: str,
    key: str,
    assignment: Assignment,
    n_stripped: int,
    count_tokens: Callable[[str], int] | None,
) -> ArmManifest:
    """Policy, counts, lengths and content hash of one arm."""
    own = spec.prefixes.templates if spec.prefixes else ()
    other = spec.treatment.templates if spec.treatment else ()
    return ArmManifest(
        arm=spec.name,
        capability=capability,
        prefix_set=spec.treatment.name if spec.treatment else None,
        position=spec.position,
        ratio=spec.ratio,
        control=spec.control,
        loss=spec.loss,
        loss_tokens=spec.loss_tokens,
        lookahead=spec.lookahead,
        masking=_masking(arm, spec, count_tokens),
        data_key=key,
        assignment=assignment,
        n=len(arm),
        n_eligible=sum(a.eligible for a in arm),
        n_treated=sum(a.treated for a in arm),
        n_stripped=n_stripped if spec.stripped else 0,
        templates=own,
        template_words=tuple(map(words, own)),
        treatment_words=tuple(map(words, other)),
        template_tokens=tuple(map(count_tokens, own)) if count_tokens else None,
        treatment_tokens=tuple(map(count_tokens, other)) if count_tokens else None,
        data_sha256=hashlib.sha256(dump_rows(arm).encode("utf-8", "surrogatepass")).hexdigest(),
    )


def write_arm(folder: Path, arm: Sequence[ArmSample], about: ArmManifest) -> None:
    """Write data.jsonl and manifest.json into an existing folder."""
    (folder / "data.jsonl").write_bytes(dump_rows(arm).encode("utf-8", "surrogatepass"))
    (folder / "manifest.json").write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> ArmManifest:
    """The manifest that `write_arm` wrote."""
    return ArmManifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8"))


def read_arm(folder: Path) -> tuple[list[ArmSample], ArmManifest]:
    """Read what `write_arm` wrote."""
    rows = jsonl_lines(folder / "data.jsonl")
    return [ArmSample.model_validate_json(row) for row in rows], read_manifest(folder)
