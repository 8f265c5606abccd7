"""The address of a judge's endpoint, without secrets where it is shown. No torch in here."""

import base64
import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from divot_lightning.errors import UserError

HIDDEN = "***"
MIN_SECRET = 4
"""Shorter secrets are not removed from texts, since that would remove ordinary words too."""


class JudgeAddress:
    """A URL and a key; `str` returns the URL without secrets.

    Args:
        url: Base of the endpoint; may hold a user and a password, and a query that every request gets.
        key: Sent as a bearer token; None or empty for none.

    Raises:
        UserError: The URL is not an HTTP URL.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            host = _without_user(parts)
        except ValueError as error:
            raise UserError("the judge's URL cannot be read; it must be such as http://HOST:PORT/v1") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
            raise UserError(f"the judge's URL is {shown!r}; it must begin with http:// or https://")
        self.host, path = parts.hostname, parts.path.rstrip("/")
        self._shown = urlunsplit((parts.scheme, host, path, "", ""))
        self.url = urlunsplit((parts.scheme, host, f"{path}/chat/completions", parts.query, ""))
        self.headers = {"Accept-Encoding": "identity"}
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        basic = base64.b64encode(user.encode()).decode()
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        elif user != ":":
            self.headers["Authorization"] = f"Basic {basic}"
        values = [pair.partition("=")[2] for pair in parts.query.split("&")]
        found = [key or "", basic if user != ":" else "", parts.password or "", unquote(parts.password or ""), *values]
        self._secrets = sorted({secret for secret in found if len(secret) >= MIN_SECRET}, key=len, reverse=True)

    def __str__(self) -> str:
        """Return the URL without user, password and query."""
        return self._shown

    def cleaned(self, text: str, *, single_line: bool = True) -> str:
        """Return a text of the server without secrets; if `single_line`, also without control characters."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = re.sub(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+", rf"\1 {HIDDEN}", text) if single_line else text
        if not single_line:
            return text
        return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _without_user(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return host if parts.port is None else f"{host}:{parts.port}"
