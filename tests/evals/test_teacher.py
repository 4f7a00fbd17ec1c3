"""What a teacher's failures are known to have cost, over real connections to a scripted server."""

import asyncio

import pytest
from inspect_ai.model import ModelAPI, modelapi

from chat_server import Reply, running
from fault_proxy import proxied
from prefixlab.errors import UserError
from prefixlab.evals.teacher import Teacher, TeacherFailed

NAME = "openai-api/taught/teacher-1"


def teacher(timeout=20):
    return Teacher(NAME, max_tokens=64, temperature=0.0, timeout=timeout, connections=2)


def ask(timeout=20):
    return asyncio.run(teacher(timeout).ask("hello"))


def test_a_reply_and_what_it_took(monkeypatch):
    with running(monkeypatch, [Reply(text="<answer>7</answer>", finish="length")], "TAUGHT") as server:
        said = ask()
    assert (said.text, said.stop, said.tokens_in, said.tokens_out) == ("<answer>7</answer>", "max_tokens", 5, 2)
    assert server.requests[0]["temperature"] == 0.0 and server.requests[0]["max_tokens"] == 64


@pytest.mark.parametrize(
    ("fault", "free", "again", "hopeless"),
    [
        ("429", True, True, False),
        ("500", True, True, False),
        ("504", False, True, False),
        ("400", True, False, False),
        ("401", True, False, True),
        ("drop", False, True, False),
        ("drop paid", False, True, False),
        ("no json", False, True, False),
        ("stall", False, True, False),
    ],
)
def test_failures(monkeypatch, fault, free, again, hopeless):
    """One request a call: neither Inspect nor the client behind it tries again in secret."""
    with (
        running(monkeypatch, [Reply(text="hi")], "TAUGHT") as server,
        proxied(server.url, lambda n, body: fault) as proxy,
    ):
        monkeypatch.setenv("TAUGHT_BASE_URL", proxy.url)
        with pytest.raises(TeacherFailed) as error:
            ask(timeout=1 if fault == "stall" else 20)
        assert (error.value.free, error.value.again, error.value.hopeless) == (free, again, hopeless), error.value
        assert proxy.n == 1


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter"])
def test_a_prompt_that_no_provider_takes_costs_nothing(monkeypatch, code):
    """Inspect makes a reply of the cut or blocked kind of such a status 400, without usage."""
    refused = Reply(status=400, error={"code": code, "message": "too long"})
    with running(monkeypatch, [refused], "TAUGHT") as server, pytest.raises(TeacherFailed, match="too long") as error:
        ask()
    assert error.value.free and not error.value.again and not error.value.hopeless and len(server.requests) == 1


class Plain(ModelAPI):
    """A provider that says nothing of which failures pass, as Inspect's own default."""

    async def generate(self, input, tools, tool_choice, config):
        error = RuntimeError("slow down")
        error.status_code = 429
        raise error


def test_a_rate_limit_of_a_provider_that_says_no_more_is_asked_again():
    modelapi(name="plain429")(Plain)
    with pytest.raises(TeacherFailed) as failed:
        asyncio.run(Teacher("plain429/m", max_tokens=64, temperature=0.0, timeout=20, connections=2).ask("hello"))
    assert (failed.value.status, failed.value.again, failed.value.hopeless) == (429, True, False), failed.value


def test_a_quota_that_is_used_up_is_not_asked_again(monkeypatch):
    """OpenAI says 429 for it, as for a rate that is too high, which a pause helps."""
    used_up = {"message": "You exceeded your current quota, please check your plan.", "code": "insufficient_quota"}
    for error, hopeless in (({"message": "Rate limit reached"}, False), (used_up, True)):
        with running(monkeypatch, [Reply(status=429, error=error)], "OPENAI") as server:
            with pytest.raises(TeacherFailed) as failed:
                made = Teacher("openai/gpt-4.1", max_tokens=64, temperature=0.0, timeout=20, connections=2)
                asyncio.run(made.ask("hello"))
            assert failed.value.hopeless == hopeless and failed.value.free and len(server.requests) == 1


def test_a_server_that_is_not_there_costs_nothing(monkeypatch):
    monkeypatch.setenv("TAUGHT_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("TAUGHT_API_KEY", "none")
    with pytest.raises(TeacherFailed) as error:
        ask()
    assert error.value.free and error.value.again


@pytest.mark.parametrize("name", ["nobody/x", "openai-api/nokey/x"])
def test_a_teacher_that_cannot_be_made(name):
    with pytest.raises(UserError, match="cannot be used"):
        Teacher(name, max_tokens=1, temperature=0.0, timeout=1, connections=1)
