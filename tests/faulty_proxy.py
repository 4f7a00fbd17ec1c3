"""A proxy that breaks what passes: for tests of everything that asks a server."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("drop", "half", "stall", "429", "500", "no json", "other json", "aborted")


class FaultyProxy:
    """Passes requests on, unless `fault(number, body)` names what is to go wrong instead.

    Args:
        target: Address of the server behind it.
        fault: From a request's number, from 0, and its body to one of FAULTS or None.
        stall: Seconds of a stall.
    """

    def __init__(self, target, fault, stall=2.0):
        self.seen, self.passed, self.waits = [], [], []
        outer, parts, lock = self, urlsplit(target), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.forward(None)

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(data)
                with lock:
                    kind = fault(len(outer.seen), body)
                    outer.seen.append((kind, body, time.monotonic()))
                self.forward(data) if kind is None else self.spoil(kind, data)

            def forward(self, data, half=False):
                behind = http.client.HTTPConnection(parts.netloc, timeout=60)
                behind.request(self.command, self.path, data, {"Content-Type": "application/json"})
                told = behind.getresponse()
                said = told.read()
                if data is not None and not half:
                    with lock:
                        outer.passed.append(json.loads(data))
                self.reply(told.status, said, half=half)

            def spoil(self, kind, data):
                if kind == "drop":
                    self.close_connection = True
                elif kind == "half":
                    self.forward(data, half=True)
                elif kind == "stall":
                    time.sleep(stall)
                    self.close_connection = True
                elif kind == "429":
                    self.reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.2"})
                elif kind == "500":
                    self.reply(500, b"Internal Server Error")
                elif kind == "no json":
                    self.reply(200, b"<html>one moment please</html>")
                elif kind == "other json":
                    self.reply(200, b'{"object": "error", "message": "engine is loading"}')
                else:
                    usage = {"prompt_tokens": 3, "completion_tokens": 0}
                    choice = {"text": "", "finish_reason": "abort", "token_ids": []}
                    self.reply(200, json.dumps({"choices": [choice], "usage": usage}).encode())

            def reply(self, status, data, headers=None, half=False):
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in (headers or {}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if half else data)
                    self.close_connection = self.close_connection or half
                except ConnectionError:
                    pass  # the client has given up waiting

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}{parts.path}"


@contextmanager
def proxy(target, fault, stall=2.0):
    """The proxy in threads of this process."""
    made = FaultyProxy(target, fault, stall)
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()
        thread.join()
