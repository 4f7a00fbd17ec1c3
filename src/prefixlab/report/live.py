"""The report of a run on loopback, with a status bar: what `prefixlab view` serves.

The page is a static file. As served, it gets one script that asks /status.json every few seconds, shows a bar, and
offers to load the page again when there are new results; the file on disk stays as it is. Another web site can neither
read what is served (no CORS header) nor reach it under a name of its own (Host is checked).
"""

import errno
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from prefixlab.errors import UserError
from prefixlab.report.status import RunStatus

HOST = "127.0.0.1"
PORT = 8765
"""Where the first free port is looked for."""
TRIES = 20
LOOK = 2.0
"""Seconds between looks whether the page is behind the run."""
PAUSE = 20.0
"""Seconds between two builds, at least; four times as long as the last one took, if that is more."""
RETRY = 60.0
"""Seconds until a failed build is tried again where nothing has changed."""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".tex": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".parquet": "application/vnd.apache.parquet",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")([^"]*)(")')


@dataclass(frozen=True)
class Source:
    """A run, as far as the server needs it."""

    status: Callable[[], RunStatus]
    finished: Callable[[], Mapping[str, float]]
    """Finished step -> when it was, in seconds since 1970."""
    build: Callable[[], None]
    """Write the page; must not leave half of one."""


class Builder:
    """Builds the page again when the set of finished steps has changed: one at a time, and not too often."""

    def __init__(self, page: Path, source: Source, *, pause: float = PAUSE) -> None:
        self.page, self.building, self.error = page, False, ""
        self._source, self._pause = source, pause
        self._shown: frozenset[str] | None = None
        self._tried: frozenset[str] | None = None
        self._stamp, self._ended, self._took = "", -float("inf"), 0.0

    def look(self) -> bool:
        """Build if it is time to.

        Returns:
            Whether it did, or tried.
        """
        finished = dict(self._source.finished())
        steps = frozenset(finished)
        if stamp(self.page) != self._stamp:  # somebody else wrote the page: it shows what was done by then
            self._stamp = stamp(self.page)
            written = self.page.stat().st_mtime if self._stamp else -1.0
            self._shown = frozenset(s for s, when in finished.items() if when <= written) if self._stamp else None
            self.error = ""
        if steps == self._shown:
            return False
        waited = time.monotonic() - self._ended
        if waited < max(self._pause, 4 * self._took) or (self.error and steps == self._tried and waited < RETRY):
            return False
        status = self._source.status()
        if not status.steps.total or (self._stamp and status.state == "running" and status.now is None):
            return False  # there is no plan yet, or the runner is about to write the page itself
        self._build(steps)
        return True

    def _build(self, steps: frozenset[str]) -> None:
        self.building, self._tried, started = True, steps, time.monotonic()
        try:
            self._source.build()
            self._shown, self._stamp, self.error = steps, stamp(self.page), ""
        except Exception as error:  # whatever it is, the old page stays and the reader is told
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.error = " ".join(f"{kind}{error}".split())[:300]
        finally:
            self.building, self._ended = False, time.monotonic()
            self._took = self._ended - started

    def work(self, stop: threading.Event) -> None:
        """Look again and again."""
        while True:
            try:
                self.look()
            except OSError as error:  # the folder went away, or cannot be read just now
                self.error = " ".join(str(error).split())[:300]
            if stop.wait(min(LOOK, self._pause)):
                return


def stamp(page: Path) -> str:
    """Which version of a file this is; empty where there is none."""
    try:
        about = page.stat()
    except OSError:
        return ""
    return f"{about.st_mtime_ns}-{about.st_size}"


def allowed(policy: str) -> str:
    """A Content-Security-Policy under which a script of the server may ask the server."""
    found = {words[0]: words[1:] for words in (part.split() for part in policy.split(";")) if words}
    for name in ("connect-src", "script-src"):
        values = [v for v in found.get(name, []) if v != "'none'"]
        found[name] = values if "'self'" in values else [*values, "'self'"]
    return "; ".join(" ".join([name, *values]) for name, values in found.items())


def with_bar(page: str, version: str) -> str:
    """A page as served: its policy lets the bar ask, and the bar's script stands before </body>."""
    page = POLICY.sub(lambda m: m[1] + allowed(m[2]) + m[3], page, count=1)
    script = f'<script id="prefixlab-live" data-version="{version}" src="/live.js" defer></script>\n'
    before, end, after = page.rpartition("</body>")
    return f"{before}{script}{end}{after}" if end else page + script


class Server(ThreadingTCPServer):
    """Serves one report folder on loopback.

    Raises:
        OSError: The port is taken or may not be used.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, folder: Path, source: Source, port: int, *, pause: float = PAUSE) -> None:
        self.folder, self.source = folder, source
        self.builder = Builder(folder / "index.html", source, pause=pause)
        self._stop = threading.Event()
        super().__init__((HOST, port), _Handler)
        threading.Thread(target=self.builder.work, args=(self._stop,), daemon=True).start()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def close(self) -> None:
        """Let go of the port and end the builder after what it does."""
        self._stop.set()
        self.server_close()

    def status(self) -> dict[str, Any]:
        """What /status.json says: the run's state, and the page's."""
        builder = self.builder
        page = {"version": stamp(builder.page), "building": builder.building, "error": builder.error}
        return {**self.source.status().model_dump(mode="json"), "page": page}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error of ours; nothing is printed into the terminal."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30
    server_version, sys_version = "prefixlab", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"

    def log_message(self, format: str, *args: Any) -> None:
        """No log: the terminal shows the address and nothing else."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        super().end_headers()

    def do_GET(self) -> None:
        if not self._from_here():
            self._say(403, "text/plain; charset=utf-8", b"only loopback names are served\n")
            return
        place = unquote(self.path.partition("?")[0], errors="replace")
        if place == "/status.json":
            text = json.dumps(self.server.status(), ensure_ascii=True)
            self._say(200, TYPES[".json"], text.encode())
            return
        if place == "/live.js":
            self._say(200, TYPES[".js"], (files("prefixlab.report") / "templates" / "live.js").read_bytes())
            return
        file = self._file(place)
        if file is None and place in ("/", "/index.html"):
            waiting = (files("prefixlab.report") / "templates" / "waiting.html").read_text("utf-8")
            self._say(200, TYPES[".html"], with_bar(waiting, "").encode())
        elif file is None:
            self._say(404, "text/plain; charset=utf-8", b"there is no such file in the report\n")
        elif file == self.server.builder.page.resolve():
            version = stamp(file)  # taken first: if the page is replaced meanwhile, the reader is offered the new one
            page = with_bar(file.read_text("utf-8", errors="replace"), version)
            self._say(200, TYPES[".html"], page.encode("utf-8", "replace"))
        else:
            self._send(file)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True
        self._say(405, "text/plain; charset=utf-8", b"only GET and HEAD\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _from_here(self) -> bool:
        """Whether the one Host header names loopback: a name that somebody points at loopback is refused."""
        hosts = self.headers.get_all("Host", [])
        try:
            return len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in LOOPBACK and "@" not in hosts[0]
        except ValueError:
            return False

    def _file(self, place: str) -> Path | None:
        """The file at an address: a regular one inside the folder, links followed, hidden names left out."""
        if not place.startswith("/") or "\\" in place or not place.isprintable():
            return None
        parts = place[1:].split("/")
        parts = [*parts[:-1], parts[-1] or "index.html"]
        if any(not p or p.startswith(".") for p in parts):
            return None
        try:
            root = self.server.folder.resolve()
            file = root.joinpath(*parts).resolve()
            return file if file.is_relative_to(root) and file.is_file() else None
        except (OSError, ValueError):
            return None

    def _send(self, file: Path) -> None:
        with file.open("rb") as source:
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(file.suffix.lower(), "application/octet-stream"))
            source.seek(0, 2)
            self.send_header("Content-Length", str(source.tell()))
            source.seek(0)
            self.end_headers()
            if self.command == "GET":
                shutil.copyfileobj(source, self.wfile)

    def _say(self, code: int, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def listen(folder: Path, source: Source, port: int | None) -> Server:
    """A server that listens and does not serve yet.

    Args:
        folder: Report folder; may be missing as long as there is no report.
        source: The run.
        port: The one to use; None for the first free one from PORT on.

    Raises:
        UserError: The port is taken, or may not be used.
    """
    for number in range(PORT, PORT + TRIES) if port is None else (port,):
        try:
            return Server(folder, source, number)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "taken" if error.errno == errno.EADDRINUSE else "not allowed"
    if port is None:
        raise UserError(f"ports {PORT} to {PORT + TRIES - 1} are all taken; name a free one with --port")
    raise UserError(f"--port {port} is {why}; name another one, or none for the first free one from {PORT} on")
