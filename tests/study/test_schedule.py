"""The queue of an executor with many workers: order, bases, failures; and what a worker needs."""

import random
from pathlib import Path

import pytest

from prefixlab.study.needs import LIBRARIES, Need, needs, weight_bytes
from prefixlab.study.schedule import Schedule, base_of, lane_of, ranks
from prefixlab.study.steps import Step


def step(slug, kind, base="a", inputs=(), after=(), seconds=1.0, processes=1, judge=None):
    config = {"model": {"fingerprint": base}, "hardware": {"processes": processes}, "judge_settings": judge}
    named = {str(i): s for i, s in enumerate(inputs)}
    return Step(
        slug=slug, id=slug, kind=kind, config=config, inputs=named, after=tuple(after), predicted_seconds=seconds
    )


def cells(bases, n, rng=None):
    """`n` cells a base, each an arm, a training, a log and its scores, behind one check a base."""
    found = [step("data", "data")]
    for base in bases:
        found += [
            step(f"arms-{base}", "arms", inputs=["data"]),
            step(f"check-{base}", "check", inputs=[f"arms-{base}"]),
        ]
    for base in bases:
        for i in range(n):
            seconds = rng.uniform(50, 500) if rng else 100.0 + i
            name = f"{base}{i}"
            found += [
                step(f"train-{name}", "train", base, [f"arms-{base}"], [f"check-{base}"], seconds),
                step(f"log-{name}", "generate", base, [f"train-{name}"], (), seconds / 4),
                step(f"eval-{name}", "eval", base, [f"log-{name}"], (), 2.0),
            ]
    return found


def drain(schedule, lane, loaded=""):
    """Take and end steps of a lane as long as there are any; their slugs."""
    found = []
    while (taken := schedule.take(lane, loaded, {})) is not None:
        found.append(taken.slug)
        schedule.end(taken)
    return found


def test_lanes_and_bases():
    train, several = step("t", "train"), step("t2", "train", processes=2)
    assert base_of(train) == "a" and base_of(several) == "" and lane_of(several, True) == "model"
    guard = step("e", "eval", judge={"name": "llama-guard", "fingerprint": "g"})
    remote = step("e", "eval", judge={"name": "llama-guard", "model": "inspect:x/y"})
    assert (lane_of(guard, True), lane_of(remote, True), lane_of(step("e", "eval"), True)) == (
        "model",
        "plain",
        "plain",
    )
    assert {lane_of(s, False) for s in cells("a", 1)} == {"model"}
    asked = step("log", "generate")
    served = asked.model_copy(update={"config": {**asked.config, "serving": {"kind": "openai"}}})
    assert lane_of(asked, True) == "model" and (base_of(served), lane_of(served, True)) == ("", "plain")


def test_a_rank_is_the_longest_way_to_the_end():
    found = ranks(cells("a", 2))
    assert found["eval-a1"] == 2.0 and found["log-a1"] == 101 / 4 + 2 and found["train-a1"] == 101 + 101 / 4 + 2
    assert found["check-a"] == 1 + found["train-a1"] and found["data"] == 2 + found["check-a"]


def test_begun_cells_first_and_then_the_longest():
    schedule = Schedule(cells("a", 3), (), gpus=False)
    assert drain(schedule, "model") == [
        *("data", "arms-a", "check-a"),
        *("train-a2", "log-a2", "eval-a2", "train-a1", "log-a1", "eval-a1", "train-a0", "log-a0", "eval-a0"),
    ]
    assert schedule.left("model") == 0


def test_nothing_starts_before_what_it_needs():
    steps = cells("ab", 20, random.Random(3))
    schedule, rng, running, done = Schedule(steps, (), gpus=True), random.Random(4), [], set()
    while schedule.left("model") or schedule.left("plain"):
        for lane in ("model", "plain"):
            taken = schedule.take(lane, rng.choice(["", "a", "b"]), {})
            if taken is not None:
                assert {*taken.inputs.values(), *taken.after} <= done
                running.append(taken)
        ended = running.pop(rng.randrange(len(running)))
        if rng.random() < 0.2:
            schedule.again(ended)  # its worker was lost
        else:
            schedule.end(ended)
            done.add(ended.slug)
    assert done == {s.slug for s in steps}


def test_a_worker_keeps_its_base_and_another_goes_where_most_work_waits():
    ready = {"data", "arms-a", "arms-b", "check-a", "check-b"}
    steps = [s for s in cells("ab", 2) if s.slug not in ready]
    heavy = [s.model_copy(update={"predicted_seconds": 900.0}) if s.slug == "train-b0" else s for s in steps]
    schedule = Schedule(heavy, ready, gpus=True)
    assert schedule.take("model", "a", {}).slug == "train-a1"
    assert schedule.take("model", "", {"a": 1}).slug == "train-b0"
    # 101 s of b wait with one worker on it already, 100 s of a with one.
    assert schedule.take("model", "", {"a": 1, "b": 3}).slug == "train-a0"
    assert schedule.take("model", "a", {}).slug == "train-b1"  # nothing of a is ready


def test_the_last_cells_begin_before_the_others_are_evaluated():
    ready = {"data", "arms-a", "check-a"}
    schedule = Schedule([s for s in cells("a", 4) if s.slug not in ready], ready, gpus=True)
    first, second = (schedule.take("model", "a", {"a": 1}) for _ in range(2))
    schedule.end(first)
    assert schedule.take("model", "a", {"a": 1}).slug == "log-a3"  # two cells wait, and one other worker has the base
    schedule.end(second)
    assert schedule.take("model", "a", {"a": 2}).slug == "train-a1"  # two cells for two others


def test_a_failure_takes_with_it_what_needs_it_and_nothing_else():
    ready = ("data", "arms-a", "check-a")
    schedule = Schedule([s for s in cells("a", 2) if s.slug not in ready], ready, gpus=True)
    failed = schedule.take("model", "", {})
    assert failed.slug == "train-a1"
    assert [(s.slug, need) for s, need in schedule.fail(failed)] == [("log-a1", "train-a1"), ("eval-a1", "log-a1")]
    assert drain(schedule, "model") == ["train-a0", "log-a0"] and drain(schedule, "plain") == ["eval-a0"]
    assert schedule.left("model") == schedule.left("plain") == 0


def test_a_step_behind_two_failures_is_given_up_once():
    steps = [step("x", "train"), step("y", "train"), step("z", "tokens", inputs=["x", "y"])]
    schedule = Schedule(steps, (), gpus=True)
    first, second = schedule.take("model", "", {}), schedule.take("model", "", {})
    assert [s.slug for s, _ in schedule.fail(first)] == ["z"] and schedule.fail(second) == []
    assert schedule.left("model") == 0


def test_room_for_workers():
    cluster = pytest.importorskip("prefixlab.study.cluster")
    node = cluster.Node("id", "n", cpus=16, gpus=8, memory=100e9)
    plain = Need(cpus=1, gpus=0, memory=10**9)
    assert node.seats({"model": Need(1, 1, 10**9), "plain": plain}) == 8
    assert node.seats({"model": Need(4, 1, 10**9), "plain": plain}) == 3  # 5 CPUs a pair
    assert node.seats({"model": Need(1, 1, 49 * 10**9), "plain": plain}) == 2
    assert node.seats({"model": Need(2, 16, 10**9), "plain": plain}) == 0


@pytest.mark.smoke
def test_needs_are_counted_from_the_plan(study_file):
    from prefixlab.config import HardwareConfig
    from prefixlab.model.load import resolve_model
    from prefixlab.model.machine import resolve
    from prefixlab.study.plan import make_plan
    from prefixlab.study_file import load_study

    plan = make_plan(load_study(study_file(), []), None)
    weights = weight_bytes(plan.models[0], "float32")
    file = next(Path(plan.models[0].path).glob("*.safetensors"))
    assert 0.7 < weights / file.stat().st_size < 2.5  # the file may hold bfloat16
    on_cpus = plan.model_copy(update={"hardware": resolve(HardwareConfig(threads=3, dtype="float32"))})
    assert needs(on_cpus, plan.steps) == {"model": Need(cpus=3, gpus=0, memory=weights + LIBRARIES)}
    gpus = plan.hardware.model_copy(update={"device": "cuda", "dtype": "bfloat16", "processes": 2, "threads": 64})
    found = needs(plan.model_copy(update={"hardware": gpus}), plan.steps)
    assert found["model"] == Need(cpus=2, gpus=2, memory=weights // 2 + LIBRARIES, gpu_memory=weights // 2)
    assert found["plain"].cpus == 1 and found["plain"].gpus == 0
    scores = [s for s in plan.steps if s.kind == "eval"]
    guard = {"name": "llama-guard", "model": "smollm2-135m", "fingerprint": "f"}  # a judge in the worker's process
    judged = [s.model_copy(update={"config": {**s.config, "judge_settings": guard}}) for s in scores]
    larger = weight_bytes(resolve_model("smollm2-135m"), "bfloat16")
    assert (
        larger > 10 * weights
        and needs(plan.model_copy(update={"hardware": gpus}), judged)["model"].gpu_memory == larger
    )
    assert set(needs(plan.model_copy(update={"hardware": gpus}), scores)) == {"plain"}  # all that is left needs no GPU
