"""The audit in a few lines of text."""

from prefixlab.data.audit import Audit

NAMES = {
    "compliance": "compliance",
    "framing": "framing",
    "praise": "praise or greeting",
    "restating": "restating the task",
    "reasoning_cue": "reasoning cue",
    "disclaimer": "disclaimer",
    "refusal": "refusal (content)",
    "none": "none",
}


def audit_text(audit: Audit) -> list[str]:
    """What the command prints: a few lines, most important first."""
    lines = [f"{audit.source}: {audit.n_used:,} rows used, {audit.n_skipped:,} skipped"]
    for name, part in audit.parts.items():
        if part.share is None:
            continue
        families = ", ".join(f"{NAMES[f]} {100 * n / part.n:.1f}%" for f, n in part.families.items())
        cost = part.prefix_characters / part.characters if part.characters else 0.0
        lines.append(f"{name}s: {100 * part.share:.1f}% of {part.n:,} open with a prefix ({families or 'none'})")
        tokens = f", {part.prefix_tokens:,} of {part.tokens:,} tokens" if part.tokens is not None else ""
        lines.append(f"  {part.prefix_words:,} words are prefix, {100 * cost:.2f}% of the characters{tokens}")
    unknown = [t for t in audit.templates if not t.listed and not t.generic]
    for title, some in (("most frequent templates", audit.templates), ("unknown to the rules", unknown)):
        if some:
            lines.append(f"{title}:")
            lines += [f"  {100 * t.share:5.1f}%  {t.id}  {t.part}  {t.template}" for t in some[:10]]
    if audit.slots:
        slots = ", ".join("{{" + name + "}}" + f" ({n})" for name, n in audit.slots.items())
        lines.append(f"unfilled slots: {slots}; first rows {', '.join(map(str, audit.slot_rows[:5]))}")
    lines += [f"skipped {n:,}: {reason}" for reason, n in list(audit.skipped_by_reason.items())[:10]]
    return lines
