"""A judge behind an HTTP endpoint with the OpenAI chat protocol: bounded in number, time and size.

No torch in here; `httpx2` is imported when an endpoint is used.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges.address import JudgeAddress
from divot_lightning.evaluation.judges.judge import Keep
from divot_lightning.evaluation.judges.prompts import Chat

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE = "DIVOT_JUDGE_API_KEY"
"""Environment variable with the endpoint's key; there is no other way to give it, so that no file holds it."""

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request is sent again."""
ITEM_REFUSED = (400, 413, 422)
"""HTTP statuses that concern one request, such as a content filter's; others concern the endpoint or the key."""
MAX_BODY = 1 << 20
"""Most bytes of a reply; a chat completion of some hundred tokens has a few thousand."""


@dataclass(frozen=True)
class Limits:
    """Bounds on requests and their time.

    Attributes:
        concurrency: Most requests at a time.
        max_requests: Most requests in all, failed ones included; bounds the cost of a mistake.
        tries: Most times that a request is sent.
        timeout: Seconds for one request, from connecting to the last byte.
        pause: Seconds before the second try; doubled for each further one, unless the endpoint names a time.
    """

    concurrency: int = 4
    max_requests: int = 20_000
    tries: int = 5
    timeout: float = 60.0
    pause: float = 1.0


class _Refused(Exception):
    """The endpoint refuses this request."""


class _Failed(Exception):
    """The request may be sent again, after some seconds if the endpoint names them."""

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause = pause


class EndpointReplier:
    """Send chats to `<url>/chat/completions`.

    Args:
        url: Base of the endpoint, such as `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`.
        model: Name of the model there.
        decoding: `temperature`, `top_p` and `max_tokens`; None is not sent, so that the endpoint's default holds.
        limits: Bounds on requests.

    Raises:
        UserError: The URL is not an HTTP URL, or the client library is not installed.
    """

    repeatable = False

    def __init__(
        self, url: str, model: str, decoding: dict[str, Any] | None = None, limits: Limits | None = None
    ) -> None:
        self.address, self.model, self.limits = JudgeAddress(url, _key()), model, limits or Limits()
        chosen = {"temperature": 0.0} if decoding is None else decoding
        self.decoding = {name: value for name, value in chosen.items() if value is not None}
        self.requests = 0
        self._last_refusal = ""

    def describe(self) -> dict[str, Any]:
        """See `Replier`; the key is no part of it."""
        return {"kind": "endpoint", "host": self.address.host, "model": self.model, "decoding": self.decoding}

    def check(self, chat: Chat) -> None:
        """See `Replier`: sends one small request."""

        def refuse(_: Chat, reply: str | None) -> None:
            if reply is None and self._last_refusal:
                raise UserError(f"the judge at {self.address} refuses a small request: {self._last_refusal}")

        self.ask([chat], refuse)

    def ask(self, chats: Sequence[Chat], keep: Keep) -> None:
        """See `Replier`.

        Raises:
            UserError: The endpoint refuses, cannot be reached, or `max_requests` are used up.
        """
        self._last_refusal = ""
        client_library()
        from anyio.from_thread import start_blocking_portal

        # In a thread of its own, since a notebook has a running event loop; a second Ctrl-C is not needed to stop it.
        with start_blocking_portal() as portal:
            portal.call(self._ask_all, chats, keep)

    async def _ask_all(self, chats: Sequence[Chat], keep: Keep) -> None:
        httpx2 = client_library()
        gate = asyncio.Semaphore(self.limits.concurrency)
        limits = httpx2.Limits(max_connections=self.limits.concurrency)
        try:
            async with httpx2.AsyncClient(timeout=None, limits=limits) as client, asyncio.TaskGroup() as group:
                for chat in chats:
                    group.create_task(self._one(client, gate, chat, keep))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _one(self, client: "httpx2.AsyncClient", gate: asyncio.Semaphore, chat: Chat, keep: Keep) -> None:
        async with gate:
            try:
                reply = await self._reply(client, chat)
            except _Refused as refusal:
                reply, self._last_refusal = None, str(refusal)
            keep(chat, reply)

    async def _reply(self, client: "httpx2.AsyncClient", chat: Chat) -> str | None:
        problem = ""
        for number in range(self.limits.tries):
            self._count()
            try:
                return await self._send(client, chat)
            except _Failed as failure:
                problem, pause = str(failure), failure.pause or self.limits.pause * 2**number
            if number + 1 < self.limits.tries:
                await asyncio.sleep(min(pause, self.limits.timeout))
        raise UserError(
            f"the judge at {self.address} gave no answer in {self.limits.tries} tries ({problem[:200]})\n"
            "Its replies so far are stored: run the same command again to resume."
        )

    def _count(self) -> None:
        if self.requests >= self.limits.max_requests:
            raise UserError(
                f"the judge has been sent {self.requests} requests, as many as max_requests allows\n"
                "Its replies so far are stored: run again with a higher limit to resume."
            )
        self.requests += 1

    async def _send(self, client: "httpx2.AsyncClient", chat: Chat) -> str | None:
        """Send one request; a reply that is too slow or too long ends at the timeout or at `MAX_BODY`."""
        messages = [{"role": role, "content": text} for role, text in chat]
        body = {"model": self.model, "messages": messages, **self.decoding}
        library = client_library()
        try:
            async with asyncio.timeout(self.limits.timeout):
                request = client.stream("POST", self.address.url, json=body, headers=self.address.headers)
                async with request as response:
                    content = await _read_bounded(response)
        except TimeoutError as error:
            raise _Failed(f"no whole reply within {self.limits.timeout:g} s") from error
        except (library.HTTPError, library.InvalidURL) as error:
            raise _Failed(self.address.cleaned(f"{type(error).__name__}: {error}")) from error
        return self._read(response, content)

    def _read(self, response: "httpx2.Response", content: bytes) -> str | None:
        status = response.status_code
        if status == 200:
            return self._content(content)
        stated = response.headers.get("Retry-After", "")
        if status in RETRIED:
            raise _Failed(f"HTTP {status}", float(stated) if stated.isdecimal() else None)
        # A refusal of the key may repeat the key in any form, so its text is not shown.
        reason = "" if status in (401, 403) else self.address.cleaned(content[:300].decode("utf-8", "replace"))
        if status in ITEM_REFUSED:
            raise _Refused(f"HTTP {status} {reason}")
        hint = f"\nThe key is read from the environment variable {KEY_VARIABLE}." if status in (401, 403) else ""
        raise UserError(f"the judge at {self.address} refuses the request: HTTP {status} {reason}".rstrip() + hint)

    def _content(self, content: bytes) -> str | None:
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise _Failed(f"the reply is no chat completion ({type(error).__name__})") from error
        # The content is null if a reasoning model used up its tokens on thoughts: that is no reply.
        return self.address.cleaned(text, single_line=False) if isinstance(text, str) else None


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in {KEY_VARIABLE} holds characters that no HTTP header can hold")
    return key


async def _read_bounded(response: "httpx2.Response") -> bytes:
    content = b""
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BODY:
            raise _Failed(f"the reply is longer than {MAX_BODY} bytes")
    return content


def client_library() -> Any:
    """Import `httpx2`.

    Raises:
        UserError: It is not installed.
    """
    try:
        import httpx2
    except ImportError as error:
        raise UserError(
            "a judge behind an endpoint needs httpx2; in a checkout of divot-lightning: pip install '.[judge]'"
        ) from error
    return httpx2
