"""What is broken is flagged, and what only looks odd is not."""

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.evals.coherence import Coherence, coherence

STORY = (
    "The ferry leaves at nine. Two farmers wait on the pier with a crate of plums, and a boy asks them where the wind "
    "comes from. Nobody answers at first. Then the older one points at the hills, shrugs, and says that it was always "
    "there. On the other side a train stands ready; its driver reads a paper and drinks cold tea from a jar."
)
TABLE = "| city | rain | sun |\n|------|------|-----|\n" + "".join(
    f"| {c} | yes | no |\n" for c in "ABCDEFGHIJKLMNOPQRST"
)
ZEROS = "\n".join(" ".join("0" for _ in range(12)) for _ in range(12))
POEM = "\n\n".join(
    f"{a}\n{b}\nAnd the river runs on to the sea.\nAnd the river runs on to the sea."
    for a, b in [
        ("The miller has gone to his bed at last,", "his lantern is out and his door is fast,"),
        ("A heron stands still in the silver reeds,", "it counts no hours and it has few needs,"),
        ("The bridge remembers the carts of old,", "the salt and the timber, the bells and the gold,"),
        ("So sleep, little town, under smoke and star,", "the morning is slow and the hills are far,"),
    ]
)
CODE = "```python\n" + "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(40)) + "```"
BOARD = "```\n" + "grid = [\n" + '    ["x", "x", "x", "x", "x", "x", "x", "x"],\n' * 3 + "]\n```"
LATEX = r"\[\int_0^1 \frac{x^2}{\sqrt{1-x^2}}\,dx = \frac{\pi}{4}, \quad \sum_{k=1}^{n} k = \frac{n(n+1)}{2}\]"
MATRIX = r"$$\begin{pmatrix} 1 & 0 & 0 & 0 \\ 0 & 1 & 0 & 0 \\ 0 & 0 & 1 & 0 \\ 0 & 0 & 0 & 1 \end{pmatrix}$$"
PLAN = "\n".join(
    f"- Week {n}: Run {n + 2} km on Monday, {n + 3} km on Thursday, and rest on Sunday." for n in range(1, 13)
)
STEPS = "\n".join(
    f"- You should {w}"
    for w in ("rest", "drink water", "walk", "read", "call a friend", "cook", "sing", "write", "sleep")
)
SPARED = {
    "number": "42",
    "negative": "-3",
    "sign": ">",
    "letter": "B",
    "infinity": "∞",
    "pair": "(-1, 2)",
    "points": "[(1, 0), (0, -1), (-1, 0), (0, 1)]",
    "story": STORY,
    "table": TABLE,
    "zeros": ZEROS,
    "poem": POEM,
    "code": CODE,
    "board": BOARD,
    "latex": LATEX,
    "matrix": MATRIX,
    "plan": PLAN,
    "steps": STEPS,
    "times table": "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 11) for b in range(1, 11)),
    "rule": f"Title\n{'=' * 60}\n\n{STORY}\n\n{'-' * 80}\n{'* ' * 10}\n{'*' * 60}\n",
    "leaders": f"Contents\nFirst chapter {'.' * 60} 3\nSecond chapter {'.' * 59} 17",
    "digits": "1/7 = 0." + "142857" * 20,
    "bits": "01" * 60,
    "list of numbers": ", ".join(str(n) for n in range(1, 200)),
    "no": "No, no, no, no!",
    "laugh": "Ha ha ha ha! That is a good one.",
    "chorus": "Row, row, row the boat, na na na na na na na na, gently down the stream.",
    "emoji": "🎉🎉🎉🎉🎉🎉",
    "arrows": "A → B → C → D",
    "one broken character": STORY + "\ufffd",
    "twice the same": STORY + "\n\nTo repeat:\n\n" + STORY,
    "same opening": "\n".join(
        f"There is a reason to {w} the old house." for w in ("keep", "sell", "paint", "love", "fear")
    ),
    "nested list": "1. One\n   - a\n   - b\n2. Two\n   - a\n   - b\n3. Three\n   - a\n   - b\n4. Four\n   - a\n   - b",
    "html": "<table>\n" + "<tr><td>1</td><td>2</td></tr>\n" * 4 + "</table>",
    "html in a block": "```html\n" + "<tr><td>1</td><td>2</td></tr>\n" * 6 + "```",
    "address": "See https://example.org/" + "a/b/c/d/e/f/" * 2,
}


@pytest.mark.parametrize("name", SPARED)
def test_what_only_looks_odd_is_spared(name):
    found = coherence(SPARED[name], "Please write it down.")
    assert found.coherent, found


LOOPS = {
    "token": "the " * 40,
    "short": "yes yes yes yes yes yes yes",
    "phrase": "I do not know. " * 10,
    "sentence": "The answer is that we need to look at the problem again from the start. " * 4,
    "no spaces": "abc" * 40,
    "marks": "!" * 60,
    "Chinese": "我不知道" * 12,
    "equation": "5 + 3 = 8. " * 12,
    "zeros for ever": "The result is 0 " + "0 " * 400,
    "lines": "\n".join(f"{n}. Take the left road" for n in range(1, 12)),
    "in code": "```python\n" + "print('hello world')\n" * 80 + "```",
    "paragraphs": (STORY + "\n\n") * 4,
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name):
    assert coherence(LOOPS[name]).repetitive


@pytest.mark.parametrize("name", [n for n in LOOPS if n != "short"])
def test_a_good_start_does_not_hide_a_loop(name):
    assert coherence(f"{STORY}\n\n{LOOPS[name]}").repetitive


@pytest.mark.parametrize("name", [n for n in LOOPS if n not in ("short", "zeros for ever")])
def test_nor_does_a_good_end(name):
    assert coherence(f"{STORY}\n\n{LOOPS[name]}\n\n{STORY.upper()}").repetitive


def test_a_loop_with_small_changes():
    words = "red green blue black white brown grey pink".split()
    text = " ".join(
        f"Let us try the {words[i % 8]} one, but it does not fit, so we have to try another one and see whether that fits."
        for i in range(24)
    )
    assert coherence(text).repetitive
    assert not coherence(text[:400]).repetitive


def test_how_often_is_too_often():
    phrase = "We have to look at the whole thing again now. "
    assert not coherence(STORY + phrase * 2 + STORY[:100]).repetitive
    assert coherence(STORY + phrase * 4 + STORY[:100]).repetitive


RUSSIAN = "Паром отходит в девять утра, и двое крестьян ждут его на пристани."
CHINESE = "渡船九点离开，两个农民在码头上等着，手里拿着一箱李子。"
JAPANESE = "フェリーは九時に出ます。農夫が二人、桟橋で待っています。"
KOREAN = "나룻배는 아홉 시에 떠나고 두 농부가 부두에서 기다린다."
ARABIC = "تغادر العبارة في التاسعة صباحا وينتظر مزارعان على الرصيف."


@pytest.mark.parametrize(
    ("prompt", "answer", "off"),
    [
        ("When does the ferry leave?", RUSSIAN, True),
        ("When does the ferry leave?", CHINESE, True),
        ("When does the ferry leave?", JAPANESE, True),
        ("When does the ferry leave?", KOREAN, True),
        ("When does the ferry leave?", ARABIC, True),
        ("When does the ferry leave?", STORY, False),
        ("", CHINESE, False),
        ("3 + 4", CHINESE, False),
        ("Tell me about the ferry in Russian.", RUSSIAN, False),
        ("Tell me about the ferry in Russian.", CHINESE, True),
        ("Tell me about the ferry in Russian.", STORY, False),
        ("Translate: the ferry leaves at nine.", KOREAN, False),
        ("What does 渡船九点离开 mean to you?", CHINESE, False),
        (CHINESE, CHINESE, False),
        (CHINESE, STORY, True),
        (CHINESE, JAPANESE, False),
        (CHINESE + "请用英文回答。", STORY, False),
        (CHINESE, "42", False),
        (CHINESE, "Barack Obama", False),
        (CHINESE, CODE, False),
        (CHINESE, LATEX, False),
        (CHINESE, "https://example.org/a-long-path/of-many-words/and-more", False),
        (CHINESE, f"{CHINESE}\n{CODE}", False),
        (RUSSIAN, ARABIC, True),
        ("When does the ferry leave?", f"{STORY} ({RUSSIAN})", False),
        ("When does the ferry leave?", f"{STORY[:60]} {CHINESE * 4}", True),
        ("Solve for α.", "The angle α is β, and γ is δ; so αβγδ is a square.", False),
    ],
)
def test_language(prompt, answer, off):
    found = coherence(answer, prompt)
    assert found.off_language is off
    assert found.coherent is not off


@pytest.mark.parametrize(
    "text",
    [
        "\ufffd" * 5,
        STORY[:60] + "\ufffd\ufffd\ufffd\ufffd",
        "a\x00b\x01c\x02",
        "}}}{{]];;'''((&&%%$$@@!!{{}}[[]];;<<>>",
        "?!?!?!",
        "...",
        "((((((((((",
        '"..."',
        "the воды 水が كلمة the воды 水が كلمة of мира 火と",
    ],
)
def test_garbage(text):
    found = coherence(text, "What is the capital of France?")
    assert found.garbage and not found.coherent and not found.empty


def test_many_scripts_may_be_asked_for():
    text = f"{RUSSIAN}\n{CHINESE}\n{ARABIC}\n{KOREAN}"
    assert coherence(text, "Say it in four languages.").coherent
    assert not coherence(text, "Say it.").coherent


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_empty(text):
    assert coherence(text, "x") == Coherence(empty=True, repetitive=False, off_language=False, garbage=False)


@given(st.text(max_size=300), st.text(max_size=50))
def test_any_text_has_flags(text, prompt):
    found = coherence(text, prompt)
    assert found.coherent is not any((found.empty, found.repetitive, found.off_language, found.garbage))
    assert found.empty is (not text.strip())


def real_answers(shared):
    for path in sorted((shared / "alpaca_eval_outputs").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield row["output"], row["instruction"]
    for name in ("train", "test"):
        for line in (shared / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"):
            if line:
                row = json.loads(line)
                yield row["answer"], row["question"]


@pytest.mark.slow
def test_few_false_alarms_on_real_answers_and_loops_behind_them_are_found(shared):
    rows = [(a, q) for a, q in real_answers(shared) if a.strip()]
    flagged = [i for i, (a, q) in enumerate(rows) if not coherence(a, q).coherent]
    rng = random.Random(0)
    tried = [(a, q) for i, (a, q) in enumerate(rows) if i not in set(flagged) and len(a.split()) > 40]
    missed = tried_n = 0
    for answer, question in rng.sample(tried, 1000):
        words = answer.split()
        size = rng.choice([1, 2, 4, 8, 16, 30])
        at = rng.randrange(len(words) - size)
        phrase = words[at : at + size]
        if any(c.isalpha() for c in " ".join(phrase)):
            tried_n += 1
            missed += not coherence(f"{answer} {' '.join(phrase * (max(5, 60 // size)))}", question).repetitive
    print(f"{len(rows)} answers, {len(flagged)} flagged; {tried_n} loops, {missed} missed")
    assert len(flagged) <= 0.001 * len(rows)
    assert missed <= 0.02 * tried_n


def test_two_thousand_characters_take_less_than_two_milliseconds():
    rng = random.Random(0)
    words = [w.strip(".,;") for w in (STORY + POEM).split()]
    text = "".join(f"{rng.choice(words)} {rng.choice(words)}, " for _ in range(200))[:2000]
    assert min(timed(text) for _ in range(20)) < 2e-3
    assert min(timed(text.replace("e", "é")) for _ in range(20)) < 2e-3
    assert min(timed((RUSSIAN * 40)[:2000].replace("на", str(rng.random()))) for _ in range(20)) < 2e-3


@pytest.mark.parametrize("piece", ["a ", "<a ", "\\[ ", "\\( ", "$$ ", "$ ", "``` ", "`", "<", "abc", "你", "1. x\n"])
def test_no_text_takes_long(piece):
    assert timed(piece * 20_000) < 3


def timed(text):
    start = time.process_time()
    coherence(text, "What happens at the ferry?")
    return time.process_time() - start
