"""`prefixlab generate` and `prefixlab score`: on the tiny model, on a server, on anybody's Inspect task."""

import json
import re
import shutil
from pathlib import Path

import pytest
import trl
from inspect_ai.log import read_eval_log

from chat_server import Reply, answering, running
from prefixlab.evals.remote import CUT, LINE
from prefixlab.model.tiny import tokenizer
from prefixlab.study.datafiles import asked_adapter

pytestmark = pytest.mark.smoke
REFUSAL = "I'm sorry, but I can't help with that."
SERVER = ("--provider", "openai-api/lab/some-model")


def logs(folder):
    return [read_eval_log(str(p)) for p in sorted(folder.glob("*.eval"))]


def test_generate_then_score(call, tmp_path):
    done = call(
        "generate", "safety", "--model", "tiny-random", "--limit", 6, "--max-tokens", 6, "--out", tmp_path / "logs"
    )
    assert done.returncode == 0, done.stderr
    (log,) = logs(tmp_path / "logs")
    assert len(log.samples) == 6 and log.eval.metadata["planned"] and not (tmp_path / "logs" / "batches.jsonl").exists()
    found = call("score", tmp_path / "logs", "--out", tmp_path / "scores", "--json")
    assert found.returncode == 0, found.stderr
    rows = {r["metric"]: r for r in json.loads(found.stdout)}
    assert {"safe@1", "over_refusal", "length", "truncated"} <= set(rows)
    assert rows["safe@1"]["is_proxy"] and rows["safe@1"]["n_invalid"] == 4 and rows["safe@1"]["value"] is None
    assert (tmp_path / "scores" / "results.parquet").exists() and rows["safe@1"]["n_truncated"] == 4


def test_every_kind_of_suite_from_files(call, tmp_path):
    """Log-likelihoods, code in the sandbox, several samples of a prompt."""
    mc = {"Question": "Is it?", "Best Answer": "No", "Correct Answers": "No; Never", "Incorrect Answers": "Yes"}
    task = {"text": "Write double.", "task_id": 1, "test_list": ["assert double(2) == 4"]}
    for name, row, options, metrics in (
        ("truthfulqa_mc", mc, (), {"mc1", "mc2"}),
        ("mbpp", task, ("--epochs", 2, "--temperature", 1), {"pass@1", "pass@2"}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        source = ("--source", tmp_path / f"{name}.jsonl", "--max-tokens", 5, "--model", "tiny-random", "--quiet")
        done = call("generate", name, *source, *options, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found = call("score", tmp_path / name, "--out", tmp_path / f"{name}-scores", "--json")
        rows = {r["metric"]: r for r in json.loads(found.stdout)}
        assert metrics <= set(rows), found.stderr
        if name == "truthfulqa_mc":
            assert rows["mc1"]["value"] in (0.0, 1.0) and 0 < rows["mc2"]["value"] < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nosuite", "--model", "tiny-random"), "unknown suite 'nosuite'"),
        (("safety",), "--model (a built-in name"),
        (("safety", "--model", "tiny-random", "--provider", "openai/x"), "not both"),
        (("safety", "--model", "tiny-random", "--condition", "prefil"), "Did you mean 'prefill'?"),
        (("safety", "--model", "tiny-random", "--condition", "prefill"), "needs --prefixes"),
        (("safety", "--model", "tiny-random", "--condition", "zero_think"), "opens no reasoning"),
        (("safety", "--model", "tiny-random", "--adapter", "."), "adapter_config.json is missing"),
        (("safety", "--model", "tiny-random", "--top-p", "2"), "--top_p: Input should be less than or equal to 1"),
        (("truthfulqa_mc", "--source", "MC", *SERVER), "log-likelihoods of given answers need the model itself"),
        (("safety", *SERVER, "--condition", "attack_answer@5"), "needs the reasoning's own tags"),
        (("safety", *SERVER, "--condition", "prefill", "--prefixes", "safety"), "name the server's --tokenizer"),
        (
            ("safety", *SERVER, "--condition", "prefill", "--prefixes", "safety", "--position", "answer"),
            "behind the model's own reasoning",
        ),
        (("safety", "--model", "tiny-random", "--condition", "prefill", "--prefixes", "original"), "has no templates"),
        (("inspect:nothing_of_that_name", "--model", "tiny-random"), "cannot be loaded or run by Inspect"),
        (("inspect:TASK@sums", "--model", "tiny-random", "--protocol", "star1"), "an Inspect task has its own"),
        (
            ("inspect:TASK@sums", "--model", "tiny-random", "--condition", "prefill", "--prefixes", "safety"),
            "an Inspect task prompts by itself",
        ),
        (("truthfulqa_mc", "--source", "MC", "--model", "tiny-random", "--epochs", 2), "would repeat them"),
        (("inspect:none.py@x", "--model", "tiny-random"), "there is no file 'none.py'"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, options, words):
    mc = {"Question": "Is it?", "Best Answer": "No", "Correct Answers": "No", "Incorrect Answers": "Yes"}
    (tmp_path / "mc.jsonl").write_text(json.dumps(mc) + "\n")
    (tmp_path / "task.py").write_text(TASK)
    options = [str(o).replace("TASK", f"{tmp_path}/task.py") for o in options]
    options = [str(tmp_path / "mc.jsonl") if o == "MC" else o for o in options]
    done = call("generate", *options, "--limit", 2, "--out", tmp_path / "logs")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_adapter_for_another_base_is_one_line(call, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(vocab_size=99, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    adapter = get_peft_model(LlamaForCausalLM(shape), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "other")
    options = ("--model", "tiny-random", "--adapter", tmp_path / "other", "--limit", 2, "--max-tokens", 3)
    done = call("generate", "safety", *options, "--out", tmp_path / "logs")
    assert done.returncode == 2 and "was it made for another base?" in done.stderr and done.stderr.count("\n") == 1


def test_scoring_mistakes_are_one_line(call, tmp_path):
    done = call("score", tmp_path, "--out", tmp_path / "s")
    assert done.returncode == 2 and "holds no .eval log" in done.stderr
    done = call("score", tmp_path, "--judge", "llama-guard", "--out", tmp_path / "s")
    assert done.returncode == 2 and "judge.model is for llama-guard and rubric" in done.stderr


def test_a_server_is_asked_the_same_questions(call, tmp_path, monkeypatch):
    with answering(monkeypatch, lambda body: REFUSAL) as server:
        done = call("generate", "safety", *SERVER, "--limit", 6, "--protocol", "star1", "--out", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 6 and all(r["max_tokens"] == 8000 for r in server.requests)
    assert all(r["repetition_penalty"] == 1.2 and r["temperature"] == 0 for r in server.requests)
    assert all([m["role"] for m in r["messages"]] == ["user"] for r in server.requests)
    found = call("score", tmp_path / "logs", "--out", tmp_path / "s", "--json")
    rows = {r["metric"]: r for r in json.loads(found.stdout)}
    assert rows["safe@1"]["value"] == 1.0 and rows["safe@1"]["protocol"] == "star1"


def test_reasoning_that_a_server_cuts_is_no_answer(call, tmp_path, monkeypatch, tiny_ref):
    """R1's template opens the reasoning: what is cut before any tag is thinking, not a safe or an unsafe answer."""
    shutil.copytree(tiny_ref.path, tmp_path / "r1")
    stock = Path(trl.__file__).parent / "chat_templates" / "deepseek_r1_distill.jinja"
    marks = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
    tokenizer(stock.read_text(), special=marks).save_pretrained(tmp_path / "r1")

    def reply(body):
        return Reply(text="First I think about what is asked of me, and", finish="length")

    for name, options in (("known", ("--tokenizer", tmp_path / "r1")), ("unknown", ())):
        with running(monkeypatch, reply, "LAB"):
            done = call("generate", "safety", *SERVER, *options, "--limit", 4, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found = call("score", tmp_path / name, "--out", tmp_path / f"{name}-s", "--json")
        rows = {r["metric"]: r for r in json.loads(found.stdout)}
        asked = rows["safe@1"]["n"] + rows["safe@1"]["n_invalid"]
        assert asked > 0 and rows["safe@1"]["n_invalid"] == (asked if name == "known" else 0)


def continues(body):
    """A server that goes on with a trailing assistant message, when asked in vLLM's way."""
    last = body["messages"][-1]
    if last["role"] != "assistant":
        return REFUSAL
    if not body.get("continue_final_message"):
        return 400
    text = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    return LINE[CUT:] if text == LINE[:CUT] else " but in truth, " + REFUSAL


def starts_anew(body):
    """A server that closes the prefilled turn and opens another one."""
    return LINE if LINE in json.dumps(body["messages"][0]) else REFUSAL


def test_a_prefill_runs_where_a_probe_proves_it(call, tmp_path, monkeypatch):
    options = ("safety", *SERVER, "--limit", 4, "--condition", "prefill", "--prefixes", "safety")
    options = (*options, "--tokenizer", "tiny-random")
    with answering(monkeypatch, continues) as server:
        done = call("generate", *options, "--out", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    asked = [r for r in server.requests if LINE[:10] not in json.dumps(r)]
    assert len(asked) == 4 and all(r["continue_final_message"] and not r["add_generation_prompt"] for r in asked)
    (log,) = logs(tmp_path / "logs")
    assert all(s.metadata["prefill"] for s in log.samples)
    assert log.eval.metadata["continues"] == "continue_final_message"


def test_where_it_does_not_the_condition_is_not_supported(call, tmp_path, monkeypatch):
    options = ("safety", *SERVER, "--limit", 4, "--condition", "prefill", "--prefixes", "safety")
    options = (*options, "--tokenizer", "tiny-random")
    with answering(monkeypatch, starts_anew) as server:
        done = call("generate", *options, "--out", tmp_path / "logs")
    assert done.returncode == 2 and "does not continue the exact text of a prefilled turn" in " ".join(
        done.stderr.split()
    )
    assert all(LINE[:10] in json.dumps(r) for r in server.requests), "nothing was run as bare"
    assert logs(tmp_path / "logs") == []


def test_a_server_that_does_not_answer_the_probe_is_down_and_not_unsupported(call, tmp_path, monkeypatch):
    options = ("safety", *SERVER, "--limit", 4, "--condition", "prefill", "--prefixes", "safety")
    with answering(monkeypatch, lambda body: 404):
        done = call("generate", *options, "--tokenizer", "tiny-random", "--out", tmp_path / "logs")
    assert done.returncode == 2 and "does not answer" in done.stderr and "not supported" not in done.stderr


def test_attacks_on_a_server_need_its_tokenizer(call, tmp_path, monkeypatch):
    options = ("safety", *SERVER, "--limit", 4, "--condition", "attack_opening@5")
    with answering(monkeypatch, continues) as server:
        refused = call("generate", *options, "--out", tmp_path / "a")
        done = call("generate", *options, "--tokenizer", "tiny-random", "--out", tmp_path / "b")
    assert refused.returncode == 2 and "name the server's --tokenizer" in refused.stderr
    assert done.returncode == 0, done.stderr
    last = [r["messages"][-1]["content"] for r in server.requests if LINE[:10] not in json.dumps(r)]
    assert len(last) == 4 and all(re.match("Sure,", t if isinstance(t, str) else t[0]["text"]) for t in last)


def test_a_server_that_is_down_is_one_line(call, tmp_path, monkeypatch):
    with answering(monkeypatch, lambda body: 404):
        done = call("generate", "safety", *SERVER, "--limit", 2, "--out", tmp_path / "logs")
    assert done.returncode == 2 and "did not finish" in done.stderr and "Traceback" not in done.stderr


def test_a_failed_evaluation_on_a_server_goes_on_where_it_stopped(call, tmp_path, monkeypatch):
    """One prompt is refused: the others are kept on disk, and the same command asks for that one alone."""
    options = ("safety", *SERVER, "--limit", 6, "--epochs", 2, "--temperature", 1, "--out", tmp_path / "logs")
    prompts = []

    def refuses(body):
        prompt = json.dumps(body["messages"])
        prompts.append(prompt)
        return 404 if prompt == prompts[0] else f"{REFUSAL} ({len(prompts)})"

    with answering(monkeypatch, refuses):
        done = call("generate", *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "2 of 12 completions are missing (NotFoundError" in done.stderr and "the others are kept" in done.stderr
    assert logs(tmp_path / "logs") == []
    kept = (tmp_path / "logs" / "answers.jsonl").read_text()
    with answering(monkeypatch, lambda body: REFUSAL) as server:
        again = call("generate", *options)
    assert again.returncode == 0, again.stderr
    assert [json.dumps(r["messages"]) for r in server.requests] == prompts[:1] * 2
    (log,) = logs(tmp_path / "logs")
    said = {s.output.completion for s in log.samples}
    assert len(log.samples) == 12 and all(line in said for line in re.findall(r"I'm sorry[^\"]*\(\d+\)", kept))
    assert not (tmp_path / "logs" / "answers.jsonl").exists()


def test_other_questions_take_nothing_from_a_failed_evaluation(call, tmp_path, monkeypatch):
    options = ("safety", *SERVER, "--limit", 4, "--out", tmp_path / "logs")
    first = []

    def refuses(body):
        first.append(json.dumps(body["messages"]))
        return 404 if first[-1] == first[0] else REFUSAL

    with answering(monkeypatch, refuses):
        assert call("generate", *options).returncode == 2
    with answering(monkeypatch, lambda body: REFUSAL) as server:
        assert call("generate", *options, "--max-tokens", 9).returncode == 0
    assert len(server.requests) == 4 and all(r["max_tokens"] == 9 for r in server.requests)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, solver


@solver
def twice():
    async def solve(state, generate):
        state = await generate(state)
        state.messages.append(ChatMessageUser(content="Are you sure?"))
        return await generate(state)

    return solve


@task
def sums():
    data = [Sample(input=f"What is {i} + 1?", target=str(i + 1)) for i in range(9)]
    return Task(dataset=data, solver=[generate(), twice()], scorer=includes())
"""


def test_anybodys_inspect_task_is_a_suite(call, tmp_path):
    """Three requests a sample, decided while it runs: served in waves, and marked as not planned."""
    (tmp_path / "task.py").write_text(TASK)
    options = ("--model", "tiny-random", "--limit", 5, "--max-tokens", 6)
    done = call("generate", f"inspect:{tmp_path}/task.py@sums", *options, "--out", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    (log,) = logs(tmp_path / "logs")
    assert len(log.samples) == 5 and log.eval.metadata["planned"] is False
    assert all(len([m for m in s.messages if m.role == "assistant"]) == 3 for s in log.samples)
    found = call("score", tmp_path / "logs", "--out", tmp_path / "s", "--json")
    (row,) = json.loads(found.stdout)
    assert row["metric"] == "includes" and row["n_prompts"] == 5 and row["value"] == 0.0


def test_the_output_of_train_stands_for_its_adapter(tmp_path):
    own = tmp_path / "m" / "adapter"
    own.mkdir(parents=True)
    (own / "adapter_config.json").write_text("{}")
    assert asked_adapter(tmp_path / "m") == asked_adapter(own) == own
