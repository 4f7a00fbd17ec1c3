"""A proxy in front of a server of the OpenAI protocol that counts what passes, and breaks what a test wants broken."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("", "429", "500", "drop", "drop paid", "stall", "garbage")
"""Passed on; an error status; connection closed before or after the server was asked; no reply at all; half a JSON."""


class FaultProxy:
    """Passes requests on to `upstream`; `fault(n, text)` names what is broken about request n (from 1)."""

    def __init__(self, upstream, fault=lambda n, text: ""):
        self.paid, self.seen, self.faults = Counter(), Counter(), Counter()
        """Requests by what the user's turn says: those the server behind replied to, and all."""
        self.in_flight, self.n = 0, 0
        outer, lock, target = self, threading.Lock(), urlsplit(upstream)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, status, data):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.send_header("Retry-After", "0")
                    self.send_header("Retry-After-Ms", "10")
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client is gone

            def hang_up(self):
                self.close_connection = True
                self.connection.shutdown(2)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                text = json.loads(body)["messages"][-1]["content"]
                with lock:
                    outer.n += 1
                    outer.seen[text] += 1
                    kind = fault(outer.n, text)
                    outer.faults[kind] += 1
                    outer.in_flight += 1
                try:
                    self.break_or_pass(kind, body, text)
                finally:
                    with lock:
                        outer.in_flight -= 1

            def break_or_pass(self, kind, body, text):
                if kind in ("429", "500", "400", "401"):
                    return self.reply(int(kind), b'{"error": {"message": "no", "type": "error", "code": null}}')
                if kind == "drop":
                    return self.hang_up()
                if kind == "stall":
                    time.sleep(30)
                    return self.hang_up()
                if kind == "garbage":
                    return self.reply(200, b'{"id": "1", "choices": [{"mess')
                behind = HTTPConnection(target.hostname, target.port, timeout=300)
                behind.request("POST", self.path, body, {"Content-Type": "application/json"})
                answer = behind.getresponse()
                data = answer.read()
                with lock:
                    outer.paid[text] += 1
                return self.hang_up() if kind == "drop paid" else self.reply(answer.status, data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@contextmanager
def proxied(upstream, fault=lambda n, text: ""):
    """The proxy, running."""
    proxy = FaultProxy(upstream, fault)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.http.shutdown()
        proxy.http.server_close()
        thread.join()
