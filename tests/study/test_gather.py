"""From finished steps to the cells that results are made of."""

from conftest import tiny_study
from prefixlab.records import ModelRef, Resolved
from prefixlab.study.run import cell_scores
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import Store
from prefixlab.study_file import parse_study


def _declared(tmp_path, metric="accuracy"):
    """A study whose main comparison is somebody's Inspect task, planned for two arms, and its folder."""
    tree = tiny_study()
    del tree["capabilities"]["safety"]
    tree["arms"] = tree["arms"][:1]
    task = {"suite": "inspect:someone/task"}
    tree["capabilities"]["math"] |= {"suites": [task], "primary": task | {"metric": metric}}
    model = ModelRef(name="m", path="", revision=None, fingerprint="0" * 64, note="").model_dump()
    about = {"ratio": None, "position": None, "prefix_set": None, "control": None, "loss_scope": None}
    shared = {"model": model, "capability": "math", "suite": task, "protocol": "own", "condition": "bare", "seed": 0}
    shared |= {"metrics": {}, "judges": {}, "k": 1, "diagnostics": [], "proxies": []}
    steps = tuple(
        Step(
            slug=f"eval-{arm}",
            id=arm,
            kind="eval",
            config=shared | {"arm": about | {"arm": arm}},
            inputs={},
            after=(),
            predicted_seconds=0,
        )
        for arm in ("r000", "treated")
    )
    hardware = Resolved(device="cpu", dtype="float32", attention="x", threads=1, merge_adapters=True, why="")
    plan = Plan(study="t", signature="", hardware=hardware, hardware_asked={}, models=(), steps=steps, summary={})
    return parse_study(tree, "test"), plan, Store(tmp_path)


def test_arms_of_an_inspect_task_that_have_not_run_are_missing_and_not_left_out(tmp_path):
    """Else the Holm family would grow as arms finish, and an early p look better than it is."""
    study, plan, store = _declared(tmp_path)
    assert [(c.info.arm, c.metrics, c.status) for c in cell_scores(study, plan, store)] == [
        ("r000", {"accuracy": True}, "missing"),
        ("treated", {"accuracy": True}, "missing"),
    ]
    with store.writing("eval-r000", "r000") as folder:
        (folder / "scores.jsonl").write_text("")
        (folder / "metrics.json").write_text('{"match": true, "cost": false}')
    assert [(c.status, c.metrics) for c in cell_scores(study, plan, store)] == [
        ("measured", {"match": True, "cost": False}),
        ("missing", {"match": True, "cost": False}),
    ]
