"""Our suites under Inspect itself, on a model that is not ours; the log can be judged again by prefixlab."""

import json

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model

from chat_server import answering
from prefixlab.errors import UserError
from prefixlab.evals.tasks import suite

pytestmark = pytest.mark.smoke


def test_a_suite_under_inspect_eval_and_scored_again(call, tmp_path, monkeypatch):
    with answering(monkeypatch, lambda body: "I'm sorry, but I can't help with that."):
        model = get_model("openai-api/lab/model", memoize=False)
        (log,) = inspect_eval(suite("safety", limit=6), model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success"
    named = {s.name: next(iter(s.metrics.values())).value for s in log.results.scores}
    assert named["safe@1"] == 1.0 and named["over_refusal"] == 1.0
    done = call("score", tmp_path / "logs", "--out", tmp_path / "s", "--json")
    assert done.returncode == 0, done.stderr
    rows = {r["metric"]: r for r in json.loads(done.stdout)}
    assert rows["safe@1"]["value"] == 1.0 and rows["safe@1"]["protocol"] == "prefixlab"


def test_suites_that_need_the_model_itself_are_refused():
    with pytest.raises(UserError, match="prefixlab generate only"):
        suite("truthfulqa_mc")
    with pytest.raises(UserError, match="'star1' has a repetition penalty"):
        suite("safety", protocol="star1")
