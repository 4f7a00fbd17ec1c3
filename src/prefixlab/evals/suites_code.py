"""Code: HumanEval and MBPP, run in a sandbox (sandbox.py). The programs are built in programs.py.

The prompt asks for the whole function in one code block. MBPP shows its tests, since the function's name stands there
only.
"""

from prefixlab.evals.nouns import Hub, Metric, Row, Suite, asked, column, text_column
from prefixlab.evals.programs import mbpp_entry_point
from prefixlab.evals.scorers import score_humaneval, score_mbpp
from prefixlab.records import EvalItem

PASS = Metric(name="pass@1", kind="problem", higher_is_better=True)


def _humaneval(row: Row) -> list[EvalItem]:
    start = text_column(row, "prompt")
    data = {"prompt": start, "test": text_column(row, "test"), "entry_point": text_column(row, "entry_point")}
    task = "Complete this Python function. Write the whole function in one code block."
    prompt = f"{task}\n\n```python\n{start.rstrip()}\n```"
    return [asked(prompt, id=text_column(row, "task_id"), data=data)]


def _mbpp(row: Row) -> list[EvalItem]:
    tests = list(column(row, "test_list"))
    setup = row.get("test_setup_code") or ""
    data = {
        "tests": tests,
        "setup": setup,
        "imports": list(row.get("test_imports") or ()),
        "entry_point": mbpp_entry_point(tests) or "",
    }
    shown = "\n".join(tests)
    task = (
        f"{text_column(row, 'text', 'prompt').strip()}\n\nWrite Python in one code block. It has to pass these tests:"
    )
    prompt = f"{task}\n\n```python\n{shown}\n```"
    return [asked(prompt, id=f"mbpp/{column(row, 'task_id')}", data=data)]


SUITES = (
    Suite(
        "humaneval",
        about="HumanEval, 164 functions with unit tests",
        link="https://github.com/openai/human-eval",
        hub=Hub("openai/openai_humaneval", "test"),
        items=_humaneval,
        score=score_humaneval,
        metrics=(PASS,),
        sources=("humaneval", "openai_humaneval"),
        form="task_id, prompt, entry_point, test",
    ),
    Suite(
        "mbpp",
        about="MBPP, short tasks with three assertions (974 in the file, 500 in the hub's test split)",
        link="https://github.com/google-research/google-research/tree/master/mbpp",
        hub=Hub("google-research-datasets/mbpp", "test", "full"),
        items=_mbpp,
        score=score_mbpp,
        metrics=(PASS,),
        sources=("mbpp",),
        form="text, task_id, test_list",
    ),
    Suite(
        "mbpp_sanitized",
        about="MBPP's verified tasks (427 in the file, 257 in the hub's test split)",
        link="https://github.com/google-research/google-research/tree/master/mbpp",
        hub=Hub("google-research-datasets/mbpp", "test", "sanitized"),
        items=_mbpp,
        score=score_mbpp,
        metrics=(PASS,),
        sources=("mbpp",),
        form="prompt, task_id, test_list, test_imports",
    ),
)
