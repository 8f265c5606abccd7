"""The web server of the page: a few addresses on Starlette, none of which takes a path from the browser.

Other web pages cannot use it: requests must name this host (so that no outside name can be pointed at the loopback
address), requests that change something must come from the page itself, and the browser is told to load nothing from
elsewhere.
"""

import json
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from divot_lightning import __version__
from divot_lightning.demo.actions import Actions
from divot_lightning.demo.clips import ClipStore
from divot_lightning.demo.examples import Examples, make_examples
from divot_lightning.demo.jobs import JobQueue, QueueFull
from divot_lightning.demo.limits import Limits
from divot_lightning.demo.systems import System, preferred
from divot_lightning.errors import UserError

PAGE = Path(__file__).parent / "page"
LOOPBACK = {"127.0.0.1": "127.0.0.1", "localhost": "localhost", "::1": "[::1]"}
"""Addresses that only this machine reaches, and how a browser names them."""

MOST_REQUEST_BYTES = 2**18
"""Of a job in JSON: a conversation of the greatest length fits."""

MOST_CONNECTIONS = 64
"""At a time; more are refused. Each may be sending a file."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLarge(UserError):
    """A request has more bytes than are allowed."""


class Demo:
    """The page of some runs.

    Args:
        systems: The runs.
        folder: Where uploads and results are kept.
        limits: What visitors may ask for.
        videos: Example clips, instead of those of the toy world.
    """

    def __init__(
        self, systems: Sequence[System], folder: Path, limits: Limits | None = None, videos: Sequence[Path] = ()
    ) -> None:
        self.systems, self.limits, self.files = list(systems), limits or Limits(), folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.clips = ClipStore(folder / "uploads", self.limits)
        self.examples: Examples = make_examples(self.systems, self.clips, self.files / "examples", videos)
        self.actions = Actions(systems, self.clips, self.files, self.limits)
        limited = {"waiting": self.limits.waiting, "results": self.limits.results}
        self.jobs = JobQueue(self.actions, self.actions.forget, **limited)

    def app(self, hosts: Sequence[str] = tuple(LOOPBACK.values())) -> Starlette:
        """Return the web application.

        Args:
            hosts: Names by which it may be called; "*" is any.
        """

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await anyio.to_thread.run_sync(self.jobs.close)

        routes = [
            Route("/", lambda request: FileResponse(PAGE / "index.html")),
            Route("/api/about", self.about),
            Route("/api/clips", self.upload, methods=["POST"]),
            Route("/api/jobs", self.start, methods=["POST"]),
            Route("/api/jobs/{id}", self.look, methods=["GET"]),
            Route("/api/jobs/{id}", self.cancel, methods=["DELETE"]),
            Mount("/files", StaticFiles(directory=self.files)),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        guards = [
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=_guard),
        ]
        refusals = {UserError: _refusal(400), TooLarge: _refusal(413), QueueFull: _refusal(429)}
        return Starlette(routes=routes, middleware=guards, exception_handlers=refusals, lifespan=lifespan)

    def about(self, request: Request) -> Response:
        """Say what the page can do."""
        limited = {"upload_mb", "seconds", "characters", "turns", "samples", "story_clips", "steps"}
        limits = {name: getattr(self.limits, name) for name in sorted(limited)}
        described = [system.describe() for system in self.systems]
        shown = {"systems": described, "preferred": preferred(self.systems), "examples": self.examples.describe()}
        return JSONResponse({"version": __version__, "limits": limits, **shown})

    async def upload(self, request: Request) -> Response:
        """Take a clip: its bytes are the body of the request."""
        name, path = request.query_params.get("name", "clip"), self.clips.new_file()
        most = self.limits.upload_mb * 10**6
        try:
            with path.open("wb") as file:
                async for piece in _pieces(request, most, f"The file is too large: more than {most / 1e6:g} MB."):
                    file.write(piece)
        except BaseException:  # also if the visitor goes away
            path.unlink(missing_ok=True)
            raise
        clip = await anyio.to_thread.run_sync(self.clips.add, path, name)
        return JSONResponse(clip.describe())

    async def start(self, request: Request) -> Response:
        """Put a job into the queue."""
        pieces = [piece async for piece in _pieces(request, MOST_REQUEST_BYTES, "The request is too large.")]
        try:
            given = json.loads(b"".join(pieces))
        except ValueError:
            given = None
        if not isinstance(given, dict) or given.get("kind") not in self.actions.kinds:
            raise UserError(f"A request is a JSON object whose kind is one of: {', '.join(self.actions.kinds)}.")
        job = self.jobs.submit(given["kind"], given)
        return JSONResponse(self.jobs.describe(job.id), status_code=202)

    def look(self, request: Request) -> Response:
        """Tell how far a job is."""
        return JSONResponse(self.jobs.describe(request.path_params["id"]))

    def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        self.jobs.cancel(request.path_params["id"])
        return JSONResponse(self.jobs.describe(request.path_params["id"]))


async def _pieces(request: Request, most: int, message: str) -> AsyncIterator[bytes]:
    """Yield the body of a request piece by piece; it is never in memory as a whole.

    Raises:
        TooLarge: It has more bytes than ``most``, or says so.
    """
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most:
        raise TooLarge(message)
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > most:
            raise TooLarge(message)
        yield piece


async def _guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse changes that another web page asks for, and add the headers."""
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD") and origin and origin.split("//")[-1] != request.headers.get("host"):
        response: Response = JSONResponse({"error": "Only the page itself may do this."}, status_code=403)
    else:
        response = await answer(request)
    response.headers.update(HEADERS)
    return response


def _refusal(status: int) -> Callable[[Request, Exception], Response]:
    return lambda request, error: JSONResponse({"error": str(error)}, status_code=status)


def serve(
    systems: Sequence[System],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    videos: Sequence[Path] = (),
    started: Callable[[str], object] = print,
) -> None:
    """Serve the page until Ctrl-C; its files are in a temporary folder, which is deleted at the end.

    Args:
        systems: The runs.
        host: Address to listen at. Others than the loopback address let everybody who reaches it use the page.
        port: Port; 0 takes a free one.
        limits: What visitors may ask for.
        videos: Example clips.
        started: Called with the page's address when it can be opened.

    Raises:
        UserError: The address cannot be used.
    """
    folders = tempfile.TemporaryDirectory(prefix="divot_demo_")
    with _listening(host, port) as sock, _sigterm_as_ctrl_c(), folders as folder:
        demo = Demo(systems, Path(folder), limits, videos)
        app, most = demo.app() if host in LOOPBACK else demo.app(["*"]), MOST_CONNECTIONS
        config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", limit_concurrency=most)
        started(f"http://{LOOPBACK.get(host, host)}:{sock.getsockname()[1]}/")
        uvicorn.Server(config).run([sock])


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, with which schedulers end programs, raise `KeyboardInterrupt`, so that the folder is deleted."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections, which wait until the server runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be used: {error.strerror}\ngive another --port, or 0") from error
