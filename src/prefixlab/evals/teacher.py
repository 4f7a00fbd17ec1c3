"""A strong model behind any Inspect provider that is asked for texts, one request a call.

Nothing is asked again in here: whoever pays wants to decide. So the retries of Inspect are switched off, and those of
the provider's own client where it takes the setting (`CLIENTS`). A failure says what is known about it: whether another
try can help, and whether it may have cost something. An error status (429, 500, ...) costs nothing; that of a gateway
which got no answer, a connection that breaks, an answer that never comes and one that cannot be read may each have been
paid.

    teacher = Teacher("openai/gpt-4.1", max_tokens=4096, temperature=0.0, timeout=120, connections=8)
    said = await teacher.ask("...")
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import ChatMessageUser, GenerateConfig, Model, ModelAPI, ModelOutput, get_model

from prefixlab.errors import UserError
from prefixlab.evals.judging import whole_characters

AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which another try can help."""
HOPELESS = frozenset({401, 402, 403, 404})
"""Statuses that every further request would get: key, credit, permission, no such model."""
GATEWAY = frozenset({502, 504, *range(520, 528)})
"""Statuses of gateways without an answer from behind, where the reply may have been written, and charged."""
CLIENTS = frozenset({"openai", "openai-api", "anthropic", "groq", "openrouter", "deepseek", "perplexity", "moonshot"})
"""Inspect's providers that hand the setting `max_retries` to a client which would else try again by itself."""
TURNED_AWAY = ("model_length", "content_filter")
"""What Inspect's providers make of a status 400 about a prompt that is too long or not allowed: a reply without
usage."""
_UNSENT = ("ConnectError", "ConnectTimeout", "ConnectionRefusedError", "gaierror")
_WRAPPERS = ("RetryError", "ModelGenerateError")
"""What Inspect raises around a provider's own error; the second has no public name."""
_MARKUP = re.compile(r"\[/?[a-z]+\]")


@dataclass(frozen=True, slots=True)
class Said:
    """A reply, and what it took."""

    text: str
    stop: str
    """Inspect's stop reason: stop, max_tokens, model_length, content_filter, ..."""
    tokens_in: int | None
    """None where the service does not say."""
    tokens_out: int | None
    """Reasoning tokens included."""


class TeacherFailed(Exception):
    """No reply to one request."""

    def __init__(
        self, why: str, *, status: int | None, unsent: bool, wait: float = 0.0, exhausted: bool = False
    ) -> None:
        super().__init__(why)
        self.status = status
        self.unsent = unsent
        self.exhausted = exhausted
        """Whether a quota is used up that no pause gives back."""
        self.wait = wait
        """Seconds that the service asks to wait."""

    @property
    def free(self) -> bool:
        """Whether it surely cost nothing."""
        return self.unsent or (self.status is not None and self.status not in GATEWAY)

    @property
    def again(self) -> bool:
        """Whether another try can help."""
        return self.status is None or self.status >= 500 or self.status in AGAIN

    @property
    def hopeless(self) -> bool:
        """Whether no request can succeed."""
        return self.status in HOPELESS or self.exhausted


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return whole_characters(" ".join(_MARKUP.sub("", str(error)).split()))[:200] or "no reason given"


def _status(error: BaseException) -> int | None:
    # The providers' clients share no base class; openai, anthropic, mistral and groq have `status_code`, google `code`.
    for name in ("status_code", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int) and 400 <= found < 600:
            return found
    return None


class Teacher:
    """One Inspect model.

    Args:
        name: As Inspect names it: provider/model.
        max_tokens: Longest reply, in tokens; what a request can cost at most rests on it.
        temperature: Of sampling; 0 is greedy.
        timeout: Seconds for one request.
        connections: Requests at once.

    Raises:
        UserError: Inspect cannot make the model: unknown provider, package or key missing.
    """

    def __init__(self, name: str, *, max_tokens: int, temperature: float, timeout: int, connections: int) -> None:
        self.name = name
        config = GenerateConfig(
            temperature=temperature,
            max_tokens=max_tokens,
            attempt_timeout=timeout,
            max_retries=0,
            max_connections=connections,
        )
        self._model = _made(name, config)

    async def ask(self, text: str) -> Said:
        """One request.

        Raises:
            TeacherFailed: There is no reply.
        """
        try:
            output = await self._model.generate([ChatMessageUser(content=whole_characters(text))])
        except Exception as error:
            raise self._failed(error) from error
        if output.usage is None and output.stop_reason in TURNED_AWAY:
            why = whole_characters(" ".join(output.completion.split()))[:200]
            raise TeacherFailed(f"{output.stop_reason}: {why}", status=400, unsent=False)
        return _said(output)

    def _failed(self, error: Exception) -> TeacherFailed:
        inner = next((e for e in _chain(error) if type(e).__name__ not in _WRAPPERS), error)
        status = next((s for e in _chain(error) if (s := _status(e)) is not None), None)
        unsent = any(type(e).__name__ in _UNSENT for e in _chain(error))
        decision = self._model.api.should_retry(inner) if isinstance(inner, Exception) else False
        wait = 0.0 if isinstance(decision, bool) else decision.retry_after or 0.0
        why = f"{type(inner).__name__}: {_line(inner)}"
        # A rate limit that Inspect's provider would not try again is a quota; not all providers say.
        says = type(self._model.api).should_retry is not ModelAPI.should_retry
        exhausted = status == 429 and says and not decision
        return TeacherFailed(why, status=status, unsent=unsent, wait=wait, exhausted=exhausted)


def _made(name: str, config: GenerateConfig) -> Model:
    try:
        how: dict[str, Any] = {"max_retries": 0} if name.partition("/")[0] in CLIENTS else {}
        return get_model(name, config=config, memoize=False, **how)
    except Exception as error:
        raise UserError(f"teacher {name!r} cannot be used: {_line(error)}") from error


def _said(output: ModelOutput) -> Said:
    usage, text = output.usage, whole_characters(output.completion)
    if usage is None or not (usage.total_tokens or usage.output_tokens):
        return Said(text, str(output.stop_reason), None, None)
    read = usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
    # Some providers count reasoning in the total only.
    written = max(usage.output_tokens, usage.total_tokens - read)
    return Said(text, str(output.stop_reason), read, written)
