"""The front of ratio and placement, and the advice drawn from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import RULES, N, analyse, cell, seeded

from prefixlab.analysis import stats
from prefixlab.analysis.advice import advise, pareto
from prefixlab.analysis.results import results
from prefixlab.analysis.rows import Rules

A, B, C = "set-opening-r050", "set-opening-r100", "set-user-r100"


def adapter(arm, accuracy=40, safe=40, attacked=None, refused=None, *, seed=0, n=N, control=None, missing=()):
    """One adapter on mathematics, harmful prompts, attacked ones and harmless ones."""
    asked = {
        "accuracy": (accuracy, {}),
        "safe": (safe, {"suite": "harm", "metric": "safe@1"}),
        "attacked": (attacked, {"suite": "harm", "metric": "safe@1", "condition": "attack_answer@5"}),
        "refused": (refused, {"suite": "harmless", "metric": "over_refusal", "higher": False}),
    }
    return [
        cell(arm, hits, seed=seed, n=n, control=control, missing=name in missing, **where)
        for name, (hits, where) in asked.items()
        if hits is not None
    ]


def front_of(*groups):
    made = analyse(*(c for group in groups for c in group))
    (front,) = made.fronts
    return front, {a.arm: a for a in front.arms}


def test_objectives_and_their_values():
    front, arms = front_of(adapter("base"), adapter("r000", 30, 60, 24, 12), adapter(B, 36, 60, 24, 12))
    assert front.objectives == ("safety", "attack robustness", "over-refusal", "accuracy") and not front.not_measured
    assert arms["r000"].values == {"safety": 0.5, "attack robustness": 0.2, "over-refusal": 0.1, "accuracy": 0.25}
    assert set(arms) == {"r000", B} and arms["r000"].against_r000 == {}
    assert arms[B].against_r000["accuracy"][0] == pytest.approx(6 / N) and arms[B].against_r000["safety"][0] == 0


def test_what_was_not_measured_is_named():
    front, _ = front_of(adapter("r000"), adapter(B))
    assert (front.objectives, front.not_measured) == (("safety", "accuracy"), ("attack robustness", "over-refusal"))


def test_dominated_clearly_and_by_chance():
    _, arms = front_of(adapter("r000", 40, 40), adapter(A, 42, 40), adapter(B, 90, 40), adapter(C, 30, 80))
    assert {a: arms[a].on_front for a in arms} == {"r000": False, A: False, B: True, C: True}
    assert (arms["r000"].dominated_by, arms["r000"].clear) == (B, True)
    _, arms = front_of(adapter("r000", 40, 40), adapter(A, 42, 40))
    assert (arms["r000"].dominated_by, arms["r000"].clear) == (A, False) and arms[A].on_front


def test_fewer_refusals_are_better():
    _, arms = front_of(adapter("r000", refused=60), adapter(B, refused=10))
    assert not arms["r000"].on_front and arms[B].on_front and arms["r000"].clear
    diff, low, high = arms[B].against_r000["over-refusal"]
    assert diff == pytest.approx(50 / N) and low > 0 and high < 1


def test_equal_arms_are_all_on_the_front():
    _, arms = front_of(adapter("r000"), adapter(B), adapter("native"))
    assert all(a.on_front for a in arms.values())


def test_controls_and_native_are_compared_too():
    _, arms = front_of(
        adapter("r000", 40),
        adapter("native", 41),
        adapter(B, 42),
        adapter("neutral-opening-r100", 43, control="neutral"),
    )
    assert [a for a in arms if arms[a].on_front] == ["neutral-opening-r100"]


def test_an_arm_without_a_measurement_is_not_compared():
    _, arms = front_of(adapter("r000"), adapter(A), adapter(B, 90, 90, missing=("safe",)))
    assert arms[B].on_front is None and arms[B].values["safety"] is None and arms[B].dominated_by is None
    assert arms["r000"].on_front and arms[A].on_front
    assert arms[B].against_r000["safety"] == (None, None, None)


def test_a_condition_that_does_not_apply_is_no_objective():
    cells = [*adapter("r000"), *adapter(B)]
    for arm in ("r000", B):
        absent = cell(arm, 0, suite="harm", metric="safe@1", condition="attack_opening@5", missing=True)
        object.__setattr__(absent, "status", "not_applicable")
        cells.append(absent)
    (front,) = analyse(*cells).fronts
    assert front.objectives == ("safety", "accuracy") and all(a.on_front for a in front.arms)


def test_a_metric_that_no_prompt_of_a_suite_asks_for_is_no_objective():
    """A file of harmless prompts alone says nothing of safety, and must not hide what another suite says."""
    cells = [*adapter("r000"), *adapter(B)]
    for arm in ("r000", B):
        harmless = cell(arm, 0, suite="harmless", metric="over_refusal", higher=False)
        harmless.metrics["safe@1"] = True
        cells.append(harmless)
    (front,) = analyse(*cells).fronts
    assert front.objectives == ("safety", "over-refusal", "accuracy")


def test_suites_count_alike_and_conditions_of_a_suite_share_its_prompts():
    """Two suites of unequal size, one of them under two attacks: the mean of suite means, and one unit a prompt."""
    rng = np.random.default_rng(1)
    shapes = {("x", "attack_answer@5"): 200, ("x", "attack_answer@10"): 200, ("y", "attack_answer@5"): 50}
    hits = {(arm, *s): np.flatnonzero(rng.random(n) < 0.5) for s, n in shapes.items() for arm in ("r000", B)}
    cells = [cell(arm, 40) for arm in ("r000", B)]
    cells += [
        cell(a, h, suite=s, condition=c, metric="safe@1", n=shapes[s, c]) for (a, s, c), h in hits.items()
    ]  # fmt: skip
    (front,) = analyse(*cells).fronts
    arms = {a.arm: a for a in front.arms}
    table = {key: np.isin(np.arange(shapes[key[1:]]), h).astype(float) for key, h in hits.items()}
    d = {s: table[B, *s] - table["r000", *s] for s in shapes}
    x, y = (d["x", "attack_answer@5"] + d["x", "attack_answer@10"]) / 2, d["y", "attack_answer@5"]
    diff, low, high = arms[B].against_r000["attack robustness"]
    assert diff == pytest.approx((x.mean() + y.mean()) / 2)
    scaled = np.concatenate([x * 250 / 400, y * 250 / 100])
    assert (low, high) == pytest.approx([getattr(stats.paired(scaled, 0 * scaled, 0.05), e) for e in ("low", "high")])
    # Each condition weighs alike in the level.
    assert arms[B].values["attack robustness"] == pytest.approx(np.mean([table[B, *s].mean() for s in shapes]))


def test_with_seeds_the_interval_holds_their_variance():
    pairs = [(40, 70), (40, 50), (40, 30)]
    cells = [*seeded(pairs), *seeded([(40, 40)] * 3, suite="harm", metric="safe@1")]
    (front,) = analyse(*cells).fronts
    arms = {a.arm: a for a in front.arms}
    diff, low, high = arms[B].against_r000["accuracy"]
    assert diff == pytest.approx(10 / N) and low < 0 < high
    assert not arms["r000"].on_front and not arms["r000"].clear


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=6))
def test_front_is_the_brute_force_front(points):
    names = ["r000", *(f"set-opening-r{i:03d}" for i in range(1, len(points)))]
    cells = [c for name, (a, s) in zip(names, points, strict=True) for c in adapter(name, 5 * a, 5 * s, n=20)]
    rows = results(cells, [], 0.05)
    (front,) = pareto(cells, rows, RULES)
    on = {a.arm for a in front.arms if a.on_front}
    beats = lambda p, q: p[0] >= q[0] and p[1] >= q[1] and p != q  # noqa: E731
    assert on == {n for n, q in zip(names, points, strict=True) if not any(beats(p, q) for p in points)}
    for arm in front.arms:
        if not arm.on_front:
            assert beats(points[names.index(arm.dominated_by)], points[names.index(arm.arm)])


def test_an_attack_as_primary_is_robustness_and_not_safety():
    rules = Rules({"math": ("harm", "proto", "safe@1", "attack_answer@5")}, 0.05, 0.05)
    cells = [c for arm in ("r000", B) for c in adapter(arm, None, 40, 40)]
    (front,) = analyse(*cells, rules=rules).fronts
    assert front.objectives == ("safety", "attack robustness")


# Advice


def advice_of(*groups):
    (advice,) = analyse(*(c for group in groups for c in group)).advice
    assert 1 <= len(advice.sentences) <= 3 and all(s.endswith(".") and "nan" not in s for s in advice.sentences)
    return advice


@pytest.mark.parametrize(
    ("arm", "right", "action", "words"),
    [
        (B, 90, "add", f"add {B} (+41.7 points of accuracy, whether because of its words is undecided)"),
        (B, 5, "leave out", f"leave out {B} (-29.2 points of accuracy)"),
        ("native", 90, "keep", "keep native (+41.7"),
        ("native", 5, "strip", "strip native (-29.2"),
        ("original-opening-r100", 90, "keep", "keep original-opening-r100"),
        (B, 40, "free choice", f"do as you like with {B} (+0.0 points of accuracy, within the margin of 5)"),
        (B, 45, "test more", "nothing is decided"),
        (B, None, "test more", "nothing is decided"),
    ],
)
def test_actions(arm, right, action, words):
    advice = advice_of(adapter("r000"), adapter(arm, right or 0, missing=() if right else ("accuracy",)))
    assert advice.actions == {arm: action} and words in advice.sentences[0]


def test_one_seed_is_no_ground_to_act():
    advice = advice_of(adapter("r000"), adapter(B, 90))
    assert (
        "for this training seed" in advice.sentences[0] and "three or more seeds before acting" in advice.sentences[1]
    )
    many = advice_of(*(adapter(arm, right + s, seed=s) for s in range(3) for arm, right in (("r000", 40), (B, 90))))
    assert "this training seed" not in many.sentences[0] and "three or more seeds" not in " ".join(many.sentences)


def test_undecided_says_what_would_decide():
    made = analyse(*adapter("r000"), *adapter(B, 45))
    (verdict,), (advice,) = made.verdicts, made.advice
    assert f"{B} (undecided; about {verdict.prompts_needed} prompts or three or more seeds" in advice.sentences[1]
    assert f"now {N} and 1" in advice.sentences[1]


def test_floor_asks_for_another_suite():
    advice = advice_of(adapter("base", 0), adapter("r000", 1), adapter(B, 2))
    assert advice.actions == {B: "test more"} and f"{B} on an easier or a harder suite" in advice.sentences[1]


def test_gain_that_costs_elsewhere_is_to_be_weighed():
    advice = advice_of(adapter("r000", 40, 80, refused=20), adapter(B, 90, 30, refused=90))
    assert advice.actions == {B: "weigh"}
    assert "but worse: safety -41.7 (-50.0 to -32.0), over-refusal +58.3 (+48.3 to +66.4)" in advice.sentences[0]
    assert advice.sentences[-1].endswith(f"no arm beats r000, {B}.")


def test_gain_that_is_one_elsewhere_too():
    advice = advice_of(adapter("r000", 40, 40), adapter(B, 90, 90))
    assert advice.actions == {B: "add"} and "also better: safety +41.7" in advice.sentences[0]
    assert (
        "clearly beaten: r000" in advice.sentences[-1]
        and "attack robustness, over-refusal not measured" in advice.sentences[-1]
    )


def test_one_advice_for_several_sets():
    made = analyse(
        *adapter("r000"), *adapter("a-opening-r100", 90), *adapter("b-opening-r100", 5), *adapter("c-opening-r100", 45)
    )
    (advice,) = made.advice
    assert list(advice.actions.values()) == ["add", "leave out", "test more"] and len(advice.sentences) == 3


def test_advice_is_the_verdicts_and_the_front_alone():
    made = analyse(*adapter("r000"), *adapter(B, 90))
    assert advise(made.verdicts, made.fronts) == made.advice
    assert advise([], made.fronts)[0].actions == {}


def test_capabilities_are_not_mixed():
    """Adapters of two capabilities are no model: each has a front of its own."""
    rules = Rules({"math": RULES.primary["math"], "code": ("prog", "proto", "pass@1", "bare")}, 0.05, 0.05)
    cells = [*adapter("r000"), *adapter(B, 90)]
    cells += [cell(arm, r, suite="prog", metric="pass@1", capability="code") for arm, r in (("r000", 90), (B, 20))]
    made = analyse(*cells, rules=rules)
    assert [(a.capability, a.actions[B]) for a in made.advice] == [("code", "leave out"), ("math", "add")]


def test_another_capability_s_primary_counts_as_accuracy():
    rules = Rules({"math": RULES.primary["math"], "safety": ("harm", "proto", "safe@1", "bare")}, 0.05, 0.05)
    cells = []
    for arm in ("r000", B):
        cells.append(cell(arm, 40, capability="safety"))
        cells.append(cell(arm, 90, capability="safety", suite="harm", metric="safe@1"))
        cells.append(cell(arm, 90, capability="safety", suite="quiz"))
    front = next(f for f in analyse(*cells, rules=rules).fronts if f.capability == "safety")
    assert front.objectives == ("safety", "accuracy") and front.arms[0].values["accuracy"] == pytest.approx(40 / N)
