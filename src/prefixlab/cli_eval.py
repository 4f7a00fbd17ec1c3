"""Commands on suites: generate, score."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixlab.cli_shared import JsonOption, QuietOption, err_console, help_text, out_console, print_json

app = typer.Typer()


@app.command(
    help=help_text(
        "Sample one suite into a standard Inspect log, to be scored by prefixlab score. A killed call goes on.",
        "prefixlab generate safety --model smollm2-135m --limit 20 --out logs/base",
        "prefixlab generate gsm8k --source test.jsonl --model org/name --adapter adapter --out logs/gsm8k",
        "prefixlab generate strongreject --provider openai-api/vllm/my-adapter --protocol safechain --out logs/server",
        "prefixlab generate inspect:inspect_evals/arc_easy --model smollm2-135m --limit 20 --out logs/arc",
    )
)
def generate(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite (see doctor), or inspect:TASK.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets the log.")],
    model: Annotated[str | None, typer.Option(help="Built-in name, local folder or hub id.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="PEFT adapter folder, or the output of prefixlab train.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="An Inspect model instead, e.g. openai-api/vllm/NAME.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Of the server's model, for attacks of k tokens.")] = None,
    condition: Annotated[str, typer.Option(help="How the model is prompted, e.g. attack_opening@10.")] = "bare",
    prefixes: Annotated[str | None, typer.Option(help="Prefix set, for user_prefix and prefill.")] = None,
    position: Annotated[
        Literal["user", "opening", "answer"], typer.Option(help="Where the prefix was trained.")
    ] = "opening",
    source: Annotated[str | None, typer.Option(help="Local file or hub id instead of the suite's own.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub data set.")] = None,
    protocol: Annotated[
        Literal["prefixlab", "safechain", "safechain_sampled", "star1"], typer.Option(help="Preset of decoding.")
    ] = "prefixlab",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to use, chosen by a hash of their id.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest completion.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Samples a prompt.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 64,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.study.alone import Asked, generate_alone

    fields = {
        "suite": suite,
        "source": source,
        "split": split,
        "revision": revision,
        "protocol": protocol,
        "limit": limit,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "epochs": epochs,
        "batch_size": batch_size,
    }
    log = generate_alone(
        Asked(fields, condition, prefixes, position),
        out,
        model=model,
        adapter=adapter,
        provider=provider,
        tokenizer=tokenizer,
        console=err_console,
        quiet=quiet,
    )
    if not quiet:
        out_console.print(str(log), highlight=False, markup=False)


@app.command(
    help=help_text(
        "Score logs written by generate or by a run; samples nothing. Another judge is another call.",
        "prefixlab score logs/base --out scores",
        "prefixlab score runs/r1/steps --judge llama-guard --judge-model meta-llama/Llama-Guard-3-8B --out rejudged",
    )
)
def score(
    logs: Annotated[Path, typer.Argument(metavar="LOGS", exists=True, help="An .eval log, or a folder with some.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets scored logs, scores, results.parquet and .csv.")],
    judge: Annotated[
        Literal["rules", "llama-guard", "rubric"], typer.Option(help="Who decides what is safe.")
    ] = "rules",
    judge_model: Annotated[str | None, typer.Option(help="Local folder, hub id, or inspect:PROVIDER/NAME.")] = None,
    threshold: Annotated[float, typer.Option(help="Of rubric: a score of this and more is unsafe.")] = 0.5,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    from prefixlab.cli_shared import checked
    from prefixlab.config import JudgeConfig
    from prefixlab.report.tables import interval, percent
    from prefixlab.study.scoring import score_logs

    chosen = checked(JudgeConfig, name=judge, model=judge_model, threshold=threshold)
    found = score_logs(logs, chosen, out, console=err_console, quiet=quiet or as_json)
    if as_json:
        print_json([s.model_dump() for s in found])
        return
    for s in found if not quiet else ():
        shown = f"{s.value:.0f} tokens" if s.metric == "length" and s.value is not None else percent(s.value)
        shown = shown if s.status == "measured" else s.status.replace("_", " ")
        counts = ((s.n_invalid, "invalid"), (s.n_truncated, "truncated"), (s.n_error, "not scored"))
        arm = "" if s.arm == "alone" else f"{s.capability} {s.arm}{'' if s.seed is None else f' seed {s.seed}'}: "
        out_console.print(
            f"{arm}{s.suite} {s.condition} {s.metric}{' (proxy)' if s.is_proxy else ''}: {shown}"
            + ("" if s.metric == "length" else f" ({interval(s.ci_low, s.ci_high)})")
            + f", {s.n_prompts} prompts"
            + "".join(f", {n} {word}" for n, word in counts if n),
            highlight=False,
            markup=False,
        )
