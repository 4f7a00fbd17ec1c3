"""What of a study can be wrong before a model or a data set is looked at."""

from prefixlab.config import Study
from prefixlab.data.prefixes import load_set
from prefixlab.errors import UserError
from prefixlab.evals.aggregate import metrics_of
from prefixlab.evals.protocols import decoding
from prefixlab.evals.suites import find_suite, is_foreign


def check_study(study: Study) -> None:
    """Mistakes that show without models and data.

    Raises:
        UserError: An unknown suite, metric or prefix set, or readings that cannot be made.
    """
    for name, capability in study.capabilities.items():
        for i, suite in enumerate(capability.suites):
            about = find_suite(suite.suite, f"capabilities.{name}.suites[{i}]")
            reported = [m.name for m in metrics_of(about, decoding(suite, about.max_tokens).epochs)]
            wanted = capability.primary.metric
            if suite == capability.primary_suite() and not is_foreign(suite.suite) and wanted not in reported:
                raise UserError(
                    f"capabilities.{name}.primary.metric {wanted!r}: suite {suite.suite!r} reports "
                    f"{', '.join(reported)}"
                )
    for entry in study.arms:
        load_set(entry.prefixes)
    most = max(c.data.held_out for c in study.capabilities.values())
    if (study.analysis.tokens.samples or 0) > most:
        raise UserError(
            f"analysis.tokens.samples {study.analysis.tokens.samples}: the capabilities hold out {most} samples at "
            "most; raise data.held_out, or leave the number out to read all"
        )
    tokens, lora = study.analysis.tokens, study.training.lora.model_extra or {}
    if tokens.gradients != "logit" and not tokens.weights and lora.get("use_dora"):
        raise UserError(
            f"analysis.tokens.gradients {tokens.gradients!r}: training.lora.use_dora is no plain LoRA, whose gradients "
            "are attributed; set gradients: logit, or name layers in analysis.tokens.weights"
        )
