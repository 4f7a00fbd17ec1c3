"""The model card of an adapter: what it was trained on, how, and what was checked, in the hub's format."""

import yaml

from prefixlab.data.check import ArmCheck
from prefixlab.model.recipes import Recipe
from prefixlab.records import ArmManifest, ModelRef
from prefixlab.study.steps import LIBRARIES, version


def model_card(
    *,
    study: str,
    capability: str,
    model: ModelRef,
    arm: ArmManifest,
    recipe: Recipe,
    seed: int,
    check: ArmCheck | None,
) -> str:
    """README.md of an adapter folder, front matter included."""
    front = {
        "base_model": model.name,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["prefixlab", "lora", "sft", "transformers"],
    }
    modules = recipe.target_modules if isinstance(recipe.target_modules, str) else ", ".join(recipe.target_modules)
    prefix = f"{arm.prefix_set} at {arm.position}" if arm.prefix_set else "none"
    scope = f"first {arm.loss_tokens} response tokens" if arm.loss == "first_tokens" else arm.loss
    if arm.masking is not None:
        scope = f"all but {arm.masking.words} words of prefixes ({arm.control}: {', '.join(arm.masking.anchors)})"
    rows = {
        "study": study,
        "base model": f"{model.name}{' at ' + model.revision if model.revision else ''}",
        "base fingerprint": model.fingerprint,
        "capability": capability,
        "arm": arm.arm,
        "prefix": prefix,
        "ratio": "as the data came" if arm.ratio is None else f"{arm.ratio:g}",
        "control": arm.control or "no",
        "loss on": scope + (", LookAhead" if arm.lookahead else ""),
        "samples": f"{arm.n}, {arm.n_treated} with the prefix, {arm.n_stripped} stripped",
        "data sha256": arm.data_sha256,
        "LoRA": f"r {recipe.r}, alpha {recipe.alpha}, dropout {recipe.dropout:g}, {modules}",
        "optimiser": f"{recipe.epochs} epochs, {recipe.batch_size} x {recipe.accumulation} samples a step, learning "
        f"rate {recipe.learning_rate:g} ({recipe.scheduler})",
        "seed": str(seed),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("prefixlab", *LIBRARIES["train"])),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {arm.arm}, {capability}\n\n"
        f"A LoRA adapter trained by prefixlab to compare prefix policies.\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Treatment check\n\n{_check_text(check)}\n"
    )


def _check_text(check: ArmCheck | None) -> str:
    if check is None:
        return "Not made: this adapter was trained on its own, without the arm r000 to compare with."
    return (
        f"In the ids and labels that were trained on: {check.n_prefix_in_ids} of {check.n_treated} treated samples "
        f"carry their prefix, {check.n_equal_reference} of {check.n_untreated} untreated ones equal r000, "
        f"{check.n_prompt_supervised} have loss on the prompt, {check.n_cut} were cut; {check.tokens} tokens, "
        f"{100 * check.supervised_share:.1f}% of them supervised."
    )
