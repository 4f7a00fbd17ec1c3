"""Step ids: everything that can change a result changes the id, and nothing else does."""

import json
from dataclasses import replace

import pytest
import torch

from conftest import tiny_study
from prefixlab.errors import UserError
from prefixlab.model.machine import compile_pays
from prefixlab.study import steps
from prefixlab.study.plan import make_plan
from prefixlab.study.run import rules_of
from prefixlab.study.steps import code_hash, make_step, signature
from prefixlab.study_file import parse_study


def plan(changes=None, stored=None):
    study = tiny_study()
    for path, value in (changes or {}).items():
        node = study
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        node[last] = value
    return make_plan(parse_study(study, "test"), stored)


@pytest.fixture(scope="module")
def reference():
    return plan()


def ids(made, kind):
    return {s.slug for s in made.steps if s.kind == kind}


def test_plan_is_repeatable(reference):
    assert plan() == reference
    assert [s.kind for s in reference.steps][:2] == ["data", "data"]
    assert {s.kind for s in reference.steps} == {"data", "arms", "check", "train", "generate", "eval", "tokens"}


def test_the_base_model_is_evaluated_once(reference):
    base = [s for s in reference.steps if s.kind == "generate" and "-base-" in s.slug]
    assert len(base) == 2  # chain_sum and safety


def test_native_that_equals_r000_is_not_trained_twice(tmp_path):
    """The built-in sums have no openings; a set with openings keeps its native arm."""
    assert plan({"native": True}).summary["math"]["native_is_r000"]
    assert "native" not in plan({"native": True}).summary["math"]["arms"]
    path = tmp_path / "d.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "response": f"Sure! Answer {i}."}) + "\n" for i in range(20))
    )
    made = plan({"native": True, "capabilities.math.data.source": str(path)})
    assert "native" in made.summary["math"]["arms"] and not made.summary["math"]["native_is_r000"]


def test_one_place_has_one_name():
    entry = {"prefixes": "reasoning", "ratios": [1], "controls": [], "capabilities": ["math"]}
    arms = [
        {**entry, "position": "opening"},
        {**entry, "prefixes": "safety", "position": "answer"},
        {**entry, "capabilities": ["safety"]},
    ]
    with pytest.raises(UserError, match="'opening' and 'answer' are the same place"):
        plan({"arms": arms})


TRAINING = {
    "training.lora.r": 2,
    "training.lora.alpha": 5,
    "training.lora.dropout": 0.2,
    "training.lora.target_modules": ["q_proj"],
    "training.learning_rate": 0.5,
    "training.epochs": 4,
    "training.batch_size": 3,
    "training.accumulation": 2,
    "training.scheduler": "constant",
    "training.warmup_ratio": 0.5,
    "training.weight_decay": 0.1,
    "training.max_grad_norm": 3.0,
    "training.max_length": 900,
    "training.over_long": "cut",
    "training.preset": "paper",
    "training.snapshots": 1,
    "training.trainer": {"adam_beta2": 0.9},
    "training.lora.use_rslora": True,
    "hardware.processes": 2,
    "hardware.compile": True,
    "hardware.dtype": "bfloat16",
    "hardware.threads": 2,
    "capabilities.math.no_reasoning": "empty",
    "seeds": [7],
}
DATA = {
    "capabilities.math.data.limit": 11,
    "capabilities.math.data.held_out": 2,
    "assignment": "bernoulli",
    "arms.0.prefixes": "coding",
    "arms.0.position": "user",
    "arms.0.ratios": [0, 0.25],
    "arms.0.controls": ["shuffled"],
    "arms.0.loss": "first_tokens",
    "arms.0.lookahead": True,
}
EVALUATION = {
    "capabilities.math.suites.0.limit": 5,
    "capabilities.math.suites.0.max_tokens": 9,
    "capabilities.math.suites.0.temperature": 0.7,
    "capabilities.math.suites.0.top_p": 0.5,
    "capabilities.math.suites.0.epochs": 2,
    "capabilities.math.suites.0.batch_size": 4,
    "capabilities.math.suites.0.repetition_penalty": 1.1,
    "capabilities.math.suites.0.protocol": "star1",
    "conditions": ["bare", "prefill"],
}


@pytest.mark.parametrize("path", TRAINING)
def test_every_training_option_reaches_the_training(reference, path):
    assert ids(plan({path: TRAINING[path]}), "train") != ids(reference, "train")


@pytest.mark.parametrize("path", DATA)
def test_every_data_option_reaches_the_training(reference, path):
    assert ids(plan({path: DATA[path]}), "train") != ids(reference, "train")


@pytest.mark.parametrize("path", EVALUATION)
def test_every_evaluation_option_reaches_the_evaluation_and_not_the_training(reference, path):
    made = plan({path: EVALUATION[path]})
    assert ids(made, "eval") != ids(reference, "eval") and ids(made, "train") == ids(reference, "train")


def test_another_judge_or_protocol_name_never_samples_again(reference):
    made = plan({"judge": {"name": "rubric", "model": "openai/judge"}})
    assert ids(made, "generate") == ids(reference, "generate") and ids(made, "eval") != ids(reference, "eval")


def test_a_suite_of_two_capabilities_is_sampled_once_from_the_base():
    suites = [{"suite": name, "limit": 8, "max_tokens": 6, "batch_size": 5} for name in ("chain_sum", "safety")]
    both = plan({"capabilities.math.suites": suites})
    base = [s for s in both.steps if "-base-safety" in s.slug]
    assert sorted(s.kind for s in base) == ["eval", "eval", "generate"]


@pytest.mark.parametrize("options", [{"samples": 1}, {"controls": False}, {"gradients": "positions"}])
def test_token_options_reach_the_reading_and_nothing_else(reference, options):
    made = plan({f"analysis.tokens.{name}": value for name, value in options.items()})
    assert ids(made, "tokens") != ids(reference, "tokens") and ids(made, "train") == ids(reference, "train")


def test_what_cannot_be_read_is_refused_with_the_plan():
    with pytest.raises(UserError, match=r"analysis\.tokens\.samples 9: the capabilities hold out 3 samples at most"):
        plan({"analysis.tokens.samples": 9})
    with pytest.raises(UserError, match=r"use_dora is no plain LoRA"):
        plan({"analysis.tokens.gradients": "positions", "training.lora.use_dora": True})


def test_more_gradients_take_longer(reference):
    def seconds(made):
        return sum(s.predicted_seconds for s in made.steps if s.kind == "tokens")

    some, each = (plan({"analysis.tokens.gradients": name}) for name in ("positions", "tokens"))
    assert seconds(reference) < seconds(some) < seconds(each)


def test_no_samples_no_reading():
    assert ids(plan({"analysis.tokens.samples": 0}), "tokens") == set()


def test_a_new_arm_or_seed_leaves_the_others_alone(reference):
    more = plan({"arms.0.controls": ["neutral", "shuffled"]})
    assert ids(reference, "train") < ids(more, "train")
    seeds = plan({"seeds": [0, 1]})
    assert ids(reference, "train") < ids(seeds, "train") and ids(reference, "eval") < ids(seeds, "eval")


def test_which_words_carry_no_loss_matters():
    some, other = (
        plan({"arms.0.controls": ["anchors_masked"], "arms.0.anchors": [word]}) for word in ("logical", "step")
    )
    assert ids(some, "train") != ids(other, "train") and len(ids(some, "train") & ids(other, "train")) > 0


def test_how_many_tokens_carry_loss_matters():
    few, more = (plan({"arms.0.loss": "first_tokens", "arms.0.loss_tokens": n}) for n in (4, 8))
    assert ids(few, "train") != ids(more, "train")


def test_processes_and_compiling_leave_evaluations_of_the_base_alone(reference):
    made = plan({"hardware.processes": 2, "hardware.compile": True})
    base = {s for s in ids(reference, "generate") if "-base-" in s}
    assert base and base <= ids(made, "generate")


def test_target_modules_are_checked_when_the_plan_is_made():
    with pytest.raises(UserError, match=r"target_modules query: this model's linear layers are down_proj"):
        plan({"training.lora.target_modules": ["query"]})


def test_compiling_is_decided_by_counts(reference, monkeypatch):
    assert not reference.summary["math"]["training"]["compile"]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = [
        compile_pays(reference.hardware.model_copy(update={"dtype": dtype}), flops)
        for dtype in ("float32", "bfloat16")
        for flops in (1e12, 1e18)
    ]
    assert found == [False, False, False, True]


def test_name_and_report_level_change_no_step(reference):
    changes = {
        "name": "other",
        "analysis.alpha": 0.1,
        "analysis.margin": 0.1,
        "capabilities.math.primary.metric": "accuracy",
        "capabilities.math.primary.margin": 0.2,
    }
    made = plan({**changes, "training.checkpoint_minutes": 1.0, "training.report_to": ["tensorboard"]})
    assert [s.slug for s in made.steps] == [s.slug for s in reference.steps]


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("analysis.alpha", 0.1, {"alpha": 0.1}),
        ("analysis.margin", 0.1, {"margin": 0.1}),
        ("capabilities.math.primary.margin", 0.2, {"margins": {"math": 0.2}}),
    ],
)
def test_every_option_of_the_verdict_reaches_its_rules(path, value, changed):
    study = tiny_study()
    before = rules_of(parse_study(study, "test"))
    node = study
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    assert rules_of(parse_study(study, "test")) == replace(before, **changed) != before


def test_stored_hardware_is_obeyed(reference):
    elsewhere = reference.model_copy(
        update={"hardware": reference.hardware.model_copy(update={"dtype": "bfloat16", "why": "another machine"})}
    )
    assert plan(stored=elsewhere).hardware == elsewhere.hardware
    assert plan({"hardware.threads": 2}, stored=elsewhere).hardware.dtype == reference.hardware.dtype


def test_code_counts_comments_and_docstrings_do_not(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "PACKAGE", tmp_path)
    found = []
    for text in ('"""Doc."""\nx = 1\n', '"""Other."""\n# why\nx  =  1\n', '"""Doc."""\nx = 2\n'):
        (tmp_path / "m.py").write_text(text)
        steps.module_code.cache_clear()
        code_hash.cache_clear()
        found.append(code_hash(("m",)))
    code_hash.cache_clear()
    assert found[0] == found[1] != found[2]


def test_inputs_count(monkeypatch):
    a, b = (make_step("data", "d", {"x": x}, {}) for x in (1, 2))
    first, second = (make_step("arms", "n", {}, {"data": s}) for s in (a, b))
    assert first.id != second.id and first.inputs == {"data": a.slug}
    after = make_step("arms", "n", {}, {"data": a}, after=[b])
    assert after.id == first.id


def test_signature_follows_data_files(tmp_path):
    path = tmp_path / "d.jsonl"
    study = tiny_study()
    study["capabilities"]["math"]["data"]["source"] = str(path)
    path.write_text("a")
    one = signature(parse_study(study, "t"))
    path.write_text("b")
    assert signature(parse_study(study, "t")) != one


def test_every_step_names_its_code():
    for modules in steps.CODE.values():
        for module in modules:
            assert (steps.PACKAGE / (module if module.endswith(".txt") else f"{module}.py")).exists()
