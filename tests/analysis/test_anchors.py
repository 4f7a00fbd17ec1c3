"""Anchors on synthetic studies whose truth is known, against statsmodels and by hand, and at the edges."""

import numpy as np
import polars
import pytest
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from prefixlab.analysis import stats
from prefixlab.analysis.anchors import AnchorRow, anchors
from prefixlab.analysis.word_levels import Levels, Words
from prefixlab.errors import UserError

TEMPLATES, VOCABULARY = 5, {None: 45, "neutral": 40, "random": 58}
LOG_COUNT = {None: 5.0, "neutral": 8.0, "random": 2.0}
"""Mean log count of a set's words: bland words are common, random nouns rare."""


class Study:
    """Token rows of one arm: words with levels of their own, a trend over positions, an effect of frequency, random
    samples and seeds, and whatever signal is asked for. All on the log scale."""

    def __init__(
        self,
        rng,
        *,
        word_sd=0.3,
        tails=None,
        signal=None,
        samples=60,
        seeds=(1, 2, 3),
        noise=0.5,
        controls=("neutral", "random"),
        seed_sd=0.2,
        sample_sd=0.3,
        capability="math",
    ):
        self.capability = capability
        draw = (
            rng.standard_normal if tails is None else lambda n: rng.standard_t(tails, n) * np.sqrt((tails - 2) / tails)
        )
        self.frequency, frames, first_id = {}, [], 0
        template_S = rng.integers(0, TEMPLATES, samples)
        template_S[:TEMPLATES] = range(TEMPLATES)
        sample_S, seed_K = sample_sd * rng.standard_normal(samples), seed_sd * rng.standard_normal(len(seeds))
        lengths, self.words, self.own = [10, 11, 12, 13, 14], {}, {}
        for control in (None, *controls, "shuffled"):
            if control == "shuffled":
                slots = [rng.permutation(t) for t in self.words[None]]
                own = self.own[None]
            else:
                size = VOCABULARY[control]
                ids = first_id + np.arange(size)
                first_id += size
                some = rng.permutation(np.concatenate([ids, rng.choice(ids, sum(lengths) - size)]))
                slots = np.split(some, np.cumsum(lengths)[:-1])
                log_count = LOG_COUNT[control] + rng.standard_normal(size)
                self.frequency |= {int(i): int(np.exp(c)) for i, c in zip(ids, log_count, strict=True)}
                own = dict(zip(ids.tolist(), word_sd * draw(size), strict=True))
                if control is None:
                    for at, extra in (signal or {}).items():
                        own[at] += extra
            self.words[control], self.own[control] = slots, own
            frames.append(self._rows(rng, control, slots, own, template_S, sample_S, seed_K, seeds, noise))
        self.rows = polars.concat(frames)

    def _rows(self, rng, control, slots, own, template_S, sample_S, seed_K, seeds, noise):
        word, at, sample = [], [], []
        for s, template in enumerate(template_S):
            word.append(slots[template])
            at.append(np.arange(len(slots[template])))
            sample.append(np.full(len(slots[template]), s))
        word, at, sample = map(np.concatenate, (word, at, sample))
        common = np.log1p([self.frequency[int(w)] for w in word])
        level = 1.0 - 0.05 * at + 0.8 * (at == 0) - 0.15 * common + [own[int(w)] for w in word] + sample_S[sample]
        k = len(seeds)
        value = np.exp(level[None] + seed_K[:, None] + noise * rng.standard_normal((k, len(word))))
        name = np.array([f"w{w}" for w in word])
        return polars.DataFrame(
            {
                "model": "m",
                "capability": self.capability,
                "arm": "set-opening-r100",
                "seed": polars.Series(np.repeat(np.array(seeds, dtype=object), len(word)).tolist(), dtype=polars.Int64),
                "sample": [f"s{i}" for i in sample] * k,
                "rendering": control or "set",
                "control": polars.Series([control] * (k * len(word)), dtype=polars.String),
                "template": np.tile(template_S[sample], k),
                "position": np.tile(at, k),
                "token": "x",
                "token_id": np.tile(word, k).astype(np.int64),
                "span": "prefix",
                "word": np.tile(name, k),
                "word_index": np.tile(at, k),
                "contribution": value.ravel(),
            }
        )


def ranked(study, quantity="contribution", seed=0, **changes):
    """Word rows of a study, best first."""
    found = anchors(
        study.rows.with_columns(**changes),
        quantity,
        alpha=0.05,
        rng=np.random.default_rng(seed),
        frequency=study.frequency,
    )
    return [r for r in found if r.unit == "word"]


def finite(rows):
    return all(np.isfinite(v) for r in rows for v in r.model_dump().values() if isinstance(v, float))


@pytest.mark.parametrize("seed", range(4))
def test_the_only_signal_leads_and_is_announced(seed):
    planted = {3: 1.6, 17: 1.8, 30: 2.0}
    study = Study(np.random.default_rng(seed), word_sd=0.2, noise=0.3, signal=planted)
    rows = ranked(study)
    assert {r.word for r in rows[:3]} == {f"w{i}" for i in planted} and [r.rank for r in rows] == list(range(1, 46))
    assert {r.word for r in rows if r.announced} == {r.word for r in rows[:3]}
    for r in rows[:3]:
        own = study.own[None][int(r.word[1:])]
        assert r.ci_low < r.excess < r.ci_high and r.excess == pytest.approx(own, abs=0.4)
        assert r.excess == pytest.approx(np.log(r.mean / r.expected)) and r.scale == "log"
    assert finite(rows)


def without_signal(repetitions, **study):
    """Share of studies with an announcement; the same for intervals alone; share of p below 0.05."""
    rng, found = np.random.default_rng(11), []
    for start in range(0, repetitions, 40):
        studies = [
            Study(rng, capability=str(i), samples=20, **study) for i in range(start, min(start + 40, repetitions))
        ]
        # One table of many studies is read faster than many tables; token ids are the same in all of them, counts not.
        frames = polars.concat(
            s.rows.with_columns(token_id=polars.col("token_id") + 1000 * i) for i, s in enumerate(studies)
        )
        frequency = {t + 1000 * i: c for i, s in enumerate(studies) for t, c in s.frequency.items()}
        found += [
            r for r in anchors(frames, "contribution", alpha=0.05, rng=rng, frequency=frequency) if r.unit == "word"
        ]
    assert finite(found) and len({r.capability for r in found}) == repetitions
    announced = {r.capability for r in found if r.announced}
    naive = {r.capability for r in found if r.ci_low is not None and r.ci_low > 0}
    return (
        len(announced) / repetitions,
        len(naive) / repetitions,
        np.mean([r.p < 0.05 for r in found if r.p is not None]),
    )


@pytest.mark.parametrize("word_sd", [0.02, 1.5])
def test_without_signal_nothing_is_announced(word_sd):
    announced, naive, below = without_signal(100, word_sd=word_sd)
    assert announced <= 0.05 and below <= 0.065
    if word_sd > 1:
        assert below >= 0.035  # where words differ more than samples do, p is calibrated, not just careful
        assert naive > 0.95  # sampling noise alone, a test that forgets that words differ, announces every time


def test_heavy_tails_cost_some_false_announcements():
    """Words' own levels from t with 5 degrees of freedom: an outlier is no anchor, and looks like one."""
    announced, _, below = without_signal(60, word_sd=0.8, tails=5)
    print(f"t with 5 df: announced in {announced:.0%} of studies without signal")
    assert announced <= 0.2 and below <= 0.07


def test_without_noise_it_is_the_regression_of_words():
    study = Study(np.random.default_rng(3), noise=0.0, sample_sd=0.0, seeds=(1,), samples=200)
    rows = {r.word: r for r in ranked(study)}
    table = study.rows.with_columns(
        c=polars.col("token_id").replace_strict(study.frequency, return_dtype=polars.Float64).log1p(),
        first=polars.col("position") == 0,
    )
    about = table.group_by("control", "word").agg(
        polars.col("contribution").mean().log(), polars.col("first", "position", "c").mean()
    )

    def split(which):
        part = about.filter(which).sort("word")
        return (
            part["word"].to_list(),
            part["contribution"].to_numpy(),
            sm.add_constant(part.select("first", "position", "c").to_numpy()),
        )

    _, y, x = split(polars.col("control").is_in(["neutral", "random"]))
    own, level, covariates = split(polars.col("control").is_null())
    predicted = sm.OLS(y, x).fit().get_prediction(covariates)
    t = (level - predicted.predicted_mean) / predicted.se_obs
    assert [np.log(rows[w].expected) for w in own] == pytest.approx(predicted.predicted_mean)
    # Occurrences weigh by template, which keeps a little resampling variance where a word stands in several.
    assert [rows[w].t for w in own] == pytest.approx(t, rel=0.03)


def test_q_is_benjamini_hochberg():
    rows = ranked(Study(np.random.default_rng(4), signal={3: 1.5, 9: 1.5}))
    assert [r.q for r in rows] == pytest.approx(multipletests([r.p for r in rows], method="fdr_bh")[1])


@pytest.mark.parametrize(("seeds", "a", "b", "e"), [(1, 0, 1, 0.5), (3, 0.3, 1, 0.5), (3, 0, 0.1, 1), (2, 0.5, 1, 1)])
def test_interval_is_that_of_crossed_factors(seeds, a, b, e):
    """The resampled interval of a plain mean against the analysis of variance, which has a closed form."""
    rng, n, ratios = np.random.default_rng(5), 30, []
    for _ in range(20):
        x = rng.normal(0, a, (seeds, 1)) + rng.normal(0, b, (1, n)) + rng.normal(0, e, (seeds, n))
        seed, sample = np.indices(x.shape).reshape(2, -1)
        one = np.zeros(x.size, dtype=int)
        words = Words(
            ["w"], one[:1], np.ones((1, 4)), np.array([float(n)]), one, sample, seed, x.ravel(), np.ones(x.size)
        )
        ((low, high),) = Levels(words, True, rng).spread(lambda v: v, words.n_W).intervals(0.05)
        oracle = stats.level(x, 0.05, share=False)
        assert (low + high) / 2 == pytest.approx(oracle.value)
        ratios.append((high - low) / (oracle.high - oracle.low))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05) and max(ratios) < 1.35


def test_same_generator_same_rows():
    study = Study(np.random.default_rng(6))
    assert ranked(study) == ranked(study) and ranked(study) != ranked(study, seed=1)


def test_few_controls_no_controls_and_no_prefix():
    study = Study(np.random.default_rng(7), samples=20)
    few = study.rows.filter(
        polars.col("control").is_null() | ((polars.col("control") == "neutral") & (polars.col("word_index") == 3))
    )
    for rows, count in (
        (few, len(few.filter(polars.col("control") == "neutral")["word"].unique())),
        (few.filter(polars.col("control").is_null()), 0),
    ):
        found = anchors(rows, "contribution", alpha=0.05, rng=np.random.default_rng(0), frequency=study.frequency)
        words = [r for r in found if r.unit == "word"]
        assert words and all(
            r.why == f"not tested: {count} words of the controls neutral and random were read, 10 are needed"
            for r in words
        )
        assert all(r.mean > 0 and r.excess is r.p is r.q is r.rank is None and not r.announced for r in words)
    bare = study.rows.with_columns(rendering=polars.lit("r000"), span=polars.lit("answer"))
    assert anchors(bare, "contribution", alpha=0.05, rng=np.random.default_rng(0), frequency={}) == []
    assert anchors(study.rows.clear(), "contribution", alpha=0.05, rng=np.random.default_rng(0), frequency={}) == []
    with pytest.raises(UserError, match=r"unknown quantity 'los'; allowed: .* Did you mean 'loss'"):
        anchors(study.rows, "los", alpha=0.05, rng=np.random.default_rng(0), frequency={})


def test_one_seed_and_the_base():
    study = Study(np.random.default_rng(8), seeds=(None,), signal={3: 3.0})
    rows = ranked(study)
    assert (
        {r.interval_over for r in rows} == {"samples only"}
        and {r.n_seeds for r in rows} == {1}
        and rows[0].word == "w3"
    )
    assert {r.interval_over for r in ranked(Study(np.random.default_rng(8)))} == {"samples and seeds"}


def test_an_adapter_that_is_the_base():
    study = Study(np.random.default_rng(9), samples=12)
    rows = ranked(study, "kl", kl=polars.lit(0.0))
    assert rows and all((r.excess, r.p, r.q, r.announced, r.mean) == (0.0, 1.0, 1.0, False, 0.0) for r in rows)
    assert {r.why for r in rows} == {"not tested: kl is 0 at every word, as where an adapter is the base"}


def test_not_measured():
    study = Study(np.random.default_rng(10), samples=12)
    rows = ranked(study, "kl", kl=polars.lit(None, dtype=polars.Float64))
    assert len(rows) == 45 and all(r.mean is r.p is r.q is None and r.n_samples == 0 for r in rows)
    assert {r.why for r in rows} == {"not measured: kl is null here"}
    broken = (
        polars.when(polars.col("word") == "w5")
        .then(float("nan"))
        .when(polars.col("word") == "w6")
        .then(float("inf"))
        .otherwise("contribution")
    )
    rows = {r.word: r for r in ranked(study, contribution=broken)}
    assert rows["w5"].mean is rows["w6"].mean is None and finite(rows.values()) and rows["w7"].p is not None


def test_a_word_of_one_sample_is_not_tested():
    study = Study(np.random.default_rng(12), samples=12)
    once = study.rows.filter(
        (polars.col("word") != "w5")
        | (polars.col("sample") == study.rows.filter(polars.col("word") == "w5")["sample"][0])
    )
    rows = {
        r.word: r
        for r in anchors(once, "contribution", alpha=0.05, rng=np.random.default_rng(0), frequency=study.frequency)
    }
    assert (
        rows["w5"].why == "not tested: read in one sample only"
        and rows["w5"].rank is None
        and rows["w5"].ci_low is None
    )
    assert rows["w5"].excess is not None


def test_signed_quantities_are_compared_as_they_are():
    study = Study(np.random.default_rng(13), noise=0.2, word_sd=0.1)
    signed = (polars.col("contribution") - 2) * polars.when(polars.col("word") == "w4").then(-9).otherwise(1)
    rows = ranked(study, "influence", influence=signed)
    assert {r.scale for r in rows} == {"raw"} and all(r.excess == pytest.approx(r.mean - r.expected) for r in rows)
    assert min(r.mean for r in rows) < 0 and finite(rows)


def test_a_word_in_treatment_and_control():
    """It is tested as every other word, and its occurrences in the control stay in the null."""
    study = Study(np.random.default_rng(14), signal={3: 2.5}, word_sd=0.1, noise=0.2)
    shared = polars.when(polars.col("word") == "w50").then(polars.lit("w3")).otherwise("word")
    rows = ranked(study, word=shared)
    assert rows[0].word == "w3" and rows[0].announced and rows[0].n_control_words == ranked(study)[0].n_control_words


def test_rows_fit_a_table():
    rows = ranked(Study(np.random.default_rng(16), samples=12))
    table = polars.DataFrame([r.model_dump() for r in rows])
    assert set(table.columns) == set(AnchorRow.model_fields) and len(table) == 45
