"""A server that drops, stalls, refuses and babbles: what is tried again, what is kept, and when it counts as gone."""

import asyncio
import time

import httpx
import pytest

from fault_proxy import FAULTS, proxied
from model_server import running
from prefixlab.evals.conditions import Prompt
from prefixlab.evals.planning import Kept, PlannedRequest, plan_batches
from prefixlab.evals.served import GREEDY, Form, Job, Rendering, Served, ask_all
from prefixlab.evals.server import OBEYED, Client, Endpoint, Refused, ServerDown, Unanswered, wished_pause
from prefixlab.records import Message

IDS = Form(prompts="token ids", precise=True)


@pytest.fixture(scope="module")
def server():
    with running() as made:
        yield made


def rendering(server):
    return Rendering(server.loaded.tokenizer, server.loaded.chat, frozenset({server.loaded.tokenizer.eos_token_id}))


def prompts(server, n):
    turns = [(Message(role="user", content=f"Say the number {i}."),) for i in range(n)]
    return [Prompt(ids=rendering(server).ids(t)) for t in turns]


def asked(server, url, n, *, kept=None, connections=4, retries=4, timeout=1.0):
    """Ask for n completions through `url`; (answers by number, missing, gone)."""
    plan = plan_batches({(str(i), 1): p for i, p in enumerate(prompts(server, n))}, GREEDY, "test", 1)
    store = Kept(kept, plan, "me")
    jobs = [Job(i, b[0], ()) for i, b in enumerate(plan.batches) if i not in store.batches]

    async def ask():
        async with Client(Endpoint(url, None, timeout, retries, first_pause=0.01)) as client:
            served = Served(client, server.base, rendering(server))
            return await ask_all(served, IDS, GREEDY, jobs, lambda i, a: store.add(i, [a]), connections)

    missing, gone = asyncio.run(ask())
    return {i: b[0] for i, b in store.batches.items()}, missing, gone


def test_every_fault_once_and_nothing_is_lost_or_changed(server):
    undisturbed, missing, _ = asked(server, server.url, 10)
    assert len(undisturbed) == 10 and not missing
    hurt = {}

    def fault(number, body):
        key = tuple(body["prompt"])
        if key in hurt:
            return ""
        hurt[key] = FAULTS[len(hurt) % len(FAULTS)]
        return hurt[key]

    with proxied(server.url, fault, stall=1.5) as between:
        found, missing, gone = asked(server, between.url, 10)
    assert found == undisturbed and not missing and not gone
    assert set(hurt.values()) == set(FAULTS) and len(between.requests) == 20


def test_a_pause_that_the_server_asks_for_is_kept(server):
    with proxied(server.url, lambda number, body: "429" if number == 1 else "", pause_ms=200) as between:
        asked(server, between.url, 1)
    (_, _, first), (_, _, second) = between.requests
    assert second - first >= 0.2, "Retry-After was 0.2 s, our own first pause 0.01 s"


def test_a_prompt_that_always_fails_leaves_the_others_and_a_rerun_asks_for_it_alone(server, tmp_path):
    bad = list(prompts(server, 8)[5].ids)
    with proxied(server.url, lambda number, body: "500" if body["prompt"] == bad else "") as between:
        found, missing, gone = asked(server, between.url, 8, kept=tmp_path / "kept", retries=1, connections=2)
        assert len(found) == 7 and not gone
        ((_, why),) = missing.items()
        assert "status 500" in why
        assert sum(body["prompt"] == bad for _, body, _ in between.requests) == 2
    with proxied(server.url) as between:
        found, missing, _ = asked(server, between.url, 8, kept=tmp_path / "kept")
    assert len(found) == 8 and not missing
    assert [body["prompt"] for body in between.passed] == [bad], "only the missing one was asked for"


def test_one_prompt_that_always_fails_does_not_make_a_server_gone(server, tmp_path):
    """Asked for alone, as a rerun does, it is all that there is to judge by."""
    with proxied(server.url, lambda number, body: "500") as between:
        found, missing, gone = asked(server, between.url, 1, retries=1)
    assert not found and len(missing) == 1 and not gone


def test_a_full_disk_says_so_in_its_own_words(server, monkeypatch):
    def full(self, number, answers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Kept, "add", full)
    with pytest.raises(OSError, match="No space left"):
        asked(server, server.url, 4)


def test_a_server_that_stops_in_the_middle_is_gone_and_what_it_said_is_kept(server, tmp_path):
    with proxied(server.url, lambda number, body: "drop" if number > 5 else "") as between:
        found, missing, gone = asked(server, between.url, 40, kept=tmp_path / "kept", retries=1, connections=3)
        assert len(found) == 5 and len(missing) == 35 and "RemoteProtocolError" in gone
        # An answer that is slow to be kept starts the count anew; asking for all would take 5 + 2 * 35.
        assert len(between.requests) < 5 + 35, "the rest was not asked for"
    with proxied(server.url) as between:
        found, missing, _ = asked(server, between.url, 40, kept=tmp_path / "kept")
    assert len(found) == 40 and len(between.passed) == 35


def test_a_refused_request_is_not_repeated(server):
    async def ask(url):
        async with Client(Endpoint(url, None, 1.0, 5, first_pause=0.01)) as client:
            await client.post("/completions", {"model": "nobody"}, lambda told: None)

    with proxied(server.url) as between:
        with pytest.raises(Refused, match=r"status 404: The model `nobody` does not exist"):
            asyncio.run(ask(between.url))
        assert len(between.requests) == 1


def test_nobody_there_is_one_line():
    async def ask():
        async with Client(Endpoint("http://127.0.0.1:9/v1", None, 1.0, 1, first_pause=0.01)) as client:
            await client.models()

    with pytest.raises(ServerDown, match=r"server http://127.0.0.1:9/v1 does not answer \(ConnectError") as error:
        asyncio.run(ask())
    assert "\n" not in str(error.value)


def test_a_stall_ends_at_the_time_limit_even_if_bytes_trickle(server):
    """httpx's own limit is on silence; a server that sends a byte now and then would never end."""

    async def trickle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def ask():
        there = await asyncio.start_server(trickle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{there.sockets[0].getsockname()[1]}/v1"
        async with Client(Endpoint(url, None, 0.3, 0)) as client:
            await client.get("/models", lambda told: None)

    started = time.monotonic()
    with pytest.raises(Unanswered, match=r"no answer within 0.3 s"):
        asyncio.run(ask())
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("99999", OBEYED),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("soon", None),
        (None, None),
    ],
)
def test_pauses_in_headers(said, seconds):
    response = httpx.Response(429, headers={} if said is None else {"Retry-After": said})
    assert wished_pause(response, now=40.0) == seconds


def test_the_key_is_sent_and_never_shown(server):
    endpoint = Endpoint("http://x/v1", "secret", 1.0, 0)
    assert "secret" not in repr(endpoint)
    with running(key="secret") as locked:

        async def models(key):
            async with Client(Endpoint(locked.url, key, 1.0, 0)) as client:
                return await client.models()

        assert asyncio.run(models("secret")) == (locked.base,)
        with pytest.raises(Exception, match=r"serving\.api_key_env"):
            asyncio.run(models(None))


def test_planned_requests_keep_their_seeds(server):
    """The seed a server gets is the local engine's."""
    server.asked.clear()
    asked(server, server.url, 3)
    plan = plan_batches({(str(i), 1): p for i, p in enumerate(prompts(server, 3))}, GREEDY, "test", 1)
    planned: dict[tuple[int, ...], PlannedRequest] = {b[0].ids: b[0] for b in plan.batches}
    assert all(planned[tuple(body["prompt"])].seed == body["seed"] for body in server.asked)
