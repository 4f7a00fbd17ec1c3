"""A server that speaks the OpenAI chat-completions protocol, for tests of everything that asks one."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JUDGE = "openai-api/judged/judge-1"
"""How Inspect names the model of `serving`."""


@dataclass
class Reply:
    """One answer of the server below."""

    text: str = "safe"
    status: int = 200
    delay: float = 0.0
    logprobs: list | None = None
    """Per token: (token, logprob, {alternative: logprob})."""
    finish: str = "stop"
    error: dict = field(default_factory=dict)


class ChatServer:
    """Replies from a script, whose last one is repeated, or by a function from the request's body to a Reply."""

    def __init__(self, replies):
        self.replies, self.requests = replies, []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    reply = outer.reply(body)
                time.sleep(reply.delay)
                data = json.dumps(outer.payload(reply, body)).encode()
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.send_header("Retry-After-Ms", "10")
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass  # the client has given up waiting

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def reply(self, body):
        if callable(self.replies):
            return self.replies(body)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]

    @staticmethod
    def payload(reply, body):
        if reply.status != 200:
            return {"error": {"message": "no", "type": "error", "code": None} | reply.error}
        choice = {
            "index": 0,
            "finish_reason": reply.finish,
            "message": {"role": "assistant", "content": reply.text},
        }
        if reply.logprobs is not None and body.get("logprobs"):
            choice["logprobs"] = {
                "content": [
                    {
                        "token": token,
                        "logprob": logprob,
                        "bytes": None,
                        "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in others.items()],
                    }
                    for token, logprob, others in reply.logprobs
                ]
            }
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        }


@contextmanager
def running(monkeypatch, replies, service):
    """The server, under openai-api/<service>/MODEL for Inspect."""
    server = ChatServer(replies)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv(f"{service}_BASE_URL", server.url)
    monkeypatch.setenv(f"{service}_API_KEY", "none")
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def serving(monkeypatch, *replies):
    """A script of replies, as openai-api/judged/MODEL."""
    return running(monkeypatch, replies, "JUDGED")


def answering(monkeypatch, answer):
    """A function from a request's body to a text, or to a status other than 200, as openai-api/lab/MODEL."""

    def reply(body):
        said = answer(body)
        return Reply(status=said) if isinstance(said, int) else Reply(text=said)

    return running(monkeypatch, reply, "LAB")
