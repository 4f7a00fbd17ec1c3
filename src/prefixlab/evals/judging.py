"""What model-based judges share: the verdict, the contract, the cache around a judge, and the call to a remote model.

A judge that answers nonsense has given a verdict: INVALID. A judge that is down, slow or out of quota has given none:
that is `JudgeDown`, which is never stored. Text under judgement is material: `neutral` takes the power from special
tokens in it before it reaches a judge.

    judge = Cached(RemoteGuard("openai-api/lab/meta-llama/Llama-Guard-3-8B"), VerdictCache(Path("verdicts.sqlite")))
    judgement = await judge.judge(prompt, response)
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelOutput, get_model
from pydantic import ValidationError, field_validator
from tenacity import RetryError

from prefixlab.errors import StepError, UserError
from prefixlab.evals.verdicts_cache import VerdictCache, verdict_key
from prefixlab.records import Record, Verdict

RAW = 2_000
"""Characters of a judge's answer that are kept."""
TOP = 5
"""Alternatives asked for at each token: what every provider with log-probabilities grants."""
MARKS = re.compile(
    r"<[|｜][^<>\n]{1,80}[|｜]>|</?s>|<(?:bos|eos|pad|unk|mask)>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|<(?:BEGIN|END) [A-Z ]{1,60}>",
    re.IGNORECASE,
)
"""Text that some tokenizer reads as a special token, and the plain marks of the Llama-Guard format."""
NEUTRAL = hashlib.sha256(MARKS.pattern.encode()).hexdigest()[:12]
"""Which marks `neutral` knows: part of a judge's identity, since it decides what the judge reads."""
_TOO_LONG = re.compile(r"context[ _](?:length|window|size)|input length|prompt is too long", re.IGNORECASE)
_MARKUP = re.compile(r"\[/?[a-z]+\]")


def whole_characters(text: str) -> str:
    """The text with lone surrogates replaced: neither tokenizers nor JSON over HTTP carry them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def neutral(text: str, special: Iterable[str] = ()) -> str:
    """Text that holds no special token: a space goes behind the first character of each.

    Args:
        text: Prompt or response under judgement.
        special: The judge's own special tokens, where its tokenizer is at hand; those of `MARKS` always count.
    """
    text = MARKS.sub(lambda m: f"{m[0][0]} {m[0][1:]}", whole_characters(text))
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


class JudgeDown(StepError):
    """A judge gave no verdict because it could not be reached, was too slow, or turned the request away."""


class Judgement(Record):
    """One verdict on one response."""

    verdict: Verdict
    unsafe_probability: float | None
    """Between 0 and 1; None where the judge gave no probabilities. An INVALID answer can have one."""
    raw: str
    """What the judge said, cut to 2,000 characters."""
    reason: str
    """Why the verdict is INVALID; empty otherwise."""

    @field_validator("raw", mode="before")
    @classmethod
    def _storable(cls, raw: str) -> str:
        return whole_characters(raw)[:RAW]


def invalid(reason: str, raw: str = "") -> Judgement:
    """No verdict, and why."""
    return Judgement(verdict="INVALID", unsafe_probability=None, raw=raw, reason=reason)


EMPTY = invalid("empty")
"""On a response without any text; no judge is asked."""


class Judge(Protocol):
    """Decides whether a response to a prompt is unsafe."""

    name: str
    identity: dict[str, str]
    """Everything that decides a verdict: model, revision or fingerprint, prompt, decoding, reading of the answer."""

    async def judge(self, prompt: str, response: str) -> Judgement:
        """The verdict on the whole response, reasoning included.

        Raises:
            JudgeDown: There is no verdict, for reasons that lie outside prompt and response.
        """
        ...


class Cached:
    """A judge that remembers: whatever it has answered, INVALID included, is not asked again."""

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.name, self.identity = judge.name, judge.identity
        self._judge, self._cache = judge, cache

    async def judge(self, prompt: str, response: str) -> Judgement:
        """The stored verdict, else the judge's, which is then stored.

        Raises:
            JudgeDown: The judge gave none; nothing is stored.
            UserError: The cache's file is corrupt.
        """
        key = verdict_key(self.identity, prompt, response)
        stored = await asyncio.to_thread(self._cache.get, key)
        if stored is None:
            judgement = await self._judge.judge(prompt, response)
            stored = await asyncio.to_thread(self._cache.put, key, judgement.model_dump_json())
        try:
            return Judgement.model_validate_json(stored)
        except ValidationError as error:
            raise self._cache.corrupt("a row holds no verdict") from error


class Remote:
    """One Inspect model, asked greedily.

    Args:
        name: As Inspect names it: provider/model.
        max_tokens: Longest answer.
        timeout: Seconds one attempt may take, the retries of the provider's own client included.
        retries: Further attempts after rate limits, server errors and time-outs, with growing pauses from 3 s on.
        logprobs: Ask for log-probabilities; some services refuse requests that do.

    Raises:
        UserError: Inspect cannot make the model: unknown provider, package or key missing.
    """

    def __init__(self, name: str, *, max_tokens: int, timeout: int, retries: int, logprobs: bool) -> None:
        if timeout < 1 or retries < 0:
            raise UserError(
                f"judge {name!r}: timeout {timeout} and retries {retries}; at least 1 second and 0 retries are needed"
            )
        self.name = name
        self._config = GenerateConfig(
            temperature=0.0,
            max_tokens=max_tokens,
            attempt_timeout=timeout,
            max_retries=retries,
            logprobs=True if logprobs else None,
            top_logprobs=TOP if logprobs else None,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._model = self._make()

    def _make(self) -> Model:
        try:
            return get_model(self.name, config=self._config, memoize=False)
        except Exception as error:
            raise UserError(f"judge model {self.name!r} cannot be used: {_line(error)}") from error

    async def ask(self, messages: Sequence[ChatMessage]) -> ModelOutput | Judgement:
        """The model's output, or INVALID where the provider turned the text itself away.

        Raises:
            JudgeDown: No answer after the retries, or the request was refused for another reason than its text.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            # Each Inspect run has an event loop of its own, and pooled connections die with theirs.
            self._model = self._make()
        self._loop = loop
        try:
            output = await self._model.generate(list(messages))
        except Exception as error:
            # A RetryError says nothing of its cause, so a quota in tokens is never taken for a text that is too long.
            if _TOO_LONG.search(str(error)):
                return invalid("too long", _line(error))
            cause = (error.__cause__ or error) if isinstance(error, RetryError) else error
            raise JudgeDown(
                f"judge {self.name!r} gave no verdict ({type(cause).__name__}: {_line(cause)}); see that it is up and "
                "that its key, quota and timeout are right, and run again"
            ) from error
        said = output.completion
        if output.empty:
            return invalid("no answer", said)
        if output.stop_reason == "model_length":
            return invalid("too long", said)
        if output.stop_reason == "content_filter":
            return invalid("the judge's provider blocked it", said)
        return output


def _line(error: BaseException) -> str:
    """An error's text on one line, without markup."""
    return " ".join(_MARKUP.sub("", str(error)).split())[:300] or "no reason given"
