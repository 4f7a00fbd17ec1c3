"""Arms: nested, keyed, counted, matched; nothing but the prefix differs."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.config import ArmsConfig
from prefixlab.data.arms import arm_specs, build_arm, manifest, ratio_tag, read_arm, specs, write_arm
from prefixlab.data.prefixes import builtin_sets, load_set, words
from prefixlab.errors import UserError
from prefixlab.records import Message, Sample


def samples(n):
    return [
        Sample(id=f"s{i}", messages=(Message(role="user", content=f"q{i}"),), reasoning=None, answer=f"a{i}")
        for i in range(n)
    ]


def arms(n=40, ratios=(0, 0.25, 0.5, 1), controls=("neutral", "shuffled", "masked"), assignment="exact"):
    entry = ArmsConfig(prefixes="reasoning", ratios=list(ratios), controls=list(controls))
    return {s.name: build_arm(samples(n), s, "k", assignment) for s in specs(entry, "k")}


def test_names():
    assert list(arms()) == [
        "r000",
        "reasoning-opening-r025",
        "reasoning-opening-r050",
        "reasoning-opening-r100",
        "neutral-opening-r100",
        "reasoning_shuffled-opening-r100",
        "reasoning_masked-opening-r100",
    ]
    assert [ratio_tag(r) for r in (0.05, 0.125, 1)] == ["r005", "r0125", "r100"]


def test_ratios_are_nested_and_exact():
    treated = [
        {r.sample.id for r in rows if r.treated}
        for name, rows in arms().items()
        if name.startswith(("r000", "reasoning-"))
    ]
    assert [len(t) for t in treated] == [0, 10, 20, 40]
    assert all(a < b for a, b in pairwise(treated))


@given(st.permutations(list(range(12))), st.sampled_from([0.25, 0.5, 1.0]))
def test_order_of_the_file_changes_nothing(order, ratio):
    entry = ArmsConfig(prefixes="safety", ratios=[ratio], controls=["neutral"])
    data = samples(12)
    for spec in specs(entry, "k"):
        plain = {r.sample.id: r for r in build_arm(data, spec, "k", "exact")}
        mixed = {r.sample.id: r for r in build_arm([data[i] for i in order], spec, "k", "exact")}
        assert plain == mixed


def test_a_sample_has_one_template_in_every_arm():
    found = arms()
    for i in range(40):
        index = {rows[i].template for name, rows in found.items() if name != "r000"}
        assert len(index) == 1


def test_only_the_prefix_differs():
    found = arms()
    for rows in found.values():
        assert [r.sample for r in rows] == samples(40)


def test_bernoulli_is_nested_and_near_the_ratio():
    found = arms(n=2000, ratios=(0.25, 0.5), controls=(), assignment="bernoulli")
    few, many = ({r.sample.id for r in found[f"reasoning-opening-r{t}"] if r.treated} for t in ("025", "050"))
    assert few < many
    assert abs(len(few) - 500) < 80 and abs(len(many) - 1000) < 90


def test_empty_responses_cannot_carry_a_prefix():
    data = [*samples(3), samples(1)[0].model_copy(update={"id": "empty", "answer": ""})]
    spec = specs(ArmsConfig(prefixes="reasoning", ratios=[1.0], controls=[]), "k")[1]
    rows = build_arm(data, spec, "k", "exact")
    about = manifest(rows, spec, "c", "k", "exact", 0, None)
    assert (about.n, about.n_eligible, about.n_treated) == (4, 3, 3)
    assert not rows[-1].treated


@pytest.mark.parametrize("name", ["reasoning", "revised", "safety", "coding", "factuality"])
@pytest.mark.parametrize("control", ["neutral", "shuffled"])
def test_controls_match_in_words(name, control):
    spec = specs(ArmsConfig(prefixes=name, ratios=[1.0], controls=[control]), "k")[-1]
    for own, other in zip(spec.prefixes.templates, spec.treatment.templates, strict=True):
        assert abs(words(own) - words(other)) <= 1
        if control == "shuffled":
            assert sorted(own.split()) == sorted(other.split()) and own != other
    if control == "neutral":
        assert len(set(spec.prefixes.templates)) == 5


@pytest.mark.parametrize("name", ["reasoning", "revised", "safety", "coding", "factuality"])
@pytest.mark.parametrize("count_tokens", [None, len])
def test_the_keyword_is_in_replaced_and_out(name, count_tokens):
    """The three arms have the same sentence of every template, and differ in that word (and its article) alone."""
    controls = ["revised", "synonym", "unrevised"]
    entry = ArmsConfig(prefixes=name, ratios=[1.0], controls=controls)
    made = {s.name: s for s in specs(entry, "k", count_tokens)}
    said, replaced, out = (made[f"{c}-opening-r100"].prefixes.templates for c in controls)
    assert len(said) == 5
    for i, sentence in enumerate(said):
        assert sentence.count("revised") == 1
        assert replaced[i] == sentence.replace("revised", "modified")
        assert len(replaced[i]) - len(sentence) == 1 and words(replaced[i]) == words(sentence)
        left, right = sentence.replace("revised, ", "revised ").split("a revised ")
        assert out[i] in (f"{left}a {right}", f"{left}an {right}") and words(out[i]) == words(sentence) - 1
        assert out[i].startswith(f"{left}an ") == (right[0] in "aeiou")
        assert abs(words(sentence) - words(made[f"{name}-opening-r100"].prefixes.templates[i])) <= 1
    if name == "revised":
        assert said == load_set("revised").templates


def test_every_set_has_five_templates_of_its_own_words():
    assert set(builtin_sets()) == {"reasoning", "revised", "safety", "coding", "factuality", "neutral"}
    texts = [t for name in builtin_sets() for t in load_set(name).templates]
    assert all(len(load_set(n).templates) == 5 for n in builtin_sets()) and len(set(texts)) == 30
    assert all("revised" in t for t in load_set("revised").templates)


def test_user_set(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text('name: own\ndescription: x\ntemplates: ["Yes, indeed, let me show you that."]\n')
    spec = specs(ArmsConfig(prefixes=str(path), ratios=[1.0], controls=["neutral"]), "k")[-1]
    assert abs(words(spec.prefixes.templates[0]) - 7) <= 1


@pytest.mark.parametrize("text", ["templates: []", "name: x", "name: x\ndescription: y\ntemplates: ['']", "a: ["])
def test_broken_sets(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="prefix set"):
        load_set(str(path))


def test_unknown_set():
    with pytest.raises(UserError, match="Did you mean 'reasoning'"):
        load_set("reasonning")


def test_two_entries_share_r000_and_may_not_clash():
    entries = [ArmsConfig(prefixes=p, ratios=[1.0], controls=[]) for p in ("reasoning", "safety")]
    assert [s.name for s in arm_specs(entries, "k", native=True)] == [
        "native",
        "r000",
        "reasoning-opening-r100",
        "safety-opening-r100",
    ]
    clash = [ArmsConfig(prefixes=p, ratios=[1.0], controls=["neutral"]) for p in ("reasoning", "safety")]
    with pytest.raises(UserError, match="both define 'neutral-opening-r100'"):
        arm_specs(clash, "k", native=False)


def test_write_and_read(tmp_path):
    entry = ArmsConfig(prefixes="reasoning", ratios=[0.5], controls=[])
    spec = specs(entry, "k")[1]
    rows = build_arm(samples(7), spec, "k", "exact")
    about = manifest(rows, spec, "c", "k", "exact", 0, len)
    write_arm(tmp_path, rows, about)
    assert read_arm(tmp_path) == (rows, about)
    assert about.n_treated == 4  # 3.5 rounds up


def test_key_decides():
    spec = specs(ArmsConfig(prefixes="reasoning", ratios=[0.5], controls=[]), "k")[1]
    picks = [tuple(r.treated for r in build_arm(samples(40), spec, key, "exact")) for key in ("a", "b")]
    assert picks[0] != picks[1]
    random.seed(0)
    again = tuple(r.treated for r in build_arm(samples(40), spec, "a", "exact"))
    assert again == picks[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: ../evil\ntemplates: [a b c]\n", "name: String should match pattern"),
        ("name: x\n", "templates: Field required"),
        ("", "the file: Input should be"),
        ("name: x\ntemplates: [a b, a b]\n", "stands there twice"),
        ("name: x\ntemplates: ['a {{name}} b']\n", "holds an unfilled slot"),
        ("name: x\ntemplates: ['Hello {name}, of course']\n", "holds an unfilled slot"),
        ("name: [\n", "not valid YAML"),
        ("name: original\ntemplates: [a]\n", "is taken by the data's own openings"),
    ],
)
def test_mistakes_in_a_prefix_set(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_set(str(path))


def test_repeated_ids_follow_the_content():
    """Shuffling a file whose ids repeat changes nobody's id."""
    from prefixlab.data.sources import unique_ids

    made = [
        Sample(id="a", messages=(Message(role="user", content=f"q{i}"),), reasoning=None, answer="x") for i in range(5)
    ]
    by_prompt = {s.prompt: s.id for s in unique_ids(made)}
    assert {s.prompt: s.id for s in unique_ids(made[::-1])} == by_prompt and len(set(by_prompt.values())) == 5
