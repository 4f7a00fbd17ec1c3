"""Safety: harmful prompts that should be refused, and harmless ones that should not. A judge decides (safety.py).

Sets of which only a sample is wanted (WildJailbreak's 250) are limited in the study. Prompts of some sets are gated on
the hub, or come from a file only: name it as `source`.
"""

from prefixlab.data.sources import test_safety
from prefixlab.evals.nouns import Hub, Metric, Row, Suite, WrongRow, asked, text_column
from prefixlab.records import EvalItem

SAFE = Metric(name="safe@1", kind="harmful", higher_is_better=True)
OVER_REFUSAL = Metric(name="over_refusal", kind="harmless", higher_is_better=False)


def _harmful(prompt: str, row: Row, **more: str) -> list[EvalItem]:
    return [asked(prompt, kind="harmful", category=str(row.get("category") or row.get("Category") or ""), **more)]


def _strongreject(row: Row) -> list[EvalItem]:
    return _harmful(text_column(row, "forbidden_prompt", "prompt"), row)


def _wildjailbreak(row: Row) -> list[EvalItem]:
    kind = text_column(row, "data_type") if "data_type" in row else "adversarial_harmful"
    if kind not in ("adversarial_harmful", "adversarial_benign"):
        raise WrongRow(f"data_type {kind!r} is neither adversarial_harmful nor adversarial_benign")
    prompt = text_column(row, "adversarial", "prompt")
    return [asked(prompt, kind="harmful" if kind == "adversarial_harmful" else "harmless", category=kind)]


def _jailbreakbench(row: Row) -> list[EvalItem]:
    return _harmful(text_column(row, "goal"), row, opening=text_column(row, "target"))


def _harmbench(row: Row) -> list[EvalItem]:
    if "hash_check" in str(row.get("Tags") or ""):
        return []
    context = str(row.get("ContextString") or row.get("context") or "").strip()
    behavior = text_column(row, "behavior", "prompt")
    prompt = f"{context}\n\n---\n\n{behavior}" if context else behavior
    category = str(row.get("SemanticCategory") or row.get("category") or "")
    return [asked(prompt, kind="harmful", category=category)]


def _xstest(row: Row) -> list[EvalItem]:
    label = text_column(row, "label")
    if label not in ("safe", "unsafe"):
        raise WrongRow(f"label {label!r} is neither safe nor unsafe")
    kind = "harmless" if label == "safe" else "harmful"
    return [asked(text_column(row, "prompt"), kind=kind, category=text_column(row, "type"))]


def _suite(name: str, about: str, link: str, hub: Hub | None, form: str, **more: object) -> Suite:
    """A judged suite with both metrics unless told otherwise."""
    more.setdefault("metrics", (SAFE,))
    return Suite(name, about=about, link=link, hub=hub, form=form, **more)  # type: ignore[arg-type]


STRONGREJECT = "https://github.com/alexandrasouly/strongreject"
SUITES = (
    _suite(
        "safety",
        "prefixlab's own harmful prompts and harmless look-alikes; the half that is never trained on",
        "https://arxiv.org/abs/2601.01624",
        None,
        "",
        rows=test_safety,
        metrics=(SAFE, OVER_REFUSAL),
        max_tokens=128,
    ),
    _suite(
        "strongreject",
        "StrongREJECT, 313 forbidden prompts",
        STRONGREJECT,
        Hub("walledai/StrongREJECT", "train"),
        "forbidden_prompt (or prompt), category, source",
        items=_strongreject,
        sources=("strongreject",),
    ),
    _suite(
        "strongreject_small",
        "StrongREJECT's sample of 60 prompts; from its file",
        STRONGREJECT,
        None,
        "forbidden_prompt (or prompt), category, source",
        items=_strongreject,
        sources=("strongreject",),
    ),
    _suite(
        "wildjailbreak",
        "WildJailbreak evaluation set: adversarial prompts, harmful and benign (gated on the hub)",
        "https://huggingface.co/datasets/allenai/wildjailbreak",
        Hub("allenai/wildjailbreak", "train", "eval"),
        "adversarial (or prompt), data_type",
        items=_wildjailbreak,
        metrics=(SAFE, OVER_REFUSAL),
        sources=("wildjailbreak",),
    ),
    _suite(
        "jailbreakbench",
        "JailbreakBench, 100 harmful behaviours with a compliant target each",
        "https://github.com/JailbreakBench/jailbreakbench",
        Hub("JailbreakBench/JBB-Behaviors", "harmful", "behaviors"),
        "goal, target, category",
        items=_jailbreakbench,
        sources=("jailbreakbench", "jbb-behaviors"),
    ),
    _suite(
        "harmbench",
        "HarmBench text behaviours, copyright ones left out",
        "https://github.com/centerforaisafety/HarmBench",
        Hub("walledai/HarmBench", "train", "standard"),
        "Behavior (or prompt), SemanticCategory (or category), ContextString, Tags",
        items=_harmbench,
        sources=("harmbench",),
    ),
    _suite(
        "xstest",
        "XSTest, 250 safe prompts that look unsafe (over-refusal) and 200 unsafe ones",
        "https://github.com/paul-rottger/exaggerated-safety",
        Hub("walledai/XSTest", "test"),
        "prompt, type, label (safe or unsafe)",
        items=_xstest,
        metrics=(SAFE, OVER_REFUSAL),
        sources=("xstest",),
    ),
)
