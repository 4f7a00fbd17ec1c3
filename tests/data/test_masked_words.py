"""Arms that take the loss off single words of the prefix: the tokens meant, no others; as many random ones; refusals."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import build_arm, manifest, originals, specs
from prefixlab.data.chat import IGNORE, chat_format, render
from prefixlab.data.check import check_arm, check_arms, render_arm, template_rendering
from prefixlab.data.exports import FORMATS, export_row, export_rows, import_row
from prefixlab.data.prefixes import Wording, load_set, plain_word, wordings
from prefixlab.data.strip import strip_all
from prefixlab.errors import UserError
from prefixlab.model.tiny import tokenizer
from prefixlab.records import ArmSample, Message, Sample, word_ranges

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = {"chatml": tokenizer(), "qwen2 split": tokenizer(split=QWEN2)}
TOK = TOKENIZERS["chatml"]
CHAT = chat_format(TOK)
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [b for b in range(256) if b not in PRINTED]
BYTE = {chr(b): b for b in PRINTED} | {chr(256 + i): b for i, b in enumerate(HIDDEN)}
"""How byte-level tokenizers write each byte as a letter."""


def count(text):
    return len(TOK(text, add_special_tokens=False)["input_ids"])


def samples(n=30):
    return [
        Sample(id=f"s{i}", messages=(Message(role="user", content=f"q{i}"),), reasoning=None, answer=f"It is {i}.")
        for i in range(n)
    ]


def arms(controls=("anchors_masked", "random_masked"), anchors=("step",), n=30, count_tokens=count, **entry):
    entry = ArmsConfig(
        **{"prefixes": "reasoning", "ratios": [0, 1], "controls": list(controls), "anchors": list(anchors), **entry}
    )
    made = {}
    for spec in specs(entry, "k", count_tokens):
        rows = build_arm(samples(n), spec, "k", "exact", None, count_tokens)
        made[spec.name] = (rows, manifest(rows, spec, "c", "k", "exact", 0, count_tokens))
    return made


def checked(made):
    rows = {name: arm for name, (arm, _) in made.items()}
    return check_arms(rows, TOK, CHAT, model="m", capability="c", max_length=512, no_reasoning="refuse")


def silent(row, made, tok):
    """Bytes of the response whose tokens carry no loss, by position; byte-level tokens are exactly their bytes."""
    first = next(s.end for s in made.spans if s.name == "prompt")
    pieces = [bytes(BYTE[c] for c in tok.convert_ids_to_tokens(i)) for i in made.ids[first:-1]]
    place, found, whole = 0, set(), b"".join(pieces)
    for piece, label in zip(pieces, made.labels[first:-1], strict=True):
        if label == IGNORE:
            found.add((place, place + len(piece)))
        place += len(piece)
    return whole, found, pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["Sure!", "step-by-step", "«naïve»", "日本語です", "a", "-", "12,5", "(so", "😀x"]), min_size=1
    ),
    gap=st.sampled_from([" ", "  ", "\n"]),
    end=st.sampled_from(["", " ", "\n\n"]),
    position=st.sampled_from(["opening", "answer"]),
    data=st.data(),
)
def test_the_tokens_of_the_words_and_no_others(name, words, gap, end, position, data):
    tok = TOKENIZERS[name]
    prefix = gap.join(words) + end
    can = [i for i, word in enumerate(words) if plain_word(word)]
    chosen = tuple(sorted(data.draw(st.sets(st.sampled_from(can)) if can else st.just(set()))))
    row = ArmSample(
        sample=samples(1)[0].model_copy(update={"reasoning": "I think."}),
        position=position,
        prefix=prefix,
        template=0,
        eligible=True,
        loss="words",
        masked_words=chosen,
    )
    made = render(row, tok, chat_format(tok), max_length=512)
    whole, found, pieces = silent(row, made, tok)
    start = whole.index(prefix.encode()) if position == "opening" else whole.rindex(prefix.encode() + b"It is 0.")
    ranges = word_ranges(prefix)
    meant = {
        (start + len(prefix[: ranges[i][0]].encode()), start + len(prefix[: ranges[i][1]].encode())) for i in chosen
    }
    place, expected = 0, set()
    for piece in pieces:
        if any(place < b and place + len(piece) > a for a, b in meant):
            expected.add((place, place + len(piece)))
        place += len(piece)
    # A character cut into several tokens belongs to the word with all of them, and offsets name whole characters.
    assert found == expected and made.masked == len(found)
    plain = render(row.model_copy(update={"loss": "all"}), tok, chat_format(tok), max_length=512)
    assert plain.ids == made.ids and plain.n_supervised - made.n_supervised == made.masked
    reference = {
        "s0": render(row.model_copy(update={"prefix": "", "masked_words": ()}), tok, chat_format(tok), max_length=512)
    }
    assert check_arm("a", [row], [made], reference, tok, chat_format(tok)).n_mask_wrong == 0


def test_the_arms_of_an_ablation():
    made = arms()
    assert list(made) == [
        "r000",
        "reasoning-opening-r100",
        "reasoning_anchors_masked-opening-r100",
        "reasoning_random_masked-opening-r100",
    ]
    found = checked(made)
    assert found.problems() == []
    treatment, anchors, random = (made[name] for name in list(made)[1:])
    assert [r.prefix for r in anchors[0]] == [r.prefix for r in random[0]] == [r.prefix for r in treatment[0]]
    for one, other in zip(anchors[0], random[0], strict=True):
        said = [plain_word(w) for w in one.prefix.split()]
        assert [i for i, word in enumerate(said) if word == "step"] == list(one.masked_words)
        assert not set(one.masked_words) & set(other.masked_words)
        assert bool(one.masked_words) == bool(other.masked_words)
    tokens = {a.arm: a.n_masked_tokens for a in found.arms}
    assert tokens["reasoning-opening-r100"] == 0
    assert tokens["reasoning_anchors_masked-opening-r100"] == anchors[1].masking.tokens > 0
    # Counted word by word when the arms are made, and in the ids here: this tokenizer cuts words in ways that counts hide.
    assert tokens["reasoning_random_masked-opening-r100"] == pytest.approx(random[1].masking.tokens, rel=0.1)
    holds = sum("step" in map(plain_word, r.prefix.split()) for r in treatment[0])
    assert anchors[1].masking.n_samples == random[1].masking.n_samples == holds < 30
    assert random[1].masking.anchor_tokens == anchors[1].masking.tokens
    assert treatment[1].masking is None


@pytest.mark.slow
def test_with_a_real_tokenizer_the_counts_are_those_of_the_ids():
    from prefixlab.model.load import load_tokenizer, resolve_model

    real = load_tokenizer(resolve_model("smollm2-135m"))
    made = arms(
        anchors=["logical", "step-by-step", "well-reasoned"],
        count_tokens=lambda text: len(real(text, add_special_tokens=False)["input_ids"]),
    )
    rows = {name: arm for name, (arm, _) in made.items()}
    chat = chat_format(real)
    found = check_arms(rows, real, chat, model="m", capability="c", max_length=512, no_reasoning="refuse")
    anchors, random = (a.n_masked_tokens for a in found.arms[2:])
    assert found.problems() == [] and anchors == random > 50
    assert [about.masking.tokens for _, about in list(made.values())[2:]] == [anchors, random]


def test_random_words_have_the_tokens_of_the_anchors():
    """With the tokenizer known, as many tokens as can be had: here exactly as many, sample by sample."""
    made = arms(anchors=["logical", "step"])
    said = wordings(["logical", "step"], count)
    for one, other in zip(*(made[f"reasoning_{c}_masked-opening-r100"][0] for c in ("anchors", "random")), strict=True):
        wording = said(one.prefix)
        assert wording.cost(other.masked_words) == wording.cost(one.masked_words)
    assert len({r.masked_words for r in made["reasoning_random_masked-opening-r100"][0]}) > 5
    bare = arms(anchors=["logical", "step"], count_tokens=None)["reasoning_random_masked-opening-r100"]
    assert bare[1].masking.words == bare[1].masking.anchor_words and bare[1].masking.tokens is None


def test_the_random_choice_is_keyed_by_data_and_sample():
    entry = ArmsConfig(prefixes="reasoning", ratios=[1], controls=["random_masked"], anchors=["step"])
    spec = specs(entry, "k", count)[-1]
    plain = {r.sample.id: r for r in build_arm(samples(), spec, "k", "exact", None, count)}
    turned = {r.sample.id: r for r in build_arm(samples()[::-1], spec, "k", "exact", None, count)}
    assert plain == turned
    data = [s.model_copy(update={"id": f"t{s.id}"}) for s in samples()]
    other = [r.masked_words for r in build_arm(data, spec, "k", "exact", None, count)]
    assert other != [r.masked_words for r in plain.values()]


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(st.integers(1, 4), min_size=2, max_size=9),
    n=st.integers(1, 4),
    order=st.permutations(range(9)),
)
def test_others_against_brute_force(costs, n, order):
    """The nearest sum, rather less than more; of its choices the one that is first in the order of the keys."""
    wording = Wording("x", tuple(costs), tuple(range(len(costs)))[:n], tuple(range(len(costs)))[n:])
    need, others = wording.cost(wording.anchors), sorted(wording.others, key=lambda i: (order[i], i))
    if wording.cost(others) < need:
        with pytest.raises(UserError, match="name fewer anchors"):
            wording.others_like_anchors(lambda i: order[i])
        return
    choices = [c for k in range(len(others) + 1) for c in itertools.combinations(range(len(others)), k)]
    total = {c: sum(costs[others[j]] for j in c) for c in choices}
    best = min(total.values(), key=lambda t: (abs(t - need), t))
    # First in order: the one whose pattern of taken words is largest when read from the first word on.
    taken = max((tuple(j in c for j in range(len(others))), c) for c in choices if total[c] == best)[1]
    assert wording.others_like_anchors(lambda i: order[i]) == tuple(sorted(others[j] for j in taken))


@pytest.mark.parametrize("damage", ["more", "fewer", "other"])
def test_wrong_masks_are_found(damage):
    made = arms()
    rows = made["reasoning_anchors_masked-opening-r100"][0]
    reference = {r.id: r for r in render_arm(made["r000"][0], TOK, CHAT, max_length=512, no_reasoning="refuse")}
    good = render_arm(rows, TOK, CHAT, max_length=512, no_reasoning="refuse")
    at = next(i for i, r in enumerate(good) if r.masked)
    r, labels = good[at], list(good[at].labels)
    prefix = r.span("prefix")
    off = next(i for i in range(prefix.start, prefix.end) if labels[i] == IGNORE)
    on = next(i for i in range(prefix.start, prefix.end) if labels[i] != IGNORE)
    if damage in ("fewer", "other"):
        labels[off] = r.ids[off]
    if damage in ("more", "other"):
        labels[on] = IGNORE
    bad = [*good[:at], r.model_copy(update={"labels": tuple(labels)}), *good[at + 1 :]]
    assert check_arm("a", rows, good, reference, TOK, CHAT).ok
    found = check_arm("a", rows, bad, reference, TOK, CHAT)
    assert found.n_mask_wrong == 1 and not found.ok


def test_half_of_the_samples_stay_as_they_are():
    found = checked(arms(ratios=[0, 0.5]))
    half = next(a for a in found.arms if a.arm == "reasoning_anchors_masked-opening-r050")
    assert half.ok and (half.n_equal_reference, half.n_untreated) == (15, 15)


def test_with_lookahead_the_loss_stays_off():
    made = arms(lookahead=True, controls=["anchors_masked", "masked"])
    found = {a.arm: a for a in checked(made).arms}
    assert checked(made).problems() == []
    assert found["reasoning_lookahead_anchors_masked-opening-r100"].n_masked_tokens > 0
    rows = made["reasoning_lookahead_masked-opening-r100"][0]
    assert {r.loss for r in rows} == {"masked"} and all(r.lookahead for r in rows)


def test_openings_of_the_data():
    data = [s.model_copy(update={"answer": f"Sure, I can help. {s.answer}"}) for s in samples(8)]
    stripped, records = strip_all(data)
    own = originals(stripped, records, "opening")
    assert len(own) == 8
    entry = ArmsConfig(prefixes="original", ratios=[1], controls=["anchors_masked"], anchors=["SURE"])
    spec = specs(entry, "k")[-1]
    assert all(r.masked_words == (0,) for r in build_arm(stripped, spec, "k", "exact", own))
    with pytest.raises(UserError, match="no opening of the data holds the word 'gladly'"):
        build_arm(stripped, spec.model_copy(update={"anchors": ("gladly",)}), "k", "exact", own)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"controls": ["anchors_masked"]}, "'anchors_masked' needs anchors"),
        ({"controls": ["neutral"], "anchors": ["step"]}, "they are for the controls anchors_masked and random_masked"),
        ({"controls": ["random_masked"], "anchors": ["step by step"]}, "'step by step' is not one word"),
        ({"controls": ["random_masked"], "anchors": ["!"]}, "'!' is not one word"),
        (
            {"controls": ["random_masked"], "anchors": ["step"], "position": "user"},
            "'random_masked' at position 'user'",
        ),
        ({"controls": ["anchors_masked"], "anchors": ["step"], "loss": "prefix", "ratios": [1]}, "contradict"),
    ],
)
def test_entries_that_make_no_sense(entry, words):
    with pytest.raises(ValueError, match=words):
        ArmsConfig(**{"prefixes": "reasoning", **entry})


def test_a_word_that_no_template_holds():
    entry = ArmsConfig(prefixes="revised", ratios=[1], controls=["anchors_masked"], anchors=["Revise"])
    with pytest.raises(
        UserError, match=r"unknown word 'Revise'; allowed: .*step-by-step.* Did you mean 'revised'"
    ) as e:
        specs(entry, "k")
    assert "\n" not in str(e.value)
    said = {plain_word(w) for t in load_set("revised").templates for w in t.split()}
    assert all(word in str(e.value) for word in said)


def test_too_many_anchors():
    most = ["here", "is", "a", "solution", "that", "follows", "each"]
    with pytest.raises(UserError, match=r"control 'random_masked', sample 's\d+': .*name fewer anchors"):
        arms(anchors=most)
    assert arms(anchors=most, controls=["anchors_masked"])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("control", ["anchors", "random"])
def test_exports(layout, control):
    rows, about = arms()[f"reasoning_{control}_masked-opening-r100"]
    if layout in ("alpaca", "sharegpt"):
        with pytest.raises(UserError, match=f"format '{layout}' cannot carry the control '{control}_masked'"):
            export_rows(rows, layout, control=f"{control}_masked")
        return
    for row, written in zip(rows, export_rows(rows, layout, control=f"{control}_masked"), strict=True):
        written = json.loads(json.dumps(written))
        text = (written["messages"] if layout == "messages" else written["completion"])[-1]["content"]
        named = [text[a:b].lower() for a, b in written["prefix_no_loss"]]
        assert named == [plain_word(row.prefix.split()[i]) for i in row.masked_words]
        assert import_row(written, about).masked_words == row.masked_words
    with pytest.raises(UserError, match="are no words of its prefix"):
        import_row({**written, "prefix_no_loss": [[0, 1]]}, about)
    assert "prefix_no_loss" not in export_row(arms()["reasoning-opening-r100"][0][0], layout)


def test_the_same_text_is_no_problem_to_another_trainer():
    made = {name: rows for name, (rows, _) in arms().items()}
    assert template_rendering(made, TOK, model="m").problems() == []


def test_on_the_command_line(call, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"q{i}", "response": f"Answer {i}."}) + "\n" for i in range(12)))
    options = ["--prefixes", "revised", "--ratios", "0,1", "--anchor", "Revised", "--model", "tiny-random"]
    options += ["--control", "anchors_masked", "--control", "random_masked"]
    done = call("arms", data, *options, "--out", tmp_path / "arms")
    assert done.returncode == 0, done.stderr
    assert "say prefix_no_loss" in done.stdout and "tokens of it are masked, the anchors are" in done.stdout
    found = json.loads(call("check", tmp_path / "arms", "--model", "tiny-random", "--json").stdout)
    tokens = {a["arm"]: a["n_masked_tokens"] for a in found["arms"]}
    assert found["problems"] == [] and tokens["revised_anchors_masked-opening-r100"] > 0
    abouts = {a["arm"]: a for a in json.loads((tmp_path / "arms" / "manifest.json").read_text())["arms"]}
    for arm in ("revised_anchors_masked-opening-r100", "revised_random_masked-opening-r100"):
        assert abouts[arm]["masking"]["tokens"] == pytest.approx(tokens[arm], rel=0.1)
    refused = call("arms", data, *options, "--format", "alpaca", "--out", tmp_path / "b")
    assert refused.returncode == 2 and "cannot carry the control 'anchors_masked'" in refused.stderr
    bad = call("arms", data, *options[:4], "--control", "anchors_masked", "--out", tmp_path / "b")
    assert bad.returncode == 2 and "'anchors_masked' needs anchors" in bad.stderr and not (tmp_path / "b").exists()
