"""What a server proves before it is believed: the way it takes prompts, the models it has, the adapter that answers."""

import asyncio
import re
from dataclasses import replace

import pytest

from model_server import running
from prefixlab.config import HardwareConfig
from prefixlab.errors import StepError
from prefixlab.evals.served import (
    GREEDY,
    PROBES,
    Form,
    NotAsAsked,
    OtherPrompt,
    Rendering,
    Served,
    answer_of,
    check_form,
)
from prefixlab.evals.served_adapters import ensure_adapter, ensure_base, prove
from prefixlab.evals.server import Client, Endpoint
from prefixlab.model.generate import Request, generate
from prefixlab.model.load import load_model
from prefixlab.model.machine import resolve
from prefixlab.records import Message
from random_lora import save_adapter

TEXT = Form(prompts="text", precise=False)
IDS = Form(prompts="token ids", precise=True)


@pytest.fixture(scope="module")
def server():
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_ref):
    """One adapter that changes the model and one that does not."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, scale in (("moved", 0.5), ("still", 0.0)):
        model = load_model(tiny_ref, resolve(HardwareConfig(device="cpu", dtype="float32", threads=1)))
        save_adapter(model, folder / name, 3, scale, r=4, target_modules="all-linear")
    return folder


def rendering(server):
    tokenizer = server.loaded.tokenizer
    return Rendering(tokenizer, server.loaded.chat, frozenset({tokenizer.eos_token_id}))


def do(server, work, name=None):
    """Run `work(served)` against a server."""

    async def inside():
        async with Client(Endpoint(server.url, None, 10.0, 1, first_pause=0.01)) as client:
            return await work(Served(client, name or server.base, rendering(server)))

    return asyncio.run(inside())


@pytest.mark.parametrize(
    ("knows", "form"),
    [
        ({}, Form(prompts="token ids", precise=True)),
        ({"precise": False}, Form(prompts="token ids", precise=False)),
        ({"token_ids": False}, Form(prompts="text", precise=True)),
        ({"token_ids": False, "precise": False}, TEXT),
    ],
)
def test_the_best_way_that_a_server_takes_is_found_and_answers_as_the_engine_does(knows, form):
    turns = (Message(role="user", content="Count to four."),)
    with running(**knows) as made:
        assert do(made, lambda served: served.find_form("exact")) == form
        ids = rendering(made).ids(turns)
        answer = do(made, lambda served: served.ask(form, ids, turns, GREEDY, 0))
        loaded = made.loaded
        request = Request(ids, GREEDY.max_tokens, 0.0, 1.0, 0)
        (mine,) = generate(loaded.use(None), [request], stop_ids=rendering(made).stops, pad=loaded.pad)
    if form.precise:
        assert answer.ids == mine.ids
    else:
        text = loaded.tokenizer.decode(list(mine.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert (answer.text, answer.n_tokens) == (text, len(mine.ids))
    assert answer.truncated == mine.truncated


def test_a_server_of_chat_alone_is_not_silently_used_for_exact_prompts():
    with running(completions=False) as made:
        with pytest.raises(StepError, match=r"takes neither token ids nor text.*serving\.prompts: chat"):
            do(made, lambda served: served.find_form("exact"))
        assert do(made, lambda served: served.find_form("chat")) == Form(prompts="messages", precise=True)


def test_an_answer_to_another_prompt_is_none(server):
    ids = rendering(server).ids((Message(role="user", content="Hello."),))
    told = {
        "choices": [{"text": "x", "finish_reason": "stop", "token_ids": [5, 2], "prompt_token_ids": list(ids)}],
        "usage": {"prompt_tokens": len(ids), "completion_tokens": 2},
    }
    assert answer_of(told, IDS, ids, rendering(server)).ids == (5,)
    told["usage"]["prompt_tokens"] += 1  # a second BOS
    with pytest.raises(OtherPrompt, match=f"read {len(ids) + 1} tokens where {len(ids)} were meant"):
        answer_of(told, TEXT, ids, rendering(server))
    told["usage"]["prompt_tokens"] -= 1
    told["choices"][0]["prompt_token_ids"][0] += 1  # another tokenizer
    with pytest.raises(OtherPrompt):
        answer_of(told, IDS, ids, rendering(server))


def test_an_end_that_only_the_server_knows_of_ends_nothing():
    """vLLM ends at all of generation_config.json's ends, and those may be more than the local engine's."""
    turns = (Message(role="user", content="Count to four."),)
    with running() as plain:
        loaded, ids = plain.loaded, rendering(plain).ids(turns)
    request = Request(ids, GREEDY.max_tokens, 0.0, 1.0, 0)
    (mine,) = generate(loaded.use(None), [request], stop_ids=rendering(plain).stops, pad=loaded.pad)
    early = mine.ids[len(mine.ids) // 2]
    with running(ends=(early,)) as made:
        cut = do(made, lambda served: served.ask(IDS, ids, turns, GREEDY, 0))
        assert len(cut.ids) < len(mine.ids), "or the test says nothing"
        how = rendering(made)

        async def told():
            async with Client(Endpoint(made.url, None, 10.0, 1, first_pause=0.01)) as client:
                knowing = replace(how, ends=how.ends | {early})
                return await Served(client, made.base, knowing).ask(IDS, ids, turns, GREEDY, 0)

        assert asyncio.run(told()).ids == mine.ids


def test_a_completion_that_the_servers_context_cuts_is_not_taken_for_a_long_one():
    """vLLM answers with fewer tokens than were asked for, as if that were the length."""
    turns = (Message(role="user", content="Count to four."),)
    with running() as made:
        ids = rendering(made).ids(turns)
        made.context = len(ids) + 5
        with pytest.raises(NotAsAsked, match=rf"after 5 of 16 tokens.*has {len(ids)} tokens.*--max-model-len"):
            do(made, lambda served: served.ask(IDS, ids, turns, GREEDY, 0))


def test_a_server_that_writes_on_after_an_end_is_not_believed(server):
    told = {
        "choices": [{"text": "x", "finish_reason": "length", "token_ids": [5, 2, 6]}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 3},
    }
    with pytest.raises(NotAsAsked, match="writes on after an id that it was told to stop at"):
        answer_of(told, IDS, [7], rendering(server))


@pytest.mark.parametrize(
    ("ids", "finish", "kept", "truncated"),
    [([5, 6, 2], "stop", (5, 6), False), ([5, 6], "length", (5, 6), True), ([5, 2], "length", (5,), False)],
)
def test_ends_are_read_as_the_engine_reads_them(server, ids, finish, kept, truncated):
    told = {
        "choices": [{"text": "x", "finish_reason": finish, "token_ids": ids}],
        "usage": {"prompt_tokens": 1, "completion_tokens": len(ids)},
    }
    answer = answer_of(told, IDS, [7], rendering(server))
    assert (answer.ids, answer.truncated) == (kept, truncated)


def test_text_is_used_only_where_it_has_exactly_the_ids(server):
    how = rendering(server)
    ids = how.ids((Message(role="user", content="What is 2 + 2?"),))
    text = how.text(ids)
    assert text is not None and tuple(how.tokenizer(text)["input_ids"]) == ids
    whole = how.tokenizer(" the the", add_special_tokens=False)["input_ids"]
    split = [i for c in " the the" for i in how.tokenizer(c, add_special_tokens=False)["input_ids"]]
    assert whole != split and how.text(split) is None


def test_reasoning_that_a_server_takes_out_is_put_back(server):
    told = {
        "choices": [{"message": {"content": "Four.", "reasoning_content": "2 + 2"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 9},
    }
    answer = answer_of(told, Form(prompts="messages", precise=False), [7], rendering(server))
    assert answer.text == "<think>\n2 + 2\n</think>\n\nFour." and answer.n_tokens == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repetition_penalty": 1.2}, "a repetition penalty of 1.2"),
        ({"temperature": 0.6}, "sampling without its own defaults"),
    ],
)
def test_decoding_that_a_server_does_not_show_to_know_is_refused(server, change, words):
    how = replace(GREEDY, **change)
    check_form(IDS, how, rendering(server), "http://x/v1")
    with pytest.raises(StepError, match=re.escape(words)):
        check_form(TEXT, how, rendering(server), "http://x/v1")


def test_a_penalty_in_the_models_own_configuration_is_not_silently_the_servers(server):
    how = replace(rendering(server), penalty=1.1)
    check_form(TEXT, replace(GREEDY, repetition_penalty=1.1), how, "http://x/v1")
    with pytest.raises(StepError, match=r"a repetition penalty of 1 \(the model's own is 1.1\)"):
        check_form(TEXT, GREEDY, how, "http://x/v1")


def test_an_end_of_turn_that_the_server_would_run_over_is_refused(server):
    how = rendering(server)
    check_form(TEXT, GREEDY, how, "http://x/v1")
    with pytest.raises(StepError, match=r"an end at '.*', which the model's generation_config\.json does not name"):
        check_form(TEXT, GREEDY, replace(how, ends=frozenset()), "http://x/v1")


def test_a_base_that_is_not_there_is_one_line(server):
    with pytest.raises(StepError, match=r"has no model 'other'; it has: .*tiny.*serving\.names") as error:
        do(server, lambda served: ensure_base(served, "org/model"), name="other")
    assert "\n" not in str(error.value)


def test_an_adapter_is_loaded_listed_and_proved(adapters):
    with running() as made:
        assert do(made, lambda s: ensure_adapter(s, adapters / "moved", load=True), name="prefixlab-1")
        proof = do(made, lambda s: prove(s, made.base, IDS, listed=True), name="prefixlab-1")
        assert proof.logprob_to_base > 0.01 and proof.noise == 0.0 and proof.texts_differ is None
        plain = do(made, lambda s: prove(s, made.base, TEXT, listed=True), name="prefixlab-1")
        assert plain.logprob_to_base is None and plain.texts_differ is not None
        n = len(made.asked)
        assert do(made, lambda s: ensure_adapter(s, adapters / "moved", load=True), name="prefixlab-1")
        assert len(made.asked) == n, "what is listed is not loaded again"


def test_a_probe_that_ends_sooner_under_one_name_is_measured_all_the_same(adapters):
    """Found with vLLM: a difference of infinity was written as null, which reads "the server tells none"."""
    turns = (Message(role="user", content=PROBES[0]),)
    name = "prefixlab-6"
    with running() as plain:
        do(plain, lambda s: ensure_adapter(s, adapters / "moved", load=True), name=name)
        ids = do(plain, lambda s: s.ask(IDS, rendering(plain).ids(turns), turns, GREEDY, 0), name=name).ids
    late = max(set(ids), key=ids.index)
    assert ids.index(late) > 0
    with running(ends=(late,)) as made:
        do(made, lambda s: ensure_adapter(s, adapters / "moved", load=True), name=name)
        proof = do(made, lambda s: prove(s, made.base, IDS, listed=True), name=name)
    assert proof.logprob_to_base > 0.01 and type(proof).model_validate_json(proof.model_dump_json()) == proof


def test_a_name_behind_which_the_base_answers_is_refused(adapters):
    with running() as made:
        do(made, lambda s: ensure_adapter(s, adapters / "still", load=True), name="prefixlab-2")
        with pytest.raises(StepError, match="the adapter is not what answers under 'prefixlab-2'"):
            do(made, lambda s: prove(s, made.base, IDS, listed=True), name="prefixlab-2")


def test_an_adapter_that_is_missing_is_one_line_with_the_command_that_adds_it(server, adapters):
    with pytest.raises(StepError) as error:
        do(server, lambda s: ensure_adapter(s, adapters / "moved", load=False), name="prefixlab-3")
    said = str(error.value)
    assert "\n" not in said and "has no adapter 'prefixlab-3'; it has: " in said and server.base in said
    assert (
        f'curl -H \'Content-Type: application/json\' -d \'{{"lora_name": "prefixlab-3", "lora_path": "{adapters}'
        in said
    )
    assert f"--lora-modules prefixlab-3={adapters}/moved" in said and "serving.adapters: load" in said


def test_a_server_that_loads_nothing_says_how_it_would(adapters):
    with running(loading=False) as made, pytest.raises(StepError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        do(made, lambda s: ensure_adapter(s, adapters / "moved", load=True), name="prefixlab-4")


def test_a_server_that_answers_under_any_name_is_refused(adapters):
    with running(any_name=True) as made, pytest.raises(StepError, match="answers under any name"):
        do(made, lambda s: ensure_adapter(s, adapters / "moved", load=False), name="prefixlab-5")


def test_probes_have_different_lengths(server):
    """One count of tokens could be an accident."""
    lengths = {len(rendering(server).ids((Message(role="user", content=p),))) for p in PROBES}
    assert len(lengths) == len(PROBES) == 2
