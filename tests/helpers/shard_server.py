"""A small http server on this machine that serves shards well or badly, for tests of remote data."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class ShardServer:
    """A running server.

    Attributes:
        url: Its address, without a slash at the end.
        requests: Method, name of the file, first byte and byte after the last that were asked for, as they came.
    """

    url: str
    requests: list[tuple[str, str, int, int]] = field(default_factory=list)


@contextmanager
def serve_shards(
    folder: str | Path, *, ranges: bool = True, hang_up_after: Mapping[str, int] | None = None
) -> Iterator[ShardServer]:
    """Serve a folder's files on a free port of the loopback interface as long as the block lasts.

    Args:
        folder: Whose files; anything else is answered with 404.
        ranges: Whether byte ranges can be requested; otherwise the whole file is sent for every request.
        hang_up_after: By file name, the byte before which the server always hangs up, having promised the rest.
    """
    files, limits = Path(folder), dict(hang_up_after or {})
    state = ShardServer("")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Write no log."""

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            name = unquote(self.path).lstrip("/")
            path = files / name
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            start, end = self._range(len(data)) if ranges else (0, len(data))
            state.requests.append((self.command, name, start, end))
            partial = ranges and "Range" in self.headers
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes" if ranges else "none")
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.end_headers()
            if send:
                self.wfile.write(data[start : min(end, max(start, limits.get(name, end)))])

        def _range(self, size: int) -> tuple[int, int]:
            requested = self.headers.get("Range")
            if requested is None:
                return 0, size
            first, _, last = requested.removeprefix("bytes=").partition("-")
            return int(first), min(size, int(last) + 1) if last else size

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
