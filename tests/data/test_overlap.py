"""Overlap of training sets and suites: what is a hit, what just misses, and that the fast search finds what a slow one does."""

import csv
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.config import DataConfig
from prefixlab.data.overlap import N_PAIRS, NEAR, find_overlaps, normalise
from prefixlab.data.sources import BUILTIN_DATA, read_samples, test_safety, test_sums
from prefixlab.records import EvalItem, Message, Sample

test_safety.__test__ = test_sums.__test__ = False

LONG = "A gardener plants seven rows of tulips, and every row has nineteen bulbs that cost two crowns each. How much is that?"
SHORT = "How do bees find their way home?"
PLAIN = "a gardener plants seven rows of tulips and every row has nineteen bulbs that cost two crowns each how much is that".split()


def find_overlap(train, suite, tests, sources=()):
    """With one suite."""
    return find_overlaps(train, {suite: tests}, {suite: sources})[0]


def sample(prompt, answer="", ident="s", reasoning=None, source=""):
    return Sample(
        id=ident, messages=(Message(role="user", content=prompt),), reasoning=reasoning, answer=answer, source=source
    )


def item(prompt, ident="t"):
    return EvalItem(id=ident, messages=(Message(role="user", content=prompt),), target="", kind="problem")


def kind(train, test):
    found = find_overlap([train], "suite", [item(test)])
    assert len(found.exact) + len(found.near) == len(found.pairs) <= 1
    return "exact" if found.exact else "near" if found.near else None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("What is 12 + 7?", "what is 12+7", True),
        ("12 + 7 =", "12 + 7", True),
        ("12 + 7", "12 - 7", False),
        ("12 + 7", "12 7", False),
        ("-5 + 3", "5 + 3", False),
        ("5 - -3", "5 - 3", False),
        ("5 − 3", "5 - 3", True),
        ("5 × 3", "5 * 3", True),
        ("x ≤ 5", "x <= 5", True),
        ("x < 5", "x > 5", False),
        ("x <= 5", "x < 5", False),
        ("(a + b) / 2", "(a + b) * 2", False),
        ("$a$ - $b$", "$a - b$", True),
        ("x^2", "x2", False),
        ("1,000 cows", "1000 cows", True),
        ("1, 2, 3", "1,2,3", True),
        ("1.5 km", "15 km", False),
        ("sin .5", "sin 5", False),
        ("a C program", "a C++ program", False),
        ("a well-known e-mail", "A well known E mail!", True),
        ("- 5 apples", "5 apples", True),
        ("**5** apples", "5 apples", True),
        ("and/or", "and or", True),
        ("Janet’s \u201cducks\u201d", "janet's 'ducks'", True),
        ("one\r\n two\u00a0three", "one two three", True),
        ("Straße", "STRASSE", True),
        ("e\u0301tude", "étude", True),
        ("ﬁne １２", "fine 12", True),
        ("fill in ____ here", "fill in here", True),
        ("你好吗", "你好 吗？", True),
        ("2 cats", "3 cats", False),
    ],
)
def test_what_normalisation_keeps(a, b, same):
    assert (normalise(a) == normalise(b)) is same


@given(st.text())
def test_normalising_twice_changes_nothing_but_signs(text):
    once = normalise(text)
    assert once == once.strip() and "  " not in once
    assert normalise(text.upper().lower()) == normalise(text.lower().upper().lower())


@given(
    st.lists(st.sampled_from(["tea", "Äpfel", "17", "bees", "x"]), min_size=1),
    st.sampled_from([" ", "\n", ", ", "!? ", " \u2014 "]),
)
def test_punctuation_and_line_breaks_are_ignored(words, between):
    assert normalise(between.join(words)) == " ".join(words).lower()


@pytest.mark.parametrize(
    ("prompt", "answer", "test", "expected"),
    [
        (LONG.upper().replace(",", " \n"), "", LONG, "exact"),
        (f"Solve: {LONG}", "", LONG, "near"),
        (f"User: {LONG}\nAssistant:", "", LONG, "near"),
        (" ".join(PLAIN[:13]), "", LONG, "near"),
        (" ".join(PLAIN[:12]), "", LONG, None),
        ("we saw " + " ".join(PLAIN[4:17]) + " there", "", LONG, "near"),
        ("we saw " + " ".join(PLAIN[4:16]) + " there", "", LONG, None),
        (" ".join([*PLAIN[:10], "however", *PLAIN[10:20]]), "", LONG, None),
        (" ".join([*PLAIN[:10], "however", *PLAIN[8:21]]), "", LONG, "near"),
        ("Something else", f"Another problem says: {LONG}", LONG, "near"),
        ("Something else", " ".join(PLAIN[3:15]), LONG, None),
        (" ".join(PLAIN[:6]), " ".join(PLAIN[6:13]), LONG, None),
        (SHORT.lower(), "", SHORT, "exact"),
        (f"Tell me, in short. {SHORT}", "", SHORT, "near"),
        ("How do bees find their way homeward?", "", SHORT, None),
        ("How do bees find their way?", "", SHORT, None),
        ("How do some bees find their way home?", "", SHORT, None),
        ("Biology", f"You ask '{SHORT.lower()}', so here it is.", SHORT, "near"),
        ("Say hello world now", "", "hello world now", None),
        ("hello world now", "", "Hello, world: now!", "exact"),
        ("What is 31 + 16 - 4 + 8?", "", "What is 31 + 16 - 4", None),
        ("What is 31 + 16 - 4? Think.", "", "What is 31 + 16 - 4", "near"),
        ("Now: what is 31 + 16 - 4 = ?", "", "What is 31 + 16 - 4", "near"),
        ("What is 31 + 16 + 4?", "", "What is 31 + 16 - 4", None),
        ("Compute 7 + 31 + 16 - 4 now", "", "31 + 16 - 4 now", None),
        ("???", "", "!!!", None),
    ],
)
def test_near_misses(prompt, answer, test, expected):
    assert kind(sample(prompt, answer), test) == expected


def test_a_test_prompt_in_the_reasoning_is_near():
    assert kind(sample("Something else", reasoning=f"I recall: {LONG}"), LONG) == "near"


def test_only_the_last_turn_of_the_user_is_the_prompt():
    turns = (
        Message(role="user", content=SHORT),
        Message(role="assistant", content="By the sun."),
        Message(role="user", content="Go on"),
    )
    train = Sample(id="s", messages=turns, reasoning=None, answer="They do.")
    assert kind(train, SHORT) is None and kind(train, "Go on!") == "exact"


TOPICS = ["tea", "snow", "bread", "ships", "clocks", "maps", "honey", "chess", "rivers", "owls", "salt", "bells"]
ASKED = [
    "Who first drank tea?",
    "Why is snow white to the eye?",
    "Does bread rise without yeast?",
    "How many ships can pass a narrow canal at once?",
    "When did towns first put clocks on their towers so that everybody knew when to stop work?",
    "Which maps show the sea floor?",
    "Is honey older than sugar?",
    "Where was chess first played by two queens and no kings at all on a round board, if ever?",
    "What do rivers carry to the sea?",
    "Can owls turn their heads all the way round?",
    "3 + 4 * 5",
    "What are bells cast from?",
]
ASK = "Read the question with care and answer it in one full sentence that a child understands:"


@pytest.mark.parametrize("form", ["{ask} {own}", "{own} {ask}"])
def test_an_instruction_of_the_suite_is_no_overlap_and_does_not_hide_one(form):
    tests = [item(form.format(ask=ASK, own=q), t) for q, t in zip(ASKED, TOPICS, strict=True)]
    found = find_overlap(
        [
            sample(form.format(ask=ASK, own="Why are cows brown?"), ident="same instruction"),
            sample("can owls turn their heads ALL the way round", ident="bare"),
            sample("Please: which maps show the sea floor? Thanks", ident="wrapped"),
            sample(f"Hm. {ASKED[4]}", ident="wrapped and long"),
            sample(form.format(ask=ASK, own=ASKED[6]), ident="whole"),
            sample("3+4*5", ident="short"),
            sample("What is 1 + 3 + 4 * 5, and why?", ident="other sum"),
            sample(form.format(ask=ASK, own="1 + 3 + 4 * 5"), ident="other sum asked"),
        ],
        "suite",
        tests,
    )
    assert found.exact == ("bare", "whole", "short") and found.near == ("wrapped", "wrapped and long")
    assert set(found.pairs) == {
        ("bare", "owls"),
        ("wrapped", "maps"),
        ("wrapped and long", "clocks"),
        ("whole", "honey"),
        ("short", "salt"),
    }


def test_one_question_about_many_things_is_found_wrapped():
    tests = [item(f"What is the oldest book about {t}?", t) for t in TOPICS]
    train = [
        sample("Hello. What is the oldest book about owls? Thanks", ident="hit"),
        sample("What is the oldest book about cows?", ident="other"),
        sample("What is the oldest book, say, about owls?", ident="broken up"),
    ]
    found = find_overlap(train, "s", tests)
    assert (found.exact, found.near, found.pairs) == ((), ("hit",), (("hit", "owls"),))


def test_few_prompts_have_no_instruction():
    tests = [item(f"{ASK} Who was first to think about {t}?", t) for t in TOPICS[:4]]
    assert find_overlap([sample(f"{ASK} Why are cows brown?")], "s", tests).near == ("s",)


def test_prompts_that_are_nothing_but_the_same_words_stay_whole():
    tests = [item(LONG, str(i)) for i in range(12)]
    assert find_overlap([sample(LONG)], "s", tests).exact == ("s",)


@pytest.mark.parametrize(
    ("source", "suite", "names", "hit"),
    [
        ("WildJailbreak", "wildjailbreak", (), True),
        ("Wild-Jail break", "wildjailbreak", (), True),
        ("allenai/wildjailbreak", "wildjailbreak", (), True),
        ("HarmBench", "jailbreakbench", ("TDC/HarmBench",), True),
        ("HarmBench", "jailbreakbench", (), False),
        ("HarmBench 2", "jailbreakbench", ("HarmBench",), False),
        ("custom", "strongreject", ("custom", "DAN"), False),
        ("", "strongreject", ("",), False),
    ],
)
def test_same_source(source, suite, names, hit):
    found = find_overlap(
        [sample("x", ident="1", source=source), sample("y", ident="2", source="elsewhere")], suite, [], names
    )
    assert (found.same_source, found.n_same_source) == (((source,), 1) if hit else ((), 0))


def test_pairs_are_a_few_with_exact_ones_first():
    tests = [item(f"How do {t} find their way home?", t) for t in TOPICS[:9]]
    train = [sample(f"Well, how do {t} find their way home?", ident=f"n{t}") for t in TOPICS[:9]]
    train.append(sample("How do owls find their way home?", ident="no test"))
    train.append(sample("HOW DO TEA FIND THEIR WAY HOME", ident="e"))
    found = find_overlap(train, "s", tests)
    assert found.exact == ("e",) and len(found.near) == 9
    assert found.pairs[0] == ("e", "tea") and len(found.pairs) == N_PAIRS


def test_several_suites_at_once_are_each_as_alone():
    tests = {"a": [item(LONG)], "b": [item(SHORT)], "empty": []}
    train = [sample(LONG, ident="1"), sample(f"{LONG} {SHORT}", ident="2"), sample("no", ident="3")]
    assert find_overlaps(train, tests, {}) == [find_overlap(train, name, t) for name, t in tests.items()]


def slow(train, tests):
    """The definition, word by word, for texts without signs."""
    prompts = [normalise(t.messages[0].content).split() for t in tests]

    def near(words):
        for p in prompts:
            size = NEAR if len(p) >= NEAR else len(p)
            parts = [p[i : i + size] for i in range(len(p) - size + 1)] if len(p) >= 4 else []
            if any(words[i : i + size] in parts for i in range(len(words) - size + 1)):
                return True
        return False

    exact = [s.id for s in train if normalise(s.prompt).split() in [p for p in prompts if p]]
    return exact, [s.id for s in train if s.id not in exact and (near(s.prompt.split()) or near(s.answer.split()))]


texts = st.integers(0, 40).flatmap(lambda n: st.lists(st.sampled_from("abc"), min_size=n, max_size=n)).map(" ".join)


@given(st.lists(st.tuples(texts, texts), max_size=6), st.lists(texts, max_size=6), st.data())
def test_fast_search_agrees_with_the_definition(rows, prompts, data):
    train = []
    for i, (prompt, answer) in enumerate(rows):
        if prompts:
            whole = data.draw(st.sampled_from(prompts)).split()
            start = data.draw(st.integers(0, 20))
            answer = f"{answer} {' '.join(whole[start : start + data.draw(st.integers(3, 14))])}"
        train.append(sample(prompt, answer, ident=str(i)))
    tests = [item(p, str(i)) for i, p in enumerate(prompts)]
    found = find_overlap(train, "s", tests)
    assert (list(found.exact), list(found.near)) == slow(train, tests)


@given(st.lists(texts.filter(bool), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_test_prompt_is_found_again_however_it_is_wrapped(prompts, rng):
    tests = [item(p, str(i)) for i, p in enumerate(prompts)]
    chosen = rng.choice(prompts)
    assert find_overlap([sample(chosen.upper().replace(" ", ",\n"))], "s", tests).exact == ("s",)
    if len(chosen.split()) >= 4:
        assert find_overlap([sample(f"Solve this: {chosen} Thank you")], "s", tests).near == ("s",)


def test_built_in_halves_do_not_overlap():
    for name, tests in (("chain_sum", test_sums()), ("safety", test_safety())):
        found = find_overlap(BUILTIN_DATA[name](), name, tests)
        assert not found.exact and not found.near


def test_rows_without_the_sign_at_the_end_are_exact():
    tests = test_sums()
    train = [sample(t.messages[0].content.replace(" =", ""), ident=t.id) for t in tests[:20]] + BUILTIN_DATA[
        "chain_sum"
    ]()
    assert [t.id for t in tests[:20]] == list(find_overlap(train, "chain_sum", tests).exact)


def test_star1_names_sources_of_safety_suites(shared):
    data = DataConfig(
        source=str(shared / "star1" / "STAR-1.json"), columns={"prompt": "question", "response": "response"}, held_out=0
    )
    train, _ = read_samples(data, "k")
    rows = list(csv.DictReader((shared / "jailbreakbench" / "jbb.csv").open(encoding="utf-8", newline="")))
    suites = {"wildjailbreak": [], "jailbreakbench": [item(r["goal"], r["index"]) for r in rows]}
    wild, jbb = find_overlaps(train, suites, {"jailbreakbench": sorted({r["source"] for r in rows})})
    assert (wild.same_source, wild.n_same_source) == (("wildjailbreak",), 261)
    assert (jbb.same_source, jbb.n_same_source) == (("HarmBench",), 31)


@pytest.mark.slow
def test_a_large_training_set_takes_less_than_a_minute():
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    pool = rng.choices(words, weights=[1 / (i + 5) for i in range(20_000)], k=1_000_000)

    def text(n):
        at = rng.randrange(len(pool) - n)
        return " ".join(pool[at : at + n - 1]) + f" {rng.choice(words)}, {rng.random()}"

    tests = [item(text(rng.choice([5, 8, 12, 30, 60])), str(i)) for i in range(5_000)]
    train = [sample(text(60), text(200), ident=str(i)) for i in range(20_000)]
    train.append(sample(f"Solve: {tests[7].messages[0].content}", ident="wrapped"))
    start = time.process_time()
    found = find_overlap(train, "s", tests)
    assert "wrapped" in found.near
    assert time.process_time() - start < 12, "five times as many rows would take more than a minute"
