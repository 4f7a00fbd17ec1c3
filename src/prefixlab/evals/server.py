"""A server of the OpenAI protocol: requests that survive a bad network, and one line about a server that is gone.

What may succeed at another try is tried again: dropped connections, time-outs, status 408, 409, 425, 429 and 5xx, and
answers that are no answer (half of one, no JSON, JSON of another form). Pauses double, or are what the server asks for.
"""

import asyncio
import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from prefixlab.errors import StepError

T = TypeVar("T")
Read = Callable[[httpx.Response], T]
"""From an answer to what is wanted; an exception of READS means that the answer is none."""
READS = (ValueError, KeyError, IndexError, TypeError, AttributeError)
AGAIN = (408, 409, 425, 429)
"""Status codes below 500 after which another try may succeed."""
LONGEST = 30.0
"""Seconds of the longest pause of our own."""
OBEYED = 120.0
"""Seconds of the longest pause that is granted to a server."""
CONNECT = 15.0
"""Seconds until a server must have taken a connection."""


class Refused(Exception):
    """The server turned a request away for what is in it; asking again would not help."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said}")
        self.status = status


class Unanswered(Exception):
    """All tries failed; the text says how the last one did."""


class ServerDown(StepError):
    """A server that does not answer at all; steps that follow need not wait for it again."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how patiently it is asked."""

    url: str
    """Address up to and with the version, without a slash at its end."""
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    """Seconds of one attempt, whatever trickles in meanwhile."""
    retries: int = 6
    first_pause: float = 0.5
    """Seconds before the second attempt; doubled each time."""

    @property
    def by_proxy(self) -> bool:
        """Whether the environment's proxy may stand between: not on the way to this machine."""
        return urlsplit(self.url).hostname not in ("127.0.0.1", "::1", "localhost")

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with every request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def one_line(text: object) -> str:
    """A text on one line, cut to what a message can hold."""
    return " ".join(str(text).split())[:300]


def wished_pause(response: httpx.Response, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None without one that can be read."""
    said = response.headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - now
        except ValueError:
            return None
    return min(max(seconds, 0.0), OBEYED)


def reason(response: httpx.Response) -> str:
    """What a server says about an error, without the JSON around it."""
    try:
        told = response.json()
        inner = told.get("error", told.get("detail", told.get("message", told)))
        told = inner.get("message", inner) if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        told = response.text
    return one_line(told) or response.reason_phrase


class Client:
    """Requests to one server, inside `async with`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        # The number of requests at once is the caller's; a pool that makes them wait would eat into their time.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            headers=endpoint.headers,
            limits=limits,
            timeout=httpx.Timeout(endpoint.timeout, connect=CONNECT),
            trust_env=endpoint.by_proxy,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(self, path: str, body: dict[str, Any], read: Read[T], retries: int | None = None) -> T:
        """Send a request until it is answered.

        Args:
            path: Below the endpoint's address, e.g. "/completions".
            body: As JSON.
            read: From the answer to what is wanted.
            retries: Other than the endpoint's.

        Raises:
            Refused: The request itself was turned away.
            Unanswered: No try was answered.
        """
        return await self._ask("POST", path, body, read, self.endpoint.retries if retries is None else retries)

    async def get(self, path: str, read: Read[T], retries: int | None = None) -> T:
        """As `post`, without a body."""
        return await self._ask("GET", path, None, read, self.endpoint.retries if retries is None else retries)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None, read: Read[T], retries: int) -> T:
        why, pause = "", self.endpoint.first_pause
        for attempt in range(retries + 1):
            wished = None
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    response = await self._http.request(method, self.endpoint.url + path, json=body)
            except (TimeoutError, httpx.TimeoutException) as error:
                slow = isinstance(error, httpx.ConnectTimeout)
                why = "no connection" if slow else f"no answer within {self.endpoint.timeout:g} s"
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {one_line(error) or 'the connection broke'}"
            else:
                if response.is_success:
                    try:
                        return read(response)
                    except READS as error:
                        why = f"an answer that is none ({type(error).__name__}: {one_line(response.text)[:80]!r})"
                elif response.status_code in AGAIN or response.status_code >= 500:
                    why = f"status {response.status_code}: {reason(response)}"
                    wished = wished_pause(response, time.time())
                else:
                    raise Refused(response.status_code, reason(response))
            if attempt < retries:
                await asyncio.sleep(pause if wished is None else wished)
                pause = min(2 * pause, LONGEST)
        raise Unanswered(why)

    async def models(self, retries: int | None = None) -> tuple[str, ...]:
        """Names of what the server says it has.

        Raises:
            ServerDown: It does not answer.
            StepError: It refuses.
        """
        try:
            return await self.get("/models", lambda told: tuple(str(m["id"]) for m in told.json()["data"]), retries)
        except Unanswered as error:
            raise ServerDown(f"server {self.endpoint.url} does not answer ({error}); see that it runs") from error
        except Refused as error:
            hint = "; does the address end in /v1?" if error.status == 404 else ""
            hint = (
                "; name the variable that holds its key in serving.api_key_env" if error.status in (401, 403) else hint
            )
            raise StepError(f"server {self.endpoint.url} refuses to list its models ({error}){hint}") from error
