"""Our suites for `inspect eval`, on any model, without prefixlab's command line.

    inspect eval prefixlab/suite -T name=gsm8k -T source=test.jsonl --model openai/MODEL

Safety is judged by word rules here; `prefixlab score` judges the log again with a model.
"""

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.model import GenerateConfig
from inspect_ai.solver import generate

from prefixlab.config import Protocol, SuiteConfig
from prefixlab.errors import UserError
from prefixlab.evals.diagnostics import Reading
from prefixlab.evals.harness import Scoring, inspect_samples, suite_scorer
from prefixlab.evals.judges import RulesJudge
from prefixlab.evals.protocols import PRESETS, decoding, label
from prefixlab.evals.safety import Judging
from prefixlab.evals.suites import find_suite, load_items


@task
def suite(
    name: str,
    source: str | None = None,
    protocol: Protocol = "prefixlab",
    limit: int | None = None,
    preopened: bool = False,
) -> Task:
    """One suite as an Inspect task.

    Args:
        name: Of the suite.
        source: Local file or hub id instead of the suite's own.
        protocol: Decoding, and what the judge reads.
        limit: Prompts to use.
        preopened: Whether the model's template opens the reasoning, so that its text starts inside it.

    Raises:
        UserError: No such suite, one that compares log-likelihoods, which Inspect's models do not give, or a protocol
            with a repetition penalty, which it cannot ask of them.
    """
    config = SuiteConfig(suite=name, source=source, protocol=protocol, limit=limit)
    about = find_suite(name)
    if about.choices or about.foreign:
        raise UserError(f"suite {name!r} runs under prefixlab generate only")
    how = decoding(config, about.max_tokens)
    if how.repetition_penalty != 1:
        raise UserError(f"protocol {protocol!r} has a repetition penalty: it runs under prefixlab generate only")
    items = load_items(config)
    reading = Reading(preopened=preopened, position=None, templates=())
    judging = Judging(RulesJudge(), PRESETS[protocol].judged, reading) if about.judged else None
    return Task(
        dataset=MemoryDataset(inspect_samples(items), name=name),
        solver=generate(),
        scorer=suite_scorer(Scoring(about, reading, judging)),
        epochs=Epochs(how.epochs, "mean"),
        name=name,
        config=GenerateConfig(
            temperature=how.temperature, top_p=how.top_p if how.temperature else None, max_tokens=how.max_tokens
        ),
        metadata={
            "suite": config.model_dump(mode="json"),
            "protocol": label(config),
            "condition": "bare",
            "decoding": how.__dict__,
            "preopened": preopened,
        },
    )
