"""A proxy in front of a server of the OpenAI protocol that counts what passes, and breaks what a test wants broken."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("drop", "drop paid", "half", "stall", "429", "500", "no json", "other json", "aborted")
"""Connection closed before and after the server was asked, or in the middle of its reply; no reply at all; error
statuses; a page; an object that is no completion; a completion that was given up. Beside these: any error status, and
"tomorrow", a quota that asks for a day's pause."""
ABORTED = {
    "choices": [{"text": "", "finish_reason": "abort", "token_ids": []}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 0},
}
SAID = {
    "no json": b"<html>one moment please</html>",
    "other json": b'{"object": "error", "message": "engine is loading"}',
    "aborted": json.dumps(ABORTED).encode(),
}


class FaultProxy:
    """Passes requests on to a server, unless a test names what is to go wrong.

    Args:
        target: Address of the server behind it; only host and port are used.
        fault: From a request's number, from 1, and its body to a kind of fault, or "".
        stall: Seconds of a stall.
        pause_ms: What error statuses ask the client to wait.
    """

    def __init__(self, target, fault, stall, pause_ms):
        self.requests, self.passed, self.in_flight = [], [], 0
        """(kind of fault, body, time) of every POST; bodies of those that the server behind replied to."""
        outer, lock, parts = self, threading.Lock(), urlsplit(target)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(*self.asked_behind(None))

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(data)
                with lock:
                    kind = fault(len(outer.requests) + 1, body)
                    outer.requests.append((kind, body, time.monotonic()))
                    outer.in_flight += 1
                try:
                    self.break_or_pass(kind, data, body)
                finally:
                    with lock:
                        outer.in_flight -= 1

            def break_or_pass(self, kind, data, body):
                if kind.isdigit():
                    text = (
                        b"Internal Server Error" if kind == "500" else b'{"error": {"message": "no", "type": "error"}}'
                    )
                    return self.reply(int(kind), text, pause_ms)
                if kind == "tomorrow":
                    return self.reply(429, b'{"error": {"message": "quota", "type": "error"}}', 86_400_000)
                if kind in SAID:
                    return self.reply(200, SAID[kind])
                if kind in ("drop", "stall"):
                    time.sleep(stall if kind == "stall" else 0)
                    return self.hang_up()
                status, told = self.asked_behind(data)
                if kind != "half":  # whoever got half of a reply has none
                    with lock:
                        outer.passed.append(body)
                return self.hang_up() if kind == "drop paid" else self.reply(status, told, half=kind == "half")

            def asked_behind(self, data):
                behind = HTTPConnection(parts.netloc, timeout=300)
                behind.request(self.command, self.path, data, {"Content-Type": "application/json"})
                answer = behind.getresponse()
                return answer.status, answer.read()

            def hang_up(self):
                self.close_connection = True
                self.connection.shutdown(2)

            def reply(self, status, data, pause_ms=None, half=False):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    if pause_ms is not None:
                        self.send_header("Retry-After", str(pause_ms / 1000))
                        self.send_header("Retry-After-Ms", str(pause_ms))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if half else data)
                    self.close_connection = self.close_connection or half
                except OSError:
                    pass  # the client is gone

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}{parts.path}"

    @property
    def n(self):
        """Requests so far."""
        return len(self.requests)

    @property
    def faults(self):
        """How often each kind of fault was made, "" for none."""
        return Counter(kind for kind, _, _ in self.requests)

    @property
    def seen(self):
        """Requests by what the user's turn says."""
        return Counter(body["messages"][-1]["content"] for _, body, _ in self.requests)

    @property
    def paid(self):
        """The same of those that the server behind replied to."""
        return Counter(body["messages"][-1]["content"] for body in self.passed)


@contextmanager
def proxied(target, fault=lambda n, body: "", stall=30.0, pause_ms=10):
    """The proxy, running in threads of this process."""
    proxy = FaultProxy(target, fault, stall, pause_ms)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.http.shutdown()
        proxy.http.server_close()
        thread.join()
