"""A judge behind an HTTP endpoint that speaks the OpenAI chat protocol: bounded, retried, cached on disk.

No torch in here.
"""

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges import JUDGE_PROMPT, OpenAnswer, check_prompt, fill_prompt, read_verdict

KEY_VARIABLE = "DIVOT_JUDGE_API_KEY"
"""Environment variable with the endpoint's key; there is no other way to give one, so that no file can hold it."""

MAX_TOKENS = 64
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which the same request is sent again."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for an error: the key must not follow it to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class JudgeEndpoint:
    """Asks `<url>/chat/completions`, each different request once: replies are kept in a folder.

    Args:
        url: Base of the endpoint, such as `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`.
        model: Name of the model there.
        cache: Folder of the replies.
        prompt: See `JUDGE_PROMPT`.
        concurrency: Requests at a time.
        max_requests: Requests in all, failed ones included; a bound on what a mistake can cost.
        tries: Times that a request is sent before it is given up.
        timeout: Seconds for one request.
        pause: Seconds before the second try; doubled for each further one, unless the endpoint names a time.

    Raises:
        UserError: The URL is not one of HTTP, or a number is below one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: str | Path,
        *,
        prompt: str = JUDGE_PROMPT,
        concurrency: int = 4,
        max_requests: int = 20_000,
        tries: int = 5,
        timeout: float = 60.0,
        pause: float = 1.0,
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"the judge's URL is {url!r}; it must begin with http:// or https://")
        for name, value in {"concurrency": concurrency, "max_requests": max_requests, "tries": tries}.items():
            if value < 1:
                raise UserError(f"the judge's {name} is {value}; it must be at least 1")
        self.url, self.model, self.cache, self.prompt = url.rstrip("/"), model, Path(cache), check_prompt(prompt)
        self.concurrency, self.max_requests, self.tries = concurrency, max_requests, tries
        self.timeout, self.pause = timeout, pause
        self.requests = 0
        self._lock = threading.Lock()

    def judge(self, answers: Sequence[OpenAnswer]) -> list[bool | None]:
        """See `Judge`.

        Raises:
            UserError: The endpoint refuses, cannot be reached, or `max_requests` are used up.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        prompts = [fill_prompt(self.prompt, answer) for answer in answers]
        different = list(dict.fromkeys(prompts))
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._reply, prompt) for prompt in different]
            try:
                replies = {prompt: future.result() for prompt, future in zip(different, waiting, strict=True)}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [read_verdict(replies[prompt]) for prompt in prompts]

    def describe(self) -> dict[str, Any]:
        """See `Judge`; the key is no part of it."""
        host = urllib.parse.urlsplit(self.url).hostname
        return {"kind": "endpoint", "host": host, "model": self.model, "prompt": self.prompt, "temperature": 0}

    def _reply(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        data = json.dumps(body, sort_keys=True).encode("utf-8")
        file = self.cache / f"{hashlib.sha256(self.url.encode() + data).hexdigest()}.json"
        if file.is_file():
            return str(json.loads(file.read_text(encoding="utf-8"))["reply"])
        reply = self._ask(data)
        unfinished = file.with_suffix(f".{threading.get_ident()}.part")
        unfinished.write_text(json.dumps({"request": body, "reply": reply}), encoding="utf-8")
        unfinished.replace(file)
        return reply

    def _ask(self, data: bytes) -> str:
        problem = ""
        for number in range(self.tries):
            self._count()
            try:
                return self._send(data)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}"
                if error.code not in RETRIED:
                    raise UserError(self._refusal(error)) from error
                pause = _retry_after(error) or self.pause * 2**number
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                problem, pause = f"{type(error).__name__}: {error}", self.pause * 2**number
            if number + 1 < self.tries:
                time.sleep(min(pause, self.timeout))
        raise UserError(
            f"the judge at {self.url} gave no answer in {self.tries} tries ({problem[:200]})\n"
            "What it said so far is kept: run the same command again to go on."
        )

    def _count(self) -> None:
        with self._lock:
            if self.requests >= self.max_requests:
                raise UserError(
                    f"the judge has been sent {self.requests} requests, as many as max_requests allows\n"
                    "What it said is kept: run again with a higher limit to go on."
                )
            self.requests += 1

    def _send(self, data: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data, headers)
        with _OPENER.open(request, timeout=self.timeout) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        said = error.read(300).decode("utf-8", "replace").replace("\n", " ")
        hint = f"\nThe key is read from the environment variable {KEY_VARIABLE}." if error.code in (401, 403) else ""
        return f"the judge at {self.url} refuses the request: HTTP {error.code} {said}{hint}"


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    stated = error.headers.get("Retry-After", "")
    return float(stated) if stated.isdecimal() else None
