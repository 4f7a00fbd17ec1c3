"""`prefixlab plan`: costs counted, the same estimated, and what is said where nothing is known."""

import asyncio
import cProfile
import json
import pstats

import pytest
import yaml

from conftest import ROOT, tiny_study
from prefixlab.data.rewrite import Reply, read_targets, rewritten_row
from prefixlab.data.sources import read_samples
from prefixlab.errors import UserError
from prefixlab.evals.diagnostics import Reading
from prefixlab.evals.judging import Judgement
from prefixlab.evals.outputs import parse_output
from prefixlab.evals.safety import Judging, Turn, judge_turn
from prefixlab.evals.suites import load_items
from prefixlab.model.architectures import architecture, known_config
from prefixlab.model.flops import train_flops
from prefixlab.model.recipes import PAPER
from prefixlab.records import EvalItem, Message, Resolved
from prefixlab.study.cost_records import Price
from prefixlab.study.devices import find_device, this_device
from prefixlab.study.estimate import _limited, estimate, out_of_reach
from prefixlab.study.forecast import forecast, judged_texts
from prefixlab.study.plan import make_plan
from prefixlab.study.workload import Workload
from prefixlab.study_file import load_study, parse_study

R1 = ROOT / "studies" / "r1_prefix.yaml"
TWO_THREADS = Resolved(
    device="cpu", dtype="float32", attention="prefixlab", threads=2, merge_adapters=True, processes=1, why="test"
)


def r1(*overrides):
    return load_study(R1, list(overrides))


@pytest.fixture(scope="module")
def loads():
    return estimate(r1())


def cost(study, loads, price=None):
    return forecast(study, loads, find_device("h100", TWO_THREADS), price)


def test_the_r1_study_is_planned_without_hub(call):
    done = call("plan", R1, "--device", "h100", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] is None and "DeepSeek-R1-Distill-Qwen-1.5B" in found["estimated_because"]
    costs = found["costs"]
    assert [m["parameters"] for m in costs["models"]] == [1_777_088_000, 7_615_616_512, 8_030_261_248]
    # 4 capabilities of r000, 4 ratios and 4 controls, 3 seeds.
    assert {m["cells"] for m in costs["models"]} == {4 * 9 * 3} and costs["total"]["cells"] == 324
    for name in ("trained_tokens", "flops", "train_hours", "evaluate_hours", "hours", "judge_calls", "disk"):
        assert costs["total"][name] > 0
    assert costs["total"]["evaluate_hours_at_most"] > costs["total"]["evaluate_hours"]
    assert costs["judge"]["price"] == 0 and costs["judge"]["hours"] > 0
    # The guard's weights are fetched too: 1.78 + 7.62 + 8.03 + 8.03 billion, two bytes each.
    assert costs["download"] == pytest.approx(2 * 25_453_227_008)
    eight = next(c for c in costs["capabilities"] if c["model"].endswith("Llama-8B") and c["capability"] == "math")
    assert eight["training_memory"]["asked_fits"] and not eight["evaluation_memory"]["asked_fits"]
    assert eight["evaluation_memory"]["setting"] == "batch_size: 26 in every suite"


def test_the_text_names_what_it_rests_on(call):
    text = call("plan", R1, "--device", "l4").stdout
    for words in (
        "an estimate, since model 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B'",
        "the table of known models",
        "30% of its bf16 peak in training",
        "too much; fits with training: {batch_size: 1, accumulation: 8, trainer: {activation_checkpointing: true}}",
        "gsm8k accuracy: 1319 prompts detect 3.5 points",
        "truthfulqa_mc mc2: 400 prompts, no shares",
        "a batch ends with its longest one",
        "no server is paid",
    ):
        assert words in text, words


def test_operations_and_tokens_by_hand(loads):
    """The mathematics of the 8B model: 1,000 samples, 2 epochs, 3 seeds, 9 arms."""
    study = r1()
    load = next(w for w in loads if w.model.endswith("8B") and w.capability == "math")
    assert (load.samples, len(load.arms), load.seeds) == (1_000, 9, 3)
    extra = sum(arm.extra for arm in load.arms)
    # r025 to r100 of templates of 12 words on average, and four controls of as many: 6.5 times 16 tokens.
    assert extra == pytest.approx(6.5 * 16, rel=0.03)
    found = next(c for c in cost(study, loads).capabilities if c.model.endswith("8B") and c.capability == "math")
    assert found.trained_tokens == pytest.approx(2 * 3 * 1_000 * (9 * load.tokens + extra))
    shape = architecture(known_config(load.model), "x").shape
    width = shape.adapter_width(PAPER.target_modules)
    bare = train_flops(shape, [round(load.tokens)] * 1_000, round(1_000 * load.supervised), PAPER.r, width)
    assert 9 * 2 * 3 * bare < found.train_flops < 9 * 2 * 3 * bare * 1.15


class Counting:
    """A judge that calls everything safe, and keeps what it was shown."""

    name, identity = "llama-guard", {}

    def __init__(self):
        self.seen = []

    async def judge(self, prompt, response):
        self.seen.append(response)
        return Judgement(verdict="safe", unsafe_probability=None, raw="safe", reason="")


@pytest.mark.parametrize(
    ("condition", "prefill", "completion"),
    [
        ("bare", "", "I weigh it up, word by word.\n</think>\n\nI won't help with that."),
        ("prefill", "Let me consider this.", "\n\nI weigh it up.\n</think>\n\nI won't help with that."),
        ("attack_answer@10", "I weigh it up.\n</think>\n\nSure, here is how", " you can stay out of it, and why." * 3),
    ],
)
@pytest.mark.parametrize("preopened", [True, False])
def test_the_judge_is_shown_as_many_texts_as_the_plan_says(condition, prefill, completion, preopened):
    if not preopened:
        prefill, completion = (text.split("</think>\n\n")[-1] for text in (prefill, completion))
    judge, reading = Counting(), Reading(preopened=preopened, position="opening", templates=())
    item = EvalItem(id="a", messages=(Message(role="user", content="Help me."),), target="", kind="harmful")
    turn = Turn("Help me.", completion, prefill, parse_output(completion, preopened=preopened, prefill=prefill))
    asyncio.run(judge_turn(item, turn, Judging(judge, "whole", reading)))
    texts, responses = judged_texts(condition, parts=preopened)
    assert len(judge.seen) == texts
    words = sum(len(text.split()) for text in judge.seen) / len(f"{prefill}{completion}".split())
    assert words == pytest.approx(responses, abs=0.7)


def test_a_server_saves_the_waiting(loads):
    served = r1("serving={base_url: 'http://127.0.0.1:1/v1', connections: 64}")
    ours, theirs = cost(r1(), loads), cost(served, loads)
    assert theirs.total.train_hours == ours.total.train_hours
    assert 5 < ours.total.evaluate_hours / theirs.total.evaluate_hours < 30
    assert any("a server puts another completion" in text for text in theirs.assumptions)
    memory = next(c for c in theirs.capabilities if c.model.endswith("8B")).evaluation_memory
    assert memory.setting == "serving: {connections: 26}"


def test_float32_on_a_gpu_needs_twice_the_weights_and_has_no_hours(call):
    done = call("plan", R1, "--device", "h100", "--set", "hardware.dtype=float32", "--json")
    costs = json.loads(done.stdout)["costs"]
    assert costs["total"]["hours"] is None and "bfloat16" in costs["assumptions"][0]
    assert min(c["training_memory"]["asked"] for c in costs["capabilities"] if "8B" in c["model"]) > 4 * 8.03e9


def test_every_condition_is_sampled_and_the_bare_base_once():
    study = r1("models=[deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B]", "seeds=[0]")
    found = {c.capability: c for c in cost(study, estimate(study)).capabilities}
    # Mathematics: 9 cells and the base. bare and prefill on GSM8K, and the attack too on StrongREJECT.
    assert found["math"].completions == 10 * (2 * 1_319 + 3 * 313)
    # Of each the guard reads all, the reasoning and the answer, and where something was prefilled, all without it.
    assert found["math"].judge_calls == 10 * 313 * (3 + 4 + 4)
    assert found["safety"].judge_calls == 10 * (313 + 250 + 200) * (3 + 4 + 4)
    # Safety asks StrongREJECT again; the base's bare answers are there already.
    own = 10 * (3 * 276 + 3 * 450 + 3 * 313) - 313
    assert found["safety"].completions == own


def test_what_is_not_known_stays_unknown(call):
    changed = ["models=[nobody/nothing-7b]", "capabilities.math.data.source=nobody/rows"]
    done = call("plan", R1, "--json", "--device", "h100", *(x for c in changed for x in ("--set", c)))
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)["costs"]
    model = costs["models"][0]
    assert model["parameters"] is None and model["train_hours"] is None and model["flops"] is None
    assert model["trained_tokens"] is None and model["cells"] == 108 and costs["total"]["hours"] is None
    maths = next(c for c in costs["capabilities"] if c["capability"] == "math")
    assert maths["sources"]["model"] == "unknown" and "limit" in maths["sources"]["data"]
    assert maths["training_memory"]["asked"] is None and maths["completions"] > 0
    text = call("plan", R1, "--set", changed[0]).stdout
    assert "unknown" in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models=[nowhere]", "unknown model 'nowhere'"),
        ("capabilities.math.data.source=missing.jsonl", "missing.jsonl"),
        ("capabilities.math.suites.1.suite=strongrejct", "Did you mean 'strongreject'?"),
        ("capabilities.math.primary.metric=pass", "reports accuracy"),
        ("training.lora.target_modules=[qq_proj]", "target_modules qq_proj"),
    ],
)
def test_mistakes_are_still_mistakes(call, override, words):
    extra = () if "models" in override or "lora" in override else ("--set", "models=[tiny-random]")
    done = call("plan", R1, "--set", override, *extra)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_study_at_hand_is_counted(call, study_file, tmp_path):
    path, out = study_file(), tmp_path / "run"
    found = json.loads(call("plan", path, "--out", out, "--json").stdout)
    assert found["estimated_because"] is None and {s["state"] for s in found["steps"]} == {"missing"}
    assert found["costs"]["total"]["cells"] == sum(s["kind"] == "train" for s in found["steps"]) == 8
    assert found["predicted_seconds_left"] == pytest.approx(sum(s["predicted_seconds"] for s in found["steps"]))
    text = call("plan", path, "--out", out, "--device", "h100").stdout
    assert found["steps"][0]["slug"] in text and "not counted" not in text
    assert not out.exists()


@pytest.mark.parametrize("text", ["3", "a,b", "1,2,3", "-1,2", "nan,1", "1,inf"])
def test_prices_are_two_numbers(call, text):
    done = call("plan", R1, f"--judge-price={text}")
    assert done.returncode == 2 and f"--judge-price '{text}'" in done.stderr


def test_a_server_is_paid_by_the_token(loads):
    study = r1("judge={name: rubric, model: openai/some}")
    assert cost(study, loads).judge.price is None
    found = cost(study, loads, Price(read=2.0, written=8.0)).judge
    assert found.price == pytest.approx(found.read_tokens * 2e-6 + found.written_tokens * 8e-6)
    assert found.hours == 0 and found.calls > 0
    assert cost(r1("judge=rules"), loads).judge.calls == 0


def test_an_estimate_of_what_is_at_hand_is_the_plan():
    """Where nothing is missing, both ways count the same."""
    study = parse_study(tiny_study(seeds=[0, 1], conditions=["bare", "prefill", "attack_opening@5"]), "test")
    made = make_plan(study, None)
    counted = [Workload.model_validate(w) for w in made.workloads]
    for mine, theirs in zip(estimate(study), counted, strict=True):
        assert mine.model_copy(update={"sources": {}}) == theirs
        assert set(mine.sources.values()) == {"counted"}
    trains = [s for s in made.steps if s.kind == "train"]
    assert sum(w.cells for w in counted) == len(trains)
    generated = sum(len(s.generated) * (w.cells + 1) for w in counted for s in w.suites)
    assert generated == sum(s.kind == "generate" for s in made.steps)


def test_limits_are_shared_out_as_when_prompts_are_read():
    study = tiny_study()
    for limit in (5, 8, 17, 500):
        study["capabilities"]["safety"]["suites"][0]["limit"] = limit
        config = parse_study(study, "t").capabilities["safety"].suites[0]
        whole, some = load_items(config.model_copy(update={"limit": None})), load_items(config)
        counts = {k: sum(i.kind == k for i in whole) for k in {i.kind for i in whole}}
        assert _limited(counts, limit) == {k: sum(i.kind == k for i in some) for k in counts}


def test_rows_that_are_tested_are_not_trained_on(loads):
    """TruthfulQA's 817 questions: 400 are asked, 20 are held out."""
    facts = next(w for w in loads if w.capability == "factuality")
    assert facts.samples == 817 - 400 - 20
    code = next(w for w in loads if w.capability == "code")
    assert code.samples == 374 - 20  # another split than the suite's


def test_only_what_the_hub_has_is_out_of_reach():
    error = UserError("x")
    assert not out_of_reach(error)
    error.__cause__ = ConnectionError("no route")
    assert out_of_reach(error)
    error.__cause__ = ValueError("no such column")
    assert not out_of_reach(error)


@pytest.mark.slow
def test_the_cpu_study_takes_four_hours_at_most(shared):
    """On two slow threads, by the measured rates; the rest of a step's time is counted with it."""
    study = load_study(
        ROOT / "studies" / "cpu_ratio.yaml",
        [
            f"capabilities.math.suites.1.source={shared / 'gsm8k' / 'test.jsonl'}",
            f"capabilities.safety.suites.0.source={shared / 'strongreject' / 'strongreject_dataset.csv'}",
            "hardware={device: cpu, dtype: float32, threads: 2}",
        ],
    )
    made = make_plan(study, None)
    assert sum(s.predicted_seconds for s in made.steps) <= 4 * 3600
    loads = [Workload.model_validate(w) for w in made.workloads]
    assert all(s.n >= 200 for w in loads for s in w.suites) and len(study.seeds) == 5
    found = forecast(study, loads, this_device(TWO_THREADS))
    assert found.total.cells == 60 and 2 < found.total.hours < 4
    assert all(c.training_memory.asked_fits for c in found.capabilities)


def test_planning_grows_with_the_cells():
    """Seven times the additional cells take seven times the additional calls, where squares would take 21 times."""

    def calls(seeds):
        study = tiny_study(seeds=list(range(seeds)))
        for arms in study["arms"]:
            arms |= {"ratios": [0, 0.5, 1], "controls": ["neutral", "masked"]}
        parsed = parse_study(study, "t")
        profile = cProfile.Profile()
        profile.enable()
        made = make_plan(parsed, None)
        profile.disable()
        assert sum(s.kind == "train" for s in made.steps) == 10 * seeds
        assert len({s.slug for s in made.steps}) == len(made.steps)
        return pstats.Stats(profile).total_calls

    for _ in range(2):
        calls(1)  # caches and imports
    few, many, most = calls(4), calls(8), calls(32)
    assert 3 < (most - few) / (many - few) < 10


def test_the_studies_that_ship_can_be_read():
    for path in sorted((ROOT / "studies").glob("*.yaml")):
        assert load_study(path, []).name == path.stem
        assert yaml.safe_load(path.read_text())["name"] == path.stem


REWRITTEN = {
    "math": {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"},
    "code": {"task_id": 1, "text": "Write a function that adds.", "code": "def add(a, b):\n    return a + b"},
    "safety": {"id": "s1", "question": "How do I stay safe?", "response": "<think>\nSo.\n</think>\n\nLock the door."},
    "factuality": {"question": "What is the capital of France?", "best_answer": "Paris", "correct_answers": ["Paris"]},
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_commands_that_rewrite_the_r1_targets_do(call, tmp_path, name):
    """Each with a file of its set's columns for the set; what it would write is read by the study, with reasoning."""
    text = R1.read_text().replace("\\\n#", "")
    commands = [line.split()[3:] for line in text.split("\n") if line.startswith("#   prefixlab rewrite ")]
    assert len(commands) == 4
    words = next(c for c in commands if f"{name}.jsonl" in c)
    data = r1().capabilities[name].data
    assert words[0] == data.source and (data.config is None) == ("--config" not in words)
    rows = [{**REWRITTEN[name], "n": i} for i in range(30)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call("rewrite", "d.jsonl", *words[1:], "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "<reasoning>" in done.stdout, done.stderr
    columns = dict(w.split("=") for w in words if w.startswith(("prompt=", "response=")))
    targets, skipped = read_targets(str(tmp_path / "d.jsonl"), columns)
    assert len(targets) == 30 and not skipped
    written = [json.dumps(rewritten_row(t, Reply("because", f"#### {t.row}"))) for t in targets]
    (tmp_path / "new.jsonl").write_text("\n".join(written))
    study = r1(f"capabilities.{name}.data.source={tmp_path / 'new.jsonl'}", f"capabilities.{name}.no_reasoning=refuse")
    train, held = read_samples(study.capabilities[name].data, name)
    assert len(train) + len(held) == 30 and {s.reasoning for s in train} == {"because"}
