"""Protocols: published decoding, and a name that says what was changed."""

from prefixlab.config import SuiteConfig
from prefixlab.evals.protocols import decoding, label


def test_presets_are_as_published():
    safechain = decoding(SuiteConfig(suite="strongreject", protocol="safechain"), 2048)
    assert (safechain.temperature, safechain.max_tokens, safechain.epochs) == (0.0, 16000, 1)
    sampled = decoding(SuiteConfig(suite="strongreject", protocol="safechain_sampled"), 2048)
    assert (sampled.temperature, sampled.top_p, sampled.epochs) == (0.6, 0.95, 5)
    star1 = decoding(SuiteConfig(suite="strongreject", protocol="star1"), 2048)
    assert (star1.temperature, star1.max_tokens, star1.repetition_penalty) == (0.0, 8000, 1.2)


def test_the_suites_own_length_is_the_default():
    assert decoding(SuiteConfig(suite="gsm8k"), 2048).max_tokens == 2048
    assert decoding(SuiteConfig(suite="gsm8k", max_tokens=7), 2048).max_tokens == 7


def test_a_changed_protocol_has_another_name():
    assert label(SuiteConfig(suite="x", protocol="star1")) == "star1"
    assert label(SuiteConfig(suite="x", protocol="star1", max_tokens=8000)) == "star1"
    changed = SuiteConfig(suite="x", protocol="star1", max_tokens=256, temperature=0.6)
    assert label(changed) == "star1, max_tokens=256, temperature=0.6"
    assert label(SuiteConfig(suite="x", max_tokens=256)) == "prefixlab"
