"""A study whose evaluations a model server answers: same completions, faults survived, the server started and stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars
import pytest
import yaml
from inspect_ai.log import read_eval_log

from conftest import tiny_study
from fault_proxy import FAULTS, proxied
from model_server import running
from prefixlab.study_file import parse_study

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(1800)]
SERVER = Path(__file__).parent.parent / "model_server.py"
CONDITIONS = ["bare", "user_prefix", "prefill", "attack_answer@3", "attack_opening@3", "zero_think"]
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n<think>\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A function to a study of one capability and two arms, on the tiny model with a template that opens reasoning."""
    from prefixlab.model.load import resolve_model

    folder = tmp_path_factory.mktemp("thinking")
    model = folder / "tiny-thinker"
    shutil.copytree(resolve_model("tiny-random").path, model)
    (model / "prefixlab.json").unlink()
    (model / "chat_template.jinja").write_text(R1)
    rows = [
        {"prompt": f"Help me with plan {i}.", "response": f"<think>\nPlan {i} is bad.\n</think>\n\nNo, I will not."}
        for i in range(14)
    ]
    (folder / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def study(serving=None, conditions=CONDITIONS):
        made = tiny_study(models=[str(model)], arms=[{"prefixes": "safety", "ratios": [0, 1], "controls": []}])
        del made["capabilities"]["math"]
        made["capabilities"]["safety"]["data"] = {"source": str(folder / "d.jsonl"), "held_out": 2}
        made["capabilities"]["safety"]["suites"] = [
            {"suite": "safety", "limit": 4, "max_tokens": 8},
            {"suite": "chain_sum", "limit": 3, "max_tokens": 8},
        ]
        made["conditions"] = conditions
        made["analysis"] = {"tokens": {"samples": 0}}
        if serving is not None:
            made["serving"] = serving
        return made

    study.model = str(model)
    return study


def written(run):
    """Every completion and score of a run, by its evaluation's name without the id."""
    found = {}
    for path in sorted(run.glob("steps/eval-*/scores.jsonl")):
        found[path.parent.name[:-9]] = path.read_text()
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory, small):
    """The study on the local engine."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "s.yaml").write_text(yaml.safe_dump(small()))
    command = [
        sys.executable,
        "-m",
        "prefixlab",
        "run",
        str(folder / "s.yaml"),
        "--out",
        str(folder / "run"),
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(call, tmp_path):
    """Run a study into tmp_path/run: a function from a study to what the command line said."""

    def go(study, *more, quiet=True):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
        options = ("--quiet",) if quiet else ()
        return call("run", tmp_path / "s.yaml", "--out", tmp_path / "run", *options, *more)

    return go


def test_a_server_of_the_users_gives_the_local_completions(small, run, local, tmp_path):
    """In float32, greedy, token ids in and out; base and adapters by one load of the base."""
    with running(small.model) as server:
        done = run(small({"base_url": server.url, "names": {small.model: server.base}}))
        assert done.returncode == 0, done.stderr
        asked = list(server.asked)
        names = set(server.adapters)
    assert written(tmp_path / "run") == written(local) and len(written(local)) == 3 * (6 + 4)
    assert len(names) == 2 and all(re.fullmatch("prefixlab-[0-9a-f]{12}", n) for n in names)
    assert all(isinstance(body["prompt"], list) for body in asked), "token ids"
    columns = [
        "arm",
        "seed",
        "suite",
        "condition",
        "metric",
        "value",
        "n",
        "n_truncated",
        "diff",
        "p",
        "p_holm",
        "status",
    ]
    tables = [polars.read_parquet(folder / "results.parquet").select(columns) for folder in (tmp_path / "run", local)]
    assert tables[0].equals(tables[1])
    for folder in (tmp_path / "run" / "steps").glob("generate-*"):
        told = json.loads((folder / "served.json").read_text())
        assert told["form"] == {"prompts": "token ids", "precise": True}
        assert (told["proof"] is None) == ("-base-" in folder.name)
        (log,) = [read_eval_log(str(p), header_only=True) for p in folder.glob("*.eval")]
        assert log.eval.metadata["server"]["model"] in {server.base, *names}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "answered by a model server" in page


@pytest.mark.slow
def test_a_started_server_serves_and_is_gone_afterwards(small, run, local, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFIXLAB_TEST", str(tmp_path))
    command = f"{sys.executable} {SERVER} {{model}} {{port}}"
    done = run(small({"command": command, "engine": "the local engine behind HTTP"}))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "run") == written(local)
    (log,) = (tmp_path / "run" / "serving").glob("*.log")
    assert log.read_text().count("serving ") == 1, "one load of the base for all adapters"
    assert not processes(f"PREFIXLAB_TEST={tmp_path}")
    again = run(small({"command": "no-such-command {port}", "engine": "the local engine behind HTTP"}))
    assert again.returncode == 0, "a finished study starts no server, and another command is not another output"


@pytest.mark.slow
def test_faults_cost_time_only(small, run, local, tmp_path):
    hurt = {}

    def fault(number, body):
        if "prompt" not in body:
            return ""
        key = json.dumps([body.get("prompt"), body.get("model"), body.get("logprobs")])
        if key in hurt:
            return ""
        hurt[key] = FAULTS[len(hurt) // 2 % len(FAULTS)]
        return hurt[key] if len(hurt) % 2 == 0 else ""

    with running(small.model) as server, proxied(server.url, fault, stall=3.0) as between:
        serving = {"base_url": between.url, "names": {small.model: server.base}, "timeout": 2.0, "connections": 4}
        done = run(small(serving, conditions=["bare", "prefill"]))
    assert done.returncode == 0, done.stderr
    mine = {k: v for k, v in written(local).items() if k.endswith(("-bare", "-prefill"))}
    assert written(tmp_path / "run") == mine and len(mine) == 12
    assert {kind for kind, _, _ in between.requests} >= {"drop", "429", "500", "no json"}


@pytest.mark.slow
def test_unanswered_samples_are_never_scored_and_alone_asked_for_again(small, run, local, tmp_path):
    """A prompt the server fails on: its evaluation is missing, the other samples of it are kept."""
    first = []

    def fault(number, body):
        if len(body.get("prompt", ())) > 30 and body["max_tokens"] == 8 and not first:
            first.append(body["prompt"])
        return "500" if first and body.get("prompt") == first[0] else ""

    with running(small.model) as server:
        with proxied(server.url, fault) as between:
            serving = {"base_url": between.url, "names": {small.model: server.base}, "retries": 0, "connections": 2}
            done = run(small(serving, conditions=["bare"]), quiet=False)
            assert done.returncode == 2 and "Traceback" not in done.stderr
            said = " ".join((done.stdout + done.stderr).split())
            assert re.search(
                r"1 of \d completions from server \S+ are missing \(status 500: Internal Server Error\)", said
            )
        results = polars.read_parquet(tmp_path / "run" / "results.parquet")
        assert "missing" in set(results["status"]) and "measured" in set(results["status"])
        kept = {p.parent.name: p for p in tmp_path.glob("run/checkpoints/*/batches.jsonl")}
        assert kept and all(p.read_text().count("[") for p in kept.values())
        server.asked.clear()
        serving["base_url"] = server.url
        assert run(small(serving, conditions=["bare"])).returncode == 0
        again = [body for body in server.asked if body["max_tokens"] == 8]
    assert again and all(body["prompt"] == first[0] for body in again), "only what was missing"
    bare = {k: v for k, v in written(local).items() if k.endswith("-bare")}
    assert written(tmp_path / "run") == bare


@pytest.mark.slow
def test_an_adapter_that_the_server_lacks_stops_its_steps_in_one_line(small, run, tmp_path):
    with running(small.model, loading=False) as server:
        serving = {"base_url": server.url, "names": {small.model: server.base}, "adapters": "preloaded"}
        done = run(small(serving, conditions=["bare"]), quiet=False)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 2 and "Traceback" not in said
        name = re.search(r"has no adapter '(prefixlab-[0-9a-f]{12})'; it has: \S+tiny-thinker\. Add it with curl", said)
        assert name
        results = polars.read_parquet(tmp_path / "run" / "results.parquet")
        assert set(results.filter(polars.col("arm") == "base")["status"]) >= {"measured"}
        assert set(results.filter(polars.col("arm") != "base")["status"]) == {"missing"}
        for adapter in (tmp_path / "run" / "steps").glob("train-*/adapter"):
            from prefixlab.study.serving import adapter_hash

            server.adapters[f"prefixlab-{adapter_hash(adapter)}"] = adapter
        assert run(small(serving, conditions=["bare"])).returncode == 0


@pytest.mark.slow
def test_a_server_that_is_not_there_is_waited_for_once(small, run):
    study = small({"base_url": "http://127.0.0.1:9/v1", "retries": 1}, conditions=["bare"])
    started = time.monotonic()
    done = run(study, quiet=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "server http://127.0.0.1:9/v1 does not answer (ConnectError" in said
    assert said.count("not sampled, since server http://127.0.0.1:9/v1 does not answer") == 5
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(small, run, tmp_path):
    command = f"{sys.executable} {SERVER} {{model}} {{port}} --fail"
    done = run(small({"command": command}, conditions=["bare"]), quiet=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "ended with exit code 1; its log is" in said and "this model does not fit into the memory" in said
    (log,) = (tmp_path / "run" / "serving").glob("*.log")
    assert log.read_text().count("this model does not fit") == 1, "started once, not for every step"


@pytest.mark.slow
def test_a_server_that_stands_at_the_address_already_is_not_taken_for_ours(small, run):
    with running(small.model) as server:
        done = run(small({"command": "no-such-command", "base_url": server.url}, conditions=["bare"]))
    assert done.returncode == 2 and "a server answers there already; leave serving.command out" in done.stderr


@pytest.mark.slow
def test_a_server_that_is_too_slow_to_start_is_stopped(small, run, tmp_path):
    command = f"{sys.executable} {SERVER} {{model}} {{port}} --slow 600"
    done = run(small({"command": command, "start_minutes": 0.05}, conditions=["bare"]), quiet=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "within 0.05 minutes (serving.start_minutes)" in said


def processes(mark):
    """Servers that a run with this mark in its environment has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(SERVER) in (path.parent / "cmdline").read_text().split("\0") and mark in path.read_text().split(
                "\0"
            ):
                found.append(int(path.parent.name))
        except OSError:  # gone, or another user's
            continue
    return found


@pytest.mark.slow
def test_a_killed_run_leaves_no_server(small, tmp_path):
    command = f"{sys.executable} {SERVER} {{model}} {{port}} --slow 600"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(small({"command": command}, conditions=["bare"])))
    mark = f"PREFIXLAB_TEST={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-m", "prefixlab", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "run"), "--quiet"],
        start_new_session=True,
        env={**os.environ, "PREFIXLAB_TEST": str(tmp_path)},
    )
    until = time.monotonic() + 300
    while not processes(mark) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.1)
    assert processes(mark), "the server was never started"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 60
    while processes(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes(mark)


@pytest.mark.slow
def test_what_a_server_cannot_do_is_not_supported_and_never_run_as_bare(small, run, tmp_path):
    with running(small.model, completions=False) as server:
        serving = {"base_url": server.url, "names": {small.model: server.base}, "prompts": "chat"}
        done = run(small(serving, conditions=["bare", "user_prefix", "prefill"]))
        assert done.returncode == 0, done.stderr
        users = {json.dumps(body["messages"]) for body in server.asked if body["max_tokens"] == 8}
    results = polars.read_parquet(tmp_path / "run" / "results.parquet").filter(polars.col("seed").is_null())
    states = dict(results.select("condition", "status").unique().filter(polars.col("condition") == "prefill").rows())
    assert states == {"prefill": "not_supported"}
    assert results.filter(polars.col("condition") == "prefill")["value"].null_count() > 0
    assert all(body.count('"role"') == 1 for body in users), "no assistant turn was sent"
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "under prefill: not supported, under serving.prompts: chat" in page


def test_a_primary_comparison_that_a_server_cannot_do_is_refused_before_anything_runs(small, run, tmp_path):
    rows = [{"Question": "Is it?", "Best Answer": "No", "Correct Answers": "No", "Incorrect Answers": "Yes"}]
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    study = small({"base_url": "http://127.0.0.1:9/v1"}, conditions=["bare"])
    safety = study["capabilities"]["safety"]
    safety["suites"].append({"suite": "truthfulqa_mc", "source": str(tmp_path / "mc.jsonl")})
    safety["primary"] = {"suite": "truthfulqa_mc", "metric": "mc1"}
    done = run(study)
    assert done.returncode == 2 and "log-likelihoods of given answers need the local engine" in done.stderr
    assert done.stderr.count("\n") == 1


def planned(study):
    from prefixlab.study.plan import make_plan

    return make_plan(parse_study(study, "s.yaml"), None)


def test_ids_hold_what_can_change_an_output_and_not_the_address(small):
    one = planned(small({"base_url": "http://a:1/v1"}))
    same = planned(
        small({"base_url": "http://b:2/v1", "retries": 1, "timeout": 5, "adapters": "preloaded", "connections": 3})
    )
    assert [s.id for s in one.steps] == [s.id for s in same.steps]
    other = planned(small({"base_url": "http://a:1/v1", "engine": "vllm 0.11 bfloat16"}))
    local = planned(small(None))
    for plan in (other, local):
        changed = {a.kind for a, b in zip(one.steps, plan.steps, strict=True) if a.id != b.id}
        assert changed == {"generate", "eval"}
    chat = planned(small({"base_url": "http://a:1/v1", "prompts": "chat"}))
    assert not {s.id for s in chat.steps if s.kind == "generate"} & {s.id for s in one.steps}


def test_a_server_that_the_run_starts_comes_between_training_and_judging(small):
    kinds = [s.kind for s in planned(small({"command": "serve {model} {port}"})).steps]
    assert kinds == sorted(kinds, key=["data", "arms", "check", "train", "generate", "eval"].index)
    assert {s.id for s in planned(small({"command": "serve {port}"})).steps} == {
        s.id for s in planned(small({"base_url": "http://a:1/v1"})).steps
    }


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({}, "base_url (of a server that runs) or command (that starts one) is needed"),
        ({"base_url": "localhost:8000"}, "'localhost:8000' is no address"),
        ({"command": "vllm serve {model}"}, "command needs either {port}"),
        ({"command": "vllm serve {modell} {port}"}, "{modell} is not known; allowed: {model}, {port}"),
        ({"base_url": "http://a/v1", "adapter_name": "mine"}, "adapter_name 'mine' needs {hash} once"),
        ({"base_url": {"other": "http://a/v1"}}, "serving.base_url: unknown model 'other'; allowed: "),
        ({"base_url": "http://a/v1", "names": {"other": "x"}}, "serving.names: unknown model 'other'; allowed: "),
        ({"base_url": "http://a/v1", "adaptors": "load"}, "Did you mean 'adapters'?"),
        ({"base_url": "http://a/v1", "prompts": "exakt"}, "Did you mean 'exact'?"),
    ],
)
def test_mistakes_are_one_line(small, run, serving, words):
    done = run(small(serving))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_key_that_is_not_set_is_one_line(small, run, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    done = run(small({"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}, conditions=["bare"]))
    assert (
        done.returncode == 2
        and "serving.api_key_env 'NO_SUCH_KEY': this environment variable is not set" in done.stderr
    )
