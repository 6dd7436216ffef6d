"""Client of an OpenAI-compatible server: completions are streamed, and the time of every token is kept.

A prompt is a list of token ids where the server takes one (``/v1/completions``), else text. Who counts tokens is the server: its
`usage` where it sends one. Each request has a connection of its own: one that is kept may be closed while it is written to. Times
are seconds of a clock of the client, by default this process's monotonic one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    import aiohttp

Api = Literal["completions", "chat"]
Prompt = Sequence[int] | str
PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
CONNECT_S = 10.0
"""Time for a connection (assumed)."""
ATTEMPTS = 6
"""Times that a request is sent where the server answers 429 (assumed): with waits of 1, 2, 4, 8 and 16 s or as it asks."""
LONGEST_WAIT_S = 60.0
"""Longest wait that a server's Retry-After is granted (assumed)."""
LINE_BYTES = 1 << 20
"""Longest event that is read (assumed)."""


class Event(NamedTuple):
    """A piece of a stream: when it came, and whether it holds text."""

    at_s: float
    text: bool


@dataclass
class Answer:
    """What came of a request. `token_s` are the times of its tokens; `error` says in words why there is no whole answer.

    `prompt_tokens` and `output_tokens` are what the server counted, None where it says nothing. `status` is that of HTTP, 0 for
    none. `refusals`: times it was answered 429 before.
    """

    sent_s: float
    end_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    status: int = 0
    refusals: int = 0
    error: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_s) if self.output_tokens is None else self.output_tokens


@dataclass(frozen=True)
class Target:
    """A server and how it is asked. `fixed_length`: to run on to the limit (`ignore_eos`, which is no part of OpenAI's API)."""

    base: str
    model: str = ""
    api: Api = "completions"
    key: str = ""
    timeout_s: float = 120.0
    fixed_length: bool = True

    @classmethod
    def of(cls, url: str, **given: Any) -> Target:
        """From an address with or without a path. Raises InputError for what is none."""
        text = url if "//" in url else f"http://{url}"
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"'{url}' is no address of a server", where="URL", mend="such as http://localhost:8000")
        path = parts.path.rstrip("/")
        for known in (*PATHS.values(), "/v1"):
            path = path.removesuffix(known)
        return cls(f"{parts.scheme}://{parts.netloc}{path}", **given)


def token_times(events: Sequence[Event], counted: int | None) -> list[float]:
    """Times of the tokens of a stream: pieces without text at its ends hold none if the server counted fewer."""
    if counted is None:
        return [event.at_s for event in events if event.text]
    first, last = 0, len(events)
    while last - first > counted and not events[last - 1].text:
        last -= 1
    while last - first > counted and not events[first].text:
        first += 1
    return [event.at_s for event in events[first:last]]


def load_aiohttp() -> Any:
    """The HTTP library. Raises InputError with the line that installs it."""
    try:
        import aiohttp
    except ImportError:
        raise InputError(
            "asking a server needs aiohttp, which is not installed",
            mend="pip install 'capacity-plan[endpoint]'",
        ) from None
    return aiohttp


Clock = Callable[[], float]


class Client:
    """A client of one server; an asynchronous context. `say` hears what a person should know, `clock` is seconds."""

    def __init__(self, target: Target, say: Callable[[str], None], clock: Clock = time.perf_counter) -> None:
        self.target = target
        self.say = say
        self.clock = clock
        self._http = load_aiohttp()
        self._session: aiohttp.ClientSession | None = None
        self._told = False

    async def __aenter__(self) -> Client:
        http, target = self._http, self.target
        self._session = http.ClientSession(
            connector=http.TCPConnector(limit=0, force_close=True),
            timeout=http.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=target.timeout_s),
            headers={"Authorization": f"Bearer {target.key}"} if target.key else {},
            read_bufsize=LINE_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def asking(self, target: Target) -> Client:
        """The same connections, asked in another way."""
        other = type(self)(target, self.say, self.clock)
        other._session = self._session
        return other

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def model(self) -> str:
        """The name of the model to ask for: the target's, or the only one served.

        Raises InputError if the server is down, or serves no such model.
        """
        where, asked = f"{self.target.base}/v1/models", self.target.model
        try:
            async with self._open().get(where) as response:
                status, text = response.status, await response.text()
        except (self._http.ClientError, TimeoutError, OSError) as error:
            raise InputError(self._trouble(error), where=where, mend="start the server, or check the address") from None
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            names = [str(each["id"]) for each in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"it lists no models ({type(error).__name__}: {error}): {text[:120]}",
                where=where,
                mend="give the address of an OpenAI-compatible server, and its key if it wants one",
            ) from None
        if asked in names or (not asked and len(names) == 1):
            return asked or names[0]
        listed = ", ".join(names) or "none"
        if not asked:
            raise InputError(f"the server has several models ({listed})", where=where, mend="choose one by --model")
        close = nearest(asked, names)
        raise InputError(
            f"the server has no model '{asked}'; it lists {listed}",
            where="--model",
            mend=f"did you mean '{close}'?" if close else "name one that it lists",
        )

    def _trouble(self, error: BaseException) -> str:
        """A failure in words."""
        target = self.target
        if isinstance(error, TimeoutError):
            return f"the server sent nothing for {target.timeout_s:g} s (or took no connection in {CONNECT_S:g} s)"
        if isinstance(error, self._http.ClientConnectorError):
            return f"nothing answers at {target.base}: {error.os_error.strerror or error}"
        return f"the connection broke: {type(error).__name__}: {error}"[:300]

    async def until(self, at_s: float) -> None:
        """Wait until its clock says so."""
        while (left_s := at_s - self.clock()) > 0:
            await asyncio.sleep(left_s)

    def _body(self, prompt: Prompt, tokens: int) -> dict[str, Any]:
        target = self.target
        said = {"messages": [{"role": "user", "content": prompt}]} if target.api == "chat" else {"prompt": prompt}
        body = {
            "model": target.model,
            **(said if isinstance(prompt, str) else {"prompt": list(prompt)}),
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body | ({"ignore_eos": True} if target.fixed_length else {})

    async def ask(self, prompt: Prompt, tokens: int, attempts: int = ATTEMPTS) -> Answer:
        """Send a prompt, read its answer of at most so many tokens; after a 429 wait and send it again, `attempts` times in all.

        Whatever goes wrong stands in `error` of the answer.
        """
        wait_s, refused = 1.0, 0
        while True:
            answer = Answer(self.clock(), refusals=refused)
            asked_s = await self._once(answer, prompt, tokens)
            answer.end_s = self.clock()
            if answer.status != 429 or refused + 1 >= attempts:
                return answer
            refused += 1
            pause_s = min(wait_s if asked_s is None else asked_s, LONGEST_WAIT_S)
            if not self._told:
                self._told = True
                self.say(f"the server limits the rate (429); waiting {pause_s:g} s and longer between tries")
            await asyncio.sleep(pause_s)
            wait_s *= 2

    async def _once(self, answer: Answer, prompt: Prompt, tokens: int) -> float | None:
        """One try; what a 429 asks to wait [s], None if nothing."""
        url = self.target.base + PATHS[self.target.api]
        try:
            async with self._open().post(url, json=self._body(prompt, tokens)) as response:
                answer.status = response.status
                if response.status != 200:
                    text = await response.text()
                    answer.error = f"the server answered {response.status}: {text[:200].strip() or response.reason}"
                    return _seconds(response.headers.get("Retry-After"))
                if "event-stream" not in response.content_type:
                    answer.error = f"the server does not stream: it answered {response.content_type} to stream: true"
                    return None
                await self._read(answer, response)
        except (self._http.ClientError, TimeoutError, OSError, ValueError) as error:
            answer.error = self._trouble(error)
        return None

    async def _read(self, answer: Answer, response: aiohttp.ClientResponse) -> None:
        events: list[Event] = []
        ended = False
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            at_s, data = self.clock(), line[5:].strip()
            if data == b"[DONE]":
                ended = True
                break
            chunk = json.loads(data)
            if "error" in chunk:
                answer.error = f"the server broke off: {chunk['error']}"[:300]
                return
            usage = chunk.get("usage") or {}
            answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
            answer.output_tokens = usage.get("completion_tokens", answer.output_tokens)
            for choice in chunk.get("choices", ()):
                ended = ended or choice.get("finish_reason") is not None
                events.append(Event(at_s, _has_text(choice)))
        answer.token_s = token_times(events, answer.output_tokens)
        if not ended:
            answer.error = "the stream ended without an end of the answer"
        elif not answer.token_s:
            answer.error = "the server's answer has no token"


def _has_text(choice: dict[str, Any]) -> bool:
    said = choice.get("delta") or choice
    return any(said.get(key) for key in ("text", "content", "reasoning_content", "reasoning"))


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; one that is a date counts as none."""
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None


__all__ = ["Answer", "Api", "Client", "Clock", "Prompt", "Target", "load_aiohttp"]
