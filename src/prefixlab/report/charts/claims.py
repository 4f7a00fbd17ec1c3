"""What arXiv 2601.01624 claims, for the suites and metrics it names: drawn beside our numbers, never among them."""

from prefixlab.analysis.rows import BASE, REFERENCE

CLAIMS: dict[tuple[str, str], float] = {
    ("wildjailbreak", "safe@1"): 6.0,
    ("strongreject", "safe@1"): 6.0,
    ("strongreject_small", "safe@1"): 6.0,
    ("gsm8k", "accuracy"): 7.0,
}
"""(suite, metric) -> points above the same model tuned without a prefix, "up to", for R1-distilled models."""
SAID = (
    " The open diamond is no result of this run: it is the largest gain claimed in arXiv 2601.01624, for R1-distilled "
    "models."
)


def claimed(suite: str, metric: str, condition: str) -> float | None:
    """Points claimed for a treatment against r000 under the usual prompt; None where nothing is claimed."""
    if condition != "bare":
        return None
    return CLAIMS.get((suite.lower().replace("-", "_"), metric.lower()))


def could_apply(arm: str, control: str | None) -> bool:
    """Whether an arm is a treatment, which is what the claim is about."""
    return control is None and arm not in (BASE, REFERENCE, "native")
