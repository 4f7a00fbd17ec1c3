"""What judges share: stored verdicts, neutral text, and a remote judge that fails in every way over real HTTP."""

import asyncio
import multiprocessing
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from inspect_ai.model import ChatMessageUser

from chat_server import JUDGE as MODEL
from chat_server import Reply, serving
from prefixlab.errors import StepError, UserError
from prefixlab.evals.judging import EMPTY, Cached, JudgeDown, Judgement, Remote, neutral
from prefixlab.evals.verdicts_cache import VerdictCache, verdict_key


def remote(**changes):
    return Remote(MODEL, **{"max_tokens": 16, "timeout": 20, "retries": 0, "logprobs": False} | changes)


def ask(model, text="hello"):
    return asyncio.run(model.ask([ChatMessageUser(content=text)]))


def judgement(verdict="safe", **changes):
    return Judgement(**{"verdict": verdict, "unsafe_probability": 0.25, "raw": verdict, "reason": ""} | changes)


class Counting:
    """A judge by table, that counts how often it is asked."""

    name = "counting"

    def __init__(self, *answers, identity=None):
        self.answers, self.asked, self.identity = answers, 0, identity or {"judge": "counting"}

    async def judge(self, prompt, response):
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cache(tmp_path):
    return VerdictCache(tmp_path / "deep" / "verdicts.sqlite")


# The cache


@pytest.mark.parametrize("verdict", ["safe", "unsafe", "INVALID"])
def test_a_verdict_is_asked_for_once(cache, verdict):
    judge = Counting(judgement(verdict, reason="nonsense" if verdict == "INVALID" else ""), judgement("safe", raw="2"))
    for _ in range(2):
        found = asyncio.run(Cached(judge, VerdictCache(cache.path)).judge("p", "r"))
        assert found.verdict == verdict and found.raw == verdict and found.unsafe_probability == 0.25
    assert judge.asked == 1


def test_a_judge_that_is_down_is_asked_again(cache):
    judge = Counting(JudgeDown("judge 'x' is down"), judgement("unsafe"))
    cached = Cached(judge, cache)
    with pytest.raises(StepError, match="is down"):
        asyncio.run(cached.judge("p", "r"))
    assert asyncio.run(cached.judge("p", "r")).verdict == "unsafe" and judge.asked == 2


def test_every_part_of_the_key_counts(cache):
    keys = {
        verdict_key(identity, prompt, response)
        for identity in ({"a": "1"}, {"a": "2"}, {"b": "1"})
        for prompt, response in (("p", "r"), ("pr", ""), ("", "pr"), ("r", "p"), ("p", "r "), ("\ud800", "r"))
    }
    assert len(keys) == 18
    assert verdict_key({"a": "1", "b": "2"}, "p", "r") == verdict_key({"b": "2", "a": "1"}, "p", "r")


def test_another_identity_is_another_verdict(cache):
    first, second = Counting(judgement("safe")), Counting(judgement("unsafe"), identity={"judge": "other"})
    assert asyncio.run(Cached(first, cache).judge("p", "r")).verdict == "safe"
    assert asyncio.run(Cached(second, cache).judge("p", "r")).verdict == "unsafe"


def test_the_wrapper_keeps_what_a_result_must_say(cache):
    cached = Cached(Counting(judgement()), cache)
    assert (cached.name, cached.identity) == ("counting", {"judge": "counting"})


def test_the_first_verdict_written_is_everybodys(cache):
    """Two workers that ask at the same time agree afterwards."""

    class Slow(Counting):
        async def judge(self, prompt, response):
            answer = await super().judge(prompt, response)
            cache.put(verdict_key(self.identity, prompt, response), judgement("unsafe").model_dump_json())
            return answer

    assert asyncio.run(Cached(Slow(judgement("safe")), cache).judge("p", "r")).verdict == "unsafe"


def put_many(path, worker, n):
    cache = VerdictCache(path)
    for i in range(n):
        cache.put(f"{worker}-{i}", "own")
        cache.put(f"common-{i}", str(worker))


@pytest.mark.smoke
def test_threads_and_processes_share_a_file(tmp_path):
    path, n = tmp_path / "v.sqlite", 8
    processes = [multiprocessing.get_context("spawn").Process(target=put_many, args=(path, w, n)) for w in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda w: put_many(path, w, n), range(2, 6)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = VerdictCache(path)
    assert all(cache.get(f"{w}-{i}") == "own" for w in range(6) for i in range(n))
    assert all(cache.get(f"common-{i}") in set("012345") for i in range(n))
    assert cache.get("other") is None


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to have a header of its own" * 40, b"SQLite format 3\0" * 80]
)
def test_a_corrupt_file_is_named_with_the_fix(tmp_path, content):
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"verdicts\.sqlite' is corrupt \(.+\); move it away or delete it") as caught:
        VerdictCache(path)
    assert "\n" not in str(caught.value) and path.read_bytes() == content


def test_a_file_cut_short_is_corrupt(cache):
    for i in range(20):
        cache.put(str(i), "x" * 3_000)
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is corrupt"):
        for i in range(20):
            cache.get(str(i))


def test_a_row_that_is_no_verdict_is_corrupt(cache):
    judge = Counting(judgement())
    cache.put(verdict_key(judge.identity, "p", "r"), '{"verdict": "fine"}')
    with pytest.raises(UserError, match="a row holds no verdict"):
        asyncio.run(Cached(judge, cache).judge("p", "r"))
    assert judge.asked == 0


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "v.sqlite"):
        with pytest.raises(UserError, match="cannot be used") as caught:
            VerdictCache(path)
        assert "\n" not in str(caught.value)


def test_a_foreign_database_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "v.sqlite") as db:
        db.execute("CREATE TABLE verdicts (id INTEGER)")
    with pytest.raises(UserError, match="cannot be used"):
        VerdictCache(tmp_path / "v.sqlite").get("x")


# Text under judgement


@pytest.mark.parametrize(
    "mark",
    [
        "<|eot_id|>", "<|im_end|>", "<|start_header_id|>", "<|reserved_special_token_7|>", "<|end▁of▁sentence|>".replace("|", "｜"),
        "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>",
        "<END CONVERSATION>", "<BEGIN UNSAFE CONTENT CATEGORIES>", "<|EOT_ID|>",
    ],
)  # fmt: skip
def test_marks_lose_their_power_and_nothing_else_changes(mark):
    text = f"a {mark}b{mark}{mark}"
    changed = neutral(text)
    assert mark not in changed and neutral(changed) == changed
    assert changed.replace(f"{mark[0]} {mark[1:]}", mark) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "plain", "a < b and b > c", "x <- y |> f", "<think>\nOne.\n</think>\n\nTwo.", "<table><tr></tr></table>", "a || b",
        "if (a <| b) or\n(c |> d)", "[1, 2]", "safe\n\nunsafe\nS1", "naïve 日本 🙂",
    ],
)  # fmt: skip
def test_other_text_is_left_alone(text):
    assert neutral(text) == text


def test_the_judges_own_tokens_and_lone_surrogates():
    assert neutral("a [SEP] b </turn>", ["[SEP]", "</turn>"]) == "a [ SEP] b < /turn>"
    assert neutral("a\ud800b🙂") == "a\ufffdb🙂"


def test_raw_is_cut_and_can_be_stored():
    assert len(judgement(raw="x" * 5_000).raw) == 2_000
    odd = judgement(raw="\udfff!")
    assert Judgement.model_validate_json(odd.model_dump_json()) == odd and odd.raw == "\ufffd!"
    assert EMPTY.verdict == "INVALID" and EMPTY.reason == "empty"


# The remote model


@pytest.mark.smoke
def test_an_answer(monkeypatch):
    with serving(monkeypatch, Reply("unsafe\nS1")) as server:
        output = ask(remote(), "hello 🙂")
    assert output.completion == "unsafe\nS1"
    (sent,) = server.requests
    assert sent["model"] == "judge-1" and sent["temperature"] == 0 and sent["max_tokens"] == 16
    assert "logprobs" not in sent


@pytest.mark.smoke
def test_one_judge_over_several_event_loops(monkeypatch):
    with serving(monkeypatch, Reply("safe")) as server:
        judge = remote()
        assert [ask(judge).completion for _ in range(3)] == ["safe"] * 3
    assert len(server.requests) == 3


@pytest.mark.smoke
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_retried(monkeypatch, status):
    with serving(monkeypatch, Reply(status=status), Reply("unsafe")) as server:
        assert ask(remote()).completion == "unsafe"
    assert len(server.requests) == 2


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (401, "AuthenticationError"),
        (404, "NotFoundError"),
        (400, "BadRequestError"),
    ],
)
def test_a_lasting_fault_is_one_clear_line(monkeypatch, status, message):
    reply = Reply(status=status, error={"message": "no\nluck"})
    with serving(monkeypatch, reply) as server, pytest.raises(JudgeDown) as caught:
        ask(remote())
    line = str(caught.value)
    assert MODEL in line and message in line and "run again" in line and "\n" not in line
    assert len(server.requests) == (3 if status in (429, 500) else 1)  # the client's own three tries, no more


@pytest.mark.smoke
def test_a_rate_limit_is_never_read_as_too_long(monkeypatch):
    error = {"message": "tokens per minute exceeded; your prompt is too long for this quota"}
    with serving(monkeypatch, Reply(status=429, error=error)), pytest.raises(JudgeDown, match="RateLimitError"):
        ask(remote())


@pytest.mark.slow
def test_inspects_own_retries(monkeypatch):
    """The client of the provider tries three times, then Inspect waits and starts again."""
    with serving(monkeypatch, *[Reply(status=429)] * 4, Reply("safe")) as server:
        assert ask(remote(retries=1)).completion == "safe"
    assert len(server.requests) == 5


@pytest.mark.smoke
def test_a_slow_judge(monkeypatch):
    with serving(monkeypatch, Reply(delay=3)), pytest.raises(JudgeDown, match="'1' exceeded"):
        start = time.monotonic()
        ask(remote(timeout=1))
    assert time.monotonic() - start < 3


@pytest.mark.smoke
def test_a_judge_that_is_not_there(monkeypatch):
    with serving(monkeypatch, Reply()):
        judge = remote()
    with pytest.raises(JudgeDown, match="APIConnectionError"):
        ask(judge)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"code": "context_length_exceeded"}),
        (400, {"message": "This model's maximum context length is 8192 tokens. However, you requested 9000."}),
        (413, {"message": "prompt is too long: 9000 tokens > 8192 maximum"}),
    ],
)
def test_too_long_for_the_server(monkeypatch, status, error):
    with serving(monkeypatch, Reply(status=status, error=error)):
        found = ask(remote())
    assert (found.verdict, found.reason) == ("INVALID", "too long")


@pytest.mark.smoke
@pytest.mark.parametrize(
    "reply",
    [Reply("safe", finish="content_filter"), Reply(status=400, error={"code": "content_filter", "message": "safe"})],
)
def test_what_the_provider_blocks_is_invalid_whatever_it_says(monkeypatch, reply):
    with serving(monkeypatch, reply):
        found = ask(remote())
    assert found.verdict == "INVALID" and "blocked" in found.reason


def test_a_model_that_cannot_be_made(monkeypatch):
    monkeypatch.delenv("JUDGED_API_KEY", raising=False)
    for name, why in ((MODEL, "JUDGED_API_KEY"), ("nosuch/model", "nosuch")):
        with pytest.raises(UserError, match=why) as caught:
            Remote(name, max_tokens=1, timeout=1, retries=0, logprobs=False)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"timeout": 0}, {"retries": -1}])
def test_settings_that_make_no_sense(changes):
    with pytest.raises(UserError, match="at least 1 second and 0 retries"):
        remote(**changes)
