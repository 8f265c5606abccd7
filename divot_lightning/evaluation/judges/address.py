"""Where a judge's endpoint is, and what of it may be shown. No torch in here."""

import base64
import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from divot_lightning.errors import UserError

HIDDEN = "***"
MIN_SECRET = 4
"""Shorter secrets are not looked for in texts: they would blot out ordinary words."""


class JudgeAddress:
    """A URL and a key; as text, the URL without what is secret in it.

    Args:
        url: Base of the endpoint; may hold a user and a password, and a query that every request gets.
        key: Sent as a bearer token; None or empty for none.

    Raises:
        UserError: The URL is not one of HTTP.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            place = _without_user(parts)
        except ValueError as error:
            raise UserError("the judge's URL cannot be read; it must be such as http://HOST:PORT/v1") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = urlunsplit((parts.scheme, place, parts.path, "", ""))
            raise UserError(f"the judge's URL is {shown!r}; it must begin with http:// or https://")
        self.host, path = parts.hostname, parts.path.rstrip("/")
        self._shown = urlunsplit((parts.scheme, place, path, "", ""))
        self.url = urlunsplit((parts.scheme, place, f"{path}/chat/completions", parts.query, ""))
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
        """Return a text that came from outside without secrets and, as one line, without control characters."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = re.sub(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+", rf"\1 {HIDDEN}", text) if single_line else text
        if not single_line:
            return text
        return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _without_user(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return host if parts.port is None else f"{host}:{parts.port}"
